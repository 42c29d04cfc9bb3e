"""What figures need and records do not hold: computed here, stored as arrays, drawn by `figures` without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlrc_lightning.errors import DatasetError
from mlrc_lightning.files import write_npz

MIN_PROJECTED = 5
"""Fewer have no neighbourhoods."""
MAX_PROJECTED = 5000
"""t-SNE takes minutes beyond."""


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
    write_npz(
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
    write_npz(
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
