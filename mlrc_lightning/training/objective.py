"""Miner and loss as one module, always in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Objective(nn.Module):
    """The loss of one batch, of the pairs or triplets that the miner selects.

    Computed outside autocast on float32 embeddings: pytorch-metric-learning casts its learned proxies and weights to
    the type of the embeddings, and a temperature of 0.0002 or a scale of 220 does not fit 16 bits.

    Args:
        loss: A pytorch-metric-learning loss, or any module with its call: (embeddings, labels[, indices]) → ().
        miner: A pytorch-metric-learning miner: (embeddings, labels) → indices; None: all pairs or triplets.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss, (B, E) L2-normalised, (B,) class positions in 0 to C-1 → ()."""
        with torch.autocast(device_type=embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            if self.miner is None:
                loss: Tensor = self.loss(embeddings, labels)
            else:
                loss = self.loss(embeddings, labels, self.miner(embeddings, labels))
            return loss
