"""What the last report was made of, so that one that would come out the same is not made again.

Imports nothing that draws, and opens no result: a file counts as the same while its size and time of change are.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Collection, Iterator
from importlib.metadata import version
from pathlib import Path

from mlrc_lightning.files import PACKAGE_FOLDER, config_folder, write_bytes
from mlrc_lightning.names import PAIRWISE_FILE
from mlrc_lightning.reporting.site.layout import FOLDER, INDEX

_MEMORY = ".made_of"
_DERIVED = ("tables", "study", FOLDER)
"""Folders below `outputs` without results; making a report writes into them."""
_DERIVED_FILES = (PAIRWISE_FILE, ".pairwise_tests.json")
"""What a report writes beside results, from them alone."""
_LIBRARIES = ("matplotlib", "numpy", "pillow", "scipy")
"""Whose versions change how a page looks."""


def state(outputs: Path) -> str:
    """Returns a digest of all that a report is made of: results, configuration, this package, what it draws with."""
    lines = [sys.version, *(f"{name} {version(name)}" for name in _LIBRARIES)]
    for folder in (PACKAGE_FOLDER, config_folder()):
        lines += _files(folder, without=("__pycache__",))
    lines += _files(outputs, without=[*(str(outputs / name) for name in _DERIVED), *_DERIVED_FILES])
    return _digest(lines)


def is_made_of(outputs: Path, found: str) -> Path | None:
    """Returns the first page of the report if it is there, as it was made, of what is there now. It is None otherwise.

    Args:
        outputs: Folder of results.
        found: Their `state`.
    """
    memory = outputs / FOLDER / _MEMORY
    try:
        known = memory.read_text(encoding="utf-8").split()
    except OSError:
        return None
    return outputs / FOLDER / INDEX if known == [found, _pages(outputs)] else None


def remember(outputs: Path, made_of: str) -> None:
    """Writes down what the report was made of: the `state` before it was made."""
    write_bytes(outputs / FOLDER / _MEMORY, f"{made_of} {_pages(outputs)}\n".encode())


def _pages(outputs: Path) -> str:
    return _digest(list(_files(outputs / FOLDER, without=(_MEMORY,))))


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _files(folder: Path, without: Collection[str]) -> Iterator[str]:
    """Yields path, size and time of change of every file, in a fixed order. `without` are names, or whole paths."""
    pending, seen = [str(folder)], set()
    while pending:
        path = pending.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:  # a link to where we have been
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except FileNotFoundError:  # a run at work removed it: what it writes next is seen the next time
            continue
        for entry in entries:
            if entry.name in without or entry.path in without:
                continue
            if entry.is_dir():
                pending.append(entry.path)
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            yield f"{entry.path}\0{status.st_size}\0{status.st_mtime_ns}"
