"""Which images are trained on, validated on and tested on: the splits of `conf/split`.

A splitter is any class with `folds(labels, own_split)` that returns one `FoldSplit` a fold; `split.splitter._target_`
names it, yours like these. What comes out is checked here, whoever made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mlrc_lightning.errors import ConfigError, SplitError

# scikit-learn is imported where it splits: it takes a second, and commands that only read records split nothing

Split = Literal["train", "val", "test"]
Labels = NDArray[np.int64]
Indices = NDArray[np.int64]

OWN_SPLIT_WORDS = ("train", "val", "trainval", "test", "query", "gallery")
"""What a dataset may say of an image; query and gallery are two parts of test."""


@dataclass(frozen=True, eq=False)
class FoldSplit:
    """The images of one fold.

    Attributes:
        fold: Number of the fold, from 0.
        labels: Class position of each image of the dataset; (N,), int64.
        train: Dataset indices of the images to train on; int64, ascending.
        val: Those to select the model on, which query each other.
        test: Those of the final test; the same in every fold.
        class_disjoint: Whether no class may be in two of the three.
        queries: Of the test images those that query the others; None: all of them query each other.
    """

    fold: int
    labels: Labels
    train: Indices
    val: Indices
    test: Indices
    class_disjoint: bool = True
    queries: Indices | None = None

    def __post_init__(self) -> None:
        """Refuses an image, or where `class_disjoint` a class, that is in two splits, and an empty split.

        Raises:
            SplitError: Names the fold, the splits and the first image or class they share.
        """
        names: tuple[Split, ...] = ("train", "val", "test")
        for name in names:
            self._require_indices(name, self.images(name))
        for position, first in enumerate(names):
            for second in names[position + 1 :]:
                self._require_none("image", first, second, np.intersect1d(self.images(first), self.images(second)))
                if self.class_disjoint:
                    shared = set(self.classes(first)) & set(self.classes(second))
                    self._require_none("class", first, second, sorted(shared))
        if self.queries is not None:
            self._require_indices("queries", self.queries)
            if not 0 < len(np.intersect1d(self.queries, self.test)) == len(self.queries) < len(self.test):
                raise SplitError(
                    f"Fold {self.fold}: expected queries that are some of the test images, and others for them to find,"
                    f" found {len(self.queries):,} queries and {len(self.test):,} test images."
                )

    def images(self, split: Split) -> Indices:
        """Returns the dataset indices of one split."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]

    def classes(self, split: Split) -> tuple[int, ...]:
        """Returns the class positions of one split, ascending."""
        return tuple(np.unique(self.labels[self.images(split)]).tolist())

    def _require_indices(self, name: str, indices: Indices) -> None:
        where = (
            f"Fold {self.fold}: expected {name} as ascending int64 indices of the dataset's {len(self.labels)} images"
        )
        if not isinstance(indices, np.ndarray) or indices.dtype != np.int64 or indices.ndim != 1:
            raise SplitError(f"{where}, found {type(indices).__name__} {getattr(indices, 'dtype', '')}.")
        if len(indices) == 0:
            raise SplitError(f"Fold {self.fold}: expected at least one image in {name}, found none.")
        if (np.diff(indices) <= 0).any() or indices[0] < 0 or indices[-1] >= len(self.labels):
            raise SplitError(f"{where}, found them unsorted, repeated or out of range.")

    def _require_none(self, what: str, first: str, second: str, shared: Sequence[int] | Indices) -> None:
        if len(shared):
            raise SplitError(
                f"Fold {self.fold}: expected {first} and {second} to share no {what}, found {len(shared)} shared"
                f" (first: {shared[0]}). A leak between splits makes every score meaningless; fix the split that was"
                " passed in."
            )


class Splitter(Protocol):
    """What `split.splitter` must be."""

    def folds(self, labels: Labels, own_split: Sequence[str] | None) -> Sequence[FoldSplit]:
        """Returns the folds, in order.

        Args:
            labels: Class position of each image, 0 to C-1 in label order; (N,), int64.
            own_split: What the dataset says of each image, one of `OWN_SPLIT_WORDS`; None where it says nothing.
        """
        ...


