"""Losses of pytorch-metric-learning that would not do as they are: another meaning of arguments, gradients of NaN."""

from __future__ import annotations

import math
from typing import Any

import mlrc_lightning._torchvision  # noqa: F401

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import loss_and_miner_utils
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from mlrc_lightning.errors import ConfigError


class ProxyNCALoss(losses.ProxyNCALoss):  # type: ignore[misc]
    """ProxyNCA by log-softmax, finite over the whole searched range of `softmax_scale`.

    The library takes the logarithm of a softmax. From a scale of 22 on a probability may be subnormal in float32, which
    gives a gradient of NaN, or 0, which leaves the image out of the mean: most of the range up to 100 that the paper
    searched diverges within a few hundred iterations. The formula is the same, and so are value and gradient elsewhere.

    Source: Movshovitz-Attias et al., ICCV 2017; docs/protocol.md, §2.4.
    """

    def nca_computation(
        self,
        query: Tensor,
        reference: Tensor,
        query_labels: Tensor,
        reference_labels: Tensor,
        indices_tuple: Any,
    ) -> dict[str, Any]:
        """Returns -log softmax of -scale x squared distance to the own proxy, (B, E), (C, E), (B,), (C,) → (B,)."""
        weights = loss_and_miner_utils.convert_to_weights(indices_tuple, query_labels, dtype=query.dtype)
        log_probabilities = log_softmax(-self.softmax_scale * self.distance(query, reference), dim=1)
        is_other = query_labels.unsqueeze(1) != reference_labels.unsqueeze(0)
        own = log_probabilities.masked_fill(is_other, -torch.inf).logsumexp(dim=1)
        indices = torch.arange(len(query), device=query.device)
        return {"loss": {"losses": -own * weights, "indices": indices, "reduction_type": "element"}}


class NTXentLoss(losses.NTXentLoss):  # type: ignore[misc]
    """NTXent with the floor of pytorch-metric-learning up to 0.9.86, with which the paper was made.

    The loss of a pair is -log(p + 1e-20). 2.9 adds the smallest float of its type instead. At the optimum on SOP, a
    temperature of 0.00024, most pairs are less probable than either, and value and gradient are decided by the floor.
    A pair far below it has no gradient.

    Source: pytorch-metric-learning 0.9.86, losses/ntxent_loss.py; Sohn, NIPS 2016; docs/protocol.md, §2.4.
    """

    FLOOR = 1e-20

    def _compute_loss(self, pos_pairs: Tensor, neg_pairs: Tensor, indices_tuple: Any) -> dict[str, Any]:
        """Returns the loss of each positive pair among the negatives of its anchor, (P,), (N,) → (P,)."""
        anchors, positives, anchors_of_negatives, _ = indices_tuple
        if len(anchors) == 0 or len(anchors_of_negatives) == 0:
            zero: dict[str, Any] = self.zero_losses()
            return zero
        is_other = anchors.unsqueeze(1) != anchors_of_negatives
        of_negatives = neg_pairs.expand(len(anchors), -1).masked_fill(is_other, -torch.inf)
        logits = torch.cat([pos_pairs.unsqueeze(1), of_negatives], dim=1) / self.temperature
        log_probability = log_softmax(logits, dim=1)[:, 0]
        floor = torch.full_like(log_probability, math.log(self.FLOOR))
        pair_losses = -torch.logaddexp(log_probability, floor)
        return {"loss": {"losses": pair_losses, "indices": (anchors, positives), "reduction_type": "pos_pair"}}


class SoftTripleLoss(losses.SoftTripleLoss):  # type: ignore[misc]
    """SoftTriple with the regulariser of pytorch-metric-learning up to 0.9.86, with which the paper was made.

    2.9 halves it, so that `reg_weight` would not mean what the paper searched. And it lacks the constant under the
    square root: where two centres agree to the last bit its gradient is NaN, and centres do, because the regulariser
    pulls them together, with the optimum on CUB200 within some 1,200 iterations.

    Args:
        num_classes: C.
        embedding_size: E.
        centers_per_class: K; 1 has no pairs of centres, and so no regulariser.
        la: Scale of the class similarities.
        gamma: Temperature of the softmax over centres, which is of similarity / gamma.
        margin: Subtracted from the similarity to the own class.
        reg_weight: Weight of the mean distance between centres of the same class; None for one centre.

    Raises:
        ConfigError: A weight with one centre, or none with several.

    Source: docs/protocol.md, §2.1, §2.4; Qian et al., ICCV 2019.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        centers_per_class: int,
        la: float,
        gamma: float,
        margin: float,
        reg_weight: float | None,
    ) -> None:
        if (centers_per_class > 1) != (reg_weight is not None):
            raise ConfigError(
                f"loss.function.reg_weight={reg_weight}: expected a number if and only if there are several centres a"
                f" class to regularise, found centers_per_class={centers_per_class}."
            )
        super().__init__(
            num_classes=num_classes,
            embedding_size=embedding_size,
            centers_per_class=centers_per_class,
            la=la,
            gamma=gamma,
            margin=margin,
            weight_regularizer=None if reg_weight is None else MeanCenterDistance(centers_per_class),
            weight_reg_weight=0.0 if reg_weight is None else reg_weight,
        )


class MeanCenterDistance(nn.Module):
    """Mean Euclidean distance between normalised centres of the same class. It is 0 where a class uses one place only.

    Args:
        centers_per_class: K, at least 2.
    """

    EPSILON = 1e-5
    """Under the square root, as in the authors' code; keeps the gradient finite where two centres agree."""

    def __init__(self, centers_per_class: int) -> None:
        super().__init__()
        self.centers_per_class = centers_per_class

    def forward(self, centers: Tensor) -> Tensor:
        """Returns the mean over all pairs, (C x K, E), the centres of a class together → ()."""
        of_class = normalize(centers, dim=1).view(-1, self.centers_per_class, centers.shape[1])
        first, second = torch.triu_indices(self.centers_per_class, self.centers_per_class, offset=1).unbind()
        similarities = (of_class @ of_class.transpose(1, 2))[:, first, second]
        return (2.0 + self.EPSILON - 2.0 * similarities).sqrt().mean()
