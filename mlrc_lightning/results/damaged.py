"""What cannot be read below a folder of results: it stops no table and no report, and each of these lists it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mlrc_lightning.errors import RecordError
from mlrc_lightning.names import NOT_READ, RECORD_FILE
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.results.runs import RunSet
from mlrc_lightning.results.searches import damaged_searches


def damaged_results(outputs: Path, sets: Iterable[RunSet]) -> dict[str, str]:
    """Returns why a search, a run or a single trial cannot be read, by its folder below `outputs`.

    Args:
        outputs: The folder of results.
        sets: All sets of runs in it, whose records are read once.
    """
    found = damaged_searches(outputs)
    for run in (run for run_set in sets for run in run_set.runs):
        if run.damage is not None:
            found[run.folder.relative_to(outputs).as_posix()] = run.damage
    for folder in single_trials(outputs):
        try:
            read_json(outputs / folder / RECORD_FILE, TrialRecord)
        except RecordError as error:
            found[folder] = str(error)
    return found


def single_trials(outputs: Path) -> list[str]:
    """Returns the folders of trials that are neither of a search nor of a set of runs, below `outputs`."""
    paths = sorted(outputs.glob(f"*/*/*/train/*/{RECORD_FILE}"))
    return [path.parent.relative_to(outputs).as_posix() for path in paths]


def listed(damaged: Mapping[str, str]) -> list[str]:
    """Returns a line for each result that cannot be read."""
    return [f"{folder}: {NOT_READ}: {reason}" for folder, reason in sorted(damaged.items())]
