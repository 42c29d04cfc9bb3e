"""Intervals, paired comparisons, variance components and search curves: numbers in, numbers out, no torch."""

from mlrc_lightning.reporting.intervals import Interval, t_interval
from mlrc_lightning.reporting.statistics.comparison import PairedComparison, PairwiseRow, paired_comparison, pairwise
from mlrc_lightning.reporting.statistics.curves import Band, band, best_so_far, paper_curve
from mlrc_lightning.reporting.statistics.holm import holm
from mlrc_lightning.reporting.statistics.queries import Embedding, Metric, QueryResults, read_query_results
from mlrc_lightning.reporting.statistics.variance import (
    SearchVariance,
    VarianceComponents,
    search_variance,
    variance_components,
)

__all__ = [
    "Band",
    "Embedding",
    "Interval",
    "Metric",
    "PairedComparison",
    "PairwiseRow",
    "QueryResults",
    "SearchVariance",
    "VarianceComponents",
    "band",
    "best_so_far",
    "holm",
    "paired_comparison",
    "pairwise",
    "paper_curve",
    "read_query_results",
    "search_variance",
    "t_interval",
    "variance_components",
]
