"""Decoded images on disk: each image once, its shorter side resized, uint8, shared by folds, trials and processes.

Two caches per dataset, `trainval` and `test`, so that a search can be shown never to open the test one. Resizing is
the deterministic first step of the paper's transform, so what is read from the cache is bit-equal to what would be
computed from the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mlrc_lightning.datasets.images import LabeledImages
from mlrc_lightning.errors import DatasetError, ImageError

log = logging.getLogger(__name__)

Half = Literal["trainval", "test"]

_FORMAT_VERSION = 1
_CHUNK = 256


@dataclass(frozen=True)
class CachedImages:
    """Pixels of one part of a dataset, by the dataset's own indices.

    Attributes:
        file: The pixels of all images, one after the other; uint8.
        indices: Dataset index of each cached image; (M,), int64, ascending.
        offsets: Where each image starts in the file; (M,), int64.
        shapes: Height and width of each image; (M, 2), int64.
    """

    file: Path
    indices: NDArray[np.int64]
    offsets: NDArray[np.int64]
    shapes: NDArray[np.int64]

    def open(self) -> NDArray[np.uint8]:
        """Maps the pixels into memory; pages are shared by all processes that do so."""
        return np.memmap(self.file, dtype=np.uint8, mode="r")

    def image(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """Returns one image of the opened pixels; (H, W, 3)."""
        row = int(np.searchsorted(self.indices, index))
        if row == len(self.indices) or self.indices[row] != index:
            raise KeyError(f"image {index} is not in {self.file}")
        height, width = self.shapes[row].tolist()
        start = int(self.offsets[row])
        return pixels[start : start + height * width * 3].reshape(height, width, 3)


def resize_shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Resizes as torchvision's Resize(size) does: bilinear, antialiased, the longer side rounded down.

    Source: torchvision.transforms.functional.resize; PROTOCOL.md section 1.5.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(size * long / short)
    new_size = (size, new_long) if width <= height else (new_long, size)
    return image if new_size == image.size else image.resize(new_size, Image.Resampling.BILINEAR)


def cached_images(
    images: LabeledImages, indices: NDArray[np.int64], resize: int, folder: Path, half: Half
) -> CachedImages:
    """Returns the cache of some images, made first where it is missing or the images changed.

    Args:
        images: The dataset.
        indices: Which of its images; ascending.
        resize: Shorter side in pixels.
        folder: Where the caches of this dataset lie.
        half: Name of the files.

    Raises:
        ImageError: An image does not decode; all of them are tried, and counted in the message.
        DatasetError: The disk is too small.
    """
    fingerprint = images.fingerprint(indices)
    # the digest says which pixels, the indices whose they are: another split of the same images is another cache
    positions = hashlib.sha256(indices.tobytes()).hexdigest()
    key = {"version": _FORMAT_VERSION, "resize": resize, "images": fingerprint, "indices": positions}
    found = _load(folder, half, key, indices)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    log.info("Decoding %s images (%s) into %s", f"{len(indices):,}", half, folder)
    _remove_leftovers(folder, half)
    partial = folder / f"{half}.uint8.partial-{os.getpid()}"
    try:
        shapes = _decode_all(images, indices, resize, partial, half)
        sizes = shapes[:, 0] * shapes[:, 1] * 3
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        name = f"{half}-{fingerprint[:12]}-{resize}.uint8"
        index = {"key": key, "file": name, "offsets": offsets.tolist(), "shapes": shapes.tolist()}
        os.replace(partial, folder / name)
        index_partial = folder / f"{half}.json.partial-{os.getpid()}"
        index_partial.write_text(json.dumps(index))
        os.replace(index_partial, folder / f"{half}.json")
    except OSError as error:
        raise DatasetError(
            f"{folder}: expected to write the decoded images there, found: {error}."
            " Free some space, or name another folder with data_root=FOLDER."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    for stale in folder.glob(f"{half}-*.uint8"):
        if stale.name != name:
            stale.unlink(missing_ok=True)  # a process that still reads it keeps its pages
    return CachedImages(folder / name, indices, offsets, shapes)


def _load(folder: Path, half: Half, key: dict[str, object], indices: NDArray[np.int64]) -> CachedImages | None:
    try:
        index = json.loads((folder / f"{half}.json").read_text())
        file = folder / index["file"]
        shapes = np.array(index["shapes"], dtype=np.int64).reshape(-1, 2)
        expected_bytes = int((shapes[:, 0] * shapes[:, 1]).sum()) * 3
        if index["key"] != key or len(shapes) != len(indices) or file.stat().st_size != expected_bytes:
            return None
        return CachedImages(file, indices, np.array(index["offsets"], dtype=np.int64), shapes)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing or damaged: made again, it holds nothing that is not in the images


def _decode_all(
    images: LabeledImages, indices: NDArray[np.int64], resize: int, target: Path, half: Half
) -> NDArray[np.int64]:
    """Writes all pixels to one file, in order, on all cores; returns heights and widths, (M, 2)."""

    def decode(index: int) -> NDArray[np.uint8] | ImageError:
        try:
            return np.asarray(resize_shorter_side(images.read(index), resize), dtype=np.uint8)
        except ImageError as error:
            return error

    shapes: list[tuple[int, int]] = []
    errors: list[ImageError] = []
    with (
        target.open("wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(indices), desc=f"decode {half}", unit="image", disable=None, leave=False) as bar,
    ):
        for start in range(0, len(indices), _CHUNK):
            decoded = list(pool.map(decode, indices[start : start + _CHUNK].tolist()))
            good: Sequence[NDArray[np.uint8]] = [item for item in decoded if isinstance(item, np.ndarray)]
            errors += [item for item in decoded if isinstance(item, ImageError)]
            if not shapes and good:
                _check_space(target, sum(item.nbytes for item in good) // len(good) * len(indices))
            for item in good:
                shapes.append(item.shape[:2])
                file.write(item.tobytes())
            bar.update(len(decoded))
        file.flush()
        os.fsync(file.fileno())
    if errors:
        more = f" So do {len(errors) - 1} others." if len(errors) > 1 else ""
        raise ImageError(f"{errors[0]}{more} Replace or remove the file{'s' if more else ''}, then run again.")
    return np.array(shapes, dtype=np.int64).reshape(-1, 2)


def _check_space(target: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed_bytes > free:
        raise DatasetError(
            f"{target.parent}: expected about {needed_bytes / 1e9:.1f} GB for the decoded images, found"
            f" {free / 1e9:.1f} GB free. Free some space, or name another folder with data_root=FOLDER."
        )


def _remove_leftovers(folder: Path, half: Half) -> None:
    """Removes partial files of processes that were killed."""
    for leftover in folder.glob(f"{half}.*.partial-*"):
        process = int(leftover.name.rsplit("-", 1)[1])
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            leftover.unlink(missing_ok=True)
        except PermissionError:
            continue
