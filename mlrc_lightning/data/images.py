"""What the rest of the package asks of a dataset, and the common case: images in files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mlrc_lightning.data.colour import to_rgb
from mlrc_lightning.data.copies import file_identities, first_of_each
from mlrc_lightning.data.labels import report_lookalikes
from mlrc_lightning.errors import DatasetError, ImageError

log = logging.getLogger(__name__)


class LabeledImages(Protocol):
    """Images with a class each. Labels are known without opening a single image.

    A dataset with a split of its own has `own_split` as well, what it says of each image (`split=predefined`).

    Attributes:
        labels: Class position of each image in label order, 0 to C-1; (N,), int64.
        class_names: Name of each class, in label order; C of them.
    """

    labels: NDArray[np.int64]
    class_names: Sequence[str]

    def read(self, index: int) -> Image.Image:
        """Returns one image in RGB, its stored size."""
        ...

    def describe(self, index: int) -> str:
        """Returns what a message or a neighbour sheet calls the image."""
        ...

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """Returns a digest that changes when the pixels of these images may have changed."""
        ...


class ImageFiles:
    """Images in files, decoded by Pillow and converted to RGB as `colour.to_rgb` does.

    A file counts once, under whatever names it is listed: where it is listed again in its class, the first row stays.

    Args:
        paths: File of each image.
        labels: Label of each image; integers sort numerically, strings alphabetically.
        root: Folder that messages and digests name files by.
        own_split: What the dataset says of each image: one of `splits.OWN_SPLIT_WORDS`; None: nothing.
        names: Name of each image's class; None: its label.

    Attributes:
        paths: File of each image; N of them.
        rows: Position of each image among the arguments; (N,), int64.
        num_left_out: Arguments that are no image, because the file was listed before.
        exif: `apply` to rotate images as their EXIF orientation says, before any is read; otherwise `ignore`.

    Raises:
        DatasetError: A file is in two classes or in two parts of the dataset's own split, a class has two names, or
            labels are neither all integers nor all strings.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int] | Sequence[str],
        root: Path,
        own_split: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        if not (all(isinstance(label, str) for label in labels) or all(_is_integer(label) for label in labels)):
            kinds = ", ".join(sorted({type(label).__name__ for label in labels}))
            raise DatasetError(f"{root}: expected labels that are all integers or all strings, found {kinds}.")
        distinct: list[int | str] = sorted(set(labels))
        report_lookalikes([label for label in distinct if isinstance(label, str)])
        position = {label: number for number, label in enumerate(distinct)}
        self.exif = "ignore"
        self.root = root
        self._prefix = "" if root == Path() else os.path.join(root, "")
        self.paths = list(paths)
        first = first_of_each(file_identities(self.paths))
        again = np.flatnonzero(first != np.arange(len(first))).tolist()
        self._require_one("class", [str(label) for label in labels], first, again)
        if own_split is not None:
            self._require_one("part of the dataset's own split", own_split, first, again)
        if again:
            log.warning(
                "%s images are listed again in their class and left out, each counts once (first: %s)",
                f"{len(again):,}", self.describe(again[0]),
            )  # fmt: skip
        self.num_left_out = len(again)
        self.rows: NDArray[np.int64] = np.unique(first)
        kept = self.rows.tolist()
        self.paths = [self.paths[row] for row in kept]
        self.own_split = None if own_split is None else [own_split[row] for row in kept]
        self.labels = np.array([position[labels[row]] for row in kept], dtype=np.int64)
        self.class_names = [str(label) for label in distinct]
        if names is not None:
            self._name_classes([names[row] for row in kept])

    def _require_one(self, what: str, values: Sequence[str], first: NDArray[np.int64], again: Sequence[int]) -> None:
        differing = [row for row in again if values[row] != values[first[row]]]
        if differing:
            row = differing[0]
            more = f" (and {len(differing) - 1:,} more)" if len(differing) > 1 else ""
            raise DatasetError(
                f"{self.root}: expected each image in one {what}, found the same file in {values[first[row]]} as"
                f" {self.describe(int(first[row]))} and in {values[row]} as {self.describe(row)}{more}."
                " A model that knows an image is not tested by it: list the image once."
            )

    def _name_classes(self, names: Sequence[str]) -> None:
        name_of: dict[int, str] = {}
        for label, name in zip(self.labels.tolist(), names, strict=True):
            if name_of.setdefault(label, name) != name:
                raise DatasetError(
                    f"{self.root}: expected one name of class {self.class_names[label]}, found {name_of[label]!r} and"
                    f" {name!r}."
                )
        self.class_names = [name_of[label] for label in range(len(self.class_names))]

    def read(self, index: int) -> Image.Image:
        """Returns one image in RGB.

        Raises:
            ImageError: The file is missing, empty, truncated or not an image, or the range of its values is not known.
        """
        path = self.paths[index]
        try:
            if path.stat().st_size == 0:
                raise ImageError(f"{path}: expected an image, found a file of 0 bytes.")
            with Image.open(path) as image:
                return to_rgb(image, self.exif)
        except FileNotFoundError:
            raise ImageError(f"{path}: expected an image, found no file.") from None
        except (
            OSError,
            UnidentifiedImageError,
            SyntaxError,
            ValueError,
            Image.DecompressionBombError,
        ) as error:
            raise ImageError(f"{path}: expected an image, found a file that does not decode ({error}).") from error

    def describe(self, index: int) -> str:
        """Returns the path below the root."""
        # as words: pathlib takes twenty times as long, and every trial asks for all images
        return str(self.paths[index]).removeprefix(self._prefix)

    def fingerprint(self, indices: NDArray[np.int64]) -> str:
        """Returns a digest of names, labels, sizes and modification times. No file is opened."""
        digest = hashlib.sha256(b"" if self.exif == "ignore" else self.exif.encode())
        for index in indices.tolist():
            try:
                status = os.stat(self.paths[index])
            except FileNotFoundError:
                raise ImageError(f"{self.paths[index]}: expected an image, found no file.") from None
            entry = [self.describe(index), int(self.labels[index]), status.st_size, status.st_mtime_ns]
            digest.update(json.dumps(entry).encode())
        return digest.hexdigest()


