"""Images with the same pixels under several names: what a model learned by heart is not to be found again."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlrc_lightning.data.copies import first_of_each
from mlrc_lightning.data.images import LabeledImages
from mlrc_lightning.data.splits import FoldSplit
from mlrc_lightning.errors import DatasetError

log = logging.getLogger(__name__)

ELSEWHERE = ("in another class", "in another part of a split")
"""How the copies that leak are counted."""
WITHIN = "in its class"
_PARTS = ("none", "train", "val", "test", "the queries of test")


def check_contents(
    images: LabeledImages,
    folds: Sequence[FoldSplit],
    indices: NDArray[np.int64],
    digests: Sequence[str],
    refuses: bool,
) -> dict[str, int]:
    """Counts the images that have the pixels of an earlier one.

    Args:
        images: The dataset.
        folds: Its split.
        indices: Which of its images are compared; (M,), int64.
        digests: Of the pixels of each; M of them.
        refuses: Whether a copy in another class, or in another of train, val and test, is an error.

    Returns:
        The number of images by where the earlier one is, where there are any.

    Raises:
        DatasetError: Names the first copy that is refused.
    """
    first = first_of_each(digests)
    again = np.flatnonzero(first != np.arange(len(first)))
    copies, originals = indices[again], indices[first[again]]
    if not len(copies):
        return {}
    other_class = images.labels[copies] != images.labels[originals]
    other_part = np.zeros(len(copies), dtype=bool)
    names = np.zeros((2, len(copies)), dtype=np.int64)
    for fold in folds:
        parts = _parts(fold)
        differs = (parts[copies] != parts[originals]) & (parts[copies] > 0) & (parts[originals] > 0) & ~other_part
        names[:, differs] = parts[originals[differs]], parts[copies[differs]]
        other_part |= differs
    leaks = np.flatnonzero(other_class | other_part)
    counts = {
        ELSEWHERE[0]: int(other_class.sum()),
        ELSEWHERE[1]: int((other_part & ~other_class).sum()),
        WITHIN: int(len(copies) - len(leaks)),
    }
    counts = {where: number for where, number in counts.items() if number}
    shown = ", ".join(f"{number:,} {where}" for where, number in counts.items())
    if not (len(leaks) and refuses):
        log.warning("Images with the pixels of an earlier one, which a query finds first: %s", shown)
        return counts
    row = int(leaks[0])
    places = [
        f"{images.describe(int(index))} (class {images.class_names[images.labels[index]]}, {_PARTS[part]})"
        for index, part in zip((originals[row], copies[row]), names[:, row] if other_part[row] else (0, 0), strict=True)
    ]
    raise DatasetError(
        f"Expected each image in one class and one of train, val and test, found the same pixels in"
        f" {' and '.join(place.replace(', none)', ')') for place in places)}. Copies: {shown}. List an image once; or"
        " keep and count them by dataset.copies=report."
    )


def _parts(fold: FoldSplit) -> NDArray[np.int64]:
    parts = np.zeros(len(fold.labels), dtype=np.int64)
    for number, images in ((1, fold.train), (2, fold.val), (3, fold.test), (4, fold.queries)):
        if images is not None:
            parts[images] = number
    return parts
