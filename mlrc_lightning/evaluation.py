"""What is measured on classes that no model was trained or selected on, and how four folds become one number."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlrc_lightning.torchvision_import  # noqa: F401

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from mlrc_lightning.assembly import TrialData, build_module, build_trainer, clustering_seed, trunk_key
from mlrc_lightning.callbacks import PARTS
from mlrc_lightning.datamodule import Pixels, evaluation_loader, own_images
from mlrc_lightning.datasets.cache import CachedImages
from mlrc_lightning.distributed import gather_in_order, largest, of_rank_zero, rank
from mlrc_lightning.errors import WeightsError
from mlrc_lightning.figure_inputs import MIN_PROJECTED, store_neighbors, store_projection
from mlrc_lightning.figures import NEIGHBORS_FILE, PROJECTION_FILE
from mlrc_lightning.metrics import METRICS, RetrievalMetrics, clustering_metrics, retrieval_metrics
from mlrc_lightning.module import EmbeddingModule
from mlrc_lightning.queries import QUERIES_FILE, QueryAccuracies, QueryResults, write_queries
from mlrc_lightning.records import Accuracies, EvaluationResult, FoldResult, now, read_plain_json, write_json
from mlrc_lightning.schema import TrialSettings
from mlrc_lightning.splits import FoldSplit, Indices, Split
from mlrc_lightning.stopping import StopSignals, TrialStopped

log = logging.getLogger(__name__)

UNTRAINED_TRUNK = "untrained_trunk"
UNTRAINED_TRUNK_PCA = "untrained_trunk_pca"
UNTRAINED_EMBEDDER = "untrained_embedder"
UNTRAINED_TRUNK_PCA_CONCATENATED = "untrained_trunk_pca_concatenated"
"""By PCA to the width of the concatenated embedding: with `UNTRAINED_TRUNK_PCA` the paper's "Pretrained" row."""
UNTRAINED_EMBEDDER_CONCATENATED = "untrained_embedder_concatenated"
TRUNK_BASELINES = (UNTRAINED_TRUNK, UNTRAINED_TRUNK_PCA, UNTRAINED_TRUNK_PCA_CONCATENATED)
UNTRAINED = "untrained"
"""The stage of runs without training, and the loss in their records."""


def raise_if_stopped(stop: StopSignals | None, where: str) -> None:
    """Raises TrialStopped where a rank has received a signal; a collective. What is finished is on disk already."""
    signum = 0 if stop is None else largest(stop.received)
    if signum:
        raise TrialStopped(signum, where)


def evaluate_on_test_classes(
    settings: TrialSettings,
    data: TrialData,
    folds: Sequence[FoldResult],
    folder: Path,
    stop: StopSignals | None = None,
) -> EvaluationResult:
    """Tests the selected models of all folds on the test images.

    Separated: the mean of the fold models' accuracies. Concatenated: their embeddings, each of length 1, side by
    side as one longer embedding of length 1; needs all folds. The accuracies of single queries go to `QUERIES_FILE`.

    Args:
        settings: Of the trial.
        data: With the test images.
        folds: Finished folds whose models were kept.
        folder: Of the trial.
        stop: Ends the test before any of its embeddings.

    Raises:
        WeightsError: A fold's weights are missing or damaged.
        TrialStopped: A signal came.

    Source: Musgrave et al. 2020, section 3.3; PROTOCOL.md section 1.8.
    """
    images = data.test.cache.indices
    log.info("Opening the test images: %d of %d classes", len(images), len(np.unique(data.test.labels[images])))
    opened_at = now()
    modules = {fold.fold: load_module(settings, fold, folder, data.num_features) for fold in folds}
    result, queries, embeddings = _test(settings, data, modules, folder, opened_at, stop)
    if rank() == 0:
        write_queries(folder / QUERIES_FILE, queries)
        if settings.stores_figure_inputs:
            _store_figure_inputs(folder, data, embeddings)
    if not settings.evaluation.baselines:
        return result
    notes = list(result.notes)
    baselines = _baselines(settings, data, list(modules), folder, notes, stop)
    return dataclasses.replace(result, baselines=baselines, notes=tuple(notes))


def evaluate_without_training(
    settings: TrialSettings, data: TrialData, folder: Path, known: Mapping[str, Any], stop: StopSignals | None = None
) -> EvaluationResult:
    """Tests what each fold would start from, with the trunk's features beside it.

    Separated and concatenated accuracies are those of embedders with random weights; `baselines` has these too, and
    the trunk's features at full width and by PCA, to the width of either embedding.

    Args:
        settings: Of the run.
        data: With the test images.
        folder: Of the run.
        known: Accuracies of the trunk that another seed cannot change; they are not computed again.
        stop: Ends the test before any of its embeddings.

    Raises:
        TrialStopped: A signal came.

    Source: PROTOCOL.md section 1.7; Musgrave et al. 2020, section 4.1, "Pretrained".
    """
    modules = {fold: build_module(settings, fold, None, data.num_features) for fold in settings.folds}
    result, queries, _ = _test(settings, data, modules, folder, now(), stop)
    if rank() == 0:
        write_queries(folder / QUERIES_FILE, queries)
    notes = list(result.notes)
    trunk = known or _trunk_baselines(settings, data, settings.folds, folder, notes, stop, concatenated=True)
    embedder = {UNTRAINED_EMBEDDER: result.separated, UNTRAINED_EMBEDDER_CONCATENATED: result.concatenated}
    return dataclasses.replace(result, baselines={**trunk, **embedder}, notes=tuple(notes))


