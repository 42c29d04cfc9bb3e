"""The interval of the paper's tables: Student's t over training runs. Imports neither numpy nor scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from mlrc_lightning.errors import RecordError


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its interval, in the unit of the values.

    `half_width` is None where there are fewer than two values: one run says nothing of its own uncertainty. `n` is the
    number of values; 0 where it is not known.
    """

    mean: float
    half_width: float | None = None
    n: int = 0

    def scaled(self, factor: float) -> Interval:
        """Returns the interval in another unit, as per cent of a fraction."""
        half_width = None if self.half_width is None else factor * self.half_width
        return Interval(factor * self.mean, half_width, self.n)

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
    numbers = [float(value) for value in values]
    if not numbers or not all(math.isfinite(value) for value in numbers):
        raise RecordError(f"An interval needs one finite value a run, found {list(values)!r}; leave out failed runs.")
    n = len(numbers)
    # equal values have exactly no spread
    mean = numbers[0] if len(set(numbers)) == 1 else math.fsum(numbers) / n
    if n < 2:
        return Interval(mean, None, n)
    standard_error = math.sqrt(math.fsum((value - mean) ** 2 for value in numbers) / (n - 1) / n)
    return Interval(mean, student_t_quantile((1 + confidence) / 2, n - 1) * standard_error, n)


@cache
def student_t_quantile(probability: float, degrees: int) -> float:
    """Returns the quantile of Student's t for whole degrees of freedom, by bisection of its closed form.

    A table is rendered in less time than importing scipy.stats takes.

    Args:
        probability: In (0.5, 1).
        degrees: >= 1.
    """
    low, high = 0.0, 1.0
    while _within(high, degrees) < 2 * probability - 1:
        high *= 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, degrees) < 2 * probability - 1 else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """Returns the probability that Student's t lies within ±t, by Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    if degrees % 2:
        term, total = cosine, 0.0
        for k in range(3, degrees + 1, 2):
            total += term
            term *= cosine**2 * (k - 1) / k
        return 2 / math.pi * (angle + sine * total)
    term, total = 1.0, 0.0
    for k in range(2, degrees + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    return sine * total
