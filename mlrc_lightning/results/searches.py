"""Finds the searches under `outputs` and reads them from their ledgers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlrc_lightning.errors import RecordError
from mlrc_sweeper import LEDGER_NAME, SearchState, SweepError, Trial, read


@dataclass(frozen=True)
class SearchTrial:
    """One trial of a search.

    Attributes:
        index: From 0, in the order of proposal.
        state: open, completed, failed or raced_out.
        parameters: Values by configuration key.
        values: Validation MAP@R of each fold, as far as known.
        mean: Their mean; None until it is completed.
        seconds: Wall time of its jobs.
        reason: Why it failed.
    """

    index: int
    state: str
    parameters: dict[str, Any]
    values: tuple[float, ...]
    mean: float | None
    seconds: float
    reason: str | None


@dataclass(frozen=True)
class SearchResult:
    """One search as its ledger tells it.

    Attributes:
        name: Of its folder.
        max_trials: Trials asked for.
        finished: Why it ended; None while it is to go on.
        search_space: What was searched, by configuration key: type, bounds or values.
        versions: Packages that it was begun with.
    """

    protocol: str
    setting: str
    loss: str
    name: str
    folder: Path
    max_trials: int
    finished: str | None
    trials: tuple[SearchTrial, ...]
    search_space: dict[str, Any]
    versions: dict[str, str]

    @property
    def best(self) -> SearchTrial | None:
        """The completed trial with the highest mean, the first of equals."""
        done = [trial for trial in self.trials if trial.state == "completed" and trial.mean is not None]
        return max(done, key=lambda trial: trial.mean or 0.0) if done else None

    @property
    def num_done(self) -> int:
        """Trials that count towards the budget."""
        return sum(trial.state in ("completed", "raced_out") for trial in self.trials)

    @property
    def num_failed(self) -> int:
        return sum(trial.state == "failed" for trial in self.trials)

    def trials_wanted(self, budget: int) -> int:
        """Returns how many trials a budget comes to: no more than the points of a space of choices alone."""
        tuned = [entry for entry in self.search_space.values() if entry.get("type") != "fixed"]
        if not tuned or any(entry.get("type") != "choice" for entry in tuned):
            return budget
        return min(budget, math.prod(len(entry["values"]) for entry in tuned))


def searches(outputs: Path) -> list[SearchResult]:
    """Returns all searches that can be read, in the order of their folders. `damaged_searches` has the others."""
    found = []
    for path in _ledgers(outputs):
        try:
            search = _search(path.parent, outputs)
        except RecordError:
            continue
        found += [] if search is None else [search]
    return found


def damaged_searches(outputs: Path) -> dict[str, str]:
    """Returns why the ledger of a search or of a set of runs cannot be read, by its folder below `outputs`."""
    found = {}
    for path in (*_ledgers(outputs), *sorted(outputs.glob(f"*/*/*/reproduce/*/{LEDGER_NAME}"))):
        try:
            search_state(path)
        except RecordError as error:
            found[path.parent.relative_to(outputs).as_posix()] = str(error)
    return found


def _ledgers(outputs: Path) -> list[Path]:
    return sorted(outputs.glob(f"*/*/*/*/{LEDGER_NAME}"))


def search_state(path: Path) -> SearchState:
    """Returns what a ledger says of its search.

    Raises:
        RecordError: The ledger was changed or damaged after it was written.
    """
    try:
        status = path.stat()
        return _state(path, status.st_mtime_ns, status.st_size)
    except (SweepError, OSError) as error:
        raise RecordError(str(error)) from error


@lru_cache(maxsize=1024)
def _state(path: Path, changed: int, size: int) -> SearchState:
    return read(path).state


def _search(folder: Path, outputs: Path) -> SearchResult | None:
    protocol, setting, loss, name = folder.relative_to(outputs).parts
    state = search_state(folder / LEDGER_NAME)
    if state.header is None:
        return None
    versions = dict(state.header["versions"])
    finished = None if state.finished is None else str(state.finished["cause"])
    # "(other overrides)" is a list, and no parameter
    space = {
        name: entry for name, entry in state.header["signature"]["search space"].items() if isinstance(entry, dict)
    }
    return SearchResult(
        protocol, setting, loss, name, folder, state.max_trials, finished,
        tuple(_trial(trial, state.objective) for trial in state.trials), space, versions,
    )  # fmt: skip


def _trial(trial: Trial, metric: str) -> SearchTrial:
    measured = trial.measurements.get(metric)
    values = () if measured is None else measured.values
    mean = measured.mean if measured is not None and trial.status == "completed" else None
    return SearchTrial(trial.index, trial.status, trial.parameters, values, mean, trial.seconds, trial.reason)
