"""Precision@1, R-Precision and MAP@R of a set of embeddings, exact, in bounded memory.

How exactness is kept at float32 speed: neighbours are searched in float32, and every query whose order could
depend on rounding (two neighbours of different relevance closer together than the error bound, within its first R
or across that border) is ranked again in float64. Such queries are about one in a hundred.

Ties. Two neighbours tie when their cosine similarities agree to `TIE_DECIMALS` decimals in float64; of tied
neighbours those of *another* class come first. The rule depends on no row order, device or block size, and never
favours the query: embeddings that collapsed to one point score 0, not 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mlrc_lightning.errors import DatasetError, NonFiniteError
from mlrc_lightning.metrics.functional import average_precision_at_r, precision_at_1, r_precision

METRICS = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
"""Names of the metrics, in the order of the paper's tables."""

TIE_DECIMALS = 12
"""Cosine similarities that agree to so many decimals in float64 are a tie."""

COLLAPSED_SPREAD = 1e-6
"""Embeddings whose mean squared distance to their mean is below this count as collapsed to one point."""

_BLOCK_BYTES = 32 * 2**20
_FLOAT32_MARGIN = 2e-6
"""Above twice the largest float32 error of a cosine of unit vectors measured for E from 8 to 4096, 6.4e-7."""


@dataclass(frozen=True)
class RetrievalMetrics:
    """Accuracies of one set of embeddings, as fractions in [0, 1].

    Attributes:
        precision_at_1: Mean over queries of "the nearest neighbour is of the query's class".
        r_precision: Mean R-Precision over queries.
        mean_average_precision_at_r: Mean AP@R over queries.
        num_queries: Queries averaged over: the samples of all classes with two or more.
        num_without_relevant: Samples alone in their class: no query, but still a neighbour of others.
        collapsed: Whether all embeddings lie in one point, up to `COLLAPSED_SPREAD`.
        per_query: (num_queries, 3), float64, columns in the order of `METRICS`, rows in the order of the samples.
    """

    precision_at_1: float
    r_precision: float
    mean_average_precision_at_r: float
    num_queries: int
    num_without_relevant: int
    collapsed: bool
    per_query: Tensor

    def as_dict(self) -> dict[str, float]:
        """Returns the three accuracies by name."""
        return {name: float(getattr(self, name)) for name in METRICS}


