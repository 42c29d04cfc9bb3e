"""The heat map shows each pair twice, with opposite signs, and marks what is significant."""

import numpy as np
import pytest

from mlrc_lightning.reporting.figures.comparison import pairwise_heat_map, stars
from mlrc_lightning.reporting.pairs import Pair


def pair(loss_a, loss_b, effect, *tested):
    return Pair(loss_a, loss_b, effect, *tested, None, None, None, runs_a=2, runs_b=2, classes=10, queries=20)


TESTS = [
    pair("A", "B", 0.021, 0.01, 0.03, 0.0001, 0.0003),
    pair("A", "C", -0.004, -0.02, 0.01, 0.4, 0.4),
    pair("D", "B", 0.01, None, None, None, None),
]


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "***"), (0.001, "***"), (0.0011, "**"), (0.01, "**"), (0.05, "*"), (0.051, ""), (None, "")]
)
def test_stars_by_level(p, text):
    assert stars(p) == text


def test_cells_are_row_minus_column_in_percentage_points():
    axes = pairwise_heat_map("title", list("ABCD"), TESTS).axes[0]
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    nan = np.nan
    expected = [[nan, 2.1, -0.4, nan], [-2.1, nan, nan, -1.0], [0.4, nan, nan, nan], [nan, 1.0, nan, nan]]
    assert shown == pytest.approx(np.array(expected), nan_ok=True)


def test_signs_of_significant_insignificant_untested_and_missing_pairs():
    axes = pairwise_heat_map("title", list("ABCD"), TESTS).axes[0]
    texts = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert texts[1, 0] == "+2.1\n***"
    assert texts[0, 1] == "\N{MINUS SIGN}2.1\n***"
    assert texts[2, 0] == "\N{MINUS SIGN}0.4"
    assert texts[1, 3] == "(+1.0)"
    assert texts[3, 2] == "–"
    hatched = {(round(p.get_x() + 0.5), round(p.get_y() + 0.5)) for p in axes.patches if p.get_hatch()}
    assert hatched == {(2, 0), (0, 2), (1, 3), (3, 1)}


def test_no_minus_zero():
    axes = pairwise_heat_map("title", ["A", "B"], [pair("A", "B", 0.0001, 0, 0, 1, 1)]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["+0.0", "+0.0"]