def _is_integer(label: object) -> bool:
    return isinstance(label, int | np.integer) and not isinstance(label, bool)


def require_folder(root: Path, what: str, to_do: str) -> None:
    """Refuses a folder that is not there.

    Raises:
        DatasetError: Names the folder, and what to do.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise DatasetError(f"{what}: expected a folder at {root}, found {found} there. {to_do}")


def check_complete(
    images: ImageFiles,
    what: str,
    num_images: int,
    num_classes: int,
    to_do: str,
    num_images_of: Mapping[str, int] | None = None,
) -> None:
    """Refuses a published dataset that is not whole, without opening an image.

    Args:
        images: The dataset.
        what: Its name, for messages.
        num_images: Images published.
        num_classes: Classes published.
        to_do: What to do where something is missing.
        num_images_of: Images published of each part of its own split.

    Raises:
        DatasetError: A file is missing, or the number of images or classes is not the published one.
    """
    there = {
        folder: {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
        for folder in {path.parent for path in images.paths}
    }
    missing = [path for path in images.paths if path.name not in there[path.parent]]
    if missing:
        more = f" and {len(missing) - 1:,} others" if len(missing) > 1 else ""
        raise DatasetError(f"{what}: expected an image at {missing[0]}{more}, found no file. {to_do}")
    found = len(images.paths), len(images.class_names)
    if found != (num_images, num_classes):
        raise DatasetError(
            f"{what} at {images.root} has {found[0]:,} images of {found[1]:,} classes, expected {num_images:,} of"
            f" {num_classes:,}; the download may be incomplete. {to_do}"
        )
    found_of = dict(Counter(images.own_split or ()))
    if num_images_of is not None and found_of != dict(num_images_of):
        raise DatasetError(
            f"{what} at {images.root}: expected {_counts(num_images_of)} images, found {_counts(found_of)}. {to_do}"
        )


def _counts(number_of: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {part}" for part, number in sorted(number_of.items()))


def check_classes(images: LabeledImages, min_images_per_class: int) -> None:
    """Refuses classes with too few images.

    Raises:
        DatasetError: Names the first of them, and the way out.
    """
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    small: Iterable[int] = np.flatnonzero(counts < min_images_per_class)
    names = [f"{images.class_names[number]} ({counts[number]})" for number in small]
    if names:
        raise DatasetError(
            f"Expected at least {min_images_per_class} images in every class, found fewer in {len(names)}:"
            f" {', '.join(names[:5])}{', …' if len(names) > 5 else ''}. A single image has no other to retrieve:"
            " add images, list the dataset without the class, or set"
            " dataset.min_images_per_class=1 to keep it as a distractor."
        )
