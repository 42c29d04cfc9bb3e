"""Files that are written whole, locks, and where `conf/` lies."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import io
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlrc_lightning.errors import RecordError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


log = logging.getLogger(__name__)

PACKAGE_FOLDER = Path(__file__).parent


def config_folder() -> Path:
    """Returns the folder of the YAML files: beside the package in a clone, inside it in an installed wheel."""
    inside = PACKAGE_FOLDER / "conf"
    return inside if inside.is_dir() else PACKAGE_FOLDER.parent / "conf"


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


def now() -> str:
    """Returns the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file as a whole: a reader sees the old content or the new, whenever the process is killed."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def as_json(content: object) -> Any:
    """Returns a dataclass or plain data as what reading its JSON would give; NaN is refused."""
    plain = dataclasses.asdict(content) if dataclasses.is_dataclass(content) else content  # type: ignore[arg-type]
    return json.loads(json.dumps(plain, allow_nan=False))


def write_npz(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Writes arrays by name as a compressed .npz file, as a whole; makes its folder."""
    import numpy as np

    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, file.getvalue())


def write_json(path: Path, content: object) -> None:
    """Writes a dataclass or plain data as JSON, as `write_bytes` does; NaN is refused."""
    write_bytes(path, (json.dumps(as_json(content), indent=1) + "\n").encode())


def read_plain_json(path: Path) -> Any:
    """Reads JSON as it is.

    Raises:
        RecordError: The file is not there, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path}: expected a result file, found none.") from None
    except ValueError as error:
        raise RecordError(f"{path}: expected JSON, found a damaged file ({error}). Remove it to run again.") from error


def inside(folder: Path, name: object, key: str) -> Path:
    """Returns a file that a result names by a path relative to its folder.

    Args:
        folder: The folder of the result.
        name: What the result says.
        key: Where it says so, for the message.

    Raises:
        RecordError: The path leads out of the folder, also by a link, or to what is no file.
    """
    try:
        path = folder / str(name)
        is_inside = isinstance(name, str) and path.resolve().is_relative_to(folder.resolve())
        if is_inside and (path.is_file() or not path.exists()):
            return path
    except (OSError, ValueError, RuntimeError):  # NUL, too long, a circle of links
        pass
    raise RecordError(f"{folder}: {key}={name!r}: expected a file inside of this folder.")


def remove_leftovers(folder: Path) -> None:
    """Removes partial files that a killed writer left; call it as the only writer of the folder."""
    for leftover in folder.glob(".*.partial-*"):
        leftover.unlink(missing_ok=True)


def _without_links(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RecordError(f"{path}: expected a file or nothing, found a link. Remove it.") from None
        raise


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; the lock ends with it, however it ends.

    Raises:
        RecordError: Another process holds it; the message names host and process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    while True:
        with open(path, "a+", encoding="utf-8", opener=_without_links) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise RecordError(
                    f"{folder} is being written by {file.read().strip() or 'another process'}."
                    " Wait for it, or run with another output_root."
                ) from None
            if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue  # its last holder removed the file between our opening and locking it
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {now()}\n")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