class MLRCSplit:
    """The paper's: the second half of the classes is test, the first is cut into cyclic train and val ranges.

    Args:
        num_folds: 4 in the paper.

    Source: powerful-benchmarker, ``MLRCSplitManager``; docs/protocol.md, §1.6.
    """

    def __init__(self, num_folds: int) -> None:
        _require_folds(num_folds)
        self._num_folds = num_folds

    def folds(self, labels: Labels, own_split: Sequence[str] | None = None) -> list[FoldSplit]:
        """Returns one split a fold.

        Raises:
            SplitError: There are too few classes.
        """
        num_classes = len(np.unique(labels))
        return [
            _of_classes(fold, labels, *mlrc_classes(num_classes, fold, self._num_folds))
            for fold in range(self._num_folds)
        ]


class ClassDisjointSplit:
    """The original's later default: scikit-learn's KFold over the classes that are not test, in label order.

    The sorted classes are rolled by ``int(test_start n) - int(test_size n)``, and the last ``test_size`` of them is
    test. With a test_size of one half, the test classes start at test_start = 0 or 0.5; at other fractions they start
    where the original's arithmetic puts them.

    Args:
        num_folds: Parts of the other classes; each is validated on once.
        test_start: Fraction of the classes, in [0, 1].
        test_size: Fraction of the classes that is test, in (0, 1).

    Source: powerful-benchmarker, ``ClassDisjointSplitManager``; docs/protocol.md, §1.6.
    """

    def __init__(self, num_folds: int, test_start: float, test_size: float) -> None:
        _require_folds(num_folds)
        _require_fraction("test_size", test_size)
        if not 0 <= test_start <= 1:
            raise ConfigError(f"split.splitter.test_start={test_start}: expected a fraction of the classes, 0 to 1.")
        self._num_folds, self._test_start, self._test_size = num_folds, test_start, test_size

    def folds(self, labels: Labels, own_split: Sequence[str] | None = None) -> list[FoldSplit]:
        """Returns one split a fold.

        Raises:
            SplitError: There are too few classes.
        """
        from sklearn.model_selection import train_test_split

        classes = np.unique(labels)
        num_classes = len(classes)
        rolled = np.roll(classes, int(self._test_start * num_classes) - int(self._test_size * num_classes))
        if num_classes < 2:
            raise SplitError(f"Expected at least two classes to split, found {num_classes}.")
        trainval, test = train_test_split(rolled, test_size=self._test_size, shuffle=False)
        return [
            _of_classes(fold, labels, train, val, test)
            for fold, (train, val) in enumerate(_k_folds(trainval, self._num_folds))
        ]


class ClosedSetSplit:
    """Every class in train, val and test: images are held out, stratified by class.

    Test images are drawn first; the others are cut by scikit-learn's StratifiedKFold, so that each of them is validated
    on in one fold. The original drew with no fixed seed; here the same seed is the same split.

    Args:
        num_folds: Parts of the images that are not test.
        test_size: Fraction of the images that is test, in (0, 1).
        seed: Of the draw.

    Source: powerful-benchmarker, ``ClosedSetSplitManager``; docs/protocol.md, §1.6.
    """

    def __init__(self, num_folds: int, test_size: float, seed: int) -> None:
        _require_folds(num_folds)
        _require_fraction("test_size", test_size)
        self._num_folds, self._test_size, self._seed = num_folds, test_size, seed

    def folds(self, labels: Labels, own_split: Sequence[str] | None = None) -> list[FoldSplit]:
        """Returns one split a fold.

        Raises:
            SplitError: A class has too few images to be everywhere.
        """
        from sklearn.model_selection import StratifiedKFold, train_test_split

        counts = np.bincount(labels)
        images = np.arange(len(labels))
        smallest = int(counts.argmin())
        # an image of each class in test, and one in every part of the others
        if counts[smallest] > self._num_folds:
            trainval, test = train_test_split(
                images, test_size=self._test_size, shuffle=True, random_state=self._seed, stratify=labels
            )
            left, held_out = (np.bincount(labels[part], minlength=len(counts)) for part in (trainval, test))
            if left.min() >= self._num_folds and held_out.min() > 0:
                parts = StratifiedKFold(self._num_folds, shuffle=False).split(trainval, labels[trainval])
                return [
                    FoldSplit(
                        fold, labels, _ascending(trainval[train]), _ascending(trainval[val]), _ascending(test), False
                    )
                    for fold, (train, val) in enumerate(parts)
                ]
        raise SplitError(
            f"{self._num_folds} closed-set folds need at least {self._num_folds} images of every class beside the"
            f" {self._test_size:g} of them that is test, found a class of {counts[smallest]} (position {smallest})."
            " Add images, or lower split.num_folds or split.splitter.test_size."
        )


