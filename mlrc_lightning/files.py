"""Files that are written whole, locks, and where `conf/` lies."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import io
import itertools
import json
import logging
import math
import os
import socket
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlrc_lightning.errors import RecordError
from mlrc_lightning.reading import leaves

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
    """Waits for another process that does the same. Its lock goes with it, however it ends.

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
    except OSError as error:
        # where a write fails, and not an open, the system does not say which file it was
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def as_json(content: object) -> Any:
    """Returns a dataclass or plain data as what reading its JSON would give. NaN is refused."""
    plain = dataclasses.asdict(content) if dataclasses.is_dataclass(content) else content  # type: ignore[arg-type]
    return json.loads(json.dumps(plain, allow_nan=False))


def write_npz(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Writes arrays by name as a compressed .npz file, as a whole. It makes the folder."""
    import numpy as np

    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, file.getvalue())


def write_json(path: Path, content: object) -> None:
    """Writes a dataclass or plain data as JSON, as `write_bytes` does. NaN is refused."""
    write_bytes(path, (json.dumps(as_json(content), indent=1) + "\n").encode())


def read_bytes(path: Path, largest: int = 2**26) -> bytes:
    """Returns the content of a file.

    Args:
        path: The file.
        largest: How many bytes are read at most; a result of a thousand epochs has a hundredth of the default.

    Raises:
        RecordError: It is no file (a folder, a pipe, a device), is larger, or cannot be read.
        FileNotFoundError: It is not there.
    """
    try:
        # a pipe would wait for its writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: expected a file that can be read, found: {error}.") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RecordError(f"{path}: expected a file, found a folder, a pipe or a device.")
        if status.st_size > largest:
            raise RecordError(f"{path}: expected at most {largest:,} bytes, found {status.st_size:,}.")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(largest)
    except OSError as error:
        raise RecordError(f"{path}: expected a file that can be read, found: {error}.") from None
    finally:
        os.close(descriptor)


def read_plain_json(path: Path) -> Any:
    """Reads JSON as it is.

    Raises:
        RecordError: The file is not there, no JSON, larger than `read_bytes` takes, nested more than `_DEEPEST`
            times, or has a number that is not finite.
    """
    try:
        content = read_bytes(path)
        found = json.loads(content.decode())
        if _depth(content) > _DEEPEST:  # brackets in text count too, so that few files are looked at twice
            _check_depth(found, _DEEPEST)
    except FileNotFoundError:
        raise RecordError(f"{path}: expected a result file, found none.") from None
    except RecursionError:
        raise RecordError(f"{path}: expected JSON of at most {_DEEPEST} levels, found more.") from None
    except ValueError as error:
        raise RecordError(f"{path}: expected JSON, found a damaged file ({error}). Remove it to run again.") from error
    if b"NaN" in content or b"Infinity" in content:
        for key, value in leaves(found):
            if isinstance(value, float) and not math.isfinite(value):
                raise RecordError(f"{path}: {key}={value}: expected a finite number.")
    return found


_DEEPEST = 32
_STEPS = {ord("{"): 1, ord("["): 1, ord("}"): -1, ord("]"): -1}
_NO_BRACKETS = bytes(set(range(256)) - _STEPS.keys())


def _depth(content: bytes) -> int:
    brackets = content.translate(None, _NO_BRACKETS)
    return max(itertools.accumulate(map(_STEPS.__getitem__, brackets)), default=0)


def _check_depth(node: object, left: int) -> None:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if left < 0:
        raise RecursionError
    for child in children:
        _check_depth(child, left - 1)


def read_npz(path: Path, what: str = "arrays", largest: int = 2**32) -> dict[str, NDArray[Any]]:
    """Reads the arrays of an .npz file by name. Nothing in it is executed.

    Args:
        path: The file.
        what: What it holds, for messages.
        largest: How many bytes the file, and all arrays together, have at most.

    Raises:
        RecordError: It is not there, damaged, no file, or larger.
    """
    import numpy as np

    try:
        file = io.BytesIO(read_bytes(path, largest))
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > largest:
            raise RecordError(f"{path}: expected at most {largest:,} bytes of arrays, found {size:,}.")
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise RecordError(f"{path}: expected {what}, found no file.") from None
    except (OSError, EOFError, ValueError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise RecordError(f"{path}: expected {what}, found a damaged file ({error}).") from error


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
    """Removes partial files that a killed writer left. Call it as the only writer of the folder."""
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
    """Holds a folder for this process. The lock ends with it, however it ends.

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
