"""The three accuracies of one query, given which of its nearest neighbours are relevant.

Source of all three: Musgrave et al. 2020, section 3.2. R counts the *other* samples of the query's class.
"""

from __future__ import annotations

import torch
from torch import Tensor


def precision_at_1(is_relevant: Tensor) -> Tensor:
    """Whether the nearest neighbour shares the query's class.

    Args:
        is_relevant: Whether each neighbour shares the query's class, nearest first, query excluded; (N, K), bool.

    Returns:
        0.0 or 1.0; (N,), float64.
    """
    return is_relevant[:, 0].double()


def r_precision(is_relevant: Tensor, num_relevant: Tensor) -> Tensor:
    """Fraction of each query's R nearest neighbours that share its class.

    Args:
        is_relevant: As for `precision_at_1`; (N, K), bool, K >= max R.
        num_relevant: R of each query; (N,), int64, >= 1.

    Returns:
        Values in [0, 1]; (N,), float64.
    """
    within_r = _first_r(is_relevant, num_relevant)
    return within_r.sum(dim=1).double() / num_relevant


def average_precision_at_r(is_relevant: Tensor, num_relevant: Tensor) -> Tensor:
    """AP@R: the precision at each relevant rank among the first R, summed and divided by R.

    MAP@R is its mean over queries. A relevant neighbour at rank i <= R adds P(i), the precision at i; the others
    add nothing, so that 1 is reached only if the R nearest are exactly the R relevant ones.

    Args:
        is_relevant: As for `precision_at_1`; (N, K), bool, K >= max R.
        num_relevant: R of each query; (N,), int64, >= 1.

    Returns:
        Values in [0, 1]; (N,), float64.
    """
    within_r = _first_r(is_relevant, num_relevant)
    ranks = torch.arange(1, within_r.shape[1] + 1, device=within_r.device, dtype=torch.float64)
    precision = within_r.cumsum(dim=1).double() / ranks
    return (precision * within_r).sum(dim=1) / num_relevant


def _first_r(is_relevant: Tensor, num_relevant: Tensor) -> Tensor:
    ranks = torch.arange(is_relevant.shape[1], device=is_relevant.device)
    return is_relevant & (ranks < num_relevant.unsqueeze(1))
