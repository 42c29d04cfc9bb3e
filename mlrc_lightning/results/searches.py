"""Finds the searches under `outputs` and reads them from their ledgers."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlrc_lightning.errors import RecordError

LEDGER_FILE = "ledger.jsonl"


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
