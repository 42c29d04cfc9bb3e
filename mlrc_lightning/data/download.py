"""Files from the network, one whole or none: resumed, checked, and extracted without trusting the archive."""

from __future__ import annotations

import fcntl
import filecmp
import hashlib
import http.client
import logging
import os
import re
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from mlrc_lightning.errors import ConfigError, DatasetError, DownloadError

log = logging.getLogger(__name__)

Mirrors = Sequence[Sequence[Mapping[str, Any]]]
"""Alternatives, tried in turn; each a list of the files that make up the dataset, as `RemoteFile` takes them."""

_SCHEMES = ("https", "http", "ftp")
_ARCHIVES = (".zip", ".tgz", ".tar.gz", ".tar")
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0
_FRUITLESS_ATTEMPTS = 3
_PAUSE_SECONDS = 1.0
"""After the first fruitless attempt; twice as long after each further one."""
_PASSING_STATUSES = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class RemoteFile:
    """A file, where it can be had, and how it is recognised.

    Attributes:
        name: Its name on disk.
        urls: Mirrors, tried in turn.
        md5: Hexadecimal digest, where it is known.
        sha256: Likewise; the first digits suffice.
    """

    name: str
    urls: tuple[str, ...]
    md5: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name == "..":
            raise ConfigError(f"name={self.name!r} of a file to download: expected a file name without a folder.")
        for url in self.urls:
            if urlsplit(url).scheme not in _SCHEMES:
                raise ConfigError(f"{self.name}: expected URLs of {', '.join(_SCHEMES)}, found {url}.")

    @property
    def is_recognisable(self) -> bool:
        """Whether a digest is known."""
        return self.md5 is not None or self.sha256 is not None

    def mismatch(self, path: Path) -> str | None:
        """Returns what is wrong with the digest of a file. It is None where it is right or not known."""
        for algorithm, expected in (("md5", self.md5), ("sha256", self.sha256)):
            if expected is not None:
                found = _digest(path, algorithm)
                if not found.startswith(expected.lower()):
                    return f"expected {algorithm} {expected}, found {found[: len(expected)]}"
        return None


class _MirrorError(Exception):
    """One mirror will not give the file."""


class _DroppedError(Exception):
    """The transfer ended early. Asking again may help."""


def provide(
    what: str, root: Path, mirrors: Mirrors, may_download: bool, is_there: Callable[[], bool], command: str
) -> None:
    """Makes the files of a dataset be there: extracts archives that lie in its folder, after downloading them.

    Processes that do so at the same time wait for the first of them.

    Args:
        what: Name of the dataset, for messages.
        root: Its folder.
        mirrors: Where its files come from.
        may_download: Whether missing ones are downloaded; otherwise only archives in the folder are extracted.
        is_there: Whether the dataset is extracted already.
        command: What to run once a missing file was got by hand.

    Raises:
        DatasetError: No source gives the files; the message says which file to put where.
        ConfigError: A source is not as `RemoteFile` takes it.
    """
    alternatives = [[_remote_file(file) for file in files] for files in mirrors]
    if is_there() or not (may_download or root.is_dir()):
        return
    with _only_process(root):
        if is_there():
            return
        failures = []
        # what is on disk already comes first
        for files in sorted(alternatives, key=lambda files: not all((root / file.name).is_file() for file in files)):
            if not may_download and not all((root / file.name).is_file() for file in files):
                continue
            try:
                for file in files:
                    download(file, root)
                    if is_there():  # it was the only one that was missing
                        return
                for file in files:
                    if file.name.endswith(_ARCHIVES):
                        extract(root / file.name, root)
            except DownloadError as error:
                failures.append(str(error))
                continue
            if is_there():
                return
            failures.append(f"{' and '.join(file.name for file in files)}: not in a layout known here.")
        if failures:
            wanted = " and ".join(str(root / file.name) for file in alternatives[0])
            raise DatasetError(
                f"{what}: expected to get it, found no source that gives it. {' '.join(failures)}"
                f" Get the data in another way, put it at {wanted}, then run: {command}"
            )


def download(file: RemoteFile, folder: Path) -> Path:
    """Returns a file, downloaded where it is not in the folder yet.

    It appears under its name once it is complete and its digest is right. What an interrupted download got is kept
    beside it, and continued where a digest shows in the end that the pieces belong together.

    Raises:
        DownloadError: No mirror gives it, or a file of this name is there already and is another one.
    """
    target = folder / file.name
    if target.is_file():
        mismatch = file.mismatch(target)
        if mismatch is not None:
            raise DownloadError(
                f"{target}: {mismatch}. It is incomplete or another file: remove it, or use it by hand if you trust it."
            )
        return target
    partial = folder / f"{file.name}.partial"
    failures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for url in file.urls:
            if not file.is_recognisable:
                partial.unlink(missing_ok=True)
            try:
                log.info("Downloading %s from %s", file.name, urlsplit(url).netloc)
                _from_mirror(url, partial, file)
                os.replace(partial, target)
                return target
            except _MirrorError as error:
                failures.append(f"{url}: {error}")
    except OSError as error:
        raise DownloadError(f"{target}: expected to write it, found: {error}. Free some space there.") from error
    raise DownloadError(f"{file.name}: no mirror gives it ({'; '.join(failures)}).")


