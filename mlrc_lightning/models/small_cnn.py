"""A small trunk for small images, to train from scratch on a CPU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from mlrc_lightning.models.trunk import Normalization, Trunk


class SmallCNN(Trunk):
    """Four strided convolutions with group normalisation, pooled to 2 x 2 positions, with layer normalisation.

    GroupNorm, not BatchNorm: the protocol freezes BatchNorm, which would leave a network from scratch unnormalised.
    The last LayerNorm centres the features: without it all of them are positive, all embeddings start close to one
    direction, and losses with a large scale collapse them to it for good.

    Args:
        width: Channels of the first convolution; the others have 2, 4 and 8 times as many. A multiple of 8.
    """

    def __init__(self, width: int) -> None:
        super().__init__(Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        self.num_features = 4 * channels[-1]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(channels[i], channels[i + 1], kernel_size=3, stride=2, padding=1, bias=False),
                    nn.GroupNorm(8, channels[i + 1]),
                    nn.ReLU(inplace=True),
                )
                for i in range(4)
            )
        )
        self.norm = nn.LayerNorm(self.num_features)

    def features(self, images: Tensor) -> Tensor:
        """Computes features, (B, 3, H, W) → (B, 32 width), any H and W from 17 up."""
        features: Tensor = self.blocks(images)
        return self.norm(adaptive_avg_pool2d(features, 2).flatten(1))  # type: ignore[no-any-return]
