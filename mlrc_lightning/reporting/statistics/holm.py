"""Holm's step-down adjustment for several tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlrc_lightning.errors import RecordError


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values adjusted for their number, in the given order.

    A test is significant at family-wise level alpha where its adjusted value is at most alpha: the smallest p-value is
    multiplied by m, the next by m - 1, and so on, each at least as large as the one before and at most 1. It needs no
    independence between the tests.

    Args:
        p_values: In [0, 1]; may be empty.

    Raises:
        RecordError: A value is outside [0, 1].

    Source: Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise RecordError(f"p-values lie in [0, 1], found {list(p_values)!r}.")
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return [float(value) for value in adjusted]
