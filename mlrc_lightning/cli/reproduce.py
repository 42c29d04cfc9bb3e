"""Trains a run again from its record and compares the two: python -m mlrc_lightning reproduce."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import mlrc_lightning._torchvision  # noqa: F401

import torch

from mlrc_lightning.errors import ConfigError, RecordError
from mlrc_lightning.files import inside
from mlrc_lightning.models.folder import file_digest
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.reporting.tables.trial import comparison_table
from mlrc_lightning.results.environment import environment
from mlrc_lightning.results.records import FoldResult, TrialRecord, read_run
from mlrc_lightning.settings.recorded import recorded_settings

_MOST_THREADS = 1024


def reproduce(
    path: Path,
    name: str | None = None,
    *,
    exact: bool = False,
    config_folders: Iterable[Path] = (),
    overrides: Iterable[str] = (),
) -> str:
    """Trains a run once more with the settings and seeds in its record, in a folder beside it.

    The record is data: only classes that our own configuration names are called. A search's trial stays one: it is
    validated and not tested. A command that was killed goes on where it stopped.

    Args:
        path: Of the run's folder or record.
        name: Of the new folder; None: the old one's with "-again".
        exact: Demand the same versions of Python and packages, and on a CPU the same weights, with as many threads.
        config_folders: Folders whose classes a record may name, beside our own.
        overrides: Places and hardware, as `recorded_settings` takes them.

    Returns:
        Old and new accuracies in a table.

    Raises:
        ConfigError: The name is none for a folder, the record names an unknown class, or a place is not given.
        RecordError: The new folder has links in it; with `exact`, what differs.
    """
    folder, record = read_run(path)
    name = f"{folder.name}-again" if name is None else name
    if Path(name).name != name or name in ("", "..") or name.isdigit() or name == folder.name:
        raise ConfigError(f"--name {name}: expected a new name for a folder beside {folder}, and no number.")
    settings = recorded_settings(record, config_folders, overrides)
    new_folder = folder.with_name(name)
    links = [path for path in (new_folder, *new_folder.rglob("*")) if path.is_symlink()]
    if links:
        raise RecordError(f"{links[0]}: expected a folder of files, found a link. Give another --name.")
    if exact:
        _require_the_same_packages(record)
        threads = record.environment.get("num_threads") or torch.get_num_threads()
        if not isinstance(threads, int) or not 1 <= threads <= _MOST_THREADS:
            raise RecordError(f"{folder}: environment.num_threads={threads!r}: expected 1 to {_MOST_THREADS}.")
        torch.set_num_threads(threads)
        if settings.trainer.num_ranks > 1:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # of ranks, which are processes of their own
    again = run_trial(settings, new_folder)
    rows = [("validation, mean over folds", again.val, record.val)]
    if again.test is not None and record.test is not None:
        rows.append(("test, separated", again.test.separated, record.test.separated))
        rows.append(("test, concatenated", again.test.concatenated, record.test.concatenated))
    rows = [row for row in rows if row[1] is not None]
    title = f"{record.loss} on {record.setting} ({record.protocol}), seed {record.seed}: {new_folder} and {folder}"
    table = "\n".join([title, "", comparison_table(rows, folder.name)])
    if not exact:
        return table
    differing = _differences(record, folder, again, new_folder)
    if differing:
        raise RecordError(f"{table}\n\nThe two runs are not the same: {'; '.join(differing)}.")
    return f"{table}\n\nThe same in every figure{'' if _used_a_gpu(record, again) else ' and every weight'}."


def _require_the_same_packages(record: TrialRecord) -> None:
    here, there = environment(), {"python": None, "packages": {}, **record.environment}
    if not isinstance(there["packages"], dict):
        raise RecordError(f"environment.packages={there['packages']!r}: expected a mapping of versions in the record.")
    versions = {"python": (there["python"], here["python"])}
    for package in sorted(there["packages"].keys() | here["packages"].keys()):
        versions[package] = (there["packages"].get(package), here["packages"].get(package))
    differing = [f"{name} {old or 'missing'} there, {new or 'missing'} here" for name, (old, new) in versions.items()
                 if old != new]  # fmt: skip
    if differing:
        raise RecordError(
            f"--exact: expected the record's versions, found {'; '.join(differing)}. Install the record's, or leave"
            " --exact out."
        )


def _differences(record: TrialRecord, folder: Path, again: TrialRecord, new_folder: Path) -> list[str]:
    found = []
    if record.dataset != again.dataset:
        found.append("the dataset's files")
    if not _used_a_gpu(record, again):
        for old, new in zip(record.folds, again.folds, strict=True):
            digests = [_weight_digests(old, folder), _weight_digests(new, new_folder)]
            if not all(digests):
                found.append(f"fold {old.fold}: no weights to compare, because they were not kept")
            found += [
                f"fold {old.fold}: weights of the {part}"
                for part in digests[1]
                if digests[0].get(part, "") != digests[1][part]
            ]
    if record.val != again.val:
        found.append("validation accuracies")
    tests = [None if run.test is None else (run.test.separated_folds, run.test.concatenated) for run in (record, again)]
    if tests[0] != tests[1]:
        found.append("test accuracies")
    return found


def _weight_digests(fold: FoldResult, folder: Path) -> dict[str, str]:
    if fold.weight_digests:
        return fold.weight_digests
    files = {part: inside(folder, name, f"weights.{part}") for part, name in fold.weights.items()}
    return {part: file_digest(file) for part, file in files.items() if file.exists()}


def _used_a_gpu(*records: TrialRecord) -> bool:
    return any(r.settings["trainer"]["accelerator"] != "cpu" and r.environment.get("gpus") for r in records)
