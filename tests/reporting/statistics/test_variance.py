import numpy as np
import pytest
from scipy import stats

from mlrc_lightning.errors import RecordError
from mlrc_lightning.reporting.statistics import search_variance, variance_components


def test_two_way_components_by_hand():
    # run means 2, 4; fold means 2, 4; no residual: MS_run = 2 * 2 = 4, MS_fold = 4, MS_rest = 0
    components = variance_components([[1, 3], [3, 5]])
    assert (components.run, components.fold, components.residual) == pytest.approx((2, 2, 0))
    assert (components.truncated, components.num_runs, components.num_folds) == ((), 2, 2)


def test_a_negative_estimate_is_zero_and_told():
    # run means equal, fold means equal, residual +-1: MS_rest = 4
    components = variance_components([[1, -1], [-1, 1]])
    assert (components.run, components.fold, components.residual) == (0, 0, 4)
    assert components.truncated == ("run", "fold")


def test_two_way_components_are_unbiased():
    generator = np.random.default_rng(0)
    tables = 4_000
    run, fold = generator.normal(0, 2, (tables, 6, 1)), generator.normal(0, 3, (tables, 1, 4))
    found = [variance_components(table) for table in run + fold + generator.normal(0, 1, (tables, 6, 4))]
    means = [np.mean([getattr(c, name) for c in found]) for name in ("run", "fold", "residual")]
    assert means == pytest.approx([4, 9, 1], rel=0.06)


@pytest.mark.parametrize("scores", [[[1, 2]], [[1], [2]], [[1, np.nan], [2, 3]]])
def test_a_table_too_small_has_no_components(scores):
    with pytest.raises(RecordError, match="2 runs and 2 folds"):
        variance_components(scores)


def test_a_run_without_a_fold_is_refused():
    with pytest.raises(RecordError, match="every fold"):
        variance_components([[1, 2], [3]])


def test_search_variance_by_hand_and_with_scipys_f():
    settings = [[1, 3], [5, 7], [4, 4, 7]]
    result = search_variance(settings)
    # within: 2 + 2 + 6 = 10 over 7 - 3
    assert result.within == pytest.approx(10 / 4)
    n0 = (7 - (4 + 4 + 9) / 7) / 2
    f = stats.f_oneway(*settings).statistic
    assert result.between_searches == pytest.approx((f - 1) * result.within / n0)
    assert (result.truncated, result.num_searches, result.num_runs) == (False, 3, (2, 2, 3))


def test_searches_alike_have_no_variance_between_them():
    result = search_variance([[1, 3], [3, 1]])
    assert (result.between_searches, result.within, result.truncated) == (0, 2, True)


@pytest.mark.parametrize("settings", [[[1, 2]], [[1], [2]], [[1, 2], []]])
def test_search_variance_needs_repeats(settings):
    with pytest.raises(RecordError, match="two searches"):
        search_variance(settings)
