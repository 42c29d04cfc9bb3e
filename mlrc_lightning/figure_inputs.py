"""What figures need and records do not hold: computed here, stored as arrays, drawn by `figures` without torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlrc_lightning.errors import DatasetError
from mlrc_lightning.records import write_bytes
from mlrc_lightning.reference import rows

TOY_HEIGHT = 2.05
"""Height of Figure 1's strips, whose width is 1: 2.0 to 2.1 meets the printed scores best; PROTOCOL.md section 8."""
TOY_METRICS = ("nmi", "f1", "precision_at_1", "r_precision", "mean_average_precision_at_r")
MIN_PROJECTED = 5
"""Fewer have no neighbourhoods."""
MAX_PROJECTED = 5000
"""t-SNE takes minutes beyond."""


def toy_points(name: str, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draws one of the embeddings of Figure 1: two classes of 1000 points, uniform in strips.

    Args:
        name: a, b or c.
        seed: Of the points.

    Returns:
        Points (2000, 2) and labels (2000,).

    Source: Musgrave et al. 2020, Figure 1; the strips are read off the drawing, PROTOCOL.md section 8.
    """
    random = np.random.default_rng([seed, ord(name)])
    points, labels = [], []
    for strip in rows("figure_1_strips.csv"):
        if strip["embedding"] == name:
            size = int(strip["points"])
            low = (float(strip["low"]), 0.0)
            high = (float(strip["high"]), TOY_HEIGHT)
            points.append(random.uniform(low, high, size=(size, 2)))
            labels.append(np.full(size, int(strip["class"]), dtype=np.int64))
    return np.concatenate(points), np.concatenate(labels)


def toy_scores(points: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Computes the five scores of Figure 1.

    Neighbours are by Euclidean distance, as drawn; clusters are k-means with as many centres as classes. F1 is that of
    pairs: a pair is positive if both points are in one cluster, rightly so if they are of one class.

    Args:
        points: (N, 2).
        labels: (N,).

    Returns:
        Fractions, by the names of `TOY_METRICS`.
    """
    import torch
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import pair_confusion_matrix

    from mlrc_lightning.metrics.functional import average_precision_at_r, precision_at_1, r_precision

    distances = np.square(points[:, None] - points[None]).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    relevant_count = (labels[:, None] == labels[None]).sum(axis=1) - 1
    neighbors = np.argsort(distances, axis=1, kind="stable")[:, : relevant_count.max()]
    is_relevant = torch.from_numpy(labels[neighbors] == labels[:, None])
    num_relevant = torch.from_numpy(relevant_count)
    clusters = KMeans(len(np.unique(labels)), n_init=10, random_state=0).fit_predict(points)
    (_, wrongly_joined), (wrongly_parted, rightly_joined) = pair_confusion_matrix(labels, clusters)
    scores = (
        normalized_mutual_info_score(labels, clusters),
        2 * rightly_joined / (2 * rightly_joined + wrongly_joined + wrongly_parted),
        precision_at_1(is_relevant).mean(),
        r_precision(is_relevant, num_relevant).mean(),
        average_precision_at_r(is_relevant, num_relevant).mean(),
    )
    return {name: float(score) for name, score in zip(TOY_METRICS, scores, strict=True)}


def store_toy(path: Path, seed: int = 0) -> None:
    """Draws and scores the three embeddings of Figure 1 and stores them as one npz."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name in dict.fromkeys(strip["embedding"] for strip in rows("figure_1_strips.csv")):
        points, labels = toy_points(name, seed)
        scores = toy_scores(points, labels)
        arrays |= {f"{name}_points": points, f"{name}_labels": labels}
        arrays[f"{name}_scores"] = np.array([scores[metric] for metric in TOY_METRICS])
    _write_npz(path, arrays)


def store_projection(
    path: Path,
    embeddings: NDArray[np.floating],
    labels: NDArray[np.integer],
    class_names: Sequence[str],
    *,
    max_samples: int = MAX_PROJECTED,
    seed: int = 0,
) -> None:
    """Projects embeddings to the plane by t-SNE and stores the points.

    Args:
        path: npz with points (N, 2) float32, labels (N,) int64, class_names (C,).
        embeddings: (N, E); compared by cosine, as in retrieval.
        labels: Class positions; (N,).
        class_names: By class position.
        max_samples: Of more, so many are drawn at random.
        seed: Of that draw and of t-SNE.

    Raises:
        DatasetError: Fewer than five embeddings, too few for neighbourhoods.
    """
    from sklearn.manifold import TSNE

    if len(embeddings) < MIN_PROJECTED:
        raise DatasetError(f"{path}: expected at least {MIN_PROJECTED} embeddings to project, found {len(embeddings)}.")
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(len(embeddings))[:max_samples])
    units = _units(embeddings[chosen])
    # the library's default of 30, where there are enough samples for it
    perplexity = min(30.0, (len(units) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(units)
    names = np.array(list(class_names), dtype=np.str_)
    _write_npz(
        path, {"points": points.astype(np.float32), "labels": labels[chosen].astype(np.int64), "class_names": names}
    )


def store_neighbors(
    path: Path,
    embeddings: NDArray[np.floating],
    labels: NDArray[np.integer],
    class_names: Sequence[str],
    read: Callable[[int], Image.Image],
    *,
    num_queries: int = 8,
    num_neighbors: int = 6,
    size: int = 64,
    seed: int = 0,
) -> None:
    """Finds the nearest images of some random queries and stores their thumbnails.

    Queries are drawn of different classes where there are enough, among images that are not alone in their class.

    Args:
        path: npz with the arrays of `figures.retrieval.NeighborSheet`, and `indices` (T,), the thumbnails' rows here.
        embeddings: (N, E); compared by cosine similarity.
        labels: Class positions; (N,).
        class_names: By class position.
        read: Image of a row of `embeddings`.
        num_queries: How many queries at most.
        num_neighbors: Nearest images of each; fewer where N is smaller.
        size: Width and height of a thumbnail, in pixels; images are padded to a square.
        seed: Of the choice of queries.

    Raises:
        DatasetError: No class has two images.
    """
    units = _units(embeddings)
    present, counts = np.unique(labels, return_counts=True)
    classes = present[counts > 1]
    if len(classes) == 0:
        raise DatasetError(f"{path}: expected a class with at least two images, found none: nothing to retrieve.")
    random = np.random.default_rng(seed)
    members = [random.permutation(np.flatnonzero(labels == label)) for label in random.permutation(classes)]
    # one of each class first, then a second of each, until there are enough
    turns = [own[turn] for turn in range(max(len(own) for own in members)) for own in members if turn < len(own)]
    queries = np.array(turns[:num_queries], dtype=np.int64)
    similarities = units[queries] @ units.T
    similarities[np.arange(len(queries)), queries] = -np.inf
    nearest = np.argsort(-similarities, axis=1, kind="stable")[:, : min(num_neighbors, len(units) - 1)]
    indices = np.unique(np.concatenate([queries, nearest.ravel()]))
    _write_npz(
        path,
        {
            "queries": np.searchsorted(indices, queries),
            "neighbors": np.searchsorted(indices, nearest),
            "similarities": np.take_along_axis(similarities, nearest, axis=1).astype(np.float32),
            "labels": labels[indices].astype(np.int64),
            "thumbnails": np.stack([_thumbnail(read(int(index)), size) for index in indices]),
            "class_names": np.array(list(class_names), dtype=np.str_),
            "indices": indices,
        },
    )


def _units(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    rows_ = embeddings.astype(np.float64)
    units: NDArray[np.float64] = rows_ / np.linalg.norm(rows_, axis=1, keepdims=True).clip(min=1e-12)
    return units


def _thumbnail(image: Image.Image, size: int) -> NDArray[np.uint8]:
    small = image.convert("RGB")
    small.thumbnail((size, size))
    square = Image.new("RGB", (size, size), (255, 255, 255))
    square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return np.asarray(square, dtype=np.uint8)


def _write_npz(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, file.getvalue())
