"""Embeds images and measures their accuracies on a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlrc_lightning.data.splits import Indices
from mlrc_lightning.metrics import METRICS, RetrievalMetrics, clustering_metrics, retrieval_metrics
from mlrc_lightning.parallel.collectives import gather_in_order, largest
from mlrc_lightning.parallel.signals import StopSignals, TrialStopped
from mlrc_lightning.protocol.build import TrialData, build_trainer, clustering_seed
from mlrc_lightning.results.queries import QueryAccuracies, QueryResults
from mlrc_lightning.results.records import Accuracies, EvaluationResult
from mlrc_lightning.settings.types import TrialSettings
from mlrc_lightning.training.datamodule import Pixels, evaluation_loader, own_images
from mlrc_lightning.training.module import EmbeddingModule


def raise_if_stopped(stop: StopSignals | None, where: str) -> None:
    """Raises TrialStopped where a rank has received a signal.

    It is a collective. What is finished is on disk already.
    """
    signum = 0 if stop is None else largest(stop.received)
    if signum:
        raise TrialStopped(signum, where)


@dataclasses.dataclass(frozen=True)
class _Found:
    """What one set of embeddings comes to: `accuracies` are those of the record, NMI and AMI where asked for."""

    metrics: RetrievalMetrics
    accuracies: Accuracies

    @classmethod
    def of(cls, settings: TrialSettings, metrics: RetrievalMetrics, embeddings: Tensor, labels: Tensor) -> _Found:
        return cls(metrics, metrics.as_dict() | _clustering(settings, embeddings, labels))


def _test(
    settings: TrialSettings,
    data: TrialData,
    modules: Mapping[int, EmbeddingModule],
    folder: Path,
    opened_at: str,
    stop: StopSignals | None = None,
) -> tuple[EvaluationResult, QueryResults, Tensor]:
    """Tests one model a fold, each alone and all as one.

    Returns:
        The accuracies, those of single queries, and the embeddings of all folds as one; (N, K * E).
    """
    images, num_folds = data.test.cache.indices, settings.split.num_folds
    embeddings = []
    for number, module in modules.items():
        raise_if_stopped(stop, f"the test of fold {number}")
        embeddings.append(_embed(module, settings, data.test, images, folder))

    def measured(embedding: Tensor) -> _Found:
        labels = torch.from_numpy(data.images.labels[images])
        return _Found.of(settings, metrics_on_test(embedding, data), embedding, labels)

    found = {fold: measured(embedding) for fold, embedding in zip(modules, embeddings, strict=True)}
    concatenated, notes = None, []
    if set(modules) == set(range(num_folds)):
        concatenated = measured(torch.cat(embeddings, dim=1))
    else:
        notes.append(f"concatenated embeddings need all {num_folds} folds, found {len(modules)}")
    queried = _queries_on_test(data)
    queries = QueryResults(
        index=queried,
        label=data.images.labels[queried],
        folds=np.array(list(modules), dtype=np.int64),
        separated=_per_query([of_fold.metrics.per_query for of_fold in found.values()]),
        concatenated=None if concatenated is None else _per_query(concatenated.metrics.per_query),
    )
    return _result(found, concatenated, opened_at, notes), queries, torch.cat(embeddings, dim=1)


def _queries_on_test(data: TrialData) -> Indices:
    """Returns the dataset indices of the images behind the rows of `metrics_on_test(...).per_query`, in their order."""
    images = data.test.cache.indices
    if data.test_queries is None:
        candidates, gallery, num_needed = images, images, 2  # a query is in the gallery itself
    else:
        candidates, gallery = data.test_queries, np.setdiff1d(images, data.test_queries)
        num_needed = 1
    sizes = np.bincount(data.images.labels[gallery], minlength=data.num_classes)
    queries: Indices = candidates[sizes[data.images.labels[candidates]] >= num_needed]
    return queries


def _result(
    found: Mapping[int, _Found], concatenated: _Found | None, opened_at: str, notes: Sequence[str]
) -> EvaluationResult:
    first = next(iter(found.values())).metrics
    collapsed = [
        f"fold {n}: all embeddings lie in one point" for n, of_fold in found.items() if of_fold.metrics.collapsed
    ]
    return EvaluationResult(
        opened_at=opened_at,
        num_queries=first.num_queries,
        num_without_relevant=first.num_without_relevant,
        separated=dict(mean_accuracies([of_fold.accuracies for of_fold in found.values()])),
        separated_folds={str(number): of_fold.accuracies for number, of_fold in found.items()},
        concatenated=None if concatenated is None else dict(concatenated.accuracies),
        baselines={},
        notes=(*collapsed, *notes),
    )


def _per_query(per_query: Tensor | Sequence[Tensor]) -> QueryAccuracies:
    """Splits (Q, 3) of one embedding, or of each fold, into arrays (Q,) or (K, Q)."""
    values = per_query if isinstance(per_query, Tensor) else torch.stack(list(per_query))
    columns = dict(
        zip(METRICS, values.numpy().transpose(2, 0, 1) if values.ndim == 3 else values.numpy().T, strict=True)
    )
    return QueryAccuracies(
        correct_at_1=columns["precision_at_1"].astype(np.uint8),
        r_precision=columns["r_precision"].astype(np.float32),
        average_precision_at_r=columns["mean_average_precision_at_r"].astype(np.float32),
    )


def metrics_on_test(embeddings: Tensor, data: TrialData) -> RetrievalMetrics:
    """Returns the accuracies of embeddings of all test images, which query each other.

    Where the dataset publishes queries and a gallery, those query the gallery alone.

    Args:
        embeddings: (N, E), in the order of the test images.
        data: With the test images.
    """
    images = data.test.cache.indices
    labels = torch.from_numpy(data.test.labels[images])
    if data.test_queries is None:
        return retrieval_metrics(embeddings, labels)
    is_query = torch.from_numpy(np.isin(images, data.test_queries))
    return retrieval_metrics(embeddings[is_query], labels[is_query], embeddings[~is_query], labels[~is_query])


def mean_accuracies(accuracies: Sequence[Accuracies]) -> Accuracies:
    """Returns the mean of each metric."""
    return {name: float(np.mean([accuracy[name] for accuracy in accuracies])) for name in accuracies[0]}


def _test_accuracies(settings: TrialSettings, embeddings: Tensor, data: TrialData) -> Accuracies:
    labels = torch.from_numpy(data.images.labels[data.test.cache.indices])
    return metrics_on_test(embeddings, data).as_dict() | _clustering(settings, embeddings, labels)


def _accuracies(settings: TrialSettings, embeddings: Tensor, labels: Tensor) -> Accuracies:
    return retrieval_metrics(embeddings, labels).as_dict() | _clustering(settings, embeddings, labels)


def _clustering(settings: TrialSettings, embeddings: Tensor, labels: Tensor) -> Accuracies:
    """Returns NMI and AMI where they are asked for."""
    if not settings.evaluation.clustering:
        return {}
    return clustering_metrics(embeddings, labels, clustering_seed(settings))


def _embed(
    module: EmbeddingModule,
    settings: TrialSettings,
    pixels: Pixels,
    images: Indices,
    folder: Path,
) -> Tensor:
    """Embeds some images in the order of their indices, (N, E), float32."""
    loader = evaluation_loader(
        pixels, images, settings.transform.crop, settings.evaluation.batch_size, settings.trainer.num_workers
    )
    trainer = build_trainer(settings, folder, enable_checkpointing=False)
    batches = trainer.predict(module, loader)
    assert batches is not None
    own = torch.cat([batch for batch in batches if isinstance(batch, Tensor)])
    return gather_in_order(own, own_images(images, settings.evaluation.batch_size))
