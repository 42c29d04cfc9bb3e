"""Decoded images on disk: each image once, its shorter side resized, uint8, shared by folds, trials and processes.

Two caches per dataset, `trainval` and `test`, so that a search can be shown never to open the test one. Resizing is
the deterministic first step of the paper's transform, so what is read from the cache is bit-equal to what would be
computed from the file. Where the disk is too small for it, it is computed from the file, each time anew.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mlrc_lightning.data.images import LabeledImages
from mlrc_lightning.errors import DatasetError, DiskFullError, ImageError
from mlrc_lightning.files import only_one

log = logging.getLogger(__name__)

Half = Literal["trainval", "test"]
T = TypeVar("T")

_FORMAT_VERSION = 2
_PROBED = 32
"""Images that are decoded before size and time are announced."""
_AHEAD_PER_CORE = 32
"""Images that wait to be written, at most."""
_SPOT_CHECKED = 32
"""Images that are compared with their digests whenever a cache is opened."""


class ResizedImages(Protocol):
    """Pixels of one part of a dataset, its shorter side resized, by the dataset's own indices.

    Attributes:
        indices: Dataset index of each image; (M,), int64, ascending.
        digests: SHA-256 of each image's pixels, in hexadecimal; M of them.
    """

    @property
    def indices(self) -> NDArray[np.int64]: ...

    @property
    def digests(self) -> Sequence[str]: ...

    def open(self) -> NDArray[np.uint8]:
        """Returns what `image` reads from."""
        ...

    def image(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """Returns one image of the opened pixels, (H, W, 3). An index that is not of this part is a KeyError."""
        ...


@dataclass(frozen=True)
class CachedImages:
    """Pixels of one part of a dataset in a file.

    Attributes:
        file: The pixels of all images, one after the other; uint8.
        indices: Dataset index of each cached image; (M,), int64, ascending.
        offsets: Where each image starts in the file; (M,), int64.
        shapes: Height and width of each image; (M, 2), int64.
        digests: SHA-256 of each image's pixels, in hexadecimal; M of them.
    """

    file: Path
    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]
    shapes: NDArray[np.int64]
    digests: Sequence[str] = ()

    def open(self) -> NDArray[np.uint8]:
        """Maps the pixels into memory. Pages are shared by all processes that do so."""
        return np.asarray(np.memmap(self.file, dtype=np.uint8, mode="r"))  # a plain array is sliced much faster

    def image(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """Returns one image of the opened pixels, (H, W, 3)."""
        row = int(np.searchsorted(self.indices, index))
        if row == len(self.indices) or self.indices[row] != index:
            raise KeyError(f"image {index} is not in {self.file}")
        height, width = self.shapes[row].tolist()
        start = int(self.offsets[row])
        return pixels[start : start + height * width * 3].reshape(height, width, 3)


@dataclass(frozen=True)
class UncachedImages:
    """Pixels of one part of a dataset, decoded each time that they are asked for: where no disk holds them all.

    Attributes:
        images: The dataset.
        indices: Dataset index of each image of this part; (M,), int64, ascending.
        resize: Shorter side in pixels.
        digests: SHA-256 of each image's pixels, in hexadecimal; M of them.
    """

    images: LabeledImages
    indices: NDArray[np.int64]
    resize: int
    digests: Sequence[str]

    def open(self) -> NDArray[np.uint8]:
        """Returns no pixels: there is nothing to keep open."""
        return np.empty(0, dtype=np.uint8)

    def image(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """Decodes one image, (H, W, 3)."""
        row = int(np.searchsorted(self.indices, index))
        if row == len(self.indices) or self.indices[row] != index:
            raise KeyError(f"image {index} is not of this part of the dataset")
        return _decoded(self.images, index, self.resize)


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Resizes as torchvision's Resize(size) does: bilinear, antialiased, the longer side rounded down.

    Source: torchvision.transforms.functional.resize; docs/protocol.md, §1.5.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(size * long / short)
    new_size = (size, new_long) if width <= height else (new_long, size)
    return image if new_size == image.size else image.resize(new_size, Image.Resampling.BILINEAR)


def cached_images(
    images: LabeledImages,
    indices: NDArray[np.int64],
    resize: int,
    folder: Path,
    half: Half,
    *,
    tries_again: bool = True,
    checks_all: bool = False,
    before: Callable[[], None] = lambda: None,
) -> CachedImages:
    """Returns the cache of some images, made first where it is missing or damaged, or the images changed.

    Some images are compared with their digests, chosen anew each time.

    Args:
        images: The dataset.
        indices: Which of its images; ascending.
        resize: Shorter side in pixels.
        folder: Where the caches of this dataset lie.
        half: Name of the files.
        tries_again: Whether to decode all images once more where the disk was full in the midst of them before, as it
            is at a quota, which nothing announces.
        checks_all: Whether every image is compared with its digest.
        before: Is called before images are decoded, if any are.

    Raises:
        ImageError: An image does not decode; all of them are tried, and counted in the message.
        DiskFullError: The disk is too small.
        DatasetError: The folder cannot be written to.
    """
    fingerprint = images.fingerprint(indices)
    key = _key(fingerprint, indices, resize)
    found = _load(folder, half, key, indices, checks_all)
    if found is not None:
        return found
    before()
    full = folder / f"{half}.full.json"
    if not tries_again and _read(full) == key:
        raise DiskFullError(
            f"{folder}: expected room for the decoded images, found none when they were decoded last. Free some space,"
            " then: python -m mlrc_lightning prepare …; or name another folder with data_root=FOLDER."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder / f"{half}.lock", "decodes the same images"):
            # that of the process that was waited for
            return _load(folder, half, key, indices) or _make(images, indices, resize, folder, half, key, fingerprint)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_full:
            with contextlib.suppress(OSError):
                _write(full, key)
        raise (DiskFullError if is_full else DatasetError)(
            f"{folder}: expected to write the decoded images there, found: {error}."
            " Free some space, or name another folder with data_root=FOLDER."
        ) from error


def _make(
    images: LabeledImages,
    indices: NDArray[np.int64],
    resize: int,
    folder: Path,
    half: Half,
    key: dict[str, Any],
    fingerprint: str,
) -> CachedImages:
    partial = folder / f"{half}.uint8.partial"  # what a killed process left of it is overwritten
    try:
        shapes, digests = _decode_all(images, indices, resize, half, partial)
        name = f"{half}-{fingerprint[:12]}-{resize}.uint8"
        _write(_digest_file(folder, half), {"key": key, "digests": digests})
        content = {"key": key, "file": name, "shapes": shapes.tolist(), "digests": _sha256(digests)}
        os.replace(partial, folder / name)
        _write(folder / f"{half}.json", {"content": content, "sha256": _sha256(content)})
    finally:
        partial.unlink(missing_ok=True)
    (folder / f"{half}.full.json").unlink(missing_ok=True)
    for stale in folder.glob(f"{half}-*.uint8"):
        if stale.name != name:
            stale.unlink(missing_ok=True)  # a process that still reads it keeps its pages
    return CachedImages(folder / name, indices, _offsets(shapes), shapes, digests)


def stored_digests(
    images: LabeledImages, indices: NDArray[np.int64], resize: int, folder: Path, half: Half
) -> Sequence[str] | None:
    """Returns the digests of images that were decoded before, in the order of `indices`, without their pixels.

    None where they were not, or the images changed. No image and no pixels are opened.
    """
    stored = _read(_digest_file(folder, half))
    if not isinstance(stored, dict) or stored.get("key") != _key(images.fingerprint(indices), indices, resize):
        return None
    digests: list[str] = stored["digests"]
    return digests if len(digests) == len(indices) else None


def uncached_images(
    images: LabeledImages,
    indices: NDArray[np.int64],
    resize: int,
    folder: Path,
    half: Half,
    before: Callable[[], None] = lambda: None,
) -> UncachedImages:
    """Returns the same images without a cache, each of them decoded once to see that it can be.

    Args:
        images: The dataset.
        indices: Which of its images; ascending.
        resize: Shorter side in pixels.
        folder: Where it is noted that they all decode, if there is room for a small file, so that they are not all
            tried again.
        half: Name of that file.
        before: Is called before images are decoded, if any are.

    Raises:
        ImageError: An image does not decode; all of them are tried, and counted in the message.
    """
    key = _key(images.fingerprint(indices), indices, resize)
    path = folder / f"{half}.checked.json"
    found = _read(path)
    if isinstance(found, dict) and found.get("key") == key and len(found["digests"]) == len(indices):
        return UncachedImages(images, indices, resize, found["digests"])
    before()
    _, digests = _decode_all(images, indices, resize, half, None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, {"key": key, "digests": digests})
    except OSError:
        log.debug("%s: not written, the images will be tried again", path)
    return UncachedImages(images, indices, resize, digests)


def _key(fingerprint: str, indices: NDArray[np.int64], resize: int) -> dict[str, object]:
    # the digest says which pixels, the indices whose they are: another split of the same images is another cache
    positions = hashlib.sha256(indices.tobytes()).hexdigest()
    return {
        "version": _FORMAT_VERSION,
        "pillow": PIL.__version__,
        "resize": resize,
        "images": fingerprint,
        "indices": positions,
    }


def _read(path: Path) -> Any:
    """Returns what `_write` wrote. It is None where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(json.dumps(content))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _digest_file(folder: Path, half: Half) -> Path:
    # apart from the index, so that a search may compare digests of test images and opens no file of their pixels
    return folder / f"digests-{half}.json"


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _offsets(shapes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(shapes[:, 0] * shapes[:, 1] * 3)[:-1]]).astype(np.int64)


