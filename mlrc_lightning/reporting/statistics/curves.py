"""How far a search had come after each trial: running best, bands over searches, and the paper's own curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlrc_lightning.errors import RecordError
from mlrc_lightning.reference import rows

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """Median and quantiles of several searches' best so far, after each trial.

    Attributes:
        median: (T,), NaN where no search has a value yet.
        low: Lower quantile; (T,).
        high: Upper quantile; (T,).
        num_searches: How many searches each position rests on; (T,). A search that ended earlier is not carried on.
    """

    median: Array
    low: Array
    high: Array
    num_searches: NDArray[np.int64]


def best_so_far(values: Sequence[float | None]) -> Array:
    """Returns the best value after each trial, (T,), NaN before the first trial that has one.

    Args:
        values: Objective of each trial in the order of their index, larger is better; None or NaN for a failed or
            unfinished trial, which leaves the best as it was.
    """
    array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.fmax.accumulate(array) if array.size else array


def band(searches: Sequence[Sequence[float | None]], quantiles: tuple[float, float] = (0.25, 0.75)) -> Band:
    """Returns median and quantiles of the best so far over several searches of one setting.

    Args:
        searches: Trial values of each search, as for `best_so_far`; one at least.
        quantiles: Lower and upper.

    Raises:
        RecordError: There is no search.
    """
    if not searches:
        raise RecordError("A band needs one search at least, found none; run a search first.")
    curves = np.full((len(searches), max(len(values) for values in searches)), np.nan)
    for curve, values in zip(curves, searches, strict=True):
        curve[: len(values)] = best_so_far(values)
    counts = np.isfinite(curves).sum(axis=0)
    lines = np.full((3, curves.shape[1]), np.nan)
    reached = counts > 0
    lines[:, reached] = np.nanquantile(curves[:, reached], [0.5, *quantiles], axis=0)
    return Band(lines[0], lines[1], lines[2], counts)


def paper_curve(setting: str, loss: str) -> Array | None:
    """Returns the best validation MAP@R after each trial of the paper's own search, (T,), a fraction.

    Args:
        setting: cub200, cars196, sop or cub200_batch256.
        loss: The loss as the paper spells it.

    Returns:
        None where the paper has no such search (FastAP at batch size 32 was swept, not searched).

    Source: `reference/original_searches.csv`, read off the plots of the original.
    """
    trials = [row for row in rows("original_searches.csv") if (row["setting"], row["loss"]) == (setting, loss)]
    if not trials:
        return None
    trials.sort(key=lambda row: int(row["trial_index"]))
    return np.array([float(row["best_so_far_val_map_at_r"]) for row in trials])
