"""Finds what searches and reproductions left under `outputs`, as plain data. It imports neither torch nor numpy.

A search is read from its ledger alone, a run from its record: 56 searches of 50 trials take a fraction of a second.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mlrc_lightning.errors import ConfigError, RecordError
from mlrc_lightning.files import read_plain_json
from mlrc_lightning.names import FOLD_FILE, NOT_READ, RECORD_FILE
from mlrc_lightning.reading import read
from mlrc_lightning.results.records import SCHEMA_VERSION, TrialRecord, read_json
from mlrc_lightning.results.searches import SearchResult, search_state
from mlrc_sweeper import LEDGER_NAME

COMPLETE, FAILED, UNFINISHED, ABSENT, DAMAGED = "complete", "failed", "unfinished", "absent", NOT_READ


_NUMBER = re.compile("[0-9]{1,9}")


@dataclass(frozen=True)
class Run:
    """One run of one setting: four folds with one seed.

    Attributes:
        number: From 0.
        folder: Where it is, or will be.
        place: Protocol, setting and loss by its folder, which its record must bear out.

    """

    number: int
    folder: Path
    place: tuple[str, str, str]

    @cached_property
    def record(self) -> TrialRecord | None:
        """The record with every epoch. It is None where the run has not ended.

        Raises:
            RecordError: It is damaged, or of another place.
        """
        path = self.folder / RECORD_FILE
        return self._checked(read_json(path, TrialRecord)) if path.exists() else None

    @cached_property
    def outcome(self) -> TrialRecord | None:
        """The record without its epochs, which are most of its bytes.

        It is None where it has not ended or is damaged.
        """
        return self._outcome_or_damage if isinstance(self._outcome_or_damage, TrialRecord) else None

    @property
    def damage(self) -> str | None:
        """Why the record cannot be read. It is None where it can, or is not there."""
        return self._outcome_or_damage if isinstance(self._outcome_or_damage, str) else None

    @cached_property
    def _outcome_or_damage(self) -> TrialRecord | str | None:
        path = self.folder / RECORD_FILE
        try:
            return self._checked(_without_epochs(path)) if os.path.lexists(path) else None
        except RecordError as error:
            return str(error)

    @property
    def state(self) -> str:
        """`COMPLETE` where it was tested, `FAILED`, `DAMAGED`, `UNFINISHED` where some of it is there, or `ABSENT`."""
        if self.damage is not None:
            return DAMAGED
        outcome = self.outcome
        if outcome is None:
            return UNFINISHED if self.num_finished_folds else ABSENT
        if outcome.status == "complete":
            return COMPLETE if outcome.test is not None else UNFINISHED
        return FAILED

    @property
    def num_finished_folds(self) -> int:
        """Folds that need not be trained again."""
        return len(list(self.folder.glob(f"fold_*/{FOLD_FILE}")))

    def _checked(self, record: TrialRecord) -> TrialRecord:
        found = (record.protocol, record.setting, record.loss)
        if found != self.place:
            raise RecordError(
                f"{self.folder}: expected a run of {'/'.join(self.place)}, found a record of {'/'.join(found)}."
                " Move the folder back to where it was made, or remove it."
            )
        return record


@dataclass(frozen=True)
class RunSet:
    """The runs of one loss with one set of hyperparameters on one setting, finished and unfinished.

    Attributes:
        source: Where the hyperparameters come from: search, paper or given.
        digest: Digest of the hyperparameters.
        folder: Of the set.
        runs: By number, as many as were asked for or found.
    """

    protocol: str
    setting: str
    loss: str
    source: str
    digest: str
    folder: Path
    runs: tuple[Run, ...]

    @cached_property
    def complete(self) -> tuple[Run, ...]:
        """The runs that count."""
        return tuple(run for run in self.runs if run.state == COMPLETE)

    @property
    def failed(self) -> tuple[Run, ...]:
        """The runs that ended without a test."""
        return tuple(run for run in self.runs if run.state == FAILED)

    @property
    def damaged(self) -> tuple[Run, ...]:
        """The runs whose record cannot be read."""
        return tuple(run for run in self.runs if run.state == DAMAGED)


def run_sets(outputs: Path) -> list[RunSet]:
    """Returns all sets of runs, in the order of their folders. Records are read when they are asked for."""
    found = []
    for folder in sorted(outputs.glob("*/*/*/reproduce/*-*")):
        source, _, digest = folder.name.partition("-")
        protocol, setting, loss = folder.relative_to(outputs).parts[:3]
        there = {int(path.name) for path in folder.iterdir() if _NUMBER.fullmatch(path.name)}
        numbers = sorted(there | set(range(_num_planned(folder))))
        runs = tuple(run_of(folder / str(number), outputs) for number in numbers)
        found.append(RunSet(protocol, setting, loss, source, digest, folder, runs))
    return found


def run_of(folder: Path, outputs: Path) -> Run:
    """Returns the run of a folder `<protocol>/<setting>/<loss>/reproduce/<set>/<number>` under `outputs`."""
    protocol, setting, loss = folder.relative_to(outputs).parts[:3]
    return Run(int(folder.name), folder, (protocol, setting, loss))


def has_best_hyperparameters(run_set: RunSet, search: SearchResult) -> bool | None:
    """Returns whether the runs are of the search's best trial as it stands. It is None where no run tells its own."""
    best = search.best
    outcome = next((run.outcome for run in run_set.runs if run.outcome is not None), None)
    if best is None or outcome is None:
        return None
    wanted = {key: value for key, value in best.parameters.items() if key.startswith("loss.")}
    return all(_same(_at(outcome.settings, key), value) for key, value in wanted.items())


def _num_planned(folder: Path) -> int:
    """Returns how many runs were asked for last. It is 0 where nothing tells."""
    ledger = folder / LEDGER_NAME
    try:
        return search_state(ledger).max_trials if ledger.exists() else 0
    except RecordError:
        return 0  # `damaged_searches` has it


def _without_epochs(path: Path) -> TrialRecord:
    """Reads a record but for its epochs. Its long lists of classes are not checked one by one."""
    content = read_plain_json(path)
    version = content.get("schema_version") if isinstance(content, Mapping) else None
    if version != SCHEMA_VERSION:
        raise RecordError(f"{path}: expected schema version {SCHEMA_VERSION}, found {version}.")
    try:
        classes = [(tuple(fold.pop("train_classes")), tuple(fold.pop("val_classes"))) for fold in content["folds"]]
        empty: dict[str, list[Any]] = {"epochs": [], "train_classes": [], "val_classes": []}
        record = read(TrialRecord, {**content, "folds": [{**fold, **empty} for fold in content["folds"]]})
    except (ConfigError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecordError(f"{path}: expected a trial's record, found something else ({error}).") from error
    folds = [replace(f, train_classes=t, val_classes=v) for f, (t, v) in zip(record.folds, classes, strict=True)]
    return replace(record, folds=tuple(folds))


def _at(values: Mapping[str, Any], dotted: str) -> Any:
    node: Any = values
    for key in dotted.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _same(found: Any, wanted: Any) -> bool:
    numbers = [value for value in (found, wanted) if isinstance(value, int | float) and not isinstance(value, bool)]
    return math.isclose(*numbers, rel_tol=1e-12) if len(numbers) == 2 else bool(found == wanted)


def missing_folds(run: Run, num_folds: int) -> int:
    """Returns how many models of a run are still to be trained."""
    return 0 if run.state == COMPLETE else num_folds - run.num_finished_folds
