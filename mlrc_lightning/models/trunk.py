"""What every trunk is: images in, features out, with the normalisation its weights were trained with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Normalization:
    """How uint8 RGB pixels become a trunk's input.

    Attributes:
        mean: Of each channel, in the trunk's own channel order and range.
        std: Of each channel, likewise.
        value_range: The number that pixel 255 becomes before mean and std: 1 or 255.
        is_bgr: Whether the trunk expects blue first.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    value_range: float = 1.0
    is_bgr: bool = False


class Trunk(nn.Module, ABC):
    """A network from uint8 images to features. Subclasses set the attributes and define `features`.

    Attributes:
        num_features: F.
        normalization: How pixels are normalised.
    """

    num_features: int
    normalization: Normalization
    _mean: Tensor
    _std: Tensor

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        self.normalization = normalization
        mean = torch.tensor(normalization.mean).view(1, 3, 1, 1)
        std = torch.tensor(normalization.std).view(1, 3, 1, 1)
        self.register_buffer("_mean", mean, persistent=False)
        self.register_buffer("_std", std, persistent=False)

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Computes features of normalised images, (B, 3, H, W) float → (B, F)."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalises on the device and computes features, (B, 3, H, W) uint8 RGB → (B, F)."""
        return self.features(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Returns the trunk's input, (B, 3, H, W) uint8 RGB → float32.

        The order is the original's: channels, [0, 1], value range, mean and std.
        """
        if self.normalization.is_bgr:
            images = images.flip(1)
        scaled = images.to(torch.float32, copy=True).div_(255.0)  # in one copy: memory is all that this costs
        if self.normalization.value_range != 1.0:
            scaled.mul_(self.normalization.value_range)
        return scaled.sub_(self._mean).div_(self._std)


def freeze_batchnorm(module: nn.Module) -> None:
    """Puts every BatchNorm into eval mode: running statistics stand, affine weights still train.

    Source: pytorch-metric-learning BaseTrainer, freeze_trunk_batchnorm; docs/protocol.md, §1.1.
    """
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()
