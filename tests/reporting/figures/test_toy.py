"""Figure 1: points lie where the paper drew them, and scores are the paper's as far as the drawing decides them."""

import numpy as np
import pytest

from mlrc_lightning.reference import rows
from mlrc_lightning.reporting.figures.toy import SCORES, ToyEmbedding, toy_embeddings
from mlrc_lightning.reporting.figures.toy_scores import TOY_HEIGHT, TOY_METRICS, store_toy, toy_points, toy_scores

PAPER = {row["embedding"]: row for row in rows("figure_1.csv")}
# docs/protocol.md, §8: the strips are read off the drawing, 2.0 to 2.4 widths high, and the points are random.
# There (a) comes to RP 77.4 and MAP@R 71.3, (c) to 99.8 and 99.8; (b) varies from 84 to 87 and 79 to 83, printed 83.3
# and 77.9. NMI and F1 depend on the few points that k-means puts across the border: 10 of 2000 are 4 points of NMI.
TOLERANCE = {
    "a": {"nmi": 6, "f1": 3, "precision_at_1": 0.8, "r_precision": 1.0, "mean_average_precision_at_r": 1.2},
    "b": {"nmi": 6, "f1": 3, "precision_at_1": 0.8, "r_precision": 3.7, "mean_average_precision_at_r": 5.1},
    "c": {"nmi": 0.05, "f1": 0.05, "precision_at_1": 0.05, "r_precision": 0.2, "mean_average_precision_at_r": 0.2},
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.slow
def test_recomputed_scores_are_the_papers(name, seed):
    scores = toy_scores(*toy_points(name, seed))
    for metric in TOY_METRICS:
        assert 100 * scores[metric] == pytest.approx(float(PAPER[name][metric]), abs=TOLERANCE[name][metric]), metric


def test_points_fill_the_strips():
    points, labels = toy_points("a", seed=0)
    x = points[:, 0]
    assert np.bincount(labels).tolist() == [1000, 1000]
    for label, strips in ((0, [(0, 1), (2, 3)]), (1, [(3, 4), (5, 6)])):
        for low, high in strips:
            assert ((labels == label) & (low <= x) & (x < high)).sum() == 500
    assert points[:, 1].min() >= 0
    assert TOY_HEIGHT - 0.05 < points[:, 1].max() < TOY_HEIGHT


def test_scores_of_four_points_by_hand():
    # by distance: 0 finds 1 (wrong) first; 1 finds 0 (wrong); 10 and 11 find each other (right); k-means parts at 5
    points = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [11.0, 0.0]])
    together = toy_scores(points, np.array([0, 0, 1, 1]))
    assert together == pytest.approx(dict.fromkeys(TOY_METRICS, 1.0))
    crossed = toy_scores(points, np.array([0, 1, 0, 1]))
    # every pair of a cluster is of two classes: no pair is rightly joined
    assert crossed == pytest.approx(dict.fromkeys(TOY_METRICS, 0.0), abs=1e-12)


def test_f1_counts_pairs():
    # clusters {0, 1, 2} and {10, 11}; classes {0, 1} and {2, 10, 11}: joined pairs 4, of one class 2; class pairs 4
    points = np.array([[0.0, 0.0], [0.5, 0.0], [1.0, 0.0], [10.0, 0.0], [10.5, 0.0]])
    scores = toy_scores(points, np.array([0, 0, 1, 1, 1]))
    assert scores["f1"] == pytest.approx(2 * 2 / (4 + 4))


@pytest.mark.slow
def test_the_figure_draws_what_was_stored(tmp_path):
    path = tmp_path / "toy.npz"
    store_toy(path, seed=3)
    with np.load(path) as file:
        stored = dict(file)
    assert set(SCORES) == set(TOY_METRICS)
    scores = dict(zip(TOY_METRICS, stored["b_scores"].tolist(), strict=True))
    embedding = ToyEmbedding("b", stored["b_points"], stored["b_labels"], scores)
    figure = toy_embeddings("title", [embedding], {"b": {"nmi": 12.5}})
    drawn = np.concatenate([group.get_offsets() for group in figure.axes[0].collections])
    order = np.argsort(stored["b_labels"], kind="stable")
    assert np.array_equal(drawn, stored["b_points"][order])
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts[2:5] == ["NMI", f"{100 * scores['nmi']:.1f}", "12.5"]
    assert texts[-2:] == [f"{100 * scores['mean_average_precision_at_r']:.1f}", "–"]
