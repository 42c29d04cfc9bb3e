"""Projections and neighbour sheets, and the inputs that are stored for them."""

import numpy as np
import pytest
from PIL import Image

from mlrc_lightning.errors import DatasetError
from mlrc_lightning.protocol.figure_inputs import store_neighbors, store_projection
from mlrc_lightning.reporting.figures.retrieval import (
    HIGHLIGHTED,
    RIGHT,
    WRONG,
    NeighborSheet,
    neighbor_sheet,
    projection,
)


def sheet():
    return NeighborSheet(
        queries=np.array([0]),
        neighbors=np.array([[2, 1]]),
        similarities=np.array([[0.9, 0.25]], dtype=np.float32),
        labels=np.array([4, 4, 1]),
        thumbnails=np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3),
        class_names=("a", "b", "c", "d", "e"),
    )


def test_right_and_wrong_neighbours_differ_in_mark_frame_and_colour():
    query, wrong, right = neighbor_sheet("title", sheet()).axes
    assert [text.get_text() for text in wrong.texts] == [WRONG]
    assert [text.get_text() for text in right.texts] == [RIGHT]
    assert len(query.texts) == 0
    frames = [{spine.get_linestyle() for spine in axes.spines.values()} for axes in (wrong, right)]
    assert frames[0].isdisjoint(frames[1])
    assert wrong.spines["left"].get_edgecolor() != right.spines["left"].get_edgecolor()


def test_a_sheet_shows_the_stored_thumbnails_in_order_with_names_and_similarities():
    axes = neighbor_sheet("title", sheet()).axes
    for shown, index in zip(axes, (0, 2, 1), strict=True):
        assert np.array_equal(shown.images[0].get_array(), sheet().thumbnails[index])
    assert [shown.get_xlabel() for shown in axes] == ["e", "0.90\nb", "0.25"]


def test_the_largest_classes_are_marked_and_the_others_counted():
    labels = np.repeat(np.arange(HIGHLIGHTED + 2), [9, 1, *range(3, 3 + HIGHLIGHTED)])
    points = np.column_stack([np.arange(len(labels)), -np.arange(len(labels))]).astype(float)
    figure = projection("title", points, labels, [f"name {i}" for i in range(HIGHLIGHTED + 2)])
    marks = {group.get_gid(): group.get_offsets() for group in figure.axes[0].collections}
    assert np.array_equal(marks["class-0"], points[labels == 0])
    assert np.array_equal(marks["others"], points[np.isin(labels, (1, 2))])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0] == "name 0"
    assert texts[-1] == "2 other classes"
    shapes = {group.get_paths()[0].vertices.tobytes() for group in figure.axes[0].collections}
    assert len(shapes) == HIGHLIGHTED


def test_stored_neighbours_are_those_of_a_slow_search(tmp_path):
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(30, 5))
    labels = np.repeat(np.arange(10), 3)

    def image(index):
        return Image.new("RGB", (8, 4), (index, 0, 0))

    store_neighbors(
        tmp_path / "n.npz",
        embeddings,
        labels,
        [f"c{i}" for i in range(10)],
        image,
        num_queries=6,
        num_neighbors=4,
        size=8,
    )
    with np.load(tmp_path / "n.npz") as file:
        stored = dict(file)
    queries = stored["indices"][stored["queries"]]
    assert len(set(labels[queries])) == 6
    for query, found in zip(queries, stored["indices"][stored["neighbors"]], strict=True):
        units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        others = sorted((i for i in range(30) if i != query), key=lambda i: -(units[i] @ units[query]))
        assert found.tolist() == others[:4]
    assert np.array_equal(stored["labels"], labels[stored["indices"]])
    # padded to a square in white, the image itself in the middle
    assert np.array_equal(stored["thumbnails"][:, 4, 4, 0], stored["indices"])
    assert (stored["thumbnails"][:, 0] == 255).all()


def test_a_query_is_never_alone_in_its_class(tmp_path):
    labels = np.array([0, 1, 2, 3, 3])
    read = lambda index: Image.new("RGB", (4, 4))  # noqa: E731
    store_neighbors(tmp_path / "n.npz", np.eye(5), labels, list("abcd"), read, num_queries=4)
    with np.load(tmp_path / "n.npz") as file:
        assert sorted(file["indices"][file["queries"]].tolist()) == [3, 4]
    with pytest.raises(DatasetError, match="class with at least two images"):
        store_neighbors(tmp_path / "n.npz", np.eye(4), np.arange(4), list("abcd"), read)


def test_a_projection_keeps_groups_together_and_repeats(tmp_path):
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 20)
    embeddings = np.eye(8)[labels] + 0.05 * random.normal(size=(60, 8))
    stored = []
    for name in ("a", "b"):
        store_projection(tmp_path / name, embeddings, labels, ["x", "y", "z"], max_samples=45)
        with np.load(tmp_path / name) as file:
            stored.append(dict(file))
    assert np.array_equal(stored[0]["points"], stored[1]["points"])
    points, classes = stored[0]["points"], stored[0]["labels"]
    assert len(points) == 45
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(45, np.inf))
    assert (classes[distances.argmin(axis=1)] == classes).all()
    with pytest.raises(DatasetError, match="at least 5"):
        store_projection(tmp_path / "c", embeddings[:4], labels[:4], ["x"])