def _load(
    folder: Path, half: Half, key: dict[str, object], indices: NDArray[np.int64], checks_all: bool = False
) -> CachedImages | None:
    path = folder / f"{half}.json"
    try:
        index = json.loads(path.read_text())
        content = index["content"]
        if content["key"] != key:
            return None
        shapes = np.array(content["shapes"], dtype=np.int64).reshape(-1, 2)
        file = folder / content["file"]
        digests = json.loads(_digest_file(folder, half).read_text())["digests"]
        expected_bytes = int((shapes[:, 0] * shapes[:, 1]).sum()) * 3
        is_whole = _sha256(content) == index["sha256"] and _sha256(digests) == content["digests"]
        if not is_whole or len(shapes) != len(indices) or file.stat().st_size != expected_bytes:
            raise ValueError("another size or digest")
        found = CachedImages(file, indices, _offsets(shapes), shapes, digests)
        _check_pixels(found, checks_all)
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        # made again, it holds nothing that is not in the images; without its index no other process takes it
        log.warning("%s: damaged, and made again (%s)", path, error)
        path.unlink(missing_ok=True)
        return None


def _check_pixels(cached: CachedImages, checks_all: bool) -> None:
    """Compares images with their digests.

    Raises:
        ValueError: Names the first that differs.
    """
    number = len(cached.indices)
    # a stream of its own, which shifts no other
    rows = range(number) if checks_all else random.SystemRandom().sample(range(number), min(number, _SPOT_CHECKED))
    pixels = cached.open()

    def differs(row: int) -> bool:
        return _pixel_digest(cached.image(pixels, int(cached.indices[row]))) != cached.digests[row]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        wrong = [row for row, is_wrong in zip(rows, pool.map(differs, rows), strict=True) if is_wrong]
    if wrong:
        raise ValueError(f"{len(wrong):,} of {len(rows):,} images have other pixels, first {cached.indices[wrong[0]]}")