def extract(archive: Path, folder: Path) -> None:
    """Extracts a tar or zip archive, all of it or nothing.

    Raises:
        DownloadError: It is damaged.
        DatasetError: It has an entry that would land outside the folder, unpacks to more than `Limits` allow, or a
            file or folder of another content is in the way, which stays as it is.
    """
    partial = folder / f".{archive.name}.extracting"
    shutil.rmtree(partial, ignore_errors=True)
    log.info("Extracting %s", archive)
    try:
        partial.mkdir(parents=True)
        if zipfile.is_zipfile(archive):
            extract_zip(archive, partial)
        else:
            _extract_tar(archive, partial)
        entries = sorted(partial.iterdir())
        for entry in entries:
            destination = folder / entry.name
            if os.path.lexists(destination) and not _is_same_file(entry, destination):
                kind = "folder" if entry.is_dir() else "file"
                raise DatasetError(f"{destination}: {archive.name} holds a {kind} of this name. Move or rename yours.")
        for entry in entries:
            os.replace(entry, folder / entry.name)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise DownloadError(
            f"{archive}: expected an intact archive, found: {error}. Remove it and get it again."
        ) from error
    except OSError as error:
        raise DatasetError(f"{archive}: cannot extract it into {folder}: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _from_mirror(url: str, partial: Path, file: RemoteFile) -> None:
    """Completes the partial file from one mirror, through interruptions."""
    fruitless, furthest = 0, _size(partial)
    is_resumed, has_restarted = partial.is_file(), False
    versions: list[str | None] = []
    while True:
        try:
            _transfer(url, partial, versions)
        except _DroppedError as error:
            is_resumed = True
            fruitless = 0 if _size(partial) > furthest else fruitless + 1
            furthest = max(furthest, _size(partial))
            if fruitless == _FRUITLESS_ATTEMPTS:
                raise _MirrorError(str(error)) from error
            if not file.is_recognisable and not (versions and versions[-1]):
                partial.unlink(missing_ok=True)  # nothing would show that the pieces belong together
            log.info("%s: %s; going on", file.name, error)
            time.sleep(_PAUSE_SECONDS * 2 ** max(0, fruitless - 1))
            continue
        mismatch = file.mismatch(partial)
        if mismatch is None:
            return
        partial.unlink()
        if has_restarted or not is_resumed:
            raise _MirrorError(mismatch)
        has_restarted, versions = True, []  # the pieces may be of two files: once more, from the start


def _transfer(url: str, partial: Path, versions: list[str | None]) -> None:
    """Asks for what is missing of a file and appends it.

    Args:
        url: Where.
        partial: What is there already.
        versions: What the server called the file each time, None where it has no name for it; appended to.
    """
    offset = _size(partial)
    request = Request(url, headers={"User-Agent": "mlrc-lightning", "Accept-Encoding": "identity"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        if versions and versions[-1] is not None:
            request.add_header("If-Range", versions[-1])
    try:
        response = urlopen(request, timeout=_TIMEOUT_SECONDS)
    except HTTPError as error:
        with error:
            if error.code == 416:
                if error.headers.get("Content-Range", "").endswith(f"*/{offset}"):
                    return  # nothing is missing
                partial.unlink(missing_ok=True)
            elif error.code not in _PASSING_STATUSES:
                raise _MirrorError(f"HTTP {error.code} {error.reason}") from error
            raise _DroppedError(f"HTTP {error.code} {error.reason}") from error
    except (URLError, OSError, http.client.HTTPException) as error:
        raise _DroppedError(str(getattr(error, "reason", None) or error)) from error
    with response:
        if response.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise _MirrorError("found a web page instead of the file")
        content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if getattr(response, "status", None) == 206:
            if content_range is None or int(content_range[1]) != offset:
                partial.unlink(missing_ok=True)
                raise _DroppedError("the server sent another part than asked for")
            length = content_range[2]
        else:
            offset, length = 0, response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        versions.append(response.headers.get("ETag") or response.headers.get("Last-Modified"))
        received = _append(response, partial, offset, total)
        if total is not None and received != total:
            raise _DroppedError(f"the connection ended after {received:,} of {total:,} bytes")


def _append(response: Any, partial: Path, offset: int, total: int | None) -> int:
    """Writes a response's body behind the first `offset` bytes. Returns the size of the file."""
    free = shutil.disk_usage(partial.parent).free
    if total is not None and total - offset > free:
        raise OSError(f"{(total - offset) / 1e9:.1f} GB to download, {free / 1e9:.1f} GB free")
    with (
        partial.open("ab" if offset else "wb") as out,
        tqdm(
            total=total, initial=offset, desc=partial.stem, unit="B", unit_scale=True, disable=None, leave=False
        ) as bar,
    ):
        size = offset
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _DroppedError(f"the connection ended after {size:,} bytes ({error})") from error
            if not chunk:
                break
            if size == 0 and chunk.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
                raise _MirrorError("found a web page instead of the file")
            out.write(chunk)
            size += len(chunk)
            bar.update(len(chunk))
        out.flush()
        os.fsync(out.fileno())
    return size


def _is_same_file(one: Path, other: Path) -> bool:
    are_files = not other.is_symlink() and one.is_file() and other.is_file()
    return are_files and filecmp.cmp(one, other, shallow=False)


class Limits:
    """What an archive may unpack to. A published dataset is far below it, and an archive of zeros is not.

    Args:
        archive: The file.
        folder: The folder that it is unpacked into.

    Raises:
        DatasetError: From `add`: too many entries, too many bytes for the archive's own size or for the disk.
    """

    MOST_ENTRIES = 2 * 10**6
    LARGEST_RATIO = 100
    FREE_OF_RATIO = 2**26

    def __init__(self, archive: Path, folder: Path) -> None:
        self._archive = archive
        self._largest = max(self.FREE_OF_RATIO, self.LARGEST_RATIO * archive.stat().st_size)
        self._free = shutil.disk_usage(folder).free
        self._entries = self._bytes = 0

    def add(self, num_bytes: int) -> None:
        """Counts one entry before it is unpacked."""
        self._entries += 1
        self._bytes += max(0, num_bytes)
        if self._entries > self.MOST_ENTRIES:
            raise DatasetError(f"{self._archive}: refused, it has more than {self.MOST_ENTRIES:,} entries.")
        if self._bytes > self._largest:
            raise DatasetError(
                f"{self._archive}: refused, it unpacks to more than {self._largest:,} bytes,"
                f" {self.LARGEST_RATIO} times its own size."
            )
        if self._bytes > self._free:
            raise DatasetError(
                f"{self._archive}: expected {self._bytes:,} bytes of free space, found {self._free:,}. Free some."
            )


def _extract_tar(archive: Path, partial: Path) -> None:
    # Python 3.11 before 3.11.4 has no filters; the check below is made in any case
    options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    limits = Limits(archive, partial)
    with tarfile.open(archive) as opened, _progress(archive) as bar:
        for member in opened:
            limits.add(member.size)
            _require_inside(archive, member.name)
            if member.issym() or member.islnk():
                _require_inside(archive, member.linkname)
            elif not (member.isfile() or member.isdir()):
                raise DatasetError(f"{archive}: refused, {member.name} is neither a file nor a folder.")
            opened.extract(member, partial, **options)
            bar.update()


def extract_zip(archive: Path, partial: Path) -> None:
    """Extracts a zip archive into an empty folder, which is left to the caller where that fails.

    Raises:
        DatasetError: It has a link or an entry that would land outside the folder, or unpacks to too much.
        zipfile.BadZipFile: It is damaged.
    """
    limits = Limits(archive, partial)
    with zipfile.ZipFile(archive) as opened, _progress(archive) as bar:
        for member in opened.infolist():
            limits.add(member.file_size)
            _require_inside(archive, member.filename)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DatasetError(f"{archive}: refused, {member.filename} is a link.")
            opened.extract(member, partial)
            bar.update()


def _require_inside(archive: Path, name: str) -> None:
    """Refuses an entry, or the target of a link, that is absolute or leads upwards."""
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
        raise DatasetError(f"{archive}: refused, it names files outside its folder ({name}).")


def _progress(archive: Path) -> tqdm[Any]:
    return tqdm(desc=f"extract {archive.name}", unit="file", disable=None, leave=False)


@contextmanager
def _only_process(root: Path) -> Iterator[None]:
    """Waits until no other process provides the same dataset."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".download.lock").open("w")
    except OSError as error:
        raise DatasetError(f"{root}: expected a folder to download or extract into, found: {error}.") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remote_file(values: Mapping[str, Any]) -> RemoteFile:
    try:
        return RemoteFile(**{**values, "urls": tuple(values.get("urls", ()))})
    except TypeError as error:
        raise ConfigError(f"dataset.images.mirrors: expected files with name, urls, md5, sha256: {error}") from error


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
