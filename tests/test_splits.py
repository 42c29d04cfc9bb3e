"""The folds of the three datasets, against the tables of PROTOCOL.md section 1.6."""

import numpy as np
import pytest

from mlrc_lightning.errors import SplitError
from mlrc_lightning.splits import FoldSplit, class_disjoint_split, sample_indices


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
    split = class_disjoint_split(num_classes, fold)
    assert split.train == positions(train)
    assert split.val == positions(val)
    assert split.test == tuple(range(num_classes - num_classes // 2, num_classes))


@pytest.mark.parametrize(
    ("num_classes", "train", "val", "test"),
    [(200, 75, 25, 100), (196, 74, 24, 98), (22634, 8488, 2829, 11317)],
)
def test_class_counts_are_the_protocols(num_classes, train, val, test):
    split = class_disjoint_split(num_classes, 0)
    assert (len(split.train), len(split.val), len(split.test)) == (train, val, test)


def test_classes_never_validated_are_the_three_the_protocol_names():
    def never_validated(num_classes):
        validated = {c for fold in range(4) for c in class_disjoint_split(num_classes, fold).val}
        return set(range(num_classes // 2)) - validated

    assert never_validated(196) == {24, 73}
    assert never_validated(22634) == {8487}
    assert never_validated(200) == set()


@pytest.mark.parametrize("num_classes", range(8, 120))
def test_every_first_half_class_is_in_train_or_val_and_never_in_test(num_classes):
    for fold in range(4):
        split = class_disjoint_split(num_classes, fold)
        assert set(split.train) | set(split.val) == set(range(num_classes - num_classes // 2))
        assert set(split.test).isdisjoint(split.train + split.val)


@pytest.mark.parametrize("num_classes", [0, 1, 4, 7])
def test_too_few_classes_are_refused_with_both_numbers(num_classes):
    with pytest.raises(SplitError, match=rf"at least 8 classes.*found {num_classes}"):
        class_disjoint_split(num_classes, 0)


@pytest.mark.parametrize("fold", [-1, 4, 7])
def test_a_fold_that_does_not_exist_is_refused(fold):
    with pytest.raises(SplitError, match="expected 0 to 3"):
        class_disjoint_split(200, fold)


def test_a_planted_leak_is_refused():
    with pytest.raises(SplitError, match="train and test to share no class, found 1 shared"):
        FoldSplit(fold=0, train=(0, 1, 7), val=(2,), test=(7, 8))
    with pytest.raises(SplitError, match="train and val"):
        FoldSplit(fold=0, train=(0, 1), val=(1,), test=(7, 8))


def test_sample_indices_keep_dataset_order():
    labels = np.array([2, 0, 1, 2, 0], dtype=np.int64)
    np.testing.assert_array_equal(sample_indices(labels, (2, 0)), [0, 1, 3, 4])
