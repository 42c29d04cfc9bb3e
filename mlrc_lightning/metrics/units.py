"""Embeddings of length 1, whatever their length was."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

_SAFE = {torch.float32: (1e-9, 1e15), torch.float64: (1e-9, 1e150)}
"""Largest elements whose rows have squares that neither vanish nor overflow, and are above the floor of `normalize`."""


def unit_rows(rows: Tensor) -> Tensor:
    """Returns rows divided by their length, (N, E), float32 or float64.

    Rows of ordinary length are those of torch's `normalize` to the last bit, in their gradient too. Rows whose squares
    would vanish or overflow are scaled by their largest element first. A row of zeros, which has no direction, stays.
    """
    low, high = _SAFE[rows.dtype]
    largest = rows.detach().abs().amax(dim=1, keepdim=True)
    is_extreme = ((largest < low) & (largest > 0)) | ((largest > high) & largest.isfinite())
    scale = torch.where(is_extreme, largest, 1.0)
    return normalize(torch.where(is_extreme, rows / scale, rows), dim=1)
