"""Precision@1, R-Precision and MAP@R of a set of embeddings, exact, in bounded memory.

How exactness is kept at float32 speed: the nearest neighbours, a few more than R, are searched in float32. Every query
whose order could depend on rounding (two neighbours of different relevance closer together than the error bound, within
its first R or across that border) is ranked again in float64: among the neighbours found where the search went far
enough beyond the border, otherwise among all samples. Such queries are about one in a hundred.

Ties. Two neighbours tie when their cosine similarities agree to `TIE_DECIMALS` decimals in float64; of tied
neighbours those of *another* class come first. The rule depends on no row order, device or block size, and never
favours the query: embeddings that collapsed to one point score 0, not 1.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mlrc_lightning.errors import DatasetError, NonFiniteError
from mlrc_lightning.metrics.functional import average_precision_at_r, precision_at_1, r_precision
from mlrc_lightning.metrics.units import unit_rows

METRICS = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
"""Names of the metrics, in the order of the paper's tables."""

TIE_DECIMALS = 12
"""Cosine similarities that agree to so many decimals in float64 are a tie."""

COLLAPSED_SPREAD = 1e-6
"""Embeddings whose mean squared distance to their mean is below this count as collapsed to one point."""

_BLOCK_BYTES = 8 * 2**20
_FLOAT32_MARGIN = 2e-6
"""Above twice the largest float32 error of a cosine of unit vectors measured for E from 8 to 4096, 6.4e-7."""
_SPARE_NEIGHBORS = 8
"""Neighbours searched beyond R, so that an uncertain order can be settled among those found."""
_FAISS_NEIGHBORS = 1024
"""Up to so many neighbours faiss is the faster search; its heaps are not made for more."""
_FAISS_SETTINGS = {"distance_compute_blas_query_bs": 1024, "distance_compute_min_k_reservoir": 48}
"""Blocks of products that stay in the cache, and reservoirs in the place of heaps for fewer neighbours than faiss has
(4096, 100): a seventh less time for 77 neighbours among 6,000, 6 % less for 23 among 14,888 or 60,000."""


