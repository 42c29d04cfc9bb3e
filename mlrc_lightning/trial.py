"""One trial: a loss with one setting of its hyperparameters, trained and validated on each fold.

`run_trial` reads from top to bottom as the protocol does; everything it needs is in plain typed pieces below it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlrc_lightning.assembly import TrialData, build_datamodule, build_logger, build_module, build_trainer, go_on_at
from mlrc_lightning.callbacks import EpochLog, FoldCheckpoint, FoldProgress, remove_resume_state
from mlrc_lightning.distributed import of_rank_zero, rank, wait_for_all
from mlrc_lightning.environment import environment
from mlrc_lightning.evaluation import (
    TRUNK_BASELINES,
    UNTRAINED,
    evaluate_on_test_classes,
    evaluate_without_training,
    mean_accuracies,
    raise_if_stopped,
    trained_parts,
    untrained_trunk_accuracies,
)
from mlrc_lightning.finished import finished_in
from mlrc_lightning.fold_processes import train_at_once
from mlrc_lightning.model_folder import file_digest, model_files, write_model_folder
from mlrc_lightning.ranks import rank_threads, remove_ranks_folder, run_ranks
from mlrc_lightning.records import (
    RECORD_FILE,
    SCHEMA_VERSION,
    EvaluationResult,
    FoldResult,
    TrialRecord,
    as_json,
    now,
    only_writer,
    read_json,
    remove_leftovers,
    write_json,
)
from mlrc_lightning.schema import TrialSettings
from mlrc_lightning.selection import PRIMARY_METRIC, UNTRAINED_EPOCH, Selection
from mlrc_lightning.splits import FoldSplit
from mlrc_lightning.stopping import StopSignals

log = logging.getLogger(__name__)

_FOLD_FILE = "fold.json"


def run_trial(settings: TrialSettings, folder: Path) -> TrialRecord:
    """Trains and validates every fold, tests the selected models where the stage allows it, and leaves a record.

    With stage=untrained nothing is trained: the record has no folds, and the untrained models' test.

    Whatever is finished in the folder is kept and not done again: a killed trial goes on where it stopped, a
    finished one returns at once.

    Args:
        settings: What to train.
        folder: Where results go; one trial a folder.

    Returns:
        The record, as written to `record.json`.

    Raises:
        MlrcError: Anything that a user can cure, before training where it can be known. A failure during training
            is written to `record.json` as well, beside the folds that were finished.
        TrialStopped: A signal stopped it between two steps or two embeddings, and what it needs to go on is saved.
    """
    with StopSignals() as stop:
        record = _run_trial(settings, folder, stop)
        stop.raise_if_late()
        return record


def _run_trial(settings: TrialSettings, folder: Path, stop: StopSignals) -> TrialRecord:
    with only_writer(folder):
        done = finished_in(folder, settings)
        if done is not None:
            return done
        began, started_at = time.monotonic(), now()
        folds: list[FoldResult] = []
        test: EvaluationResult | None = None
        failure: str | None = None
        data = TrialData(settings)
        try:
            if settings.trainer.num_ranks == 1:
                test = run_folds(settings, data, folder, folds, stop)
            else:
                try:
                    test_file = run_ranks(settings, folder, stop)
                finally:
                    finished = [_finished_fold(folder / f"fold_{fold}", settings) for fold in settings.folds]
                    folds.extend(fold for fold in finished if fold is not None)
                test = read_json(test_file, EvaluationResult) if settings.opens_test_classes else None
                remove_ranks_folder(folder)
        except BaseException as error:  # an interrupt is a reason too
            failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            # written on success and on failure alike; a kill leaves the folds' own files, from which a rerun goes on
            record = TrialRecord(
                schema_version=SCHEMA_VERSION,
                status="complete" if failure is None else "failed",
                failure=failure,
                stage=settings.stage,
                protocol=settings.protocol,
                benchmark=settings.benchmark,
                loss=UNTRAINED if settings.stage == UNTRAINED else settings.loss.name,
                seed=settings.seed,
                settings=as_json(settings),
                dataset=data.description,
                val=mean_accuracies([fold.val for fold in folds]) if folds else None,
                folds=tuple(folds),
                test=test,
                environment=environment() | _threads_of_ranks(settings),
                started_at=started_at,
                seconds=round(time.monotonic() - began, 3),
                run=settings.run,
                root_seed=settings.root_seed,
                data_path=data.data_path,
            )
            write_json(folder / RECORD_FILE, record)
        return record


def run_folds(
    settings: TrialSettings, data: TrialData, folder: Path, folds: list[FoldResult], stop: StopSignals
) -> EvaluationResult | None:
    """Does what a trial is made of: trains and validates its folds, then tests them. Every rank of a trial calls it.

    Args:
        settings: Of the trial.
        data: Of the trial.
        folder: Of the trial; rank 0 alone writes there.
        folds: Takes the folds as they are finished.
        stop: Ends a training between two of its steps, and the test between two embeddings.

    Returns:
        The test; None where the stage opens no test classes.
    """
    if settings.stage == UNTRAINED:
        known = of_rank_zero(_trunk_accuracies_of_other_runs(settings, folder))
        return evaluate_without_training(settings, data, folder, known, stop)
    try:
        if settings.trainer.parallel_folds > 1 and len(settings.folds) > 1:
            left = [fold for fold in settings.folds if _finished_fold(folder / f"fold_{fold}", settings) is None]
            if left:
                train_at_once(_train_fold, settings, left, folder, stop)
    except BaseException:
        finished = [_finished_fold(folder / f"fold_{fold}", settings) for fold in settings.folds]
        folds.extend(fold for fold in finished if fold is not None)
        raise
    for fold in settings.folds:
        folds.append(_run_fold(settings, data, fold, folder, stop))
    # after the last fold of a search nothing is left that would be worth a second start
    return evaluate_on_test_classes(settings, data, folds, folder, stop) if settings.opens_test_classes else None


def _train_fold(settings: TrialSettings, fold: int, folder: Path, stop: StopSignals) -> None:
    """What a process that trains one fold beside others does."""
    _run_fold(settings, TrialData(settings), fold, folder, stop)


def _run_fold(settings: TrialSettings, data: TrialData, fold: int, folder: Path, stop: StopSignals) -> FoldResult:
    """Trains one fold and selects its model by validation MAP@R; returns at once where it is finished."""
    fold_folder = folder / f"fold_{fold}"
    fold_folder.mkdir(parents=True, exist_ok=True)
    is_writer = rank() == 0
    if is_writer:
        remove_leftovers(fold_folder)
    done = _finished_fold(fold_folder, settings)
    if done is not None:
        log.info("fold %d is finished already: val MAP@R %.4f", fold, done.val[PRIMARY_METRIC])
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
    if is_writer:
        write_json(fold_folder / _FOLD_FILE, result)
    wait_for_all()  # until all have read the weights, and the next fold finds this one finished
    checkpoint.remove_resume_state()  # the last step: whatever is killed before it can be done again
    log.info(
        "fold %d: val MAP@R %.4f at epoch %d (%s, %.0f s)",
        fold, result.val[PRIMARY_METRIC], result.selected_epoch, result.stopped_because, result.seconds,
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
        else selected.val[PRIMARY_METRIC] > untrained.val[PRIMARY_METRIC],
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


def _threads_of_ranks(settings: TrialSettings) -> dict[str, int | None]:
    """Returns the threads that computed the figures, where they were not this process's."""
    num_ranks = settings.trainer.num_ranks
    return {} if num_ranks == 1 else {"num_threads": rank_threads(os.environ, num_ranks)}


def _finished_fold(folder: Path, settings: TrialSettings) -> FoldResult | None:
    if not (folder / _FOLD_FILE).exists():
        return None
    result = read_json(folder / _FOLD_FILE, FoldResult)
    has_models = all((folder.parent / file).exists() for file in result.weights.values()) and bool(result.weights)
    # a fold that a search finished without keeping its model is trained again where the model is to be tested
    if not has_models and settings.opens_test_classes:
        return None
    if rank() == 0:
        remove_resume_state(folder, kept=[folder.parent / file for file in result.weights.values()])
    return result


def _trunk_accuracies_of_other_runs(settings: TrialSettings, folder: Path) -> dict[str, Any]:
    """Returns what another finished run of the same set found for a pretrained trunk, which no seed changes."""
    if not settings.trunk.pretrained or not folder.name.isdigit():
        return {}
    for path in sorted(folder.parent.glob(f"[0-9]*/{RECORD_FILE}")):
        record = read_json(path, TrialRecord)
        if record.status == "complete" and record.stage == UNTRAINED and record.test is not None:
            return {name: record.test.baselines[name] for name in TRUNK_BASELINES}
    return {}
