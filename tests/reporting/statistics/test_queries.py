import numpy as np
import pytest

from mlrc_lightning.errors import RecordError
from mlrc_lightning.reporting.statistics import QueryResults, read_query_results


def write(path, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "index": np.array([3, 5, 9]),
        "label": np.array([0, 0, 1]),
        "folds": np.array([0, 1]),
        "correct_at_1": np.array([[1, 0, 1], [1, 1, 0]], dtype=np.uint8),
        "average_precision_at_r": np.array([[0.5, 0.25, 1], [0, 0.75, 0.5]], dtype=np.float32),
        "concatenated_average_precision_at_r": np.array([0.75, 0.5, 1], dtype=np.float32),
    }
    np.savez_compressed(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return path


def test_separated_scores_are_the_mean_over_folds_and_concatenated_ones_as_stored(tmp_path):
    files = [write(tmp_path / "0" / "queries_test.npz"), write(tmp_path / "1" / "queries_test.npz")]
    correct = read_query_results("triplet", files, "precision_at_1", "separated")
    np.testing.assert_array_equal(correct.scores, [[1, 0.5, 0.5]] * 2)
    np.testing.assert_array_equal(correct.labels, [0, 0, 1])
    np.testing.assert_array_equal(correct.index, [3, 5, 9])
    precision = read_query_results("triplet", files, "mean_average_precision_at_r", "separated")
    np.testing.assert_array_equal(precision.scores[0], [0.25, 0.5, 0.75])
    concatenated = read_query_results("triplet", files, "mean_average_precision_at_r", "concatenated")
    np.testing.assert_array_equal(concatenated.scores[1], [0.75, 0.5, 1])


@pytest.mark.parametrize(
    ("name", "array"), [("index", [3, 5, 10]), ("label", [0, 1, 1]), ("folds", [0, 2])], ids=["index", "label", "folds"]
)
def test_runs_that_were_tested_differently_do_not_mix(tmp_path, name, array):
    files = [write(tmp_path / "a.npz"), write(tmp_path / "b.npz", **{name: np.array(array)})]
    with pytest.raises(RecordError, match=rf"b\.npz: its {name} differs"):
        read_query_results("triplet", files, "precision_at_1", "separated")


def test_what_is_lacking_or_damaged_is_named(tmp_path):
    lacking = write(tmp_path / "a.npz", concatenated_average_precision_at_r=None)
    with pytest.raises(RecordError, match="lacks concatenated_average_precision_at_r"):
        read_query_results("triplet", [lacking], "mean_average_precision_at_r", "concatenated")
    whole = write(tmp_path / "b.npz")
    whole.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(RecordError, match=r"b\.npz: expected the per-query results of a run, found a damaged file"):
        read_query_results("triplet", [whole], "precision_at_1", "separated")
    with pytest.raises(RecordError, match="reproduce it first"):
        read_query_results("triplet", [], "precision_at_1", "separated")


@pytest.mark.parametrize(
    ("scores", "index", "message"),
    [
        ([[0.1, 0.2, 0.3]], [1, 2], "found shapes"),
        ([[0.1, np.nan]], [1, 2], "not finite"),
        ([[0.1, 0.2]], [2, 1], "ascend"),
        ([[0.1, 0.2]], [2, 2], "ascend"),
    ],
)
def test_results_that_cannot_be_are_refused(scores, index, message):
    with pytest.raises(RecordError, match=message):
        QueryResults("triplet", np.array(scores), np.array([0, 1]), np.array(index))
