"""What stands behind each cell of a table, and the check that it still says the same."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlrc_lightning.errors import RecordError
from mlrc_lightning.files import read_plain_json, write_json
from mlrc_lightning.names import METRICS, QUERIES_FILE, RECORD_FILE
from mlrc_lightning.reporting.intervals import Interval, t_interval
from mlrc_lightning.reporting.tables.cells import Accuracy, Number, Page
from mlrc_lightning.reporting.tables.setting import value_at
from mlrc_lightning.results.records import TrialRecord
from mlrc_lightning.results.runs import Run, RunSet, run_of
from mlrc_lightning.results.searches import SearchResult, damaged_searches, searches
from mlrc_sweeper import LEDGER_NAME

VERSION = 1
"""As `queries.py` names it, which imports numpy."""
_DIGESTS_FILE = ".digests.json"
_ROUNDING_OF_FLOAT32 = 1e-6


class Digests:
    """SHA-256 of files, remembered by size and time of change, since the weights of a table may be gigabytes.

    Args:
        outputs: Whose files are asked for, by names relative to it.
        memory: File that remembers; None to read every file anew.
    """

    def __init__(self, outputs: Path, memory: Path | None) -> None:
        self._outputs = outputs
        self._memory = memory
        self._known: dict[str, list[Any]] = {}
        if memory is not None and memory.exists():
            try:
                self._known = json.loads(memory.read_text(encoding="utf-8"))
            except ValueError:
                self._known = {}  # it is only a memory

    def of(self, names: Iterable[str]) -> dict[str, str]:
        """Returns the digests of files by name. Those that are not there are left out."""
        stamps: dict[str, list[int]] = {}
        for name in names:
            try:
                status = os.stat(self._outputs / name)
            except FileNotFoundError:
                continue
            if not stat.S_ISREG(status.st_mode):
                continue
            stamps[name] = [status.st_size, status.st_mtime_ns]
        unknown = [name for name, stamp in stamps.items() if self._known.get(name, [])[:2] != stamp]
        with ThreadPoolExecutor() as pool:
            for name, digest in zip(unknown, pool.map(self._read, unknown), strict=True):
                self._known[name] = [*stamps[name], digest]
        if unknown and self._memory is not None:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._memory, self._known)
        return {name: self._known[name][2] for name in stamps}

    def _read(self, name: str) -> str:
        with (self._outputs / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(
    page: Page,
    outputs: Path,
    sets: Iterable[RunSet],
    found: Iterable[SearchResult],
    rendered: Mapping[str, bytes],
) -> dict[str, Any]:
    """Returns the manifest of a page, the same bytes for the same results.

    Args:
        page: The table.
        outputs: Where its results lie.
        sets: All sets of runs under `outputs`.
        found: All searches under `outputs`.
        rendered: Content of the table's files, by name.
    """
    entries = [_cell_entry(cell) for table in page.tables for row in table.rows for cell in row.cells]
    cells = [entry for entry in entries if entry is not None]
    folders = dict.fromkeys(folder for cell in cells for folder in cell["runs"])
    digests = Digests(outputs, outputs / "tables" / _DIGESTS_FILE)
    wanted = set(page.searches) | {cell["search"] for cell in cells if cell["search"]}
    runs = {str(run.folder.relative_to(outputs)): run for run_set in sets for run in run_set.runs}
    by_folder = {str(search.folder.relative_to(outputs)): search for search in found}
    return {
        "manifest_version": VERSION,
        "table": page.name,
        "title": page.title,
        "arguments": page.arguments,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(rendered.items())},
        "cells": cells,
        "runs": {folder: _run_entry(folder, runs[folder], digests) for folder in sorted(folders)},
        "searches": {folder: _search_entry(folder, by_folder[folder], digests) for folder in sorted(wanted)},
    }


def verify(path: Path, outputs: Path) -> list[str]:
    """Computes every cell of a manifest again from the stored results, all files read anew.

    Args:
        path: Of the manifest.
        outputs: Where the results lie.

    Returns:
        A sentence for each input that changed or is missing, and for each cell that comes out otherwise; none where all
        is as it was.

    Raises:
        RecordError: There is no such manifest, or it is damaged.
    """
    content = read_plain_json(path)
    if not isinstance(content, Mapping) or content.get("manifest_version") != VERSION:
        raise RecordError(f"{path}: expected a table's manifest of version {VERSION}.")
    findings = []
    entries = [*content["runs"].values(), *content["searches"].values()]
    inputs = {name: digest for entry in entries for name, digest in entry["files"].items()}
    now = Digests(outputs, None).of(inputs)
    for name, digest in inputs.items():
        if name not in now:
            findings.append(f"{name}: is missing.")
        elif now[name] != digest:
            findings.append(f"{name}: was changed (SHA-256 {digest[:12]}… then, {now[name][:12]}… now).")
    for name, digest in content["files"].items():
        file = path.parent / name
        if file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            findings.append(f"{file}: the rendered table was changed.")
    runs = {folder: _outcome(outputs, folder, findings) for folder in content["runs"]}
    best = _best_parameters(outputs, findings) if any(cell["search"] for cell in content["cells"]) else {}
    for cell in content["cells"]:
        finding = _check_search_cell(cell, best) if cell["search"] else _check_cell(cell, runs)
        findings += [] if finding is None else [finding]
    for folder, outcome in runs.items():
        findings += _check_queries(outputs / folder, outcome) if outcome is not None else []
    return findings


def _cell_entry(cell: object) -> dict[str, Any] | None:
    if isinstance(cell, Accuracy) and cell.provenance is not None:
        value = {"mean": cell.mean, "half_width": cell.half_width, "n": cell.n}
        source = {"field": cell.provenance.field, "runs": list(cell.provenance.folders), "search": None}
        return {"cell": cell.provenance.key, **value, **source}
    if isinstance(cell, Number) and cell.provenance is not None:
        value = {"mean": cell.value, "half_width": None, "n": None}
        source = {"field": cell.provenance.field, "runs": [], "search": cell.provenance.folders[0]}
        return {"cell": cell.provenance.key, **value, **source}
    return None


def _run_entry(folder: str, run: Run, digests: Digests) -> dict[str, Any]:
    outcome = run.outcome
    assert outcome is not None
    settings = outcome.settings
    # a record tells the digests of its weights, so that gigabytes need not be read for a table; verify reads them
    told = {
        f"{folder}/{name}": fold.weight_digests[part]
        for fold in outcome.folds
        for part, name in fold.weights.items()
        if part in fold.weight_digests
    }
    weights = {f"{folder}/{name}" for fold in outcome.folds for name in fold.weights.values()} - told.keys()
    train = {str(fold.fold): list(fold.train_classes) for fold in outcome.folds}
    val = {str(fold.fold): list(fold.val_classes) for fold in outcome.folds}
    half = [label for fold in outcome.folds for label in (*fold.train_classes, *fold.val_classes)]
    num_classes = outcome.dataset.get("num_classes")
    return {
        "files": {**digests.of([f"{folder}/{RECORD_FILE}", f"{folder}/{QUERIES_FILE}", *sorted(weights)]), **told},
        "config": _digest(settings),
        "hyperparameters": {"values": settings.get("loss"), "source": settings.get("hyperparameters")},
        "dataset": outcome.dataset,
        "classes": {
            "train": train,
            "val": val,
            "test": [max(half) + 1, num_classes - 1] if half and num_classes else None,
        },
        "num_test_queries": None if outcome.test is None else outcome.test.num_queries,
        "seed": outcome.seed,
        "fold_seeds": {str(fold.fold): fold.seed for fold in outcome.folds},
        "code": outcome.environment.get("code"),
        "packages": outcome.environment.get("packages"),
        "python": outcome.environment.get("python"),
        "hardware": {key: outcome.environment.get(key) for key in ("platform", "processor", "num_cpus", "gpus")},
        "started_at": outcome.started_at,
        "seconds": outcome.seconds,
    }


def _search_entry(folder: str, search: SearchResult, digests: Digests) -> dict[str, Any]:
    best = search.best
    return {
        "files": digests.of([f"{folder}/{LEDGER_NAME}"]),
        "search_space": _digest({k: v for k, v in search.search_space.items() if v.get("type") != "fixed"}),
        "num_done": search.num_done,
        "max_trials": search.max_trials,
        "num_failed": search.num_failed,
        "best_trial": None if best is None else best.index,
        "versions": search.versions,
        "seconds": round(sum(trial.seconds for trial in search.trials), 3),
    }


def _outcome(outputs: Path, folder: str, findings: list[str]) -> TrialRecord | None:
    run = run_of(outputs / folder, outputs)
    findings += [] if run.damage is None else [run.damage]
    return run.outcome


def _check_cell(cell: Mapping[str, Any], runs: Mapping[str, TrialRecord | None]) -> str | None:
    values = []
    for folder in cell["runs"]:
        outcome = runs[folder]
        value = None if outcome is None or outcome.test is None else value_at(outcome, cell["field"])
        if value is None:
            return f"cell {cell['cell']}: {folder} has no {cell['field']} any more."
        values.append(value)
    then = Interval(cell["mean"], cell["half_width"], cell["n"])
    now = t_interval(values)
    if then.half_width is None and not now.half_width:
        now = replace(now, half_width=None)
    return None if then == now else f"cell {cell['cell']}: {_shown(then)} in the table, {_shown(now)} now."


def _check_search_cell(cell: Mapping[str, Any], best: Mapping[str, Mapping[str, Any]]) -> str | None:
    found = best.get(cell["search"], {}).get(cell["field"])
    if found is not None and math.isclose(float(found), cell["mean"], rel_tol=1e-12):
        return None
    return f"cell {cell['cell']}: {cell['mean']!r} in the table, {found!r} now."


def _check_queries(folder: Path, outcome: TrialRecord) -> list[str]:
    """Compares a run's accuracies with the means of its per-query results, where it has them."""
    path = folder / QUERIES_FILE
    if not path.exists() or outcome.test is None:
        return []
    from mlrc_lightning.results.queries import read_queries  # numpy: a table does without it

    try:
        queries = read_queries(path)
    except RecordError as error:
        return [str(error)]
    means: dict[str, list[dict[str, float]]] = {"separated": queries.separated.means()}
    if queries.concatenated is not None:
        means["concatenated"] = queries.concatenated.means()
    findings = []
    for embedding, of_models in means.items():
        for metric in METRICS:
            stored = value_at(outcome, f"test.{embedding}.{metric}")
            mean = math.fsum(accuracies[metric] for accuracies in of_models) / len(of_models)
            if stored is not None and abs(mean - stored) > _ROUNDING_OF_FLOAT32:
                findings.append(
                    f"{path}: {embedding} {metric} is {mean:.6f} over its queries, {stored:.6f} in the record."
                )
    return findings


def _best_parameters(outputs: Path, findings: list[str]) -> dict[str, dict[str, Any]]:
    findings += damaged_searches(outputs).values()
    found = searches(outputs)
    return {str(s.folder.relative_to(outputs)): s.best.parameters for s in found if s.best is not None}


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shown(interval: Interval) -> str:
    per_cent = interval.scaled(100)
    half_width = "" if per_cent.half_width is None else f" ± {per_cent.half_width:.6f}"
    return f"{per_cent.mean:.6f}{half_width} (n = {interval.n})"
