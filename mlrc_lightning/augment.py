"""The image transform of the protocol, from a cached image to the pixels of a batch.

Resizing to `transform.resize` is done already (datasets/cache.py); normalisation follows on the training device
(models/). In between: a random resized crop and a flip in training, a centre crop in evaluation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class TrainTransform:
    """RandomResizedCrop and RandomHorizontalFlip, as torchvision defines them, drawn from a given generator.

    Args:
        crop: Height and width of the result, in pixels.
        scale: Range of the crop's area, as a fraction of the image's.
        ratio: Range of width / height, drawn uniformly in its logarithm.
        flip_probability: Of mirroring left to right.

    Source: torchvision.transforms.RandomResizedCrop; PROTOCOL.md section 1.5.
    """

    crop: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip_probability: float

    def __call__(self, image: Pixels, random: np.random.Generator) -> Pixels:
        """Returns one random crop; (H, W, 3) → (crop, crop, 3)."""
        top, left, height, width = self.box(image.shape[0], image.shape[1], random)
        region = Image.fromarray(image[top : top + height, left : left + width])
        # cropping first keeps pixels outside the box out of the filter, as torchvision does
        pixels = np.asarray(region.resize((self.crop, self.crop), Image.Resampling.BILINEAR))
        return pixels[:, ::-1] if random.random() < self.flip_probability else pixels

    def box(self, height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
        """Draws top, left, height, width of the crop: ten attempts, then the largest centre box of a legal ratio."""
        area = height * width
        log_ratio = (math.log(self.ratio[0]), math.log(self.ratio[1]))
        for _ in range(10):
            target_area = area * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(*log_ratio))
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


def center_crop(image: Pixels, size: int) -> Pixels:
    """Returns the centre square, as torchvision's CenterCrop places it; (H, W, 3) → (size, size, 3)."""
    top = round((image.shape[0] - size) / 2.0)
    left = round((image.shape[1] - size) / 2.0)
    return image[top : top + size, left : left + size]
