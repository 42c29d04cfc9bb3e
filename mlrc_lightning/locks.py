"""One process at a time at what several want and one can make for all."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Waits for another process that does the same; its lock goes with it, however it ends.

    Args:
        path: Of the lock, in a folder that is there. It stays: who removes a lock breaks another's.
        what: That is done, as in "computes the same features", for the log.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("Another process %s; waiting for it", what)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
