"""The m-per-class sampler, §1.4 of the protocol."""

import numpy as np
import pytest
from pytorch_metric_learning.samplers import MPerClassSampler

from mlrc_lightning.data.sampling import BatchesOfEpochs, MPerClassBatches, draw_for_each

LENGTH = 100_000  # docs/protocol.md, §1.4


def sampler(num_classes=10, per_class=6, m=4, batch_size=32, batches=5, seed=0):
    labels = np.repeat(np.arange(num_classes, dtype=np.int64), per_class)
    images = MPerClassBatches(labels, np.arange(len(labels)) + 1000, m, batch_size, seed, LENGTH)
    return BatchesOfEpochs(images, batches, seed), labels


def chosen(batches, labels, count):
    return [np.array([index - 1000 for index, _ in batches.batch(number)]) for number in range(count)]


def test_a_batch_is_m_different_images_of_each_of_its_classes():
    batches, labels = sampler(num_classes=20)
    for batch in chosen(batches, labels, 2):
        classes, counts = np.unique(labels[batch], return_counts=True)
        assert (len(classes), set(counts)) == (8, {4})
        assert len(np.unique(batch)) == 32


def test_every_pass_holds_every_class_m_times_and_batches_straddle_passes():
    batches, labels = sampler(num_classes=10)
    stream = np.concatenate(chosen(batches, labels, 10))
    for start in range(0, 320, 40):
        _, counts = np.unique(labels[stream[start : start + 40]], return_counts=True)
        assert list(counts) == [4] * 10
    # 40 images a pass, 32 a batch: the second batch holds the end of one pass and the start of the next
    assert len(np.unique(labels[stream[32:40]])) == 2


@pytest.mark.parametrize("m", [1, 4])
def test_cub_at_batch_256_wraps_and_is_always_full(m):
    batches, labels = sampler(num_classes=75, per_class=58, m=m, batch_size=256)
    for batch in chosen(batches, labels, 6):
        assert len(batch) == 256
        counts = np.bincount(labels[batch], minlength=75)
        if m == 1:
            assert set(counts) <= {2, 3, 4, 5}  # 3.4 passes, cut anywhere
        else:
            assert set(counts) <= {0, 4, 8}


def test_fewer_classes_than_batch_over_m_wrap():
    batches, labels = sampler(num_classes=3, per_class=4, m=4, batch_size=32)
    batch = chosen(batches, labels, 1)[0]
    assert len(batch) == 32
    assert set(labels[batch]) == {0, 1, 2}


def test_a_class_with_fewer_than_m_images_is_drawn_with_replacement():
    batches, labels = sampler(num_classes=8, per_class=2, m=4)
    assert list(np.bincount(labels[chosen(batches, labels, 1)[0]])) == [4] * 8


def test_batches_are_a_function_of_seed_and_number():
    one, _ = sampler()
    other, _ = sampler()
    later = other.batch(4100)
    assert [one.batch(number) for number in (0, 3, 4100)][-1] == later
    assert one.batch(0) == other.batch(0)
    assert one.batch(0) != sampler(seed=1)[0].batch(0)


def test_epochs_follow_each_other_and_can_start_anywhere():
    one, _ = sampler(batches=5)
    first, second = list(one), []
    one.set_epoch(1)
    second = list(one)
    assert first + second == [one.batch(number) for number in range(10)]
    resumed, _ = sampler(batches=5)
    resumed.start_at(1, 0)
    assert list(resumed) == second
    resumed.start_at(1, 3)
    assert list(resumed) == second[3:]
    resumed.set_epoch(2)
    assert list(resumed) == [one.batch(number) for number in range(10, 15)]


@pytest.mark.parametrize(("num_classes", "m", "batch_size"), [(75, 4, 32), (75, 1, 32), (74, 4, 256), (8488, 4, 32)])
def test_a_list_is_as_long_as_pytorch_metric_learnings(num_classes, m, batch_size):
    labels = np.repeat(np.arange(num_classes), 5)
    theirs = len(MPerClassSampler(labels, m, length_before_new_iter=LENGTH)) // batch_size
    ours = MPerClassBatches(labels, np.arange(len(labels)), m, batch_size, 0, LENGTH)
    # the first batch of the second list is the first time that an unfinished pass may be cut
    assert ours._batches_per_list == theirs


def test_augmentation_seeds_never_repeat():
    batches, _ = sampler()
    seeds = [seed for number in range(200) for _, seed in batches.batch(number)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("m", [1, 2, 4, 32])
@pytest.mark.parametrize("smallest", [1, 32])
def test_images_of_a_pass_are_those_that_numpy_chooses_class_after_class(m, smallest):
    sizes = np.random.default_rng(7).integers(smallest, 120, size=500)
    ours, theirs = np.random.default_rng(m), np.random.default_rng(m)
    expected = [theirs.choice(size, m, replace=bool(size < m)) for size in sizes]
    np.testing.assert_array_equal(draw_for_each(ours, sizes, m), expected)
    assert ours.random() == theirs.random()
