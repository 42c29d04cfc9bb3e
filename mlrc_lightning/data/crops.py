"""Random resized crops of a whole batch, on the training device, with the pixels that Pillow would give.

Pillow resizes along one axis and then along the other, each new pixel a weighted sum of old ones in integers. The
weights depend on the box alone: they are computed on the CPU for a batch at once, and the sums, in the same integers,
where the images are. So a crop is the same to the last bit on every device, and as on the CPU by Pillow itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlrc_lightning.data.augment import Crop

_PRECISION_BITS = 22
"""Of Pillow's fixed-point weights: 32 bits, less 8 of a pixel and 2 of the sum (Resample.c, PRECISION_BITS)."""
_LENGTHS_A_TABLE = 128
_SOME_GO_DOWN_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
"""Whether this Pillow resizes an image down before across where that is less work; until 12 it never did."""


class Crops(NamedTuple):
    """A batch still to be cropped: pixels, and which of them each new one is the sum of.

    An image is resized along its lines first, and then along its columns; a turned one the other way round.

    Attributes:
        pixels: Where the images are, pixel after pixel; (P, 3), uint8. None of them where they are on the device.
        lines: Position in `pixels` of the first pixel of each line of each box, or of each column of a turned one;
            (B, L), int64. L is that of the largest box; a smaller one repeats its last line.
        steps: From there to the pixels that make each new one of the line; (B, S, K), int32.
        weights: Their weights, in units of 2^-22; (B, S, K), int32.
        rows: The lines that make each new one; (B, S, M), int32.
        row_weights: Their weights; (B, S, M), int32.
        is_turned: (B,), bool.
    """

    pixels: Tensor
    lines: Tensor
    steps: Tensor
    weights: Tensor
    rows: Tensor
    row_weights: Tensor
    is_turned: Tensor


def crops_of(
    crops: Sequence[Crop], first_pixels: NDArray[np.int64], strides: NDArray[np.int64], size: int, pixels: Tensor
) -> Crops:
    """Returns what `resize_crops` needs.

    Args:
        crops: B of them.
        first_pixels: Position in `pixels` of the first pixel of each box; (B,).
        strides: How many pixels further each of its lines begins than the one before; (B,).
        size: S, height and width of the results.
        pixels: (P, 3), uint8; (0, 3) where the device has them.
    """
    _, _, heights, widths, flips = np.array(crops, dtype=np.int64).T
    # as Pillow: where the height shrinks by more than twice what the width shrinks by, if that does at all
    is_turned = (heights > size) & (widths != size) & (2 * (widths - size) < heights - size) & _SOME_GO_DOWN_FIRST
    along, across = np.where(is_turned, heights, widths), np.where(is_turned, widths, heights)
    steps, weights = _triangles(along, size)
    rows, row_weights = _triangles(across, size)
    for flipped, taps in (
        ((flips == 1) & ~is_turned, (steps, weights)),
        ((flips == 1) & is_turned, (rows, row_weights)),
    ):
        for part in taps:
            part[flipped] = part[flipped, ::-1]
    steps *= np.where(is_turned, strides, 1).astype(np.int32)[:, None, None]
    numbers = np.minimum(np.arange(across.max()), across[:, None] - 1)
    lines = numbers * np.where(is_turned, 1, strides)[:, None] + first_pixels[:, None]
    parts = (lines, steps, weights, rows, row_weights, is_turned)
    return Crops(pixels, *(torch.from_numpy(part) for part in parts))


def resize_crops(crops: Crops, pixels: Tensor) -> Tensor:
    """Returns the crops, resized and flipped, on the device of `pixels`, (B, 3, S, S), uint8.

    Nothing here waits for the device.

    Args:
        crops: What to crop.
        pixels: The images, `crops.pixels` or those that the device has; (P, 3), uint8.
    """
    num_images, num_lines = crops.lines.shape
    size = crops.steps.shape[1]
    half = 1 << (_PRECISION_BITS - 1)
    sums = torch.full((num_images, num_lines, size, 3), half, dtype=torch.int32, device=pixels.device)
    for tap in range(crops.steps.shape[2]):
        positions = crops.lines[:, :, None] + crops.steps[:, None, :, tap]
        taken = pixels.index_select(0, positions.view(-1)).view(sums.shape)
        sums.addcmul_(taken.int(), crops.weights[:, None, :, tap, None])
    # Pillow rounds to whole grey levels here too
    lines = (sums >> _PRECISION_BITS).to(torch.uint8).view(num_images * num_lines, size * 3)
    first_lines = torch.arange(num_images, device=pixels.device)[:, None] * num_lines
    sums = torch.full((num_images, size, size, 3), half, dtype=torch.int32, device=pixels.device)
    for tap in range(crops.rows.shape[2]):
        taken = lines.index_select(0, (first_lines + crops.rows[:, :, tap]).view(-1)).view(sums.shape)
        sums.addcmul_(taken.int(), crops.row_weights[:, :, tap, None, None])
    images = (sums >> _PRECISION_BITS).to(torch.uint8)
    images = torch.where(crops.is_turned[:, None, None, None], images.transpose(1, 2), images)
    return images.permute(0, 3, 1, 2).contiguous()


def _triangles(lengths: NDArray[np.int64], size: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Returns which old pixels make each new one along an axis, and their weights, both (B, S, K).

    Args:
        lengths: Old pixels along the axis, of each image; (B,).
        size: S.
    """
    longest = -(-int(lengths.max()) // _LENGTHS_A_TABLE) * _LENGTHS_A_TABLE
    taps, weights, num_taps = _triangles_of_all_lengths(longest, size)
    most = int(num_taps[lengths].max())
    return taps[lengths, :, :most], weights[lengths, :, :most]


@lru_cache(maxsize=8)
def _triangles_of_all_lengths(
    longest: int, size: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Returns taps and weights of each length from 0 to the longest, (L, S, K), and how many of a length count, (L,).

    A triangle as wide as two new pixels, or two old ones where these are the larger. The arithmetic is Pillow's, in its
    order.

    Source: Pillow, Resample.c: precompute_coeffs, normalize_coeffs_8bpc, bilinear_filter.
    """
    lengths = np.arange(longest + 1)
    lengths[0] = 1  # no image has it
    scale = (lengths / size)[:, None]
    reach = np.maximum(scale, 1.0)
    centers = (np.arange(size) + 0.5) * scale
    first = np.maximum((centers - reach + 0.5).astype(np.int64), 0)
    behind = np.minimum((centers + reach + 0.5).astype(np.int64), lengths[:, None])
    taps = first[..., None] + np.arange((behind - first).max())
    weights = 1.0 - np.abs((taps - centers[..., None] + 0.5) * (1.0 / reach)[..., None])
    weights[(weights < 0.0) | (taps >= behind[..., None])] = 0.0
    total = np.zeros(weights.shape[:2])
    for tap in range(weights.shape[2]):
        total += weights[..., tap]
    fixed = (0.5 + weights / total[..., None] * (1 << _PRECISION_BITS)).astype(np.int32)
    inside = np.minimum(taps, lengths[:, None, None] - 1).astype(np.int32)
    return inside, fixed, (behind - first).max(axis=1)
