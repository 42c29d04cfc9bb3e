"""The toy embeddings of Figure 1 and their scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlrc_lightning.files import write_npz
from mlrc_lightning.reference import rows

TOY_HEIGHT = 2.05
"""Height of Figure 1's strips, whose width is 1: 2.0 to 2.1 meets the printed scores best; docs/protocol.md, §8."""
TOY_METRICS = ("nmi", "f1", "precision_at_1", "r_precision", "mean_average_precision_at_r")


def toy_points(name: str, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draws one of the embeddings of Figure 1: two classes of 1000 points, uniform in strips.

    Args:
        name: a, b or c.
        seed: Of the points.

    Returns:
        Points (2000, 2) and labels (2000,).

    Source: Musgrave et al. 2020, Figure 1; the strips are read off the drawing, docs/protocol.md, §8.
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
    write_npz(path, arrays)
