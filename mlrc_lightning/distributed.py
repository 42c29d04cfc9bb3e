"""One batch on several processes, with the loss, the gradients and the accuracies of one process.

Every rank embeds its part of the batch, receives the embeddings of all others, and computes the loss of the whole
batch. Two facts make the gradients those of one process under DistributedDataParallel, which averages over ranks:

- The loss's own parameters get the gradient of the whole batch on every rank: their average is right as it is.
- An embedding gets its gradient on the rank that computed it alone; the average divides it by the number of ranks, so
  that it is multiplied by it here.

Wrapping a loss so that the gathered gradient is *summed* instead, as pytorch-metric-learning's DistributedLossWrapper
does, multiplies the gradient of the loss's own parameters by the number of ranks (`benchmarks/distributed.py`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Returns the number of this process among the ranks of a trial; 0 where it is the only one."""
    return dist.get_rank() if _is_distributed() else 0


def world_size() -> int:
    """Returns the number of ranks; 1 where this process is alone."""
    return dist.get_world_size() if _is_distributed() else 1


def part_sizes(num_rows: int, num_ranks: int) -> list[int]:
    """Returns how many rows of a batch each rank takes: consecutive parts, none padded, at most one row apart."""
    small, larger = divmod(num_rows, num_ranks)
    return [small + int(number < larger) for number in range(num_ranks)]


def own_part(num_rows: int) -> slice:
    """Returns which rows of a batch this rank takes."""
    sizes = part_sizes(num_rows, world_size())
    start = sum(sizes[: rank()])
    return slice(start, start + sizes[rank()])


def gather_rows(part: Tensor, num_rows: int) -> Tensor:
    """Returns the rows of all ranks in the order of the batch, with a gradient to this rank's own.

    A collective: every rank calls it, with its own part of the same batch, and computes the same value of the result.
    The gradient assumes that, and that DistributedDataParallel averages the parameters' gradients afterwards.

    Args:
        part: This rank's rows, as `own_part` chose them; (n, …).
        num_rows: Rows of the whole batch.

    Returns:
        (num_rows, …); `part` itself where this process is alone.
    """
    if world_size() == 1:
        return part
    gathered: Tensor = _GatherRows.apply(part, part_sizes(num_rows, world_size()))  # type: ignore[no-untyped-call]
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, part: Tensor, sizes: list[int]) -> Tensor:
        context.own = (sum(sizes[: rank()]), sizes[rank()])
        # neither gloo nor NCCL gathers parts of different sizes: the longest decides, and the rest is cut off again
        padded = part.new_zeros((max(sizes), *part.shape[1:]))
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([rows[:size] for rows, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        start, size = context.own
        return gradients[0][start : start + size] * world_size(), None


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
