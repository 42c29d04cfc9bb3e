"""Trunk, embedder and objective as one LightningModule: the training step of the protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import mlrc_lightning._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from mlrc_lightning.errors import NonFiniteError
from mlrc_lightning.metrics import RetrievalMetrics, clustering_metrics, retrieval_metrics
from mlrc_lightning.metrics.units import unit_rows
from mlrc_lightning.models.trunk import Trunk, freeze_batchnorm
from mlrc_lightning.parallel.collectives import gather_in_order, gather_rows, of_rank_zero
from mlrc_lightning.training.datamodule import EvaluationBatch, LabeledBatch
from mlrc_lightning.training.objective import Objective

OptimizerOf = Callable[[list[dict[str, Any]]], Optimizer]

MODEL, LOSS = "model", "loss"
GROUPS = (MODEL, LOSS)
"""The optimizer's groups: of trunk and embedder, and of the loss's own parameters where it has any."""
PLATEAU_METRIC = "mean_average_precision_at_r"


class Scheduler(Protocol):
    """What is asked of a scheduler: those of `torch.optim.lr_scheduler` have it."""

    def step(self, metrics: Any = ...) -> None:
        """Moves on by one iteration, epoch, or validation and its metric."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resume needs."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        ...


@dataclass(frozen=True)
class Schedule:
    """A learning-rate scheduler of one group.

    Attributes:
        interval: When it is stepped: "iteration", "epoch", or "plateau", which is after a validation, with its MAP@R.
        scheduler: Makes it of an optimizer.
    """

    interval: str
    scheduler: Callable[[Optimizer], Scheduler]


class GroupOfOptimizer(Optimizer):
    """One group of an optimizer, shown to a scheduler as an optimizer of its own: torch's schedulers set all groups.

    It shares the group, so that a rate set here is the optimizer's, also after the optimizer took up another state.

    Args:
        optimizer: The one that trains.
        position: Of the group.
    """

    _opt_called = True  # what a scheduler looks for, to warn of one that is stepped before any training

    def __init__(self, optimizer: Optimizer, position: int) -> None:
        self._optimizer, self._position = optimizer, position
        self.defaults = optimizer.defaults

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The one group."""
        return [self._optimizer.param_groups[self._position]]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Does nothing: the optimizer itself steps."""


