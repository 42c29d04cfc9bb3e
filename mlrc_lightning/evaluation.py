"""What is measured on classes that no model was trained or selected on, and how four folds become one number."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlrc_lightning.torchvision_import  # noqa: F401

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from mlrc_lightning.assembly import TrialData, build_module, build_trainer, clustering_seed
from mlrc_lightning.callbacks import PARTS
from mlrc_lightning.datamodule import Pixels, evaluation_loader
from mlrc_lightning.errors import WeightsError
from mlrc_lightning.metrics import RetrievalMetrics, clustering_metrics, retrieval_metrics
from mlrc_lightning.module import EmbeddingModule
from mlrc_lightning.records import Accuracies, EvaluationResult, FoldResult, now
from mlrc_lightning.schema import TrialSettings
from mlrc_lightning.splits import FoldSplit, Indices

log = logging.getLogger(__name__)

UNTRAINED_TRUNK = "untrained_trunk"
UNTRAINED_TRUNK_PCA = "untrained_trunk_pca"
UNTRAINED_EMBEDDER = "untrained_embedder"


def evaluate_on_test_classes(
    settings: TrialSettings, data: TrialData, folds: Sequence[FoldResult], folder: Path
) -> EvaluationResult:
    """Tests the selected models of all folds on the test images.

    Separated: the mean of the fold models' accuracies. Concatenated: their embeddings, each of length 1, side by
    side as one longer embedding of length 1; needs all folds.

    Args:
        settings: Of the trial.
        data: With the test images.
        folds: Finished folds whose models were kept.
        folder: Of the trial.

    Raises:
        WeightsError: A fold's weights are missing or damaged.

    Source: Musgrave et al. 2020, section 3.3; PROTOCOL.md section 1.8.
    """
    images = data.test.cache.indices
    log.info("Opening the test images: %d of %d classes", len(images), len(np.unique(data.test.labels[images])))
    opened_at = now()
    notes: list[str] = []
    embeddings = [_embed(load_module(settings, fold, folder), settings, data.test, images, folder) for fold in folds]
    per_fold = [metrics_on_test(embedding, data) for embedding in embeddings]
    for fold, metrics in zip(folds, per_fold, strict=True):
        if metrics.collapsed:
            notes.append(f"fold {fold.fold}: all test embeddings lie in one point")
    labels = torch.from_numpy(data.images.labels[images])
    accuracies = [
        metrics.as_dict() | _clustering(settings, embedding, labels)
        for metrics, embedding in zip(per_fold, embeddings, strict=True)
    ]
    concatenated = None
    if {fold.fold for fold in folds} == set(range(settings.split.num_folds)):
        concatenated = _test_accuracies(settings, torch.cat(embeddings, dim=1), data)
    else:
        notes.append(f"concatenated embeddings need all {settings.split.num_folds} folds, found {len(folds)}")
    baselines = _baselines(settings, data, folds, folder, notes) if settings.evaluation.baselines else {}
    return EvaluationResult(
        opened_at=opened_at,
        num_queries=per_fold[0].num_queries,
        num_without_relevant=per_fold[0].num_without_relevant,
        separated=dict(mean_accuracies(accuracies)),
        separated_folds={str(fold.fold): values for fold, values in zip(folds, accuracies, strict=True)},
        concatenated=None if concatenated is None else dict(concatenated),
        baselines=baselines,
        notes=tuple(notes),
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
    """Returns the accuracies of the trunk's features on a fold's validation images, before any training."""
    features = _untrained_features(settings, data.trainval, split.val, split.fold, Path())
    return dict(_accuracies(settings, features, torch.from_numpy(split.labels[split.val])))


def load_module(settings: TrialSettings, fold: FoldResult, folder: Path) -> EmbeddingModule:
    """Returns the selected model of a finished fold.

    Raises:
        WeightsError: A file is missing, damaged, or of another model.
    """
    module = build_module(settings, fold.fold, num_train_classes=None)
    for part in PARTS:
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
    settings: TrialSettings, data: TrialData, folds: Sequence[FoldResult], folder: Path, notes: list[str]
) -> dict[str, Any]:
    """Returns the accuracies without training; the mean over folds where their initial weights differ."""
    pixels, images = data.test, data.test.cache.indices
    size = settings.embedder.embedding_size
    # pretrained trunks are the same in every fold, random ones are not
    trunks = folds[:1] if settings.trunk.pretrained else folds
    found: dict[str, list[Accuracies]] = {
        UNTRAINED_TRUNK: [],
        UNTRAINED_TRUNK_PCA: [],
        UNTRAINED_EMBEDDER: [],
    }
    for fold in trunks:
        features = _untrained_features(settings, pixels, images, fold.fold, folder)
        found[UNTRAINED_TRUNK].append(_test_accuracies(settings, features, data))
        if size <= min(features.shape):
            found[UNTRAINED_TRUNK_PCA].append(_test_accuracies(settings, reduce_by_pca(features, size), data))
    if not found[UNTRAINED_TRUNK_PCA]:
        notes.append(f"PCA to {size} needs as many test images and trunk features, found {tuple(features.shape)}")
    for fold in folds:
        module = build_module(settings, fold.fold, num_train_classes=None)
        embeddings = _embed(module, settings, pixels, images, folder)
        found[UNTRAINED_EMBEDDER].append(_test_accuracies(settings, embeddings, data))
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
    trunk = build_module(settings, fold, num_train_classes=None).trunk
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
    return torch.cat([batch for batch in batches if isinstance(batch, Tensor)])