def _pixel_digest(image: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()


def _decoded(images: LabeledImages, index: int, resize: int) -> NDArray[np.uint8]:
    return np.asarray(resize_shorter_side(images.read(index), resize), dtype=np.uint8)


class _Decoded(NamedTuple):
    pixels: NDArray[np.uint8]
    digest: str


def _decode_all(
    images: LabeledImages, indices: NDArray[np.int64], resize: int, half: Half, target: Path | None
) -> tuple[NDArray[np.int64], list[str]]:
    """Decodes all images on all cores, after it said how long that takes.

    Threads, because Pillow decodes and resizes without the interpreter's lock: on two cores they take half the time of
    one, while processes, which must send every image back, take longer than one.

    Args:
        images: The dataset.
        indices: Which of its images.
        resize: Shorter side in pixels.
        half: What they are called.
        target: Takes all pixels, in order; None: the images are only tried.

    Returns:
        Heights and widths, (M, 2), and the digest of each image's pixels.
    """
    probed: dict[int, _Decoded | ImageError] = {}

    def decode(index: int) -> _Decoded | ImageError:
        if index in probed:
            return probed.pop(index)
        try:
            pixels = np.ascontiguousarray(_decoded(images, index, resize))
        except ImageError as error:
            return error
        return _Decoded(pixels, _pixel_digest(pixels))

    shapes: list[tuple[int, ...]] = []
    digests: list[str] = []
    errors: list[ImageError] = []
    num_cores = os.cpu_count() or 1
    with ThreadPoolExecutor(num_cores) as pool:
        began = time.monotonic()
        some = indices[np.unique(np.linspace(0, len(indices) - 1, min(_PROBED, len(indices))).astype(int))].tolist()
        probed.update(zip(some, list(pool.map(decode, some)), strict=True))
        seconds = (time.monotonic() - began) / len(some) * (len(indices) - len(some))
        good = [item.pixels.nbytes for item in probed.values() if isinstance(item, _Decoded)]
        num_bytes = sum(good) / max(1, len(good)) * len(indices)
        if target is None:
            log.info("Trying all %s images (%s): about %s", f"{len(indices):,}", half, _duration(seconds))
        else:
            log.info(
                "Decoding %s images (%s) into %s: about %s and %s",
                f"{len(indices):,}", half, target.parent, _size(num_bytes), _duration(seconds),
            )  # fmt: skip
            free = shutil.disk_usage(target.parent).free
            if num_bytes > free:
                raise DiskFullError(
                    f"{target.parent}: expected about {_size(num_bytes)} for the decoded images, found {_size(free)}"
                    " free. Free some space, or name another folder with data_root=FOLDER."
                )
        with (
            open(os.devnull if target is None else target, "wb") as file,
            tqdm(total=len(indices), desc=f"decode {half}", unit="image", disable=None, leave=False) as bar,
        ):
            for item in _in_order(pool, decode, indices.tolist(), num_cores * _AHEAD_PER_CORE):
                if isinstance(item, ImageError):
                    errors.append(item)
                else:
                    shapes.append(item.pixels.shape[:2])
                    digests.append(item.digest)
                    if target is not None and not errors:
                        file.write(item.pixels.data)
                bar.update()
            if target is not None:
                file.flush()
                os.fsync(file.fileno())
    if errors:
        more = f" So do {len(errors) - 1} others." if len(errors) > 1 else ""
        raise ImageError(
            f"{errors[0]}{more} Replace the file{'s' if more else ''} by what {'they' if more else 'it'}"
            " should be, or list the images without, then run again."
        )
    return np.array(shapes, dtype=np.int64).reshape(-1, 2), digests


def _in_order(pool: ThreadPoolExecutor, task: Callable[[int], T], indices: list[int], num_ahead: int) -> Iterator[T]:
    """Yields the result of each task in turn, while the pool works on the next ones."""
    waiting: deque[Future[T]] = deque()
    for index in indices:
        waiting.append(pool.submit(task, index))
        if len(waiting) > num_ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