def evaluate_again(
    settings: TrialSettings, data: TrialData, folds: Sequence[FoldResult], folder: Path, split: Split
) -> EvaluationResult:
    """Evaluates the kept models of a finished run once more, on any split; nothing is written.

    Each fold's model has validation and training images of its own, which other folds were trained on: there is no
    concatenated embedding of them.

    Args:
        settings: Of the run.
        data: With the test images for split="test", which it need not have for another.
        folds: Finished folds whose models were kept.
        folder: Of the run.
        split: train, val or test.

    Raises:
        WeightsError: A fold's weights are missing or damaged.
    """
    opened_at = now()
    modules = {fold.fold: load_module(settings, fold, folder, data.num_features) for fold in folds}
    if split == "test":
        return _test(settings, data, modules, folder, opened_at)[0]
    found: dict[int, _Found] = {}
    for number, module in modules.items():
        images = data.splits[number].images(split)
        embeddings = _embed(module, settings, data.trainval, images, folder)
        labels = torch.from_numpy(data.images.labels[images])
        found[number] = _Found.of(settings, retrieval_metrics(embeddings, labels), embeddings, labels)
    note = f"each fold has {split} images of its own, so that there is no concatenated embedding of them"
    return _result(found, None, opened_at, [note])


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


def _store_figure_inputs(folder: Path, data: TrialData, embeddings: Tensor) -> None:
    """Stores a projection of some test embeddings and a sheet of nearest images; nothing that no figure could show."""
    images, values = data.test.cache.indices, embeddings.cpu().numpy()
    labels = data.images.labels[images]
    if len(values) < MIN_PROJECTED or len(np.unique(values, axis=0)) < MIN_PROJECTED:
        log.warning("%s: too few different test embeddings for figures", folder)
        return
    began = time.monotonic()
    opened = data.test.cache.open()

    def image(row: int) -> Image.Image:
        return Image.fromarray(data.test.cache.image(opened, int(images[row])))

    names = data.images.class_names
    # a thousand points take seconds, and show the same groups as all of them
    store_projection(folder / PROJECTION_FILE, values, labels, names, max_samples=1000)
    store_neighbors(folder / NEIGHBORS_FILE, values, labels, names, image)
    log.info("Stored a projection and nearest images for figures (%.1f s)", time.monotonic() - began)


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


def untrained_trunk_accuracies(settings: TrialSettings, data: TrialData, split: FoldSplit) -> dict[str, Any]:
    """Returns the accuracies of the trunk's features on a fold's validation images, before any training.

    Those of a pretrained trunk are the same for every model of the fold; they are kept beside the decoded images.
    """
    kept = _untrained_file(settings, data, split)
    known = of_rank_zero(read_plain_json(kept) if kept is not None and kept.exists() else None)
    if known is not None:
        return dict(known)
    features = _untrained_features(settings, data.trainval, split.val, split.fold, Path())
    accuracies = dict(_accuracies(settings, features, torch.from_numpy(split.labels[split.val])))
    if kept is not None and rank() == 0:
        kept.parent.mkdir(exist_ok=True)
        write_json(kept, accuracies)
    return accuracies


def _untrained_file(settings: TrialSettings, data: TrialData, split: FoldSplit) -> Path | None:
    """Returns where the accuracies of an untrained trunk are kept; None where each seed has others."""
    cache = data.trainval.cache
    if not settings.trunk.pretrained or not isinstance(cache, CachedImages):
        return None
    decides = [
        cache.file.name,  # of images and size
        hashlib.sha256(split.val.tobytes()).hexdigest(),
        trunk_key(settings),
        settings.transform.crop,
        settings.evaluation.clustering and clustering_seed(settings),
        [settings.trainer.precision, settings.trainer.channels_last, settings.trainer.compile, torch.__version__],
    ]
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    return cache.file.parent / "untrained" / f"{key}.json"


def trained_parts(settings: TrialSettings) -> tuple[str, ...]:
    """Returns the parts of a module that training changes."""
    return tuple(part for part in PARTS if not (part == "trunk" and settings.trunk.frozen))


