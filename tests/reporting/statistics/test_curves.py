import numpy as np
import pytest

from mlrc_lightning.errors import RecordError
from mlrc_lightning.reference import rows
from mlrc_lightning.reporting.statistics import band, best_so_far, paper_curve


def test_best_so_far_keeps_its_value_over_failed_trials():
    np.testing.assert_array_equal(best_so_far([None, 0.2, 0.1, float("nan"), 0.3]), [np.nan, 0.2, 0.2, 0.2, 0.3])
    assert best_so_far([]).size == 0


def test_band_by_hand():
    # best so far: 1 2 2 | 3 3 3 5 | - 2 6: the fourth position rests on one search
    result = band([[1, 2, 0], [3, 1, 2, 5], [None, 2, 6]], quantiles=(0, 1))
    np.testing.assert_array_equal(result.median, [2, 2, 3, 5])
    np.testing.assert_array_equal(result.low, [1, 2, 2, 5])
    np.testing.assert_array_equal(result.high, [3, 3, 6, 5])
    np.testing.assert_array_equal(result.num_searches, [2, 3, 3, 1])


def test_band_says_nothing_where_no_search_has_a_value():
    result = band([[None, 1.0]])
    np.testing.assert_array_equal(result.median, [np.nan, 1])
    np.testing.assert_array_equal(result.num_searches, [0, 1])
    with pytest.raises(RecordError, match="one search at least"):
        band([])


def test_the_papers_curves_are_there_rise_and_end_at_their_best():
    searches = {(row["setting"], row["loss"]) for row in rows("original_searches.csv")}
    assert len(searches) == 53
    for setting, loss in searches:
        curve = paper_curve(setting, loss)
        assert curve.shape == (50,)
        assert (np.diff(curve) >= 0).all()
        values = [
            float(row["best_so_far_val_map_at_r"])
            for row in rows("original_searches.csv")
            if (row["setting"], row["loss"]) == (setting, loss)
        ]
        assert curve[-1] == max(values)
    assert paper_curve("cub200", "FastAP") is None