@dataclass(frozen=True)
class RetrievalMetrics:
    """Accuracies of one set of embeddings, as fractions in [0, 1]. It is also a mapping of the three by name.

    Attributes:
        precision_at_1: Mean over queries of "the nearest neighbour is of the query's class".
        r_precision: Mean R-Precision over queries.
        mean_average_precision_at_r: Mean AP@R over queries.
        num_queries: Queries averaged over: the samples whose class has another sample to find.
        num_without_relevant: Samples without one: no query, but still a neighbour of others.
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
        return {name: self[name] for name in METRICS}

    def keys(self) -> tuple[str, ...]:
        """Returns the names of the three accuracies, so that `dict(metrics)` and `**metrics` have them."""
        return METRICS

    def __getitem__(self, name: str) -> float:
        """Returns one of the three accuracies."""
        if name not in METRICS:
            raise KeyError(name)
        return float(getattr(self, name))


@torch.no_grad()
def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
) -> RetrievalMetrics:
    """Computes the three accuracies, every sample querying all others, or those of another set.

    The query is excluded by its index, not as "the first neighbour". Embeddings are compared by cosine similarity,
    whose ranking is that of the L2 distance between normalised embeddings; so scaling one changes nothing.
    Neighbours are found by faiss on a CPU where it is installed, otherwise by tiles of torch products; the figures are
    the same. Memory beside the inputs is one float32 copy of them and a few blocks: no N x N matrix at any N.

    Args:
        embeddings: (N, E), any float type, any device, N >= 2.
        labels: (N,), integer; any values.
        reference: (M, E), the samples to find, where they are not the queries themselves.
        reference_labels: (M,), integer.

    Returns:
        The accuracies; sums in float64.

    Raises:
        NonFiniteError: An embedding is NaN or infinite.
        DatasetError: No query has a sample of its class to find.
        ValueError: The shapes do not fit, or `reference` comes without its labels.

    Source: Musgrave et al. 2020, section 3.2; docs/protocol.md, §1.7.
    """
    if (reference is None) != (reference_labels is None):
        raise ValueError("expected reference and reference_labels, or neither; found one of them.")
    is_one_set = reference is None
    if reference is None or reference_labels is None:
        reference, reference_labels = embeddings, labels
    for rows, row_labels in ((embeddings, labels), (reference, reference_labels)):
        _check(rows, row_labels, embeddings.shape[-1])
    names, class_of = torch.unique(torch.cat([labels, reference_labels]).to(embeddings.device), return_inverse=True)
    query_class, reference_class = class_of[: len(labels)], class_of[len(labels) :]
    num_relevant = torch.bincount(reference_class, minlength=len(names))[query_class] - int(is_one_set)
    rows = torch.nonzero(num_relevant).flatten()
    if len(rows) == 0:
        raise DatasetError(
            f"Expected a class with at least two samples, found {len(names)} classes of one sample each:"
            " retrieval has nothing to find. Check the labels."
            if is_one_set
            else "Expected queries and references to share a class, found none. Check the labels."
        )
    references = _References(reference, reference_class)
    queries = _Queries(embeddings, query_class, num_relevant, is_one_set)
    per_query = torch.empty(len(rows), len(METRICS), dtype=torch.float64, device=embeddings.device)
    for block in _blocks(len(rows), row_bytes=references.row_bytes(int(num_relevant.max()))):
        per_query[block] = _score(queries, references, rows[block])
    means: dict[str, float] = dict(zip(METRICS, per_query.mean(dim=0).tolist(), strict=True))
    return RetrievalMetrics(
        **means,
        num_queries=len(rows),
        num_without_relevant=len(labels) - len(rows),
        collapsed=_mean_squared_distance_to_mean(embeddings) < COLLAPSED_SPREAD,
        per_query=per_query.cpu(),
    )


def _check(embeddings: Tensor, labels: Tensor, embedding_size: int) -> None:
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or embeddings.shape[1] != embedding_size:
        raise ValueError(
            f"Expected embeddings (N, E) and labels (N,), found {tuple(embeddings.shape)} and {tuple(labels.shape)}."
        )
    num_bad = sum(
        int((~torch.isfinite(embeddings[block])).any(dim=1).sum())
        for block in _blocks(len(embeddings), row_bytes=embedding_size)
    )
    if num_bad:
        raise NonFiniteError(
            f"Expected finite embeddings, found NaN or infinity in {num_bad} of {len(embeddings)}."
            " The model diverged: lower the learning rate, or leave this setting."
        )


@dataclass(frozen=True)
class _Queries:
    """The searching samples.

    Attributes:
        embeddings: (N, E).
        class_of: (N,).
        num_relevant: R of each; (N,).
        are_references: Whether they are the searched samples too, so that each must leave itself out.
    """

    embeddings: Tensor
    class_of: Tensor
    num_relevant: Tensor
    are_references: bool


class _References:
    """The searched samples.

    Args:
        embeddings: (M, E).
        class_of: (M,).
    """

    def __init__(self, embeddings: Tensor, class_of: Tensor) -> None:
        self.embeddings = embeddings
        self.class_of = class_of
        self._units = torch.empty(embeddings.shape, dtype=torch.float32, device=embeddings.device)
        for block in _blocks(len(embeddings), row_bytes=8 * embeddings.shape[1]):
            self._units[block] = _units(embeddings[block]).float()

    def __len__(self) -> int:
        return len(self.embeddings)

    def row_bytes(self, num_relevant: int) -> int:
        """Returns the memory that one query takes in `search`."""
        is_tiled = self._num_searched(num_relevant) > _FAISS_NEIGHBORS or not self._has_faiss
        return 4 * len(self) if is_tiled else 16 * self._num_searched(num_relevant)

    def search(self, queries: _Queries, rows: Tensor, num_relevant: int) -> tuple[Tensor, Tensor]:
        """Returns the nearest references of some queries, nearest first, the query itself left out.

        Args:
            queries: All of them.
            rows: Which to search; (Q,).
            num_relevant: The largest R of these.

        Returns:
            Cosine similarities (Q, K), float32, and positions (Q, K); R < K where there are as many references.
        """
        num_neighbors = self._num_searched(num_relevant)
        leave_out = int(queries.are_references)
        if queries.are_references:
            units = self._units[rows]
        else:
            units = _units(queries.embeddings[rows]).float()
        if self._has_faiss and num_neighbors <= _FAISS_NEIGHBORS:
            similarities, neighbors = _faiss_search(units, self._units, min(num_neighbors + leave_out, len(self)))
            if leave_out:
                # among copies of itself, or for all that rounding does, the query may be anywhere, or not found
                is_self = neighbors == rows.unsqueeze(1)
                is_self[:, -1] |= ~is_self.any(dim=1)
                columns = torch.arange(neighbors.shape[1] - 1)
                kept = columns + (columns >= is_self.to(torch.uint8).argmax(dim=1, keepdim=True))
                similarities, neighbors = similarities.gather(1, kept), neighbors.gather(1, kept)
            return similarities, neighbors
        with _full_float32():
            products = units @ self._units.T
        if leave_out:
            products[torch.arange(len(rows), device=rows.device), rows] = -2.0
        found_by_torch = products.topk(min(num_neighbors, len(self) - leave_out), dim=1)
        return found_by_torch.values, found_by_torch.indices

    def exact_similarities(self, queries: _Queries, rows: Tensor) -> Tensor:
        """Returns cosine similarities of some queries to all references, in float64, rounded, (Q, M)."""
        distinct, column_of = self._distinct
        products = torch.round(_units(queries.embeddings[rows]) @ distinct.T, decimals=TIE_DECIMALS)
        if column_of is not None:
            products = products[:, column_of]
        if queries.are_references:
            products[torch.arange(len(rows), device=rows.device), rows] = -2.0
        return products

    @cached_property
    def _has_faiss(self) -> bool:
        return self.embeddings.device.type == "cpu" and importlib.util.find_spec("faiss") is not None

    @cached_property
    def _distinct(self) -> tuple[Tensor, Tensor | None]:
        """Distinct unit vectors, and the one of each reference.

        Identical embeddings share one column of every product, so that they tie exactly whatever its order of sums.
        """
        units = _units(self.embeddings)
        distinct, column_of = torch.unique(units, dim=0, return_inverse=True)
        return (units, None) if len(distinct) == len(units) else (distinct, column_of)

    def _num_searched(self, num_relevant: int) -> int:
        return min(num_relevant + 1 + _SPARE_NEIGHBORS, len(self))


def _score(queries: _Queries, references: _References, rows: Tensor) -> Tensor:
    """Returns the three accuracies of some queries, (Q, 3), float64."""
    num_relevant = queries.num_relevant[rows]
    similarities, neighbors = references.search(queries, rows, int(num_relevant.max()))
    is_relevant = references.class_of[neighbors] == queries.class_of[rows].unsqueeze(1)
    scores = _accuracies(is_relevant, num_relevant)
    last = similarities.shape[1] - 1
    gaps = similarities[:, :-1] - similarities[:, 1:]
    ranks = torch.arange(gaps.shape[1], device=gaps.device)
    # a pair of the same relevance may swap freely, but it can hide a closer pair behind it: chains of small gaps
    # are caught because their ends differ in relevance somewhere along the chain
    uncertain = (
        (gaps < _FLOAT32_MARGIN) & (is_relevant[:, :-1] != is_relevant[:, 1:]) & (ranks < num_relevant.unsqueeze(1))
    ).any(dim=1)
    # what comes after the border may be relevant, or not, and as near as the last one within
    border = similarities.gather(1, (num_relevant - 1).clamp(max=last).unsqueeze(1)).squeeze(1)
    after = similarities.gather(1, num_relevant.clamp(max=last).unsqueeze(1)).squeeze(1)
    uncertain |= (border - after < _FLOAT32_MARGIN) & (num_relevant <= last)
    found_all = last + 1 == len(references) - int(queries.are_references)
    is_settled_among_found = border - similarities[:, -1] > _FLOAT32_MARGIN
    among_found = uncertain & (is_settled_among_found | found_all)
    size = queries.embeddings.shape[1]
    for chosen in _parts(among_found, row_bytes=24 * (last + 1) * size):
        scores[chosen] = _score_among(queries, references, rows[chosen], neighbors[chosen])
    for chosen in _parts(uncertain & ~among_found, row_bytes=32 * len(references)):
        scores[chosen] = _score_exactly(queries, references, rows[chosen])
    return scores


def _score_among(queries: _Queries, references: _References, rows: Tensor, neighbors: Tensor) -> Tensor:
    """Ranks some candidates, which hold the R nearest of each query, in float64 with the tie rule."""
    units = _units(references.embeddings[neighbors.flatten()]).view(*neighbors.shape, -1)
    products = (units * _units(queries.embeddings[rows]).unsqueeze(1)).sum(dim=2)
    similarities = torch.round(products, decimals=TIE_DECIMALS)
    is_relevant = references.class_of[neighbors] == queries.class_of[rows].unsqueeze(1)
    _, is_relevant = _ranked(similarities, is_relevant)
    return _accuracies(is_relevant, queries.num_relevant[rows])


def _score_exactly(queries: _Queries, references: _References, rows: Tensor) -> Tensor:
    """Ranks all references in float64 with the tie rule. It has the result of `_score` and is many times slower."""
    num_relevant = queries.num_relevant[rows]
    similarities = references.exact_similarities(queries, rows)
    relevant = references.class_of.unsqueeze(0) == queries.class_of[rows].unsqueeze(1)
    nearest = similarities.topk(int(num_relevant.max()), dim=1)
    ranked, is_relevant = _ranked(nearest.values, relevant.gather(1, nearest.indices))
    # of those as near as the R-th, topk took any: the irrelevant ones among all references come first
    border = ranked.gather(1, (num_relevant - 1).unsqueeze(1))
    irrelevant_at_border = ((similarities == border) & ~relevant).sum(dim=1, keepdim=True)
    place = torch.arange(ranked.shape[1], device=rows.device) - (ranked > border).sum(dim=1, keepdim=True)
    is_relevant = torch.where(ranked == border, place >= irrelevant_at_border, is_relevant)
    return _accuracies(is_relevant, num_relevant)


def _ranked(similarities: Tensor, is_relevant: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both sorted by similarity, of equal ones the irrelevant first, (Q, K) each."""
    # irrelevant ones first, then a stable sort by similarity
    irrelevant_first = torch.argsort(is_relevant.to(torch.uint8), dim=1, stable=True)
    by_similarity = torch.sort(similarities.gather(1, irrelevant_first), dim=1, descending=True, stable=True)
    return by_similarity.values, is_relevant.gather(1, irrelevant_first.gather(1, by_similarity.indices))


