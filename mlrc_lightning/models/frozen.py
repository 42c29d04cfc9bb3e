"""What stands in the place of a trunk whose features are computed already."""

from __future__ import annotations

from torch import Tensor

from mlrc_lightning.models.trunk import Normalization, Trunk


class FrozenTrunk(Trunk):
    """Passes features on. It has no weights.

    Args:
        num_features: F.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(Normalization(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
        self.num_features = num_features

    def features(self, images: Tensor) -> Tensor:
        """Returns the features, (B, F) → (B, F)."""
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features, (B, F) → (B, F)."""
        return self.features(images)