def load_module(
    settings: TrialSettings, fold: FoldResult, folder: Path, num_features: int | None = None
) -> EmbeddingModule:
    """Returns the selected model of a finished fold.

    Args:
        settings: Of the trial.
        fold: Of the trial.
        folder: Of the trial.
        num_features: F of a frozen trunk, whose features the module then takes instead of images.

    Raises:
        WeightsError: A file is missing, damaged, or of another model.
    """
    # all weights come from the files: pretrained ones, which may have to be downloaded, would be read for nothing
    model = {**settings.trunk.model, **({"pretrained": False} if "pretrained" in settings.trunk.model else {})}
    settings = dataclasses.replace(settings, trunk=dataclasses.replace(settings.trunk, model=model))
    module = build_module(settings, fold.fold, None, num_features)
    if set(fold.weights) != set(PARTS):
        raise WeightsError(
            f"{folder}: expected the weights of fold {fold.fold}, which were not kept."
            " A search keeps its models only with keep_models=true."
        )
    for part in trained_parts(settings):
        path = folder / fold.weights[part]
        try:
            getattr(module, part).load_state_dict(safetensors.torch.load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise WeightsError(
                f"{path}: expected the weights of fold {fold.fold} ({error})."
                f" Remove {path.parent}, and the same command trains this fold again."
            ) from error
    return module


def mean_accuracies(accuracies: Sequence[Accuracies]) -> Accuracies:
    """Returns the mean of each metric."""
    return {name: float(np.mean([accuracy[name] for accuracy in accuracies])) for name in accuracies[0]}


def reduce_by_pca(features: Tensor, num_components: int) -> Tensor:
    """Reduces features as the original's tester does: standardised, then PCA fitted on the same features.

    Args:
        features: (N, F), N and F >= num_components.
        num_components: E.

    Returns:
        (N, E), float32, not normalised.

    Source: pytorch-metric-learning GlobalEmbeddingSpaceTester(pca=E); PROTOCOL.md section 1.7.
    """
    standardised = StandardScaler().fit_transform(features.cpu().double().numpy())
    reduced = PCA(num_components, svd_solver="full").fit_transform(standardised)
    return torch.from_numpy(reduced).float()


def _baselines(
    settings: TrialSettings,
    data: TrialData,
    folds: Sequence[int],
    folder: Path,
    notes: list[str],
    stop: StopSignals | None,
) -> dict[str, Any]:
    """Returns the accuracies without training; the mean over folds where their initial weights differ."""
    embedder = []
    for fold in folds:
        raise_if_stopped(stop, f"the test of the untrained model of fold {fold}")
        module = build_module(settings, fold, None, data.num_features)
        embeddings = _embed(module, settings, data.test, data.test.cache.indices, folder)
        embedder.append(_test_accuracies(settings, embeddings, data))
    trunk = _trunk_baselines(settings, data, folds, folder, notes, stop, concatenated=False)
    return {**trunk, UNTRAINED_EMBEDDER: dict(mean_accuracies(embedder))}


def _trunk_baselines(
    settings: TrialSettings,
    data: TrialData,
    folds: Sequence[int],
    folder: Path,
    notes: list[str],
    stop: StopSignals | None,
    *,
    concatenated: bool,
) -> dict[str, Any]:
    """Returns the accuracies of the untrained trunk's features: all of them, and by PCA to the width of embeddings."""
    sizes = {UNTRAINED_TRUNK_PCA: settings.embedder.embedding_size}
    if concatenated:
        sizes[UNTRAINED_TRUNK_PCA_CONCATENATED] = settings.split.num_folds * settings.embedder.embedding_size
    found: dict[str, list[Accuracies]] = {UNTRAINED_TRUNK: [], **{name: [] for name in sizes}}
    # pretrained trunks are the same in every fold, random ones are not
    for fold in folds[:1] if settings.trunk.pretrained else folds:
        raise_if_stopped(stop, f"the test of the untrained trunk of fold {fold}")
        features = _untrained_features(settings, data.test, data.test.cache.indices, fold, folder)
        found[UNTRAINED_TRUNK].append(_test_accuracies(settings, features, data))
        for name, size in sizes.items():
            if size <= min(features.shape):
                found[name].append(_test_accuracies(settings, reduce_by_pca(features, size), data))
    for name, size in sizes.items():
        if not found[name]:
            notes.append(f"PCA to {size} needs as many test images and trunk features, found {tuple(features.shape)}")
    return {name: dict(mean_accuracies(accuracies)) if accuracies else None for name, accuracies in found.items()}


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


def _untrained_features(settings: TrialSettings, pixels: Pixels, images: Indices, fold: int, folder: Path) -> Tensor:
    num_features = None if pixels.features is None else pixels.features.num_features
    trunk = build_module(settings, fold, None, num_features).trunk
    return _embed(EmbeddingModule(trunk, nn.Identity()), settings, pixels, images, folder)


def _embed(
    module: EmbeddingModule,
    settings: TrialSettings,
    pixels: Pixels,
    images: Indices,
    folder: Path,
) -> Tensor:
    """Embeds some images in the order of their indices; (N, E), float32."""
    loader = evaluation_loader(
        pixels, images, settings.transform.crop, settings.evaluation.batch_size, settings.trainer.num_workers
    )
    trainer = build_trainer(settings, folder, enable_checkpointing=False)
    batches = trainer.predict(module, loader)
    assert batches is not None
    own = torch.cat([batch for batch in batches if isinstance(batch, Tensor)])
    return gather_in_order(own, own_images(images, settings.evaluation.batch_size))
