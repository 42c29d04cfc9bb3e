"""The interval of the paper's tables: Student's t over training runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mlrc_lightning.errors import RecordError


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its interval, in the unit of the values.

    `half_width` is None where there are fewer than two values: one run says nothing of its own uncertainty.
    """

    mean: float
    half_width: float | None
    n: int

    @property
    def low(self) -> float | None:
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        return None if self.half_width is None else self.mean + self.half_width


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Returns the mean of the values and the half width of its t-interval.

    It answers for training runs alone: what the mean of many more runs on these same test images would be. Which of
    two losses is better on other classes is `paired_comparison`'s question.

    Args:
        values: One accuracy a training run; at least one, all finite.
        confidence: Coverage of the interval.

    Raises:
        RecordError: There is no value, or one is not finite.

    Source: `scipy.stats.t.interval(confidence, n - 1, loc=mean, scale=sem)`, as the original reports it.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise RecordError(f"An interval needs one finite value a run, found {list(values)!r}; leave out failed runs.")
    n = array.size
    mean = float(array.mean())
    if n < 2:
        return Interval(mean, None, n)
    standard_error = float(array.std(ddof=1)) / np.sqrt(n)
    return Interval(mean, float(stats.t.ppf((1 + confidence) / 2, n - 1)) * float(standard_error), n)
