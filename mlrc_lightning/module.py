"""Trunk, embedder and objective as one LightningModule: the training step of the protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlrc_lightning.torchvision_import  # noqa: F401

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim import Optimizer

from mlrc_lightning.datamodule import LabeledBatch
from mlrc_lightning.errors import NonFiniteError
from mlrc_lightning.metrics import RetrievalMetrics, retrieval_metrics
from mlrc_lightning.models.trunk import Trunk, freeze_batchnorm
from mlrc_lightning.objective import Objective

OptimizerOf = Callable[[list[dict[str, Any]]], Optimizer]


class EmbeddingModule(pl.LightningModule):
    """images (B, 3, H, W) uint8 → trunk (B, F) → embedder (B, E) → L2-normalised embeddings (B, E).

    Args:
        trunk: Its BatchNorm is frozen if `frozen_batchnorm`.
        embedder: (B, F) → (B, E).
        objective: Loss of embeddings and labels; None for a module that only embeds.
        optimizer: Makes the optimizer of parameter groups.
        loss_optimizer: Values of the group of the loss's own parameters, over those of `optimizer`.
        frozen_batchnorm: Keep the trunk's BatchNorm in eval mode; its affine weights still train.
    """

    def __init__(
        self,
        trunk: Trunk,
        embedder: nn.Module,
        objective: Objective | None = None,
        optimizer: OptimizerOf | None = None,
        loss_optimizer: Mapping[str, Any] | None = None,
        frozen_batchnorm: bool = True,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.embedder = embedder
        self.objective = objective
        self.val_metrics: RetrievalMetrics | None = None
        self.train_loss = float("nan")
        self._optimizer = optimizer
        self._loss_optimizer = dict(loss_optimizer or {})
        self._frozen_batchnorm = frozen_batchnorm
        self._loss_sum: Tensor | None = None
        self._num_losses = 0
        self._val_embeddings: list[Tensor] = []
        self._val_labels: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """Embeds images; (B, 3, H, W) uint8 RGB → (B, E), float32, of length 1."""
        embeddings: Tensor = self.embedder(self.trunk(images))
        with torch.autocast(device_type=embeddings.device.type, enabled=False):
            return normalize(embeddings.float(), dim=1)

    def train(self, mode: bool = True) -> EmbeddingModule:
        """Sets the mode; the trunk's BatchNorm stays in eval mode where it is frozen."""
        super().train(mode)
        if self._frozen_batchnorm:
            freeze_batchnorm(self.trunk)
        return self

    def on_train_epoch_start(self) -> None:
        """Enters training mode at the start of each epoch: Lightning itself leaves all modes as they are."""
        self.train()

    def configure_optimizers(self) -> Optimizer:
        """Returns one optimizer with two groups: trunk and embedder; the loss's own parameters.

        Its update is per parameter, so that groups are the same as the original's three optimizers.
        """
        assert self._optimizer is not None
        assert self.objective is not None
        model = [*self.trunk.parameters(), *self.embedder.parameters()]
        groups: list[dict[str, Any]] = [{"params": [p for p in model if p.requires_grad]}]
        of_loss = [p for p in self.objective.parameters() if p.requires_grad]
        if of_loss:
            groups.append({"params": of_loss, **self._loss_optimizer})
        return self._optimizer(groups)

    def training_step(self, batch: LabeledBatch, batch_index: int) -> Tensor:
        """Returns the loss of one batch; its mean is taken once an epoch, without waiting for the device."""
        assert self.objective is not None
        images, labels = batch
        loss: Tensor = self.objective(self(images), labels)
        detached = loss.detach()
        self._loss_sum = detached if self._loss_sum is None else self._loss_sum + detached
        self._num_losses += 1
        return loss

    def on_train_epoch_end(self) -> None:
        """Reads the mean loss, and ends a training that diverged.

        Raises:
            NonFiniteError: A loss of this epoch, or a weight after it, is NaN or infinite.
        """
        assert self._loss_sum is not None
        self.train_loss = float(self._loss_sum) / self._num_losses
        self._loss_sum, self._num_losses = None, 0
        weights_are_finite = bool(torch.stack([p.isfinite().all() for p in self.parameters()]).all())
        if not (torch.isfinite(torch.tensor(self.train_loss)) and weights_are_finite):
            raise NonFiniteError(
                f"Training diverged in epoch {self.current_epoch + 1}: mean loss {self.train_loss}, weights"
                f" {'finite' if weights_are_finite else 'not finite'}. Lower the learning rates, or leave this setting."
            )

    def on_validation_epoch_start(self) -> None:
        """Forgets the embeddings of the validation before."""
        self._val_embeddings, self._val_labels = [], []

    def validation_step(self, batch: LabeledBatch, batch_index: int) -> None:
        """Embeds one batch of validation images."""
        images, labels = batch
        self._val_embeddings.append(self(images))
        self._val_labels.append(labels)

    def on_validation_epoch_end(self) -> None:
        """Computes the accuracies of all validation images; they query each other."""
        self.val_metrics = retrieval_metrics(torch.cat(self._val_embeddings), torch.cat(self._val_labels))
        self._val_embeddings, self._val_labels = [], []
        self.log_dict({f"val/{name}": value for name, value in self.val_metrics.as_dict().items()})

    def predict_step(self, batch: LabeledBatch, batch_index: int = 0) -> Tensor:
        """Embeds one batch; (B, E)."""
        embeddings: Tensor = self(batch[0])
        return embeddings
