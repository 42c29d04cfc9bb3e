import math

import numpy as np
import pytest
from scipy import stats

from mlrc_lightning.errors import RecordError
from mlrc_lightning.reporting.statistics import t_interval


@pytest.mark.parametrize("n", [2, 3, 10, 11])
def test_t_interval_equals_scipys(n):
    values = list(np.random.default_rng(n).normal(0.5, 0.01, n))
    interval = t_interval(values)
    low, high = stats.t.interval(0.95, n - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)
    assert interval.half_width == pytest.approx(interval.mean - low, rel=1e-9)
    assert interval.n == n


def test_t_interval_by_hand():
    # mean 2, variance 1, standard error 1 / sqrt(3), t(2) quantile 4.302653
    assert t_interval([1, 2, 3]).half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_one_value_has_no_interval():
    interval = t_interval([0.25])
    assert (interval.mean, interval.half_width, interval.low, interval.high, interval.n) == (0.25, None, None, None, 1)


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [0.1, math.inf]])
def test_t_interval_refuses_what_has_no_mean(values):
    with pytest.raises(RecordError, match="finite value a run"):
        t_interval(values)
