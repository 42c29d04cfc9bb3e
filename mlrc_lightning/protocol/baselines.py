"""Accuracies without training: the untrained trunk, its PCA, the untrained embedder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from mlrc_lightning.data.cache import CachedImages
from mlrc_lightning.data.splits import FoldSplit, Indices
from mlrc_lightning.files import now, read_plain_json, write_json
from mlrc_lightning.names import (
    QUERIES_FILE,
    UNTRAINED_EMBEDDER,
    UNTRAINED_EMBEDDER_CONCATENATED,
    UNTRAINED_TRUNK,
    UNTRAINED_TRUNK_PCA,
    UNTRAINED_TRUNK_PCA_CONCATENATED,
)
from mlrc_lightning.parallel.collectives import of_rank_zero, rank
from mlrc_lightning.parallel.signals import StopSignals
from mlrc_lightning.protocol.build import TrialData, build_module, clustering_seed, trunk_key
from mlrc_lightning.protocol.embed import (
    _accuracies,
    _embed,
    _test,
    _test_accuracies,
    mean_accuracies,
    raise_if_stopped,
)
from mlrc_lightning.results.queries import write_queries
from mlrc_lightning.results.records import Accuracies, EvaluationResult
from mlrc_lightning.settings.types import TrialSettings
from mlrc_lightning.training.datamodule import Pixels
from mlrc_lightning.training.module import EmbeddingModule

TRUNK_BASELINES = (UNTRAINED_TRUNK, UNTRAINED_TRUNK_PCA, UNTRAINED_TRUNK_PCA_CONCATENATED)


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

    Source: docs/protocol.md, §1.7; Musgrave et al. 2020, section 4.1, "Pretrained".
    """
    modules = {fold: build_module(settings, fold, None, data.num_features) for fold in settings.folds}
    result, queries, _ = _test(settings, data, modules, folder, now(), stop)
    if rank() == 0:
        write_queries(folder / QUERIES_FILE, queries)
    notes = list(result.notes)
    trunk = known or _trunk_baselines(settings, data, settings.folds, folder, notes, stop, concatenated=True)
    embedder = {UNTRAINED_EMBEDDER: result.separated, UNTRAINED_EMBEDDER_CONCATENATED: result.concatenated}
    return dataclasses.replace(result, baselines={**trunk, **embedder}, notes=tuple(notes))


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
    """Returns where the accuracies of an untrained trunk are kept. It is None where each seed has others."""
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


def reduce_by_pca(features: Tensor, num_components: int) -> Tensor:
    """Reduces features as the original's tester does: standardised, then PCA fitted on the same features.

    Args:
        features: (N, F), N and F >= num_components.
        num_components: E.

    Returns:
        (N, E), float32, not normalised.

    Source: pytorch-metric-learning GlobalEmbeddingSpaceTester(pca=E); docs/protocol.md, §1.7.
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
    """Returns the accuracies without training. They are means over folds where initial weights differ."""
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


def _untrained_features(settings: TrialSettings, pixels: Pixels, images: Indices, fold: int, folder: Path) -> Tensor:
    num_features = None if pixels.features is None else pixels.features.num_features
    trunk = build_module(settings, fold, None, num_features).trunk
    return _embed(EmbeddingModule(trunk, nn.Identity()), settings, pixels, images, folder)