class EmbeddingModule(pl.LightningModule):
    """images (B, 3, H, W) uint8 → trunk (B, F) → embedder (B, E) → L2-normalised embeddings (B, E).

    Args:
        trunk: Its BatchNorm is frozen if `frozen_batchnorm`.
        embedder: (B, F) → (B, E).
        objective: Loss of embeddings and labels; None for a module that only embeds.
        optimizer: Makes the optimizer of parameter groups.
        loss_optimizer: Values of the group of the loss's own parameters, over those of `optimizer`.
        frozen_batchnorm: Keep the trunk's BatchNorm in eval mode; its affine weights still train.
        schedules: Learning-rate scheduler of a group, by `MODEL` or `LOSS`; one without parameters needs none.
        clip_norms: Largest norm of the gradient of a group, likewise.
        clustering_seed: Of the k-means for NMI and AMI; None: they are not computed.
        channels_last: Keep images and the trunk's weights with the channels last in memory, as GPUs prefer them.

    Attributes:
        before_iteration: Called before each iteration, with its number in the run of `training_step`, from 0.
    """

    def __init__(
        self,
        trunk: Trunk,
        embedder: nn.Module,
        objective: Objective | None = None,
        optimizer: OptimizerOf | None = None,
        loss_optimizer: Mapping[str, Any] | None = None,
        frozen_batchnorm: bool = True,
        *,
        schedules: Mapping[str, Schedule] | None = None,
        clip_norms: Mapping[str, float] | None = None,
        clustering_seed: int | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.before_iteration: Callable[[int], None] = _do_nothing
        self.trunk = trunk.to(memory_format=torch.channels_last) if channels_last else trunk  # type: ignore[call-overload]
        self.embedder = embedder
        self.objective = objective
        self.val_metrics: RetrievalMetrics | None = None
        self.val_accuracies: dict[str, float] = {}
        self.train_loss = float("nan")
        self.schedulers: dict[str, Scheduler] = {}
        self._optimizer = optimizer
        self._loss_optimizer = dict(loss_optimizer or {})
        self._frozen_batchnorm = frozen_batchnorm
        self._schedules = dict(schedules or {})
        self._clip_norms = dict(clip_norms or {})
        self._clustering_seed = clustering_seed
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._is_validated = False
        self._loss_sum: Tensor | None = None
        self._num_losses = 0
        self._val_batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        """Embeds images, (B, 3, H, W) uint8 RGB → (B, E), float32, of length 1."""
        embeddings: Tensor = self.embedder(self.trunk(images.contiguous(memory_format=self._memory_format)))
        with torch.autocast(device_type=embeddings.device.type, enabled=False):
            return unit_rows(embeddings.float())

    def train(self, mode: bool = True) -> EmbeddingModule:
        """Sets the mode. The trunk's BatchNorm stays in eval mode where it is frozen."""
        super().train(mode)
        if self._frozen_batchnorm:
            freeze_batchnorm(self.trunk)
        return self

    def on_train_epoch_start(self) -> None:
        """Enters training mode at the start of each epoch: Lightning itself leaves all modes as they are."""
        self.train()
        self._is_validated = False

    def configure_optimizers(self) -> Optimizer:
        """Returns one optimizer with two groups: that of trunk and embedder, and that of the loss's own parameters.

        Its update is per parameter, so that groups are the same as the original's three optimizers. Schedulers and
        clipping are a group's own. The schedulers are stepped here and not by Lightning, which takes none of a group.
        """
        assert self._optimizer is not None
        assert self.objective is not None
        model = [*self.trunk.parameters(), *self.embedder.parameters()]
        groups: list[dict[str, Any]] = [{"params": [p for p in model if p.requires_grad]}]
        of_loss = [p for p in self.objective.parameters() if p.requires_grad]
        if of_loss:
            groups.append({"params": of_loss, **self._loss_optimizer})
        optimizer = self._optimizer(groups)
        self.schedulers = {
            name: self._schedules[name].scheduler(GroupOfOptimizer(optimizer, position))
            for position, name in enumerate(GROUPS[: len(groups)])
            if name in self._schedules
        }
        return optimizer

    def training_step(self, dataloader_iter: Iterator[tuple[LabeledBatch, int, int]]) -> None:
        """Runs all iterations of an epoch: what Lightning does around one of its batches is done once an epoch.

        Around each iteration it costs a quarter of a small trunk's step, and on several ranks a broadcast that waits
        for the device (`benchmarks/step.py`). The name of the argument is what tells Lightning to leave the loop to us.
        """
        strategy, precision = self.trainer.strategy, self.trainer.precision_plugin
        optimizer, scaler = self.trainer.optimizers[0], getattr(precision, "scaler", None)
        # Lightning's autocast is around the whole of this, and would be around the backward pass of the loss as well
        with torch.autocast(self.device.type, enabled=False):
            for batch, number, _ in dataloader_iter:
                self.before_iteration(number)
                batch = strategy.batch_to_device(batch)
                with precision.train_step_context():
                    loss = self.batch_loss(batch)
                optimizer.zero_grad()
                self.manual_backward(loss)
                self.update(optimizer, scaler)

    def batch_loss(self, batch: LabeledBatch) -> Tensor:
        """Returns the loss of one batch. Its mean is taken once an epoch, without waiting for the device.

        On several ranks `batch` has this rank's images and everyone's labels; the loss is that of the whole batch.
        """
        assert self.objective is not None
        images, labels = batch
        loss: Tensor = self.objective(gather_rows(self(images), len(labels)), labels)
        detached = loss.detach()
        self._loss_sum = detached if self._loss_sum is None else self._loss_sum + detached
        self._num_losses += 1
        return loss

    def update(self, optimizer: Optimizer, scaler: GradScaler | None = None) -> None:
        """Clips the gradients, steps the optimizer, and then the schedulers by iteration.

        Args:
            optimizer: Of `configure_optimizers`.
            scaler: That scaled the gradients, as those of 16-mixed are; it may skip the step.
        """
        if self._clip_norms:
            if scaler is not None:
                scaler.unscale_(optimizer)
            for name, group in zip(GROUPS, optimizer.param_groups, strict=False):
                if name in self._clip_norms:
                    nn.utils.clip_grad_norm_(group["params"], self._clip_norms[name])
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        self._step_schedulers("iteration")

    def on_train_epoch_end(self) -> None:
        """Reads the mean loss, ends a training that diverged, and steps the schedulers by epoch and plateau.

        Raises:
            NonFiniteError: A loss of this epoch, or a weight after it, is NaN or infinite.
        """
        assert self._loss_sum is not None
        self.train_loss = float(self._loss_sum) / self._num_losses
        self._loss_sum, self._num_losses = None, 0
        weights_are_finite = bool(torch.stack([p.isfinite().all() for p in self.parameters()]).all())
        # the same on all ranks already; but a last bit that differs must not send them on different ways
        self.train_loss, weights_are_finite = of_rank_zero((self.train_loss, weights_are_finite))
        if not (torch.isfinite(torch.tensor(self.train_loss)) and weights_are_finite):
            raise NonFiniteError(
                f"Training diverged in epoch {self.current_epoch + 1}: mean loss {self.train_loss}, weights"
                f" {'finite' if weights_are_finite else 'not finite'}. Lower the learning rates, or leave this setting."
            )
        self._step_schedulers("epoch")
        if self._is_validated:
            self._step_schedulers("plateau", self.val_accuracies[PLATEAU_METRIC])

    @property
    def running_loss(self) -> tuple[Tensor | None, int]:
        """Sum and number of the losses of the epoch so far, for a checkpoint in its midst."""
        return self._loss_sum, self._num_losses

    @running_loss.setter
    def running_loss(self, value: tuple[Tensor | None, int]) -> None:
        loss_sum, self._num_losses = value
        self._loss_sum = None if loss_sum is None else loss_sum.to(self.device)

    def on_validation_epoch_start(self) -> None:
        """Forgets the embeddings of the validation before."""
        self._val_batches = []

    def validation_step(self, batch: EvaluationBatch, batch_index: int) -> None:
        """Embeds one batch of validation images. Nothing here may wait for another rank, which may have fewer."""
        images, labels, indices = batch
        self._val_batches.append((self(images), labels, indices))

    def on_validation_epoch_end(self) -> None:
        """Computes the accuracies of all validation images. They query each other."""
        embeddings, labels, indices = (torch.cat(parts) for parts in zip(*self._val_batches, strict=True))
        self._val_batches = []
        embeddings, labels = gather_in_order(embeddings, indices), gather_in_order(labels, indices)
        metrics = retrieval_metrics(embeddings, labels)
        accuracies, collapsed = of_rank_zero((metrics.as_dict(), metrics.collapsed))
        self.val_metrics = dataclasses.replace(metrics, collapsed=collapsed, **accuracies)  # type: ignore[arg-type]
        self.val_accuracies = self.val_metrics.as_dict()
        if self._clustering_seed is not None:
            self.val_accuracies |= of_rank_zero(clustering_metrics(embeddings, labels, self._clustering_seed))
        self._is_validated = True
        self.log_dict({f"val/{name}": value for name, value in self.val_accuracies.items()})

    def predict_step(self, batch: EvaluationBatch, batch_index: int = 0) -> Tensor:
        """Embeds one batch, (B, E)."""
        embeddings: Tensor = self(batch[0])
        return embeddings

    def _step_schedulers(self, interval: str, *metric: float) -> None:
        for name, scheduler in self.schedulers.items():
            if self._schedules[name].interval == interval:
                scheduler.step(*metric)


def _do_nothing(number: int) -> None:
    pass