@torch.no_grad()
def retrieval_metrics(embeddings: Tensor, labels: Tensor) -> RetrievalMetrics:
    """Computes the three accuracies, every sample querying all others.

    The query is excluded by its index, not as "the first neighbour". Embeddings are compared by cosine similarity,
    whose ranking is that of the L2 distance between normalised embeddings; so scaling one changes nothing.
    Memory beside the inputs is a few blocks of `_BLOCK_BYTES`: no N x N matrix at any N.

    Args:
        embeddings: (N, E), any float type, any device, N >= 2.
        labels: (N,), integer; any values.

    Returns:
        The accuracies; sums in float64.

    Raises:
        NonFiniteError: An embedding is NaN or infinite.
        DatasetError: No class has two samples, so that there is nothing to retrieve.
        ValueError: The shapes do not fit.

    Source: Musgrave et al. 2020, section 3.2; PROTOCOL.md section 1.7.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"Expected embeddings (N, E) and labels (N,), found {tuple(embeddings.shape)} and {tuple(labels.shape)}."
        )
    num_bad = int((~torch.isfinite(embeddings)).any(dim=1).sum())
    if num_bad:
        raise NonFiniteError(
            f"Expected finite embeddings, found NaN or infinity in {num_bad} of {len(embeddings)}."
            " The model diverged: lower the learning rate, or leave this setting."
        )
    _, class_of, class_sizes = torch.unique(labels.to(embeddings.device), return_inverse=True, return_counts=True)
    num_relevant = class_sizes[class_of] - 1
    queries = torch.nonzero(num_relevant).flatten()
    if len(queries) == 0:
        raise DatasetError(
            f"Expected a class with at least two samples, found {len(class_sizes)} classes of one sample each:"
            " retrieval has nothing to find. Check the labels."
        )
    units = torch.nn.functional.normalize(embeddings.double(), dim=1)
    collapsed = bool((units - units.mean(dim=0)).square().sum(dim=1).mean() < COLLAPSED_SPREAD)
    # identical embeddings share one column of every product, so that they tie exactly whatever the product's order
    distinct, column_of = torch.unique(units, dim=0, return_inverse=True)
    references = _References(distinct, None if len(distinct) == len(units) else column_of, class_of, units)
    per_query = torch.empty(len(queries), len(METRICS), dtype=torch.float64, device=units.device)
    for rows in _blocks(len(queries), row_bytes=4 * len(units)):
        per_query[rows] = _score(references, queries[rows], num_relevant)
    means: dict[str, float] = dict(zip(METRICS, per_query.mean(dim=0).tolist(), strict=True))
    return RetrievalMetrics(
        **means,
        num_queries=len(queries),
        num_without_relevant=len(labels) - len(queries),
        collapsed=collapsed,
        per_query=per_query.cpu(),
    )


class _References:
    """The searched samples: all of them, with products taken over the distinct ones only."""

    def __init__(self, distinct: Tensor, column_of: Tensor | None, class_of: Tensor, units: Tensor) -> None:
        self.units = units
        self.class_of = class_of
        self._column_of = column_of
        self._distinct = units if column_of is None else distinct
        self._distinct32 = self._distinct.float()

    def similarities(self, queries: Tensor, *, exact: bool) -> Tensor:
        """Returns cosine similarities of some samples to all, their own excluded as -2; (len(queries), N)."""
        if exact:
            products = torch.round(self.units[queries] @ self._distinct.T, decimals=TIE_DECIMALS)
        else:
            products = self.units[queries].float() @ self._distinct32.T
        if self._column_of is not None:
            products = products[:, self._column_of]
        products[torch.arange(len(queries), device=queries.device), queries] = -2.0
        return products


def _score(references: _References, queries: Tensor, num_relevant: Tensor) -> Tensor:
    """Returns the three accuracies of some queries; (len(queries), 3), float64."""
    relevant_count = num_relevant[queries]
    # one neighbour more than R, to see a tie across the border
    num_neighbors = min(int(relevant_count.max()) + 1, len(references.units) - 1)
    similarities, neighbors = references.similarities(queries, exact=False).topk(num_neighbors, dim=1)
    is_relevant = references.class_of[neighbors] == references.class_of[queries].unsqueeze(1)
    scores = _accuracies(is_relevant, relevant_count)
    gaps = similarities[:, :-1] - similarities[:, 1:]
    ranks = torch.arange(gaps.shape[1], device=gaps.device)
    # a pair of the same relevance may swap freely, but it can hide a closer pair behind it: chains of small gaps
    # are caught because their ends differ in relevance somewhere along the chain
    uncertain = (
        (gaps < _FLOAT32_MARGIN) & (is_relevant[:, :-1] != is_relevant[:, 1:]) & (ranks < relevant_count.unsqueeze(1))
    ).any(dim=1)
    # the neighbour that topk left out may be relevant, or not, and as near as the last one kept
    border = similarities.gather(1, (relevant_count - 1).clamp(max=num_neighbors - 1).unsqueeze(1)).squeeze(1)
    after = similarities.gather(1, relevant_count.clamp(max=num_neighbors - 1).unsqueeze(1)).squeeze(1)
    uncertain |= (border - after < _FLOAT32_MARGIN) & (relevant_count < len(references.units) - 1)
    again = torch.nonzero(uncertain).flatten()
    for rows in _blocks(len(again), row_bytes=32 * len(references.units)):
        scores[again[rows]] = _score_exactly(references, queries[again[rows]], num_relevant)
    return scores


def _score_exactly(references: _References, queries: Tensor, num_relevant: Tensor) -> Tensor:
    """Ranks all samples in float64 with the tie rule; the same result as `_score`, many times slower."""
    relevant_count = num_relevant[queries]
    similarities = references.similarities(queries, exact=True)
    relevant = references.class_of.unsqueeze(0) == references.class_of[queries].unsqueeze(1)
    num_neighbors = int(relevant_count.max())
    # irrelevant ones first, then a stable sort by similarity: of equal similarities the irrelevant lead
    irrelevant_first = torch.argsort(relevant.to(torch.uint8), dim=1, stable=True)
    by_similarity = torch.argsort(similarities.gather(1, irrelevant_first), dim=1, descending=True, stable=True)
    order = irrelevant_first.gather(1, by_similarity[:, :num_neighbors])
    return _accuracies(relevant.gather(1, order), relevant_count)


def _accuracies(is_relevant: Tensor, num_relevant: Tensor) -> Tensor:
    return torch.stack(
        [
            precision_at_1(is_relevant),
            r_precision(is_relevant, num_relevant),
            average_precision_at_r(is_relevant, num_relevant),
        ],
        dim=1,
    )


def _blocks(num_rows: int, row_bytes: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
