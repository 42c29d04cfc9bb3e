"""The image transform of the protocol, from a cached image to the pixels of a batch, on the CPU.

Resizing to `transform.resize` is done already (datasets/cache.py); normalisation follows on the training device
(models/). In between: a random resized crop and a flip in training, a centre crop in evaluation. Pillow crops as the
paper did, torch faster and off by one grey level here and there; crops.py does it for a whole batch on the training
device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

Pixels = NDArray[np.uint8]

_BANDS = ("R", "G", "B")


class Crop(NamedTuple):
    """The part of an image that is trained on: top, left, height and width in pixels."""

    top: int
    left: int
    height: int
    width: int
    is_flipped: bool

    def of(self, image: Pixels) -> Pixels:
        """Returns the part, not flipped, (H, W, 3) → (height, width, 3)."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class TrainTransform:
    """RandomResizedCrop and RandomHorizontalFlip, as torchvision defines them, drawn from a given generator.

    Args:
        crop: Height and width of the result, in pixels.
        scale: Range of the crop's area, as a fraction of the image's.
        ratio: Range of width / height, drawn uniformly in its logarithm.
        flip_probability: Of mirroring left to right.

    Source: torchvision.transforms.RandomResizedCrop; docs/protocol.md, §1.5.
    """

    crop: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip_probability: float

    def __call__(self, image: Pixels, random: np.random.Generator) -> Pixels:
        """Returns one random crop, by Pillow, (H, W, 3) → (crop, crop, 3)."""
        drawn = self.draw(image.shape[0], image.shape[1], random)
        return np.asarray(_resized_by_pillow(image, drawn, self.crop))

    def draw(self, height: int, width: int, random: np.random.Generator) -> Crop:
        """Draws the crop of an image of that size: its box, then whether it is flipped."""
        return Crop(*self.box(height, width, random), random.random() < self.flip_probability)

    def box(self, height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
        """Draws top, left, height, width of the crop: ten attempts, then the largest centre box of a legal ratio."""
        area = height * width
        smallest, area_range = self.scale[0], self.scale[1] - self.scale[0]
        narrowest = math.log(self.ratio[0])
        log_ratio_range = math.log(self.ratio[1]) - narrowest
        for _ in range(10):
            # what Generator.uniform computes, at half its cost
            target_area = area * (smallest + area_range * random.random())
            ratio = math.exp(narrowest + log_ratio_range * random.random())
            crop_width = round(math.sqrt(target_area * ratio))
            crop_height = round(math.sqrt(target_area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(random.integers(0, height - crop_height + 1))
                left = int(random.integers(0, width - crop_width + 1))
                return top, left, crop_height, crop_width
        crop_height, crop_width = height, width
        if width / height < self.ratio[0]:
            crop_height = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            crop_width = round(height * self.ratio[1])
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def crop_by_pillow(image: Pixels, crop: Crop, target: Pixels) -> None:
    """Writes one crop as the paper has it, bilinear and antialiased, (H, W, 3) → target (3, S, S)."""
    resized = _resized_by_pillow(image, crop, target.shape[-1])
    for band, plane in zip(_BANDS, target, strict=True):
        # Pillow packs one band much faster than NumPy takes one of three channels
        plane.reshape(-1)[:] = np.frombuffer(resized.tobytes("raw", band), dtype=np.uint8)


def crop_by_torch(image: Pixels, crop: Crop, target: Pixels) -> None:
    """Writes the same crop but for rounding, some times as fast, (H, W, 3) → target (3, S, S).

    Same filter, with weights of 16 bits where Pillow's have 22; a grey level differs by one at most.
    """
    pixels = torch.from_numpy(crop.of(image).copy()).permute(2, 0, 1)[None]
    resized = interpolate(pixels, size=target.shape[1:], mode="bilinear", antialias=True)[0]
    torch.from_numpy(target).copy_(resized.flip(2) if crop.is_flipped else resized)


CROPS_ON_THE_CPU: dict[str, Callable[[Pixels, Crop, Pixels], None]] = {"pil": crop_by_pillow, "torch": crop_by_torch}
"""By `trainer.augmentation`; with `device` the batch is cropped where it is trained on."""


def center_crop(image: Pixels, size: int) -> Pixels:
    """Returns the centre square, as torchvision's CenterCrop places it, (H, W, 3) → (size, size, 3)."""
    top = round((image.shape[0] - size) / 2.0)
    left = round((image.shape[1] - size) / 2.0)
    return image[top : top + size, left : left + size]


def _resized_by_pillow(image: Pixels, crop: Crop, size: int) -> Image.Image:
    # cropping first keeps pixels outside the box out of the filter, as torchvision does
    resized = Image.fromarray(crop.of(image)).resize((size, size), Image.Resampling.BILINEAR)
    return resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.is_flipped else resized
