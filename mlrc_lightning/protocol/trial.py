"""One trial: a loss with one setting of its hyperparameters, trained and validated on each fold.

`run_trial` reads from top to bottom as the protocol does; everything it needs is in plain typed pieces below it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from mlrc_lightning.files import as_json, now, only_writer, write_json
from mlrc_lightning.names import RECORD_FILE, UNTRAINED
from mlrc_lightning.parallel.collectives import of_rank_zero
from mlrc_lightning.parallel.folds import train_at_once
from mlrc_lightning.parallel.ranks import rank_threads, remove_ranks_folder, run_ranks
from mlrc_lightning.parallel.signals import StopSignals
from mlrc_lightning.protocol.baselines import TRUNK_BASELINES, evaluate_without_training
from mlrc_lightning.protocol.build import (
    TrialData,
)
from mlrc_lightning.protocol.embed import mean_accuracies
from mlrc_lightning.protocol.evaluation import evaluate_on_test_classes
from mlrc_lightning.protocol.finished import finished_in
from mlrc_lightning.protocol.fold import _finished_fold, _run_fold, _train_fold
from mlrc_lightning.results.environment import environment
from mlrc_lightning.results.records import SCHEMA_VERSION, EvaluationResult, FoldResult, TrialRecord, read_json
from mlrc_lightning.settings.types import TrialSettings


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
                setting=settings.setting,
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


def _threads_of_ranks(settings: TrialSettings) -> dict[str, int | None]:
    """Returns the threads that computed the figures, where they were not this process's."""
    num_ranks = settings.trainer.num_ranks
    return {} if num_ranks == 1 else {"num_threads": rank_threads(os.environ, num_ranks)}


def _trunk_accuracies_of_other_runs(settings: TrialSettings, folder: Path) -> dict[str, Any]:
    """Returns what another finished run of the same set found for a pretrained trunk, which no seed changes."""
    if not settings.trunk.pretrained or not folder.name.isdigit():
        return {}
    for path in sorted(folder.parent.glob(f"[0-9]*/{RECORD_FILE}")):
        record = read_json(path, TrialRecord)
        if record.status == "complete" and record.stage == UNTRAINED and record.test is not None:
            return {name: record.test.baselines[name] for name in TRUNK_BASELINES}
    return {}