def _accuracies(is_relevant: Tensor, num_relevant: Tensor) -> Tensor:
    return torch.stack(
        [
            precision_at_1(is_relevant),
            r_precision(is_relevant, num_relevant),
            average_precision_at_r(is_relevant, num_relevant),
        ],
        dim=1,
    )


def _faiss_search(units: Tensor, references: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Returns the nearest references by inner product, nearest first, and their positions, (Q, K) each."""
    import faiss

    settings = faiss.cvar  # of the process: others may search as well
    before = {name: getattr(settings, name) for name in _FAISS_SETTINGS}
    for name, value in _FAISS_SETTINGS.items():
        setattr(settings, name, value)
    try:
        found = faiss.knn(units.numpy(), references.numpy(), num_neighbors, metric=faiss.METRIC_INNER_PRODUCT)
    finally:
        for name, value in before.items():
            setattr(settings, name, value)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


@contextmanager
def _full_float32() -> Iterator[None]:
    """Keeps products out of TF32 and bfloat16, which a user may have allowed for training: the margin is float32's."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def _units(embeddings: Tensor) -> Tensor:
    return unit_rows(embeddings.double())


def _mean_squared_distance_to_mean(embeddings: Tensor) -> float:
    """Returns it for the normalised embeddings, in one pass of bounded memory: mean of squares less square of mean."""
    total = torch.zeros(embeddings.shape[1], dtype=torch.float64, device=embeddings.device)
    squares = torch.zeros((), dtype=torch.float64, device=embeddings.device)
    for block in _blocks(len(embeddings), row_bytes=16 * embeddings.shape[1]):
        units = _units(embeddings[block])
        total += units.sum(dim=0)
        squares += units.square().sum()
    return float(squares / len(embeddings) - (total / len(embeddings)).square().sum())


def _parts(chosen: Tensor, row_bytes: int) -> Iterator[Tensor]:
    """Yields the positions of the chosen rows, a block of memory at a time."""
    positions = torch.nonzero(chosen).flatten()
    for block in _blocks(len(positions), row_bytes):
        yield positions[block]


def _blocks(num_rows: int, row_bytes: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