class PredefinedSplit:
    """The dataset's own: a column of its table, or its published split.

    Where the dataset names val, there is one fold. Where it does not, the classes that are not test are cut into folds
    by scikit-learn's KFold in label order. Where it names query and gallery, only these query, and find only those.

    Args:
        num_folds: Parts of the classes that are not test; 1 where the dataset names val.
        class_disjoint: Refuse a dataset with a class in two of train, val and test.

    Source: powerful-benchmarker, ``PredefinedSplitManager``, which has one fold always; docs/protocol.md, §1.6.
    """

    def __init__(self, num_folds: int, class_disjoint: bool) -> None:
        if num_folds < 1:
            raise ConfigError(f"split.num_folds={num_folds}: expected at least 1.")
        self._num_folds, self._class_disjoint = num_folds, class_disjoint

    def folds(self, labels: Labels, own_split: Sequence[str] | None) -> list[FoldSplit]:
        """Returns one split a fold.

        Raises:
            SplitError: The dataset has no split of its own, or one that is not understood.
        """
        if own_split is None:
            raise SplitError(
                "split=predefined: expected a dataset with a split of its own, found none. Known: sop, inshop,"
                " inaturalist2018, and image_csv with a column split. Or take another: split=mlrc."
            )
        words = np.asarray(own_split)
        unknown = sorted(set(words.tolist()) - set(OWN_SPLIT_WORDS))
        if unknown:
            raise SplitError(
                f"split=predefined: expected {', '.join(OWN_SPLIT_WORDS)} in every row, found {unknown[0]!r}."
            )
        found = set(words.tolist())
        test_words = {"query", "gallery"} if found & {"query", "gallery"} else {"test"}
        if found - test_words not in ({"train", "val"}, {"trainval"}, {"train"}) or not test_words <= found:
            raise SplitError(
                "split=predefined: expected train, val and test, or trainval and test (or query and gallery in the"
                f" place of test), found {', '.join(sorted(found))}."
            )
        test = np.flatnonzero(np.isin(words, sorted(test_words)))
        queries = np.flatnonzero(words == "query") if "query" in found else None
        if "val" in found:
            if self._num_folds != 1:
                raise SplitError(
                    f"split=predefined: the dataset names its val images, which makes one fold, found split.num_folds="
                    f"{self._num_folds}. Add split.num_folds=1, or name train and val alike trainval."
                )
            train, val = np.flatnonzero(words == "train"), np.flatnonzero(words == "val")
            return [FoldSplit(0, labels, train, val, test, self._class_disjoint, queries)]
        _require_folds(self._num_folds)
        images = np.flatnonzero(np.isin(words, ["train", "trainval"]))
        folds = []
        for fold, parts in enumerate(_k_folds(np.unique(labels[images]), self._num_folds)):
            # a class that is test as well has images that are not
            train, val = (np.intersect1d(images, sample_indices(labels, classes)) for classes in parts)
            folds.append(FoldSplit(fold, labels, train, val, test, self._class_disjoint, queries))
        return folds


