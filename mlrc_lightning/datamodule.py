"""The images of one fold as batches of uint8 pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlrc_lightning.torchvision_import  # noqa: F401

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mlrc_lightning.augment import TrainTransform, center_crop
from mlrc_lightning.datasets.cache import CachedImages
from mlrc_lightning.distributed import own_blocks, part_of, rank, world_size
from mlrc_lightning.features import CachedFeatures, EvaluationFeatures, TrainFeatures
from mlrc_lightning.sampling import Batch, Batches, BatchesOfEpochs
from mlrc_lightning.splits import FoldSplit, Indices

LabeledBatch = tuple[Tensor, Tensor]
"""With a frozen trunk its features (B, F), float32, are in the place of images.

(images (B, 3, H, W) uint8 RGB, labels (B,) int64); on several ranks this one's images, and the labels of all."""
EvaluationBatch = tuple[Tensor, Tensor, Tensor]
"""(images (B, 3, H, W) uint8 RGB, labels (B,) int64, dataset indices (B,) int64)."""


@dataclass(frozen=True)
class Pixels:
    """The images of one part of a dataset: those to train and validate on, or those to test on.

    Attributes:
        cache: Where the pixels are, and the dataset indices of the images.
        labels: Class position of *every* image of the dataset; (N,), int64.
        features: Of a frozen trunk, which are loaded instead.
    """

    cache: CachedImages
    labels: NDArray[np.int64]
    features: CachedFeatures | None = None


class _TrainImages(Dataset[LabeledBatch]):
    """Whole batches: index is a list of (dataset index, augmentation seed). Only this rank's images are read."""

    def __init__(self, pixels: Pixels, transform: TrainTransform, position: dict[int, int]) -> None:
        self._pixels, self._transform, self._position = pixels, transform, position
        self._opened = pixels.cache.open()
        self._place = (rank(), world_size())  # read here: a process that reads images is no rank itself

    def __getitem__(self, batch: Batch) -> LabeledBatch:
        size = self._transform.crop
        own = batch[part_of(len(batch), *self._place)]
        images = np.empty((len(own), size, size, 3), dtype=np.uint8)
        for row, (index, seed) in enumerate(own):
            image = self._pixels.cache.image(self._opened, index)
            images[row] = self._transform(image, np.random.default_rng(seed))
        labels = [self._position[int(self._pixels.labels[index])] for index, _ in batch]
        return _channels_first(images), torch.tensor(labels)


class _EvaluationImages(Dataset[EvaluationBatch]):
    """Whole batches: index is a list of dataset indices."""

    def __init__(self, pixels: Pixels, crop: int) -> None:
        self._pixels, self._crop = pixels, crop
        self._opened = pixels.cache.open()

    def __getitem__(self, batch: list[int]) -> EvaluationBatch:
        images = [center_crop(self._pixels.cache.image(self._opened, index), self._crop) for index in batch]
        labels = torch.from_numpy(self._pixels.labels[batch])
        return _channels_first(np.stack(images)), labels, torch.tensor(batch)


class _Blocks(Sampler[list[int]]):
    """Consecutive blocks of indices, in order, the last one shorter; those of this rank."""

    def __init__(self, indices: NDArray[np.int64], batch_size: int) -> None:
        blocks = [indices[i : i + batch_size].tolist() for i in range(0, len(indices), batch_size)]
        self._blocks = [blocks[number] for number in own_blocks(len(blocks))]

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._blocks)


def own_images(indices: Indices, batch_size: int) -> Tensor:
    """Returns which of some images this rank embeds, in the order of `evaluation_loader`; (n,), int64."""
    return torch.tensor([index for block in _Blocks(indices, batch_size) for index in block])


def evaluation_loader(
    pixels: Pixels, indices: Indices, crop: int, batch_size: int, num_workers: int
) -> DataLoader[EvaluationBatch]:
    """Returns some images, centre-cropped, in the order of their indices, which ascend; this rank's batches of them.

    Raises:
        KeyError: An image is not among those that `pixels` holds.
    """
    missing = np.setdiff1d(indices, pixels.cache.indices)
    if len(missing):
        raise KeyError(f"images {missing[:5].tolist()} are not in {pixels.cache.file}")
    features = pixels.features
    images = _EvaluationImages(pixels, crop) if features is None else EvaluationFeatures(features, pixels.labels)
    return DataLoader(
        images,
        sampler=_Blocks(indices, batch_size),
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator(),
    )


class FoldDataModule(pl.LightningDataModule):
    """Training and validation batches of one fold. It holds no test image, and no way to one.

    Args:
        pixels: The images to train and validate on.
        split: Which of them for what.
        transform: Crop and flip of training images.
        sampler: Makes the training batches of (labels, indices) of the training images; both (N,), int64.
        iterations_per_epoch: Training batches of an epoch.
        evaluation_batch_size: Images of a validation batch.
        seed: Root of augmentation.
        num_workers: Processes that read images.
    """

    def __init__(
        self,
        pixels: Pixels,
        split: FoldSplit,
        transform: TrainTransform,
        sampler: Callable[[NDArray[np.int64], NDArray[np.int64]], Batches],
        iterations_per_epoch: int,
        evaluation_batch_size: int,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        self._pixels = pixels
        self._split = split
        self._transform = transform
        self._evaluation_batch_size = evaluation_batch_size
        self._num_workers = num_workers
        self.batches = BatchesOfEpochs(sampler(pixels.labels[split.train], split.train), iterations_per_epoch, seed)

    def train_dataloader(self) -> DataLoader[LabeledBatch]:
        """Returns the augmented batches of the sampler, labels 0 to C-1 in label order."""
        position = {label: number for number, label in enumerate(self._split.classes("train"))}
        pixels, features = self._pixels, self._pixels.features
        images = (
            _TrainImages(pixels, self._transform, position)
            if features is None
            else TrainFeatures(features, pixels.labels, position)
        )
        return DataLoader(
            images,
            sampler=self.batches,
            batch_size=None,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # a loader draws a number whenever it begins: from torch's own stream, a resumed training would shift that
            generator=torch.Generator(),
        )

    def val_dataloader(self) -> DataLoader[EvaluationBatch]:
        """Returns all validation images, centre-cropped."""
        return evaluation_loader(
            self._pixels,
            self._split.val,
            self._transform.crop,
            self._evaluation_batch_size,
            self._num_workers,
        )


def _channels_first(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
