"""Finds what searches and reproductions left under `outputs`, as plain data; imports neither torch nor numpy.

A search is read from its ledger alone, a run from its record: 56 searches of 50 trials take a fraction of a second.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mlrc_lightning.errors import ConfigError, RecordError
from mlrc_lightning.records import RECORD_FILE, SCHEMA_VERSION, TrialRecord, read_json, read_plain_json
from mlrc_lightning.schema import NUM_FOLDS, read

LEDGER_FILE = "ledger.jsonl"
UNTRAINED = "untrained"
"""The loss of runs without training."""
COMPLETE, FAILED, UNFINISHED, ABSENT = "complete", "failed", "unfinished", "absent"


@dataclass(frozen=True)
class Run:
    """One run of one setting: four folds with one seed.

    Attributes:
        number: From 0.
        folder: Where it is, or will be.
        place: Protocol, benchmark and loss by its folder, which its record must bear out.

    Raises:
        RecordError: From what reads the record: it is damaged, or of another place.
    """

    number: int
    folder: Path
    place: tuple[str, str, str]

    @cached_property
    def record(self) -> TrialRecord | None:
        """The record with every epoch; None where the run has not ended."""
        path = self.folder / RECORD_FILE
        return self._checked(read_json(path, TrialRecord)) if path.exists() else None

    @cached_property
    def outcome(self) -> TrialRecord | None:
        """The record without its epochs, which are most of its bytes; None where the run has not ended."""
        path = self.folder / RECORD_FILE
        return self._checked(_without_epochs(path)) if path.exists() else None

    @property
    def state(self) -> str:
        """`COMPLETE` where it was tested, `FAILED`, `UNFINISHED` where some of it is there, or `ABSENT`."""
        outcome = self.outcome
        if outcome is None:
            return UNFINISHED if self.num_finished_folds else ABSENT
        if outcome.status == "complete":
            return COMPLETE if outcome.test is not None else UNFINISHED
        return FAILED

    @property
    def num_finished_folds(self) -> int:
        """Folds that need not be trained again."""
        return len(list(self.folder.glob("fold_*/fold.json")))

    def _checked(self, record: TrialRecord) -> TrialRecord:
        found = (record.protocol, record.benchmark, record.loss)
        if found != self.place:
            raise RecordError(
                f"{self.folder}: expected a run of {'/'.join(self.place)}, found a record of {'/'.join(found)}."
                " Move the folder back to where it was made, or remove it."
            )
        return record


@dataclass(frozen=True)
class RunSet:
    """The runs of one setting of one loss on one benchmark, finished and unfinished.

    Attributes:
        source: Where the setting comes from: search, paper or given.
        setting_id: Digest of the setting.
        folder: Of the set.
        runs: By number, as many as were asked for or found.
    """

    protocol: str
    benchmark: str
    loss: str
    source: str
    setting_id: str
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
        study: Name of its folder.
        max_trials: Trials asked for.
        finished: Why it ended; None while it is to go on.
        search_space: What was searched, by configuration key: type, bounds or values.
        versions: Packages that it was begun with.
    """

    protocol: str
    benchmark: str
    loss: str
    study: str
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


def run_sets(outputs: Path) -> list[RunSet]:
    """Returns all sets of runs, in the order of their folders; records are read when they are asked for."""
    found = []
    for folder in sorted(outputs.glob("*/*/*/reproduce/*-*")):
        source, _, setting_id = folder.name.partition("-")
        protocol, benchmark, loss = folder.relative_to(outputs).parts[:3]
        there = {int(path.name) for path in folder.iterdir() if path.name.isdigit()}
        numbers = sorted(there | set(range(_num_planned(folder))))
        runs = tuple(run_of(folder / str(number), outputs) for number in numbers)
        found.append(RunSet(protocol, benchmark, loss, source, setting_id, folder, runs))
    return found


def run_of(folder: Path, outputs: Path) -> Run:
    """Returns the run of a folder `<protocol>/<benchmark>/<loss>/reproduce/<set>/<number>` under `outputs`."""
    protocol, benchmark, loss = folder.relative_to(outputs).parts[:3]
    return Run(int(folder.name), folder, (protocol, benchmark, loss))


def searches(outputs: Path) -> list[SearchResult]:
    """Returns all searches, in the order of their folders.

    Raises:
        RecordError: A ledger was changed or damaged after it was written.
    """
    found = (_search(path.parent, outputs) for path in sorted(outputs.glob(f"*/*/*/*/{LEDGER_FILE}")))
    return [search for search in found if search is not None]


