"""The folds of the three datasets, against the tables of docs/protocol.md, §1.6."""

import numpy as np
import pytest

from mlrc_lightning.data.splits import (
    ClassDisjointSplit,
    ClosedSetSplit,
    FoldSplit,
    MLRCSplit,
    PredefinedSplit,
    checked_folds,
    mlrc_classes,
    sample_indices,
    trainval_images,
)
from mlrc_lightning.errors import ConfigError, SplitError


def positions(text: str) -> tuple[int, ...]:
    """Reads '50-99,0-24' as the table writes it."""
    ranges = (part.split("-") for part in text.split(","))
    return tuple(position for low, high in ranges for position in range(int(low), int(high) + 1))


TABLE = {
    ("cub200", 200): [("0-74", "75-99"), ("25-99", "0-24"), ("50-99,0-24", "25-49"), ("75-99,0-49", "50-74")],
    ("cars196", 196): [
        ("0-73", "74-97"),
        ("24-97", "0-23"),
        ("49-97,0-24", "25-48"),
        ("73-97,0-48", "49-72"),
    ],
    ("sop", 22634): [
        ("0-8487", "8488-11316"),
        ("2829-11316", "0-2828"),
        ("5658-11316,0-2828", "2829-5657"),
        ("8487-11316,0-5657", "5658-8486"),
    ],
}