class Classes(NamedTuple):
    """Class positions of one fold."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]


def mlrc_classes(num_classes: int, fold: int, num_folds: int) -> Classes:
    """Splits sorted classes into train, validation and test for one fold, as the paper does.

    Of ``n`` classes ``n // 2`` are test (the last ones) and ``n // (2 num_folds)`` validation. Fold ``p`` trains
    on the classes that follow position ``int(p / num_folds * N)`` cyclically in the first ``N``, and validates on
    those after them. Where the numbers do not divide, some classes are never validated (Cars196 positions 24 and
    73, SOP position 8487): the paper's arithmetic, kept.

    Args:
        num_classes: Number of classes of the dataset.
        fold: Number of the fold, in [0, num_folds).
        num_folds: Number of folds, at least 2; 4 in the protocol.

    Returns:
        Class positions, train and val in cyclic order; deterministic.

    Raises:
        SplitError: The fold does not exist, or there are too few classes for it.

    Source: powerful-benchmarker, ``MLRCSplitManager`` (docs/protocol.md, §1.6).
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
    return Classes(tuple(cyclic[:num_train]), tuple(cyclic[num_train:]), tuple(second_half_classes(num_classes)))


def first_half_classes(num_classes: int) -> range:
    """Returns the positions of the first half. Of an odd number it is the larger one."""
    return range(num_classes - num_classes // 2)


def second_half_classes(num_classes: int) -> range:
    """Returns the positions of the second half."""
    return range(num_classes - num_classes // 2, num_classes)


def sample_indices(labels: Labels, classes: Sequence[int] | Labels) -> Indices:
    """Returns the indices of all samples of some classes, in dataset order.

    Args:
        labels: Class position of each sample; (N,), int64.
        classes: Class positions.
    """
    return np.flatnonzero(np.isin(labels, np.asarray(classes, dtype=np.int64)))


def checked_folds(folds: Sequence[FoldSplit], num_folds: int) -> list[FoldSplit]:
    """Returns the folds of a splitter, after checks that one fold alone cannot make.

    Raises:
        SplitError: Their number or order is not as configured, the folds test on different images, or a split has
            nothing to retrieve.
    """
    folds = list(folds)
    numbers = [fold.fold for fold in folds]
    if numbers != list(range(num_folds)):
        raise SplitError(f"split.num_folds={num_folds}: expected folds 0 to {num_folds - 1}, found {numbers}.")
    for fold in folds:
        for mine, first in ((fold.test, folds[0].test), (fold.queries, folds[0].queries)):
            if not (mine is first or (mine is not None and first is not None and np.array_equal(mine, first))):
                raise SplitError(
                    f"Expected all folds to test on the same images, found fold {fold.fold} on others than fold 0."
                )
        for name, images in (("val", fold.val), ("test", fold.test)):
            if np.unique(fold.labels[images], return_counts=True)[1].max() < 2:
                raise SplitError(
                    f"Fold {fold.fold}: expected a class with two images or more in {name}, so that there is something"
                    f" to retrieve, found {len(images)} classes of one. Add images, or split into fewer folds."
                )
        if len(fold.classes("train")) < 2:
            raise SplitError(f"Fold {fold.fold}: expected at least two classes to train on, found one.")
    return folds


def trainval_images(folds: Sequence[FoldSplit]) -> Indices:
    """Returns the dataset indices of all images that some fold trains or validates on, ascending."""
    return np.unique(np.concatenate([part for fold in folds for part in (fold.train, fold.val)]))


def _of_classes(
    fold: int, labels: Labels, train: Sequence[int] | Labels, val: Sequence[int] | Labels, test: Sequence[int] | Labels
) -> FoldSplit:
    images = [sample_indices(labels, classes) for classes in (train, val, test)]
    return FoldSplit(fold, labels, images[0], images[1], images[2])


def _k_folds(classes: Labels, num_folds: int) -> list[tuple[Labels, Labels]]:
    """Returns the training and the validation classes of each fold, in the order of the classes."""
    from sklearn.model_selection import KFold

    if len(classes) < num_folds:
        raise SplitError(
            f"{num_folds} class-disjoint folds need at least {num_folds} classes beside those of test, found"
            f" {len(classes)}. Add classes, or lower split.num_folds."
        )
    return [(classes[train], classes[val]) for train, val in KFold(num_folds, shuffle=False).split(classes)]


def _ascending(indices: Indices) -> Indices:
    return np.sort(indices).astype(np.int64)


def _require_folds(num_folds: int) -> None:
    if num_folds < 2:
        raise ConfigError(f"split.num_folds={num_folds}: expected at least 2, so that one validates and others train.")


def _require_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ConfigError(f"split.splitter.{name}={value}: expected a fraction between 0 and 1.")