def ledger_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields type and payload of each whole record of a ledger; a torn last one is left out.

    Raises:
        RecordError: A record does not match its checksum.
    """
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        body, mark, crc = line.rpartition(b',"crc":"')
        if mark and crc == b'%08x"}' % zlib.crc32(body + b"}"):
            fields = json.loads(line)
            yield fields["type"], fields["payload"]
        elif number < len(lines):
            raise RecordError(
                f"{path}, line {number}: the record does not match its checksum. Restore the file, or keep what is"
                f" before that line: python -m hydra_plugins.mlrc_ax_sweeper repair {path.parent}"
            )


def has_setting(run_set: RunSet, search: SearchResult) -> bool | None:
    """Returns whether the runs are of the search's best trial as it stands; None where no run tells its setting."""
    best = search.best
    outcome = next((run.outcome for run in run_set.runs if run.outcome is not None), None)
    if best is None or outcome is None:
        return None
    wanted = {key: value for key, value in best.parameters.items() if key.startswith("loss.")}
    return all(_same(_at(outcome.settings, key), value) for key, value in wanted.items())


def _search(folder: Path, outputs: Path) -> SearchResult | None:
    protocol, benchmark, loss, study = folder.relative_to(outputs).parts
    header: dict[str, Any] = {}
    trials: dict[int, SearchTrial] = {}
    finished: str | None = None
    metric = ""
    for kind, payload in ledger_records(folder / LEDGER_FILE):
        if kind == "search":
            header = payload
            metric = next(iter(payload["signature"]["objective"]))
        elif kind == "extended":
            header = {**header, "max_trials": payload["max_trials"]}
            finished = None
        elif kind == "proposed":
            finished = None
            index = payload["trial"]
            trials[index] = SearchTrial(index, "open", dict(payload["parameters"]), (), None, 0.0, None)
        elif kind == "finished":
            finished = payload["cause"]
        elif kind in ("result", "job_failed", "completed", "failed", "raced_out", "reopened"):
            trial = trials[payload["trial"]]
            trials[trial.index] = _after(trial, kind, payload, metric)
    if not header:
        return None
    space = dict(header["signature"]["search space"])
    return SearchResult(
        protocol, benchmark, loss, study, folder, header["max_trials"], finished,
        tuple(trials[index] for index in sorted(trials)), space, dict(header["versions"]),
    )  # fmt: skip


def _after(trial: SearchTrial, kind: str, payload: Mapping[str, Any], metric: str) -> SearchTrial:
    if kind == "result":
        measured = payload["metrics"][metric]
        values = measured.get("replicates") or [measured["mean"]]
        return replace(trial, values=(*trial.values, *values), seconds=trial.seconds + payload["seconds"])
    if kind == "job_failed":
        return replace(trial, seconds=trial.seconds + payload["seconds"], reason=payload["reason"])
    if kind == "completed":
        return replace(trial, state="completed", mean=payload["values"][metric], reason=None)
    if kind == "reopened":
        return replace(trial, state="open", reason=None)
    return replace(trial, state=kind, reason=payload["reason"])


def _num_planned(folder: Path) -> int:
    """Returns how many runs were asked for last; 0 where nothing tells."""
    planned = 0
    if (folder / LEDGER_FILE).exists():
        for kind, payload in ledger_records(folder / LEDGER_FILE):
            if kind in ("search", "extended"):
                planned = payload["max_trials"]
    return planned


def _without_epochs(path: Path) -> TrialRecord:
    """Reads a record but for its epochs; its long lists of classes are not checked one by one."""
    content = read_plain_json(path)
    version = content.get("schema_version") if isinstance(content, Mapping) else None
    if version != SCHEMA_VERSION:
        raise RecordError(f"{path}: expected schema version {SCHEMA_VERSION}, found {version}.")
    try:
        classes = [(tuple(fold.pop("train_classes")), tuple(fold.pop("val_classes"))) for fold in content["folds"]]
        empty: dict[str, list[Any]] = {"epochs": [], "train_classes": [], "val_classes": []}
        record = read(TrialRecord, {**content, "folds": [{**fold, **empty} for fold in content["folds"]]})
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
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


def missing_folds(run: Run) -> int:
    """Returns how many models of a run are still to be trained."""
    return 0 if run.state == COMPLETE else NUM_FOLDS - run.num_finished_folds