@pytest.mark.parametrize(
    ("num_classes", "fold", "train", "val"),
    [
        pytest.param(num_classes, fold, train, val, id=f"{name}-fold{fold}")
        for (name, num_classes), folds in TABLE.items()
        for fold, (train, val) in enumerate(folds)
    ],
)
def test_folds_are_those_of_the_papers_split_manager(num_classes, fold, train, val):
    split = mlrc_classes(num_classes, fold, 4)
    assert split.train == positions(train)
    assert split.val == positions(val)
    assert split.test == tuple(range(num_classes - num_classes // 2, num_classes))


@pytest.mark.parametrize(
    ("num_classes", "train", "val", "test"),
    [(200, 75, 25, 100), (196, 74, 24, 98), (22634, 8488, 2829, 11317)],
)
def test_class_counts_are_the_protocols(num_classes, train, val, test):
    split = mlrc_classes(num_classes, 0, 4)
    assert (len(split.train), len(split.val), len(split.test)) == (train, val, test)


def test_classes_never_validated_are_the_three_the_protocol_names():
    def never_validated(num_classes):
        validated = {c for fold in range(4) for c in mlrc_classes(num_classes, fold, 4).val}
        return set(range(num_classes // 2)) - validated

    assert never_validated(196) == {24, 73}
    assert never_validated(22634) == {8487}
    assert never_validated(200) == set()


@pytest.mark.parametrize("num_classes", range(8, 120))
def test_every_first_half_class_is_in_train_or_val_and_never_in_test(num_classes):
    for fold in range(4):
        split = mlrc_classes(num_classes, fold, 4)
        assert set(split.train) | set(split.val) == set(range(num_classes - num_classes // 2))
        assert set(split.test).isdisjoint(split.train + split.val)


@pytest.mark.parametrize("num_classes", [0, 1, 4, 7])
def test_too_few_classes_are_refused_with_both_numbers(num_classes):
    with pytest.raises(SplitError, match=rf"at least 8 classes.*found {num_classes}"):
        mlrc_classes(num_classes, 0, 4)


@pytest.mark.parametrize("fold", [-1, 4, 7])
def test_a_fold_that_does_not_exist_is_refused(fold):
    with pytest.raises(SplitError, match="expected 0 to 3"):
        mlrc_classes(200, fold, 4)


LABELS = np.repeat(np.arange(10, dtype=np.int64), 8)
"""Ten classes of eight images."""


def images(*indices):
    return np.array(indices, dtype=np.int64)


def test_a_planted_leak_is_refused():
    def fold(train, val, test, **arguments):
        return FoldSplit(3, LABELS, images(*train), images(*val), images(*test), **arguments)

    fold((0, 1, 16), (8,), (24, 25))
    with pytest.raises(SplitError, match="Fold 3: expected train and test to share no image, found 1 shared.*first: 1"):
        fold((0, 1, 16), (8,), (1, 24))
    with pytest.raises(SplitError, match="train and val to share no image, found 2 shared"):
        fold((0, 1, 16), (0, 1), (24, 25))
    with pytest.raises(SplitError, match="val and test to share no class, found 1 shared.*first: 1"):
        fold((0, 1, 16), (8,), (9, 24))
    assert fold((0, 1, 16), (8,), (9, 24), class_disjoint=False).classes("test") == (1, 3)
    with pytest.raises(SplitError, match="val and test to share no image"):
        fold((0, 1, 16), (8,), (8, 24), class_disjoint=False)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (images(), "at least one image in train, found none"),
        (images(1, 0), "unsorted, repeated or out of range"),
        (images(0, 0), "unsorted, repeated or out of range"),
        (images(0, 80), "unsorted, repeated or out of range"),
        (images(-1, 0), "unsorted, repeated or out of range"),
        (np.array([0.0, 1.0]), "ascending int64 indices of the dataset's 80 images, found ndarray float64"),
        ((0, 1), "found tuple"),
    ],
)
def test_what_is_no_set_of_images_is_refused(train, message):
    with pytest.raises(SplitError, match=message):
        FoldSplit(0, LABELS, train, images(8), images(24))


@pytest.mark.parametrize("queries", [(), (24, 25, 26), (24, 40)])
def test_queries_are_some_of_the_test_images(queries):
    with pytest.raises(SplitError, match="queries"):
        FoldSplit(0, LABELS, images(0), images(8), images(24, 25, 26), queries=images(*queries))


@pytest.mark.parametrize("num_folds", [2, 4, 5])
def test_the_mlrc_splitter_gives_the_images_of_the_mlrc_classes(num_folds):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(23, dtype=np.int64), 3))
    folds = checked_folds(MLRCSplit(num_folds).folds(labels), num_folds)
    for fold in folds:
        classes = mlrc_classes(23, fold.fold, num_folds)
        for name in ("train", "val", "test"):
            assert fold.classes(name) == tuple(sorted(getattr(classes, name)))
            assert fold.images(name).tolist() == [i for i in range(69) if labels[i] in getattr(classes, name)]


# docs/protocol.md, §1.6
CLASS_DISJOINT_VAL = {
    ("cub200", 200): ["0-24", "25-49", "50-74", "75-99"],
    ("cars196", 196): ["0-24", "25-49", "50-73", "74-97"],
    ("sop", 22634): ["0-2829", "2830-5658", "5659-8487", "8488-11316"],
}


@pytest.mark.parametrize(
    ("num_classes", "vals"),
    [pytest.param(num_classes, vals, id=name) for (name, num_classes), vals in CLASS_DISJOINT_VAL.items()],
)
def test_class_disjoint_folds_are_those_of_the_originals_later_default(num_classes, vals):
    folds = ClassDisjointSplit(4, test_start=0.5, test_size=0.5).folds(np.repeat(np.arange(num_classes), 2))
    half = num_classes // 2
    assert [fold.classes("val") for fold in folds] == [positions(val) for val in vals]
    for fold in folds:
        assert fold.classes("test") == tuple(range(half, num_classes))
        assert fold.classes("train") == tuple(sorted(set(range(half)) - set(fold.classes("val"))))


@pytest.mark.parametrize(
    ("test_start", "test_size", "expected"),
    # 10 classes; np.roll shifts to the right by int(10 start) - int(10 size), the last ceil(10 size) are test
    [(0.5, 0.5, "5-9"), (0.0, 0.5, "0-4"), (0.5, 0.2, "5-6"), (0.5, 0.3, "5-7"), (0.3, 0.5, "7-9,0-1")],
)
def test_test_classes_lie_where_the_originals_roll_puts_them(test_start, test_size, expected):
    fold = ClassDisjointSplit(4, test_start, test_size).folds(LABELS)[0]
    assert set(fold.classes("test")) == set(positions(expected))


def test_closed_set_has_every_class_everywhere_and_each_image_is_validated_or_tested_once():
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(7, dtype=np.int64), [8, 9, 10, 11, 12, 16, 40]))
    folds = checked_folds(ClosedSetSplit(4, test_size=0.5, seed=0).folds(labels), 4)
    counts = np.bincount(labels)
    used = np.concatenate([folds[0].test, *(fold.val for fold in folds)])
    np.testing.assert_array_equal(np.sort(used), np.arange(len(labels)))
    for fold in folds:
        for name in ("train", "val", "test"):
            assert fold.classes(name) == tuple(range(7))
        # stratified: each class has its share up to one image
        assert (np.abs(np.bincount(labels[fold.test]) - counts / 2) <= 1).all()
        left = counts - np.bincount(labels[fold.test])
        assert (np.abs(np.bincount(labels[fold.val]) - left / 4) < 1).all()
        np.testing.assert_array_equal(
            np.sort(np.concatenate([fold.train, fold.val, fold.test])), np.arange(len(labels))
        )


