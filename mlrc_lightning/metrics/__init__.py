"""Exact retrieval metrics: Precision@1, R-Precision and MAP@R. On request also NMI and AMI."""

from mlrc_lightning.metrics.clustering import CLUSTERING_METRICS, clustering_metrics
from mlrc_lightning.metrics.functional import (
    average_precision_at_r,
    precision_at_1,
    r_precision,
)
from mlrc_lightning.metrics.retrieval import METRICS, RetrievalMetrics, retrieval_metrics

__all__ = [
    "CLUSTERING_METRICS",
    "METRICS",
    "RetrievalMetrics",
    "average_precision_at_r",
    "clustering_metrics",
    "precision_at_1",
    "r_precision",
    "retrieval_metrics",
]
