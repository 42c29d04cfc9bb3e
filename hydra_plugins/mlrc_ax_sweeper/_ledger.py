"""Writes the ledger, an append-only file of records and the only truth about a search, under its writer's lock."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlrc_sweeper.errors import DamagedLedgerError, SweepError
from mlrc_sweeper.ledger import LEDGER_NAME, read
from mlrc_sweeper.records import Record, encode

LOCK_NAME = "search.lock"


class Ledger:
    """Appends to the ledger of one search. Hold the `SearchLock` of the folder while it is open."""

    def __init__(self, directory: Path) -> None:
        """Open or create the ledger. A torn last record is cut off."""
        self.path = directory / LEDGER_NAME
        is_new = not self.path.exists()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            content = read(self.path)
            if os.fstat(self._descriptor).st_size > content.valid_bytes:
                os.ftruncate(self._descriptor, content.valid_bytes)
            if content.lacks_line_break:
                os.write(self._descriptor, b"\n")
            os.fsync(self._descriptor)
            if is_new:
                _sync_directory(directory)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.records = content.records
        self.state = content.state

    def append(self, type_: str, payload: Mapping[str, Any]) -> None:
        """Write a record that survives a crash of the machine once this returns, and have the state follow it."""
        record = Record(len(self.records), type_, payload)
        line = encode(record)
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, "only a part of the record was written")
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise SweepError(
                f"Cannot write to {self.path}: {error}. All earlier results are safe; make room and repeat the command."
            ) from error
        self.records.append(record)
        self.state.apply(record)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def repair(directory: Path) -> str:
    """Keep the valid records before the first damaged one. The old file stays beside it.

    Returns:
        What was done, for the user.
    """
    path = directory / LEDGER_NAME
    if not path.exists():
        raise SweepError(f"Expected a ledger at {path}, found none. Name the sweep directory of a search.")
    with SearchLock(directory):
        try:
            content = read(path)
        except DamagedLedgerError as damage:
            kept, num_kept, line = damage.valid_bytes, damage.num_valid, damage.line
        else:
            return f"{path} is intact: {len(content.records)} records. Nothing was changed."
        data = path.read_bytes()
        backup = _free_name(path)
        temporary = path.with_name(path.name + ".repaired")
        with temporary.open("wb") as file:
            file.write(data[:kept])
            file.flush()
            os.fsync(file.fileno())
        os.rename(path, backup)
        os.rename(temporary, path)
        _sync_directory(directory)
        num_dropped = data[kept:].count(b"\n")
        return (
            f"{path}: kept {num_kept} records; dropped {num_dropped} from line {line} on. "
            f"The old file is {backup.name}. Repeat the command of the search to go on."
        )


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.damaged{number}")).exists():
        number += 1
    return candidate


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SearchLock:
    """At most one sweeper a folder, on any number of hosts that share it.

    The lock is the kernel's (POSIX record lock): it ends with the process however that ends, and children
    do not inherit it. The file says who has it, and goes away when the search ends in order.
    """

    def __init__(self, directory: Path) -> None:
        """Prepare. The lock is taken on entry."""
        self.path = directory / LOCK_NAME
        self._descriptor = -1

    def __enter__(self) -> "SearchLock":
        """Take the lock or raise at once."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    os.close(descriptor)
                    raise SweepError(
                        f"Cannot lock {self.path}: {error}. The file system must support locks (POSIX, "
                        "fcntl); "
                        "choose another `hydra.sweep.dir`."
                    ) from error
                holder = _holder(descriptor)
                os.close(descriptor)
                raise SweepError(
                    f"A sweeper is already at work in {self.path.parent}: {holder}. Let it finish or end it, "
                    "or choose another `hydra.sweep.dir`."
                ) from None
            if self._is_current(descriptor):
                break
            os.close(descriptor)  # its holder removed the file between our open and our lock
        self._descriptor = descriptor
        me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(me).encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the file while the lock is still held, then let go."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self._descriptor)

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False


def _holder(descriptor: int, patience: float = 1.0) -> str:
    """Who has the lock. Between its lock and its name lies a moment, which is waited out."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fields = json.loads(os.pread(descriptor, 4096, 0))
            return f"host {fields['host']}, pid {fields['pid']}, since {fields['since']}"
        except (ValueError, KeyError, TypeError):
            if time.monotonic() > deadline:
                return "it has not said on which host"
            time.sleep(0.01)
