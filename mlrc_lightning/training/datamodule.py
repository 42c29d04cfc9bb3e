"""The images of one fold as batches of uint8 pixels."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlrc_lightning._torchvision  # noqa: F401

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mlrc_lightning.data.augment import CROPS_ON_THE_CPU, Crop, TrainTransform, center_crop
from mlrc_lightning.data.cache import CachedImages, ResizedImages
from mlrc_lightning.data.crops import Crops, crops_of, resize_crops
from mlrc_lightning.data.sampling import Batch, Batches, BatchesOfEpochs
from mlrc_lightning.data.splits import FoldSplit, Indices
from mlrc_lightning.errors import ConfigError
from mlrc_lightning.parallel.collectives import own_blocks, part_of, rank, world_size
from mlrc_lightning.training.features import CachedFeatures, EvaluationFeatures, TrainFeatures

LabeledBatch = tuple[Tensor, Tensor]
"""(images (B, 3, H, W) uint8 RGB, labels (B,) int64); on several ranks this one's images, and the labels of all.

With a frozen trunk its features (B, F), float32, are in the place of images.
"""
UncroppedBatch = tuple[Crops, Tensor]
"""The same with images that are still to be cropped, which happens when they are on the device."""
EvaluationBatch = tuple[Tensor, Tensor, Tensor]
"""(images (B, 3, H, W) uint8 RGB, labels (B,) int64, dataset indices (B,) int64)."""

_SECONDS_AFTER_SIGTERM = 30


@dataclass(frozen=True)
class Pixels:
    """The images of one part of a dataset: those to train and validate on, or those to test on.

    Attributes:
        cache: Where the pixels are, and the dataset indices of the images.
        labels: Class position of *every* image of the dataset; (N,), int64.
        features: Of a frozen trunk, which are loaded instead.
    """

    cache: ResizedImages
    labels: NDArray[np.int64]
    features: CachedFeatures | None = None


class ResidentPixels:
    """All decoded images of one part of a dataset on the device that trains, for all folds that this process trains.

    With `trainer.parallel_folds` every process has a copy of its own.

    Args:
        cache: Where they are.
    """

    def __init__(self, cache: CachedImages) -> None:
        self.cache = cache
        self._pixels: Tensor | None = None

    def on(self, device: torch.device) -> Tensor:
        """Returns them, moved there by the first call, (P, 3), uint8. In the memory of the CPU it is the file itself.

        Raises:
            ConfigError: The device has too little free memory.
        """
        if self._pixels is None or self._pixels.device != device:
            num_bytes, free = int(self.cache.shapes.prod(axis=1).sum()) * 3, _free_bytes(device)
            if free is not None and num_bytes > free:
                raise ConfigError(
                    f"trainer.resident_cache=true: expected room for {num_bytes / 1e9:.2f} GB of images on {device},"
                    f" found {free / 1e9:.2f} GB free. Leave trainer.resident_cache=false, or take a larger device."
                )
            # torch wants to be able to write, which changes no file in this mode
            pixels = np.memmap(self.cache.file, dtype=np.uint8, mode="c")
            self._pixels = torch.from_numpy(pixels).view(-1, 3).to(device)
        return self._pixels


class _TrainImages(Dataset[LabeledBatch | UncroppedBatch]):
    """Whole batches: index is a list of (dataset index, augmentation seed). Only this rank's images are read.

    Args:
        pixels: The images.
        transform: Draws their crops.
        position: Label of each class.
        augmentation: What crops them; with `device`, it is left to be done there.
        is_resident: Whether the device has the images.
    """

    def __init__(
        self,
        pixels: Pixels,
        transform: TrainTransform,
        position: dict[int, int],
        augmentation: str,
        is_resident: bool,
    ) -> None:
        self._pixels, self._transform, self._position = pixels, transform, position
        self._augmentation, self._is_resident = augmentation, is_resident
        self._opened = pixels.cache.open()
        self._place = (rank(), world_size())  # read here: a process that reads images is no rank itself

    def __getitem__(self, batch: Batch) -> LabeledBatch | UncroppedBatch:
        own = batch[part_of(len(batch), *self._place)]
        labels = torch.tensor([self._position[int(self._pixels.labels[index])] for index, _ in batch])
        if self._augmentation != "device":
            return self._cropped(own), labels
        return self._resident_crops(own) if self._is_resident else self._crops(own), labels

    def _cropped(self, batch: Batch) -> Tensor:
        size, crop_into = self._transform.crop, CROPS_ON_THE_CPU[self._augmentation]
        images = np.empty((len(batch), 3, size, size), dtype=np.uint8)
        for target, (index, seed) in zip(images, batch, strict=True):
            image = self._pixels.cache.image(self._opened, index)
            crop_into(image, self._draw(image.shape, seed), target)
        return torch.from_numpy(images)

    def _crops(self, batch: Batch) -> Crops:
        images = [self._pixels.cache.image(self._opened, index) for index, _ in batch]
        crops = [self._draw(image.shape, seed) for image, (_, seed) in zip(images, batch, strict=True)]
        widths = np.array([crop.width for crop in crops])
        ends = np.cumsum([crop.height * crop.width for crop in crops])
        pixels, start = np.empty((ends[-1], 3), dtype=np.uint8), 0
        for image, crop, end in zip(images, crops, ends.tolist(), strict=True):
            pixels[start:end].reshape(crop.height, crop.width, 3)[:] = crop.of(image)
            start = end
        starts = np.concatenate([[0], ends[:-1]])
        return crops_of(crops, starts, widths, self._transform.crop, torch.from_numpy(pixels))

    def _resident_crops(self, batch: Batch) -> Crops:
        cache = self._pixels.cache
        assert isinstance(cache, CachedImages)
        rows = np.searchsorted(cache.indices, [index for index, _ in batch])
        shapes = cache.shapes[rows]
        crops = [self._draw(shape, seed) for shape, (_, seed) in zip(shapes.tolist(), batch, strict=True)]
        corners = np.array([(crop.top, crop.left) for crop in crops])
        widths = shapes[:, 1]
        first = cache.offsets[rows] // 3 + corners[:, 0] * widths + corners[:, 1]
        return crops_of(crops, first, widths, self._transform.crop, torch.empty((0, 3), dtype=torch.uint8))

    def _draw(self, shape: Sequence[int], seed: int) -> Crop:
        return self._transform.draw(shape[0], shape[1], np.random.default_rng(seed))


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
    """Consecutive blocks of indices, in order, the last one shorter, of this rank."""

    def __init__(self, indices: NDArray[np.int64], batch_size: int) -> None:
        blocks = [indices[i : i + batch_size].tolist() for i in range(0, len(indices), batch_size)]
        self._blocks = [blocks[number] for number in own_blocks(len(blocks))]

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._blocks)


def own_images(indices: Indices, batch_size: int) -> Tensor:
    """Returns which of some images this rank embeds, in the order of `evaluation_loader`, (n,), int64."""
    return torch.tensor([index for block in _Blocks(indices, batch_size) for index in block])


def evaluation_loader(
    pixels: Pixels, indices: Indices, crop: int, batch_size: int, num_workers: int
) -> DataLoader[EvaluationBatch]:
    """Returns some images, centre-cropped, in the order of their indices, which ascend.

    A rank returns its own batches of them.

    Raises:
        KeyError: An image is not among those that `pixels` holds.
    """
    missing = np.setdiff1d(indices, pixels.cache.indices)
    if len(missing):
        raise KeyError(f"images {missing[:5].tolist()} are not of this part of the dataset")
    features = pixels.features
    images = _EvaluationImages(pixels, crop) if features is None else EvaluationFeatures(features, pixels.labels)
    return DataLoader(
        images,
        sampler=_Blocks(indices, batch_size),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=_outlive_sigterm,
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
        augmentation: What crops and flips training images: pil, torch or device.
        resident: The images on the training device; None: each batch is sent there.
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
        augmentation: str = "pil",
        resident: ResidentPixels | None = None,
    ) -> None:
        super().__init__()
        self._pixels = pixels
        self._split = split
        self._transform = transform
        self._evaluation_batch_size = evaluation_batch_size
        self._num_workers = num_workers
        self._augmentation, self._resident = augmentation, resident
        self.batches = BatchesOfEpochs(sampler(pixels.labels[split.train], split.train), iterations_per_epoch, seed)

    def train_dataloader(self) -> DataLoader[LabeledBatch | UncroppedBatch]:
        """Returns the augmented batches of the sampler, labels 0 to C-1 in label order.

        With augmentation=device they are still to be cropped, by `on_after_batch_transfer`.
        """
        position = {label: number for number, label in enumerate(self._split.classes("train"))}
        pixels, features = self._pixels, self._pixels.features
        images = (
            _TrainImages(pixels, self._transform, position, self._augmentation, self._resident is not None)
            if features is None
            else TrainFeatures(features, pixels.labels, position)
        )
        return DataLoader(
            images,
            sampler=self.batches,
            batch_size=None,
            num_workers=self._num_workers,
            worker_init_fn=_outlive_sigterm,
            persistent_workers=self._num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # a loader draws a number whenever it begins: from torch's own stream, a resumed training would shift that
            generator=torch.Generator(),
        )

    def on_after_batch_transfer(
        self, batch: LabeledBatch | UncroppedBatch | EvaluationBatch, dataloader_idx: int = 0
    ) -> LabeledBatch | EvaluationBatch:
        """Crops the images of a training batch that is on its device, where that is still to be done."""
        crops = batch[0]
        if not isinstance(crops, Crops):
            return batch  # type: ignore[return-value]
        device = crops.lines.device
        pixels = crops.pixels if self._resident is None else self._resident.on(device)
        return resize_crops(crops, pixels), batch[1]

    def val_dataloader(self) -> DataLoader[EvaluationBatch]:
        """Returns all validation images, centre-cropped."""
        return evaluation_loader(
            self._pixels,
            self._split.val,
            self._transform.crop,
            self._evaluation_batch_size,
            self._num_workers,
        )


def _outlive_sigterm(worker: int) -> None:
    """Lets a process that reads images serve on when its whole group gets SIGTERM: the trainer stops after its step.

    Not for ever: the same signal ends it where the trainer did not.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_AFTER_SIGTERM))


def _free_bytes(device: torch.device) -> int | None:
    """Returns the free memory of a GPU. It is None where it is not limited, or not known."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _channels_first(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
