"""What is measured on classes that no model was trained or selected on, and how four folds become one number."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from mlrc_lightning.data.splits import Split
from mlrc_lightning.errors import WeightsError
from mlrc_lightning.files import inside, now
from mlrc_lightning.metrics import retrieval_metrics
from mlrc_lightning.names import NEIGHBORS_FILE, PROJECTION_FILE, QUERIES_FILE
from mlrc_lightning.parallel.collectives import rank
from mlrc_lightning.parallel.signals import StopSignals
from mlrc_lightning.protocol.baselines import _baselines
from mlrc_lightning.protocol.build import TrialData, build_module
from mlrc_lightning.protocol.embed import _embed, _Found, _result, _test
from mlrc_lightning.protocol.figure_inputs import MIN_PROJECTED, store_neighbors, store_projection
from mlrc_lightning.reporting.doubts import doubts_of_fold
from mlrc_lightning.results.queries import write_queries
from mlrc_lightning.results.records import EvaluationResult, FoldResult
from mlrc_lightning.settings.types import TrialSettings
from mlrc_lightning.training.checkpoint import PARTS
from mlrc_lightning.training.module import EmbeddingModule

log = logging.getLogger(__name__)


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

    Source: Musgrave et al. 2020, section 3.3; docs/protocol.md, §1.8.
    """
    images = data.test.cache.indices
    log.info("Opening the test images: %d of %d classes", len(images), len(np.unique(data.test.labels[images])))
    opened_at = now()
    modules = {fold.fold: load_module(settings, fold, folder, data.num_features) for fold in folds}
    result, queries, embeddings = _test(settings, data, modules, folder, opened_at, stop)
    doubts = [f"fold {fold.fold}: {doubt}" for fold in folds for doubt in doubts_of_fold(fold)]
    result = dataclasses.replace(result, notes=(*result.notes, *doubts))
    if rank() == 0:
        write_queries(folder / QUERIES_FILE, queries)
        if settings.stores_figure_inputs:
            _store_figure_inputs(folder, data, embeddings)
    if not settings.evaluation.baselines:
        return result
    notes = list(result.notes)
    baselines = _baselines(settings, data, list(modules), folder, notes, stop)
    return dataclasses.replace(result, baselines=baselines, notes=tuple(notes))


def evaluate_again(
    settings: TrialSettings, data: TrialData, folds: Sequence[FoldResult], folder: Path, split: Split
) -> EvaluationResult:
    """Evaluates the kept models of a finished run once more, on any split. It writes nothing.

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


def _store_figure_inputs(folder: Path, data: TrialData, embeddings: Tensor) -> None:
    """Stores a projection of some test embeddings and a sheet of nearest images.

    What no figure could show is left out.
    """
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
        path = inside(folder, fold.weights[part], f"folds of fold {fold.fold}, weights.{part}")
        try:
            getattr(module, part).load_state_dict(safetensors.torch.load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise WeightsError(
                f"{path}: expected the weights of fold {fold.fold} ({error})."
                f" Remove {path.parent}, and the same command trains this fold again."
            ) from error
    return module