def test_a_closed_set_is_the_same_for_the_same_seed_and_another_for_another():
    one, again, other = (ClosedSetSplit(4, 0.5, seed).folds(LABELS) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one[2].val, again[2].val)
    assert not np.array_equal(one[0].test, other[0].test)


@pytest.mark.parametrize("images_per_class", [1, 2, 4, 7])
def test_a_closed_set_of_too_few_images_is_refused(images_per_class):
    labels = np.repeat(np.arange(5, dtype=np.int64), [20, 20, 20, images_per_class, 20])
    with pytest.raises(SplitError, match=rf"4 closed-set folds need.* a class of {images_per_class} \(position 3\)"):
        ClosedSetSplit(4, 0.5, 0).folds(labels)


def words(**counts):
    """One word for each of ten classes' eight images, class by class."""
    return [word for word, count in counts.items() for _ in range(8 * count)]


def test_a_predefined_test_is_kept_and_the_other_classes_are_cut_into_folds():
    own_split = words(test=3, trainval=7)
    folds = checked_folds(PredefinedSplit(4, class_disjoint=True).folds(LABELS, own_split), 4)
    # KFold of 7 classes: parts of 2, 2, 2 and 1
    assert [fold.classes("val") for fold in folds] == [(3, 4), (5, 6), (7, 8), (9,)]
    for fold in folds:
        assert fold.classes("test") == (0, 1, 2)
        assert fold.classes("train") == tuple(sorted({3, 4, 5, 6, 7, 8, 9} - set(fold.classes("val"))))
    same = PredefinedSplit(4, class_disjoint=True).folds(LABELS, words(test=3, train=7))
    assert [fold.val.tolist() for fold in same] == [fold.val.tolist() for fold in folds]


def test_a_predefined_val_makes_one_fold():
    own_split = words(val=2, train=4, test=4)
    (fold,) = checked_folds(PredefinedSplit(1, class_disjoint=True).folds(LABELS, own_split), 1)
    assert fold.val.tolist() == list(range(16))
    assert fold.train.tolist() == list(range(16, 48))
    assert fold.test.tolist() == list(range(48, 80))
    with pytest.raises(SplitError, match="names its val images.*split.num_folds=4. Add split.num_folds=1"):
        PredefinedSplit(4, class_disjoint=True).folds(LABELS, own_split)


def test_predefined_queries_and_gallery_are_the_test_images():
    own_split = words(trainval=8) + ["query", "gallery"] * 8
    for fold in checked_folds(PredefinedSplit(4, class_disjoint=True).folds(LABELS, own_split), 4):
        assert fold.test.tolist() == list(range(64, 80))
        assert fold.queries.tolist() == list(range(64, 80, 2))


