"""Small plots: every place worked out by hand."""

import re

import numpy as np
import pytest

from mlrc_lightning.reporting.site.charts import _ticks, learning_curves, search_chart, sparkline
from mlrc_lightning.results.searches import SearchTrial
from tests.reporting.site.pages import Reader
from tests.reporting.site.synthetic import _fold


def trial(index, mean, values=(), state="completed"):
    return SearchTrial(index, state, {}, values, mean, 0.0, None)


def path(svg, name):
    return re.search(rf'<path class="{name}" d="([^"]*)"', svg)[1]


def test_a_sparkline_has_a_dot_a_trial_steps_of_the_best_and_a_cross_for_a_failure():
    trials = [trial(0, 0.2), trial(1, None, state="failed"), trial(2, 0.4), trial(3, 0.3)]
    svg = sparkline("words", trials, (), num_trials=4)
    # 120 wide with margins of 3: trials at 3, 41, 79, 117; values 0.2 to 0.4 between heights 32 and 3
    assert path(svg, "dots") == "M3 32h0M79 3h0M117 17.5h0"
    assert path(svg, "best-line") == "M3 32H79V3H117"
    assert path(svg, "crosses").startswith("M39.2 31.2l3.6 3.6")


def test_the_papers_search_shares_the_scale_and_stands_alone_where_there_is_no_other():
    svg = sparkline("words", [trial(0, 0.2)], [0.1, 0.3], num_trials=2)
    assert path(svg, "paper-line") == "M3 32H117V3"
    assert path(svg, "dots") == "M3 17.5h0"
    assert "dots" not in sparkline("words", (), [0.1, 0.3], num_trials=2)


def test_an_open_trial_leaves_no_mark_and_one_value_is_in_the_middle():
    svg = sparkline("words", [trial(0, 0.2), trial(1, None, state="open")], (), num_trials=2)
    assert path(svg, "dots") == "M3 17.5h0"
    assert "crosses" not in svg


def test_words_are_escaped_and_read_in_place_of_the_plot():
    svg = sparkline('a "loss" < b', (), [0.1], 2)
    assert 'aria-label="a &quot;loss&quot; &lt; b"' in svg
    assert Reader(svg).problems == []


def test_a_search_at_full_size_shows_the_range_of_folds_in_per_cent():
    svg = search_chart("words", [trial(0, 0.2, (0.1, 0.3)), trial(1, 0.3, (0.3, 0.3))], ())
    # per cent 10 to 30 between heights 266 and 24
    assert path(svg, "ranges") == "M54 266V24M702 24V24"
    assert path(svg, "dots large") == "M54 145h0M702 24h0"
    assert ">Validation MAP@R (%)<" in svg
    assert re.findall(r'text-anchor="end">(\d+)</text>', svg) == ["10", "15", "20", "25", "30"]


def test_learning_curves_mark_the_selected_epoch():
    fold = _fold(2, 0.3, 10, np.random.default_rng(0))
    svg = learning_curves(fold, "words")
    at = 46 + 204 * fold.selected_epoch / 10
    assert path(svg, "selected").startswith(f"M{at:.1f}".removesuffix(".0"))
    assert f">{100 * fold.val['mean_average_precision_at_r']:.1f}</text>" in svg
    assert path(svg, "val-line").count("L") == 10
    assert path(svg, "loss-line").count("L") == 9  # the untrained model has no loss


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (1, 50, [0, 10, 20, 30, 40, 50]), (0.31, 0.33, [0.31, 0.315, 0.32, 0.325, 0.33])],
)
def test_ticks_are_round_and_reach_around_the_values(least, most, expected):
    found = _ticks(least, most, 5)
    assert found[0] <= least
    assert found[-1] >= most
    assert [tick for tick in found if expected[0] <= tick <= expected[-1]] == pytest.approx(expected)
