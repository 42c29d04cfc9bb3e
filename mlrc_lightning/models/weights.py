"""Whether weights of a file are those of a network: all of them, finite, and nothing else but a head."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from mlrc_lightning.errors import WeightsError

log = logging.getLogger(__name__)

_HEADS = ("head", "head_dist", "fc", "classifier", "last_linear")
_SHOWN = 3


def fitting_weights(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    what: str,
    path: Path,
    strict: bool,
    heads: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Returns the tensors of a file that a network takes.

    Args:
        state: Of the file, by the network's own names.
        expected: The network's parameters and buffers, with their shapes.
        what: The network, for messages.
        path: The file, for messages.
        strict: Whether a tensor that is missing, left over or of another shape is an error, and not only reported.
        heads: Modules that classify, beside the usual ones; their tensors are left out.

    Raises:
        WeightsError: Lists what does not fit. Values that are not finite are refused in any case.
    """
    names = tuple(f"{head}." for head in (*_HEADS, *heads))
    # files of before torch 0.4.1 lack the counters, which no figure depends on
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    left_over = [name for name in state if name not in expected and not name.startswith(names)]
    common = [name for name in state if name in expected]
    shapes = [name for name in common if state[name].shape != expected[name].shape]
    broken = [name for name in common if state[name].is_floating_point() and not state[name].isfinite().all()]
    kinds = {"missing": missing, "left over": left_over, "of another shape": shapes, "not finite": broken}
    shown = "; ".join(f"{len(found):,} {kind} ({_few(found)})" for kind, found in kinds.items() if found)
    if broken or (shown and strict):
        way_out = "" if broken else " Is it a file of another model? To take what fits: trunk.strict=false."
        raise WeightsError(f"trunk.pretrained: expected weights of {what} in {path}, found tensors {shown}.{way_out}")
    if shown:
        log.warning("%s: weights of %s loaded in part, the rest is random. Tensors %s", path, what, shown)
    return {name: state[name] for name in common if name not in shapes}


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])
