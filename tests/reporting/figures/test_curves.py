"""Searches and learning curves: lines hold the values of trials and epochs."""

import numpy as np
import pytest

from mlrc_lightning.reporting.figures.search import TrialPoint, optimisation
from mlrc_lightning.reporting.figures.training import learning_curves
from mlrc_lightning.results.records import EpochResult
from tests.reporting.figures.results import METRIC, fold_result

TRIALS = [
    TrialPoint(0, None),
    TrialPoint(1, 0.2, (0.1, 0.3)),
    TrialPoint(2, 0.15, (0.15,)),
    TrialPoint(3, None),
    TrialPoint(4, 0.25, (0.2, 0.3)),
]


def by_gid(axes):
    return {line.get_gid(): line for line in axes.lines if line.get_gid()}


def test_the_optimisation_plot_has_every_trial_and_both_curves():
    axes = optimisation("title", TRIALS, paper=[0.1, 0.3]).axes[0]
    lines = by_gid(axes)
    assert lines["trials"].get_xydata().tolist() == [[2, 20], [3, 15], [5, 25]]
    assert lines["best"].get_ydata() == pytest.approx([np.nan, 20, 20, 20, 25], nan_ok=True)
    assert lines["best"].get_drawstyle() == "steps-post"
    assert lines["paper"].get_xydata().tolist() == [[1, 10], [2, 30]]
    assert list(lines["failed"].get_xdata()) == [1, 4]
    spans = [sorted(segment[:, 1]) for group in axes.collections for segment in group.get_segments()]
    assert spans == [pytest.approx([10, 30]), pytest.approx([20, 30])]


def test_without_a_search_of_the_paper_there_is_no_curve_of_it():
    figure = optimisation("title", TRIALS)
    assert "paper" not in by_gid(figure.axes[0])
    assert not any("paper" in text.get_text() for text in figure.legends[0].get_texts())


def test_a_search_without_a_finished_trial_is_drawn_as_failures_alone():
    lines = by_gid(optimisation("title", [TrialPoint(0, None)]).axes[0])
    assert list(lines["failed"].get_xdata()) == [1]
    assert len(lines["trials"].get_xdata()) == 0


def test_learning_curves_have_the_record_s_epochs_and_mark_the_selected_one():
    folds = [
        fold_result(0, [0.1, 0.3, 0.2], [2.0, 1.5], selected=1),
        fold_result(2, [0.2, 0.1, 0.4], [3.0, 1.0], selected=2),
    ]
    figure = learning_curves("title", folds)
    losses, scores = figure.axes[:2], figure.axes[2:]
    assert [axes.get_title(loc="left") for axes in losses] == ["Fold 0", "Fold 2"]
    assert by_gid(losses[0])["loss"].get_xydata().tolist() == [[1, 2.0], [2, 1.5]]
    assert by_gid(scores[0])["val"].get_xydata() == pytest.approx(np.array([[0, 10], [1, 30], [2, 20]]))
    assert by_gid(scores[0])["selected"].get_xydata() == pytest.approx(np.array([[1, 30]]))
    assert by_gid(scores[1])["selected"].get_xydata() == pytest.approx(np.array([[2, 40]]))
    assert [text.get_text() for text in scores[1].texts] == ["40.0"]


def test_an_epoch_that_was_not_validated_is_left_out_and_a_collapse_is_marked():
    epochs = (
        EpochResult(0, None, {METRIC: 0.1}, False, 1.0),
        EpochResult(1, 1.0, None, False, 1.0),
        EpochResult(2, 0.9, {METRIC: 0.0}, True, 1.0),
    )
    figure = learning_curves("title", [fold_result(0, [0.1, 0.2], [1.0], selected=1, epochs=epochs)])
    assert by_gid(figure.axes[1])["val"].get_xdata().tolist() == [0, 2]
    crosses = [line for line in figure.axes[1].lines if line.get_marker() == "x"]
    assert crosses[0].get_xydata().tolist() == [[2, 0]]
    assert "all embeddings in one point" in [text.get_text() for text in figure.legends[0].get_texts()]
