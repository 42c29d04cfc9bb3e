"""One fold of a trial: build, train, conclude."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlrc_lightning.data.splits import FoldSplit
from mlrc_lightning.files import remove_leftovers, write_json
from mlrc_lightning.models.folder import file_digest, model_files, write_model_folder
from mlrc_lightning.names import FOLD_FILE, MAP_AT_R
from mlrc_lightning.parallel.collectives import rank, wait_for_all
from mlrc_lightning.parallel.signals import StopSignals
from mlrc_lightning.protocol.baselines import untrained_trunk_accuracies
from mlrc_lightning.protocol.build import (
    TrialData,
    build_datamodule,
    build_logger,
    build_module,
    build_trainer,
    go_on_at,
)
from mlrc_lightning.protocol.embed import raise_if_stopped
from mlrc_lightning.protocol.evaluation import trained_parts
from mlrc_lightning.reporting.doubts import doubts_of_fold
from mlrc_lightning.results.records import (
    FoldResult,
    read_json,
)
from mlrc_lightning.settings.types import TrialSettings
from mlrc_lightning.training.checkpoint import FoldCheckpoint, remove_resume_state
from mlrc_lightning.training.progress import EpochLog, FoldProgress
from mlrc_lightning.training.selection import UNTRAINED_EPOCH, Selection

log = logging.getLogger(__name__)


def _train_fold(settings: TrialSettings, fold: int, folder: Path, stop: StopSignals) -> None:
    """What a process that trains one fold beside others does."""
    _run_fold(settings, TrialData(settings), fold, folder, stop)


def _run_fold(settings: TrialSettings, data: TrialData, fold: int, folder: Path, stop: StopSignals) -> FoldResult:
    """Trains one fold and selects its model by validation MAP@R. It returns at once where it is finished."""
    fold_folder = folder / f"fold_{fold}"
    fold_folder.mkdir(parents=True, exist_ok=True)
    is_writer = rank() == 0
    if is_writer:
        remove_leftovers(fold_folder)
    done = _finished_fold(fold_folder, settings)
    if done is not None:
        log.info("fold %d is finished already: val MAP@R %.4f", fold, done.val[MAP_AT_R])
        return done
    raise_if_stopped(stop, f"fold_{fold}, before its training")
    began = time.monotonic()
    split, schedule = data.splits[fold], settings.schedule
    module = build_module(settings, fold, len(split.classes("train")), data.num_features)
    datamodule = build_datamodule(settings, data, split)
    progress = FoldProgress(fold, settings.folds, schedule.max_epochs)
    epoch_log = EpochLog(build_logger(settings, fold_folder / "logs") if is_writer else None)
    checkpoint = FoldCheckpoint(
        fold_folder, schedule.save_interval, Selection(schedule.patience), progress, epoch_log,
        iterations_per_epoch=schedule.iterations_per_epoch,
        save_every=settings.trainer.checkpoint_every_n_iterations,
        stop=stop,
        parts=trained_parts(settings),
    )  # fmt: skip
    try:
        if checkpoint.resume(module):
            log.info(
                "fold %d goes on after epoch %d and %d iterations",
                fold, checkpoint.first_epoch, checkpoint.first_batch,
            )  # fmt: skip
        elif settings.evaluation.check_untrained_accuracy is not False:
            evaluator = build_trainer(settings, fold_folder, enable_checkpointing=False)
            evaluator.validate(module, datamodule, verbose=False)
            checkpoint.untrained(module, time.monotonic() - began)
        if not checkpoint.is_over and checkpoint.first_epoch < schedule.max_epochs:
            trainer = build_trainer(
                settings,
                fold_folder,
                max_epochs=schedule.max_epochs,
                check_val_every_n_epoch=schedule.save_interval,
                callbacks=[checkpoint],
            )
            go_on_at(trainer, datamodule, checkpoint.first_epoch, checkpoint.first_batch)
            trainer.fit(module, datamodule)
    finally:
        progress.close()
        epoch_log.close()
    selected_epoch = checkpoint.selection.selected_epoch
    assert selected_epoch is not None
    kept: dict[str, Path] = {}
    wait_for_all()  # for rank 0, which writes the weights
    if settings.keeps_models:
        kept = model_files(fold_folder)
        if is_writer:
            write_model_folder(
                fold_folder,
                {**_frozen_weights(data), **checkpoint.weights},
                module.trunk if data.num_features is None else data.trunk,
                settings, fold, selected_epoch,
            )  # fmt: skip
    result = _fold_result(settings, data, split, checkpoint, kept, time.monotonic() - began, stop)
    for doubt in doubts_of_fold(result):
        log.warning("fold %d learned little or nothing: %s", fold, doubt)
    if is_writer:
        write_json(fold_folder / FOLD_FILE, result)
    wait_for_all()  # until all have read the weights, and the next fold finds this one finished
    checkpoint.remove_resume_state()  # the last step: whatever is killed before it can be done again
    log.info(
        "fold %d: val MAP@R %.4f at epoch %d (%s, %.0f s)",
        fold, result.val[MAP_AT_R], result.selected_epoch, result.stopped_because, result.seconds,
    )  # fmt: skip
    return result


def _fold_result(
    settings: TrialSettings,
    data: TrialData,
    split: FoldSplit,
    checkpoint: FoldCheckpoint,
    kept: Mapping[str, Path],
    seconds: float,
    stop: StopSignals,
) -> FoldResult:
    selection, history = checkpoint.selection, checkpoint.history
    selected = next(epoch for epoch in history if epoch.epoch == selection.selected_epoch)
    untrained = history[0] if history[0].epoch == UNTRAINED_EPOCH else None
    assert selected.val is not None
    asked = settings.evaluation.check_untrained_accuracy
    wants_untrained_trunk = settings.evaluation.baselines and settings.opens_test_classes if asked is None else asked
    # epochs behind the last validation are in no checkpoint, and would be trained again
    if wants_untrained_trunk and history[-1].val is not None:
        raise_if_stopped(stop, f"fold_{split.fold}, after its training")
    class_sizes = np.unique(split.labels[split.val], return_counts=True)[1]
    lonely = int((class_sizes == 1).sum())
    features = data.trainval.features
    return FoldResult(
        fold=split.fold,
        seed=settings.seed,
        train_classes=split.classes("train"),
        val_classes=split.classes("val"),
        num_train_images=len(split.train),
        num_val_queries=len(split.val) - lonely,
        num_val_without_relevant=lonely,
        selected_epoch=selected.epoch,
        val=selected.val,
        beats_untrained=None
        if untrained is None or untrained.val is None
        else selected.val[MAP_AT_R] > untrained.val[MAP_AT_R],
        untrained_trunk_val=untrained_trunk_accuracies(settings, data, split) if wants_untrained_trunk else None,
        epochs=tuple(history),
        stopped_because="patience" if selection.should_stop(history[-1].epoch) else "last epoch",
        weights={part: f"{path.parent.name}/{path.name}" for part, path in kept.items()},
        seconds=round(seconds, 3),
        weight_digests={
            **({"trunk": features.trunk_digest} if features is not None else {}),
            **{part: file_digest(path) for part, path in checkpoint.weights.items()},
        },
    )


def _frozen_weights(data: TrialData) -> dict[str, Path]:
    return {} if data.trainval.features is None else {"trunk": data.trainval.features.trunk_weights}


def _finished_fold(folder: Path, settings: TrialSettings) -> FoldResult | None:
    if not (folder / FOLD_FILE).exists():
        return None
    result = read_json(folder / FOLD_FILE, FoldResult)
    has_models = all((folder.parent / file).exists() for file in result.weights.values()) and bool(result.weights)
    # a fold that a search finished without keeping its model is trained again where the model is to be tested
    if not has_models and settings.opens_test_classes:
        return None
    if rank() == 0:
        remove_resume_state(folder, kept=[folder.parent / file for file in result.weights.values()])
    return result
