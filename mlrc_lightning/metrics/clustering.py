"""NMI and AMI: how well k-means clusters of the embeddings agree with the classes."""

from __future__ import annotations

import importlib.util
import warnings

import mlrc_lightning._torchvision  # noqa: F401

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from torch import Tensor

from mlrc_lightning.errors import NonFiniteError
from mlrc_lightning.metrics.units import unit_rows

CLUSTERING_METRICS = ("NMI", "AMI")
KMEANS_ITERATIONS = 20
"""At most so many (docs/protocol.md, §1.7)."""


def clustering_metrics(embeddings: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
    """Clusters normalised embeddings into as many clusters as classes, and compares clusters with classes.

    With faiss, where it is installed, as the original did; otherwise with scikit-learn. Both start at random points
    of their own, so that the two differ as two seeds do.

    Args:
        embeddings: (N, E), any float type, any device; their length is ignored.
        labels: (N,), integer; any values.
        seed: Of the first centres: the same seed on the same library gives the same clusters.

    Returns:
        NMI in [0, 1], with the arithmetic mean of both entropies, and AMI, at most 1 and around 0 for random
        clusters.

    Raises:
        NonFiniteError: An embedding is NaN or infinite.

    Source: pytorch-metric-learning AccuracyCalculator; docs/protocol.md, §1.7.
    """
    units = unit_rows(embeddings.detach().double()).float().cpu().numpy()
    if not np.isfinite(units).all():
        raise NonFiniteError("Expected finite embeddings to cluster, found NaN or infinity. The model diverged.")
    classes = labels.cpu().numpy()
    clusters = kmeans(units, len(np.unique(classes)), seed)
    return {
        "NMI": float(normalized_mutual_info_score(classes, clusters)),
        "AMI": float(adjusted_mutual_info_score(classes, clusters)),
    }


def kmeans(points: NDArray[np.float32], num_clusters: int, seed: int) -> NDArray[np.int64]:
    """Returns the cluster of each point after at most `KMEANS_ITERATIONS` iterations, (N, E) → (N,), int64."""
    if importlib.util.find_spec("faiss") is None:
        model = KMeans(num_clusters, n_init=1, max_iter=KMEANS_ITERATIONS, random_state=seed)
        with warnings.catch_warnings():
            # collapsed embeddings have fewer distinct points than classes: a bad score, and not a matter to warn of
            warnings.simplefilter("ignore", ConvergenceWarning)
            return np.asarray(model.fit_predict(points), dtype=np.int64)
    import faiss

    points = np.ascontiguousarray(points)
    # the smallest allowed cluster is one point, and no point is left out: faiss would warn, or draw a subset
    model = faiss.Kmeans(
        points.shape[1],
        num_clusters,
        niter=KMEANS_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),
    )
    model.train(points)
    _, nearest = model.index.search(points, 1)
    return np.asarray(nearest[:, 0], dtype=np.int64)
