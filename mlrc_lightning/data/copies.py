"""Files that are listed more than once, whichever names lead to them."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def first_of_each(keys: Sequence[Hashable]) -> NDArray[np.int64]:
    """Returns for each key the position of the first equal one, (N,), int64."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(key, position) for position, key in enumerate(keys)], dtype=np.int64)


def file_identities(paths: Sequence[Path]) -> list[Hashable]:
    """Returns what tells files apart, whichever names and links lead to them. No file is opened."""
    return [_identity(os.fspath(path)) for path in paths]


def _identity(path: str) -> Hashable:
    try:
        status = os.stat(path)
    except OSError:
        return os.path.abspath(path)  # missing: reported where it is read
    # a file system that numbers two files alike gives them other times
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
