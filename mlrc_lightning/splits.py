"""Which classes are trained, validated and tested: the class-disjoint splits of the protocol.

The arithmetic is that of the original's ``MLRCSplitManager`` (PROTOCOL.md section 1.6): the second half of the
classes, in label order, is test; the first half is cut into cyclic train and validation ranges, one pair a fold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlrc_lightning.errors import SplitError
from mlrc_lightning.schema import NUM_FOLDS

Split = Literal["train", "val", "test"]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class FoldSplit:
    """Class positions of one fold, in the order of the sorted labels.

    Attributes:
        fold: Number of the fold, from 0.
        train: Positions of the classes to train on, in cyclic order.
        val: Positions of the classes to select the model on, in cyclic order.
        test: Positions of the classes of the second half; the same in every fold.
    """

    fold: int
    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuses a class that is in two splits, and an empty split."""
        names: tuple[Split, ...] = ("train", "val", "test")
        for position, first in enumerate(names):
            if not self.classes(first):
                raise SplitError(f"Fold {self.fold}: expected at least one class in {first}, found none.")
            for second in names[position + 1 :]:
                shared = set(self.classes(first)) & set(self.classes(second))
                if shared:
                    raise SplitError(
                        f"Fold {self.fold}: expected {first} and {second} to share no class, found"
                        f" {len(shared)} shared (first: {min(shared)}). A leak between splits makes every"
                        " score meaningless; fix the split that was passed in."
                    )

    def classes(self, split: Split) -> tuple[int, ...]:
        """Returns the class positions of one split."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


def num_test_classes(num_classes: int) -> int:
    """Returns how many classes, from the end of the label order, are test: half, rounded down."""
    return num_classes // 2


def first_half_classes(num_classes: int) -> range:
    """Returns the positions of the first half, from which training and validation are drawn."""
    return range(num_classes - num_test_classes(num_classes))


def second_half_classes(num_classes: int) -> range:
    """Returns the positions of the second half."""
    return range(num_classes - num_test_classes(num_classes), num_classes)


def class_disjoint_split(num_classes: int, fold: int, num_folds: int = NUM_FOLDS) -> FoldSplit:
    """Splits sorted classes into train, validation and test for one fold.

    Of ``n`` classes ``n // 2`` are test (the last ones) and ``n // (2 num_folds)`` validation. Fold ``p`` trains
    on the classes that follow position ``int(p / num_folds * N)`` cyclically in the first ``N``, and validates on
    those after them. Where the numbers do not divide, some classes are never validated (Cars196 positions 24 and
    73, SOP position 8487): the paper's arithmetic, kept.

    Args:
        num_classes: Number of classes of the dataset.
        fold: Number of the fold, in [0, num_folds).
        num_folds: Number of folds, at least 2; 4 in the protocol.

    Returns:
        Class positions; deterministic.

    Raises:
        SplitError: The fold does not exist, or there are too few classes for it.

    Source: powerful-benchmarker, ``MLRCSplitManager`` (PROTOCOL.md section 1.6).
    """
    if not 0 <= fold < num_folds:
        raise SplitError(f"fold={fold} does not exist: expected 0 to {num_folds - 1}.")
    first_half = first_half_classes(num_classes)
    num_val = num_classes // (2 * num_folds)
    num_train = len(first_half) - num_val
    if num_val < 1 or num_train < 2:
        raise SplitError(
            f"{num_folds} class-disjoint folds need at least {2 * num_folds} classes (half of them are test, and"
            f" each fold validates on its own part of the other half), found {num_classes}."
            " Add classes, or merge fewer of them."
        )
    start = fold * len(first_half) // num_folds
    cyclic = [first_half[(start + offset) % len(first_half)] for offset in range(len(first_half))]
    return FoldSplit(
        fold=fold,
        train=tuple(cyclic[:num_train]),
        val=tuple(cyclic[num_train:]),
        test=tuple(second_half_classes(num_classes)),
    )


def sample_indices(labels: Labels, classes: tuple[int, ...] | range) -> NDArray[np.int64]:
    """Returns the indices of all samples of some classes, in dataset order.

    Args:
        labels: Class position of each sample; (N,), int64.
        classes: Class positions.
    """
    return np.flatnonzero(np.isin(labels, np.asarray(classes, dtype=np.int64)))
