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

from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

T = TypeVar("T")

_CPU = torch.device("cpu")


def join(store: Store, number: int, num_ranks: int, device: torch.device, timeout: timedelta) -> None:
    """Makes this process one of the ranks. Returns once all are there.

    Args:
        store: Where they meet.
        number: Of this one.
        num_ranks: Of all.
        device: Where this one trains; tensors of a GPU travel by NCCL, all others by gloo.
        timeout: How long one waits for the others before it gives up.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=num_ranks, timeout=timeout)


def is_distributed() -> bool:
    """Returns whether this process is one of the ranks of a trial. A group may have one rank only."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Returns the number of this process among the ranks of a trial. It is 0 where it is the only one."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Returns the number of ranks. It is 1 where this process is alone."""
    return dist.get_world_size() if is_distributed() else 1


def part_sizes(num_rows: int, num_ranks: int) -> list[int]:
    """Returns how many rows of a batch each rank takes: consecutive parts, none padded, at most one row apart."""
    small, larger = divmod(num_rows, num_ranks)
    return [small + int(number < larger) for number in range(num_ranks)]


def own_part(num_rows: int) -> slice:
    """Returns which rows of a batch this rank takes."""
    return part_of(num_rows, rank(), world_size())


def part_of(num_rows: int, number: int, num_ranks: int) -> slice:
    """Returns which rows of a batch rank `number` takes."""
    sizes = part_sizes(num_rows, num_ranks)
    start = sum(sizes[:number])
    return slice(start, start + sizes[number])


def own_blocks(num_blocks: int) -> list[int]:
    """Returns which batches of an evaluation this rank embeds: every W-th, whole.

    An image then is in the same batch with the same others whatever the number of ranks, and its embedding the same to
    the last bit. A rank without any takes the last one again, so that it has something to gather.
    """
    return list(range(rank(), num_blocks, world_size())) or list(range(num_blocks))[-1:]


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
    if not is_distributed():
        return part
    gathered: Tensor = _GatherRows.apply(part, part_sizes(num_rows, world_size()))  # type: ignore[no-untyped-call]
    return gathered


def gather_in_order(rows: Tensor, positions: Tensor) -> Tensor:
    """Returns the rows of all ranks sorted by their positions, each once and without gradient. It is a collective.

    Args:
        rows: This rank's; (n, …), n may differ between ranks.
        positions: Of each row among all; (n,), int64. Rows of the same position are the same.

    Returns:
        (N, …), the same on every rank; `rows` itself where this process is alone.
    """
    if not is_distributed():
        return rows
    sizes = [torch.empty(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    lengths = [int(size) for size in sizes]
    everyones = torch.cat(_gather_parts(positions.to(rows.device), lengths))
    order = everyones.argsort(stable=True)
    is_first = torch.ones(len(order), dtype=torch.bool, device=rows.device)
    is_first[1:] = everyones[order].diff() != 0
    return torch.cat(_gather_parts(rows.detach(), lengths))[order[is_first]]


def of_rank_zero(value: T) -> T:
    """Returns rank 0's value on every rank, so that all decide alike. It is a collective."""
    if not is_distributed():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, device=_CPU)
    found: T = box[0]
    return found


def largest(value: int) -> int:
    """Returns the largest of the ranks' values. It is a collective of a few microseconds that waits for no GPU."""
    if not is_distributed():
        return value
    found = torch.tensor([value], dtype=torch.int64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def wait_for_all() -> None:
    """Returns once every rank is here: what rank 0 wrote before can be read after. It is a collective."""
    largest(0)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, part: Tensor, sizes: list[int]) -> Tensor:
        context.own = (sum(sizes[: rank()]), sizes[rank()])
        return torch.cat(_gather_parts(part, sizes))

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        start, size = context.own
        return gradients[0][start : start + size] * world_size(), None


def _gather_parts(part: Tensor, sizes: list[int]) -> list[Tensor]:
    """Returns the parts of all ranks. Rank i has `sizes[i]` rows."""
    # neither gloo nor NCCL gathers parts of different sizes: the longest decides, and the rest is cut off again
    padded = part.new_zeros((max(sizes), *part.shape[1:]))
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [rows[:size] for rows, size in zip(parts, sizes, strict=True)]
