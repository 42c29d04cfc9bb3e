"""Which images make a batch: m images of each class, as the protocol's sampler draws them, or as your own does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

_REMEMBERED_PASSES = 64

Batch = list[tuple[int, int]]
"""(dataset index, seed of the image's augmentation), one pair an image."""


class Batches(Protocol):
    """What a sampler of the configuration (`sampler._target_`) must do. It may be any class.

    It is built once a fold as `Class(labels, indices, **arguments)` for the training images: their classes (N,) and
    dataset indices (N,), int64, and the arguments of its YAML, where `<samples_per_class>`, `<batch_size>` and
    `<seed>` are filled in.
    """

    def batch(self, number: int) -> NDArray[np.int64]:
        """Returns the dataset indices of batch `number`, counted from 0 at the start of training, (B,), int64.

        A function of (seed, number) alone, whatever was asked before, so that a resumed training sees the batches
        of the uninterrupted one.
        """
        ...


class BatchesOfEpochs(Sampler[Batch]):
    """The batches of one epoch after the other, each image with the seed of its augmentation.

    Args:
        batches: Which images.
        batches_per_epoch: Batches of one iteration over this sampler.
        seed: Root of the augmentations' random numbers.
    """

    def __init__(self, batches: Batches, batches_per_epoch: int, seed: int) -> None:
        self.batches = batches
        self._batches_per_epoch = batches_per_epoch
        self._seed = seed
        self._epoch = 0
        self._start = (0, 0)

    def start_at(self, epoch: int, batch: int) -> None:
        """Chooses where to go on: epoch number `epoch`, counted from 0, begins with its batch number `batch`."""
        self._epoch, self._start = epoch, (epoch, batch)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration draws, counted from 0. It is called by Lightning."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches of the chosen epoch. It has no length, as the one that is gone on with is shorter."""
        epoch_began = self._epoch * self._batches_per_epoch
        first_epoch, first_batch = self._start
        start = epoch_began + (first_batch if self._epoch == first_epoch else 0)
        for number in range(start, epoch_began + self._batches_per_epoch):
            yield self.batch(number)

    def batch(self, number: int) -> Batch:
        """Returns batch `number`, counted from the start of training."""
        chosen = np.asarray(self.batches.batch(number))
        seeds = np.random.default_rng([self._seed, 1, number]).integers(0, 2**63, size=len(chosen))
        return list(zip(chosen.tolist(), seeds.tolist(), strict=True))


class MPerClassBatches:
    """Batches of m images per class: all classes in random order, m random images of each, cut into batches.

    Batches are consecutive slices of one long list of passes over all classes, so that a batch may straddle two
    passes and hold a class twice; with fewer classes than batch_size / m it always does. Within a class the images
    of one draw differ, unless the class has fewer than m. The list ends after `length_before_new_list` images,
    rounded down to whole passes; its last, incomplete batch is dropped.

    Batch number i is a function of (seed, i), whatever was drawn before: a resumed training goes on with exactly
    the batches it would have seen, however many processes read images.

    Args:
        labels: Class of each image; (N,), int64.
        indices: Dataset index of each image; (N,), int64.
        samples_per_class: m.
        batch_size: Images of a batch.
        seed: Root of this sampler's random numbers.
        length_before_new_list: Images of a list.

    Source: pytorch-metric-learning, MPerClassSampler(batch_size=None); docs/protocol.md, §1.4.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        indices: NDArray[np.int64],
        samples_per_class: int,
        batch_size: int,
        seed: int,
        length_before_new_list: int,
    ) -> None:
        by_class = np.argsort(labels, kind="stable")
        self._members = indices[by_class]
        _, self._starts, self._sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
        self._samples_per_class = samples_per_class
        self._batch_size = batch_size
        self._seed = seed
        pass_length = samples_per_class * len(self._sizes)
        self._num_passes = max(1, length_before_new_list // pass_length)
        self._batches_per_list = self._num_passes * pass_length // batch_size
        self._pass_length = pass_length
        self._passes: dict[tuple[int, int], NDArray[np.int64]] = {}

    def batch(self, number: int) -> NDArray[np.int64]:
        """Returns the dataset indices of batch `number`, counted from the start of training, (batch_size,), int64."""
        list_number, position = divmod(number, self._batches_per_list)
        start = position * self._batch_size
        first_pass, last_pass = start // self._pass_length, (start + self._batch_size - 1) // self._pass_length
        drawn = np.concatenate([self._draw_pass(list_number, p) for p in range(first_pass, last_pass + 1)])
        return drawn[start - first_pass * self._pass_length :][: self._batch_size]

    def _draw_pass(self, list_number: int, pass_number: int) -> NDArray[np.int64]:
        """Returns m images of every class, the classes in random order. The last few passes are remembered."""
        key = (list_number, pass_number)
        if key not in self._passes:
            random = np.random.default_rng([self._seed, 0, *key])
            order = random.permutation(len(self._sizes))
            chosen = draw_for_each(random, self._sizes[order], self._samples_per_class)
            if len(self._passes) > _REMEMBERED_PASSES:
                self._passes.clear()
            self._passes[key] = self._members[self._starts[order, None] + chosen].ravel()
        return self._passes[key]


def draw_for_each(random: np.random.Generator, sizes: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """Draws some numbers below each size, different ones where the size allows, for all sizes at once.

    They are those of `random.choice(size, number, replace=size < number)`, size after size, for those up to 10,000:
    Floyd's choice of a set, and a shuffle of it. To ask for them one by one takes a seventh of a step on features.

    Args:
        random: The next of its numbers are taken.
        sizes: (C,), all at least 1.
        number: m.

    Returns:
        (C, m).
    """
    count = np.arange(number)
    is_enough = sizes >= number
    bounds_of_set = sizes[:, None] + np.where(is_enough[:, None], count - number + 1, 0)
    bounds_of_shuffle = np.broadcast_to(count[:0:-1] + 1, (len(sizes), number - 1))
    bounds = np.concatenate([bounds_of_set, bounds_of_shuffle], axis=1)
    is_drawn = is_enough[:, None] | (np.arange(bounds.shape[1]) < number)
    drawn = np.zeros_like(bounds)
    drawn[is_drawn] = random.integers(0, bounds[is_drawn])
    chosen = drawn[:, :number]
    for last in count[1:]:
        is_taken = is_enough & (chosen[:, :last] == chosen[:, last, None]).any(axis=1)
        chosen[is_taken, last] = sizes[is_taken] - number + last
    rows = np.arange(len(sizes))
    for position, here in zip(range(number, 2 * number), count[:0:-1], strict=False):
        there = np.where(is_enough, drawn[:, position], here)
        chosen[rows, here], chosen[rows, there] = chosen[rows, there], chosen[rows, here]
    return chosen
