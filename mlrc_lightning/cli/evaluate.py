"""Evaluates finished runs again, from their kept models: python -m mlrc_lightning evaluate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlrc_lightning.data.splits import Split
from mlrc_lightning.errors import ConfigError, RecordError
from mlrc_lightning.protocol.build import TrialData
from mlrc_lightning.protocol.evaluation import evaluate_again
from mlrc_lightning.reporting.tables.trial import comparison_table
from mlrc_lightning.results.environment import environment
from mlrc_lightning.results.records import EvaluationResult, TrialRecord, append_evaluation, read_run
from mlrc_lightning.settings.recorded import recorded_settings


def evaluate(
    path: Path, split: Split, embedding: str, config_folders: Iterable[Path] = (), overrides: Iterable[str] = ()
) -> str:
    """Evaluates a run with the settings in its record, notes that in its folder, and compares with the record.

    Without split="test" no test image is opened. On a CPU the numbers are the record's to the last bit, as long as
    torch has the same number of threads.

    Args:
        path: Of the run's folder or record.
        split: train, val or test.
        embedding: One of `EMBEDDINGS`.
        config_folders: Folders whose classes a record may name, beside our own.
        overrides: Places and hardware, as `recorded_settings` takes them.

    Returns:
        A table.

    Raises:
        ConfigError: The embedding does not exist for the split, the record names an unknown class, or a place is not
            given.
        RecordError: The run is not finished, or has no models.
    """
    if embedding == "concatenated" and split != "test":
        raise ConfigError(
            f"--embedding concatenated --split {split}: each fold has {split} images of its own, which other folds"
            " were trained on, so that there is no concatenated embedding of them. Choose --embedding separated."
        )
    folder, record = read_run(path)
    if record.status != "complete" or not record.folds:
        found = "one without training" if record.status == "complete" else f"a failed one ({record.failure})"
        raise RecordError(f"{folder}: expected a finished run with trained models, found {found}.")
    settings = recorded_settings(record, config_folders, overrides, needs_weights=False)
    if {fold.fold for fold in record.folds} != set(settings.folds):
        raise RecordError(f"{folder}: expected models of the folds {settings.folds}, found others in the record.")
    # the stage of a search has no way to the test classes
    settings = dataclasses.replace(settings, stage="train" if split == "test" else "search", run=None)
    data = TrialData(settings)
    result = evaluate_again(settings, data, record.folds, folder, split)
    shown = {
        "separated": result.separated if embedding != "concatenated" else None,
        "concatenated": result.concatenated if embedding != "separated" else None,
    }
    append_evaluation(
        folder,
        {
            "evaluated_at": result.opened_at,
            "split": split,
            "embedding": embedding,
            "num_queries": result.num_queries,
            **shown,
            "separated_folds": result.separated_folds if shown["separated"] is not None else None,
            "environment": environment(),
        },
    )
    notes = [f"Note: {note}." for note in [*_changes(record, data), *(result.notes if embedding == "both" else ())]]
    title = f"{record.loss} on {record.setting} ({record.protocol}), {folder}"
    return "\n".join([title, "", comparison_table(_rows(record, result, split, shown), "record"), *notes])


def _rows(
    record: TrialRecord, result: EvaluationResult, split: Split, shown: dict[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Returns name, accuracies now, and accuracies in the record where it has them."""
    recorded: dict[str, Any] = {"separated": None, "concatenated": None}
    if split == "test" and record.test is not None:
        recorded = {"separated": record.test.separated, "concatenated": record.test.concatenated}
    elif split == "val":
        recorded["separated"] = record.val
    return [(f"{split}, {name}", values, recorded[name]) for name, values in shown.items() if values is not None]


def _changes(record: TrialRecord, data: TrialData) -> list[str]:
    """Returns in what the dataset found here is not the record's."""
    known = {key: value for key, value in record.dataset.items() if key in data.description}
    changed = sorted(key for key, value in known.items() if data.description[key] != value)
    return [f"the dataset is not the record's: other {', '.join(changed)}"] if changed else []