def test_a_predefined_closed_set_must_be_meant():
    own_split = ["train", "train", "train", "train", "val", "val", "test", "test"] * 10
    with pytest.raises(SplitError, match="train and val to share no class, found 10 shared"):
        PredefinedSplit(1, class_disjoint=True).folds(LABELS, own_split)
    (fold,) = PredefinedSplit(1, class_disjoint=False).folds(LABELS, own_split)
    assert fold.classes("train") == fold.classes("val") == fold.classes("test") == tuple(range(10))
    # cut into folds, a class in test as well keeps its test images out of train and val
    own_split = ["trainval"] * 6 + ["test"] * 2
    for fold in PredefinedSplit(5, class_disjoint=False).folds(LABELS, own_split * 10):
        assert len(fold.val) == 12
        assert len(fold.train) == 48
        assert set(fold.classes("train")).isdisjoint(fold.classes("val"))


@pytest.mark.parametrize(
    ("own_split", "message"),
    [
        (None, "expected a dataset with a split of its own, found none. Known: sop"),
        (
            words(train=5, dev=1, test=4),
            "expected train, val, trainval, test, query, gallery in every row, found 'dev'",
        ),
        ([*words(trainval=5, test=4), *[""] * 8], "in every row, found ''"),
        (words(train=5, trainval=1, test=4), "expected train, val and test, or .*, found test, train, trainval"),
        (words(train=10), "found train"),
        (words(trainval=6, query=4), "found query, trainval"),
        (words(trainval=3, test=7), "need at least 4 classes beside those of test, found 3"),
    ],
)
def test_a_dataset_without_a_usable_split_of_its_own_is_refused(own_split, message):
    with pytest.raises(SplitError, match=message):
        PredefinedSplit(4, class_disjoint=True).folds(LABELS, own_split)


@pytest.mark.parametrize(
    ("splitter", "message"),
    [
        (lambda: MLRCSplit(1), "split.num_folds=1: expected at least 2"),
        (lambda: ClassDisjointSplit(4, 0.5, 1.0), "split.splitter.test_size=1.0: expected a fraction between"),
        (lambda: ClassDisjointSplit(4, 50, 0.5), "split.splitter.test_start=50: expected a fraction"),
        (lambda: ClosedSetSplit(4, 0, 0), "split.splitter.test_size=0: expected a fraction between"),
        (lambda: PredefinedSplit(0, True), "split.num_folds=0: expected at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(splitter, message):
    with pytest.raises(ConfigError, match=message):
        splitter()


def test_folds_that_do_not_belong_together_are_refused():
    one, two, three = (FoldSplit(fold, LABELS, images(0, 8), images(16, 17), images(24, 25)) for fold in (0, 1, 2))
    assert checked_folds([one, two], 2) == [one, two]
    with pytest.raises(SplitError, match=r"split.num_folds=2: expected folds 0 to 1, found \[0, 2\]"):
        checked_folds([one, three], 2)
    with pytest.raises(SplitError, match=r"split.num_folds=4: expected folds 0 to 3, found \[0, 1\]"):
        checked_folds([one, two], 4)
    for other in (
        FoldSplit(1, LABELS, images(0, 8), images(16, 17), images(24, 26)),
        FoldSplit(1, LABELS, images(0, 8), images(16, 17), images(24, 25), queries=images(24)),
    ):
        with pytest.raises(SplitError, match="test on the same images, found fold 1"):
            checked_folds([one, other], 2)
    with pytest.raises(SplitError, match="class with two images or more in val.*found 2 classes of one"):
        checked_folds([FoldSplit(0, LABELS, images(0, 8), images(16, 32), images(24, 25))], 1)
    with pytest.raises(SplitError, match="two classes to train on, found one"):
        checked_folds([FoldSplit(0, LABELS, images(0, 1), images(16, 17), images(24, 25))], 1)


def test_trainval_is_what_some_fold_trains_or_validates_on():
    folds = [
        FoldSplit(0, LABELS, images(0, 8), images(16, 17), images(24, 25)),
        FoldSplit(1, LABELS, images(9, 16), images(0, 1), images(24, 25)),
    ]
    assert trainval_images(folds).tolist() == [0, 1, 8, 9, 16, 17]


def test_sample_indices_keep_dataset_order():
    labels = np.array([2, 0, 1, 2, 0], dtype=np.int64)
    np.testing.assert_array_equal(sample_indices(labels, (2, 0)), [0, 1, 3, 4])
