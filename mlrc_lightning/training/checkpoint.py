"""What happens at the end of an epoch: select, save, stop, tell."""

from __future__ import annotations

import io
import logging
import random
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import mlrc_lightning._torchvision  # noqa: F401

import numpy as np
import pytorch_lightning as pl
import torch

from mlrc_lightning.errors import RecordError
from mlrc_lightning.files import write_bytes
from mlrc_lightning.models.folder import save_weights
from mlrc_lightning.names import MAP_AT_R
from mlrc_lightning.parallel.collectives import largest, rank
from mlrc_lightning.parallel.signals import StopSignals, TrialStopped
from mlrc_lightning.results.records import EpochResult
from mlrc_lightning.training.module import GROUPS, EmbeddingModule
from mlrc_lightning.training.progress import EpochLog, Progress
from mlrc_lightning.training.selection import UNTRAINED_EPOCH, Selection

log = logging.getLogger(__name__)

PARTS = ("trunk", "embedder")
_RESUME_FILE = "latest.pt"
_STATES = {"optimizer", "schedulers", "scaler", "loss_sum", "num_losses", "learning_rates", "seconds", "random"}


class FoldCheckpoint(pl.callbacks.Checkpoint):
    """Keeps the history of one fold, its selected weights, and what a resume needs, all written atomically.

    In the fold's folder: `trunk_epoch<N>.safetensors` and `embedder_epoch<N>.safetensors` of the selected epoch, and
    `latest.pt`, from which `resume` goes on exactly: of the last validated one, or in the midst of one. Of several
    ranks rank 0 writes.

    A subclass of Lightning's Checkpoint, because those run after the module's own hooks.

    Args:
        folder: Of this fold.
        save_interval: Validate every so many epochs.
        selection: The state of model selection; taken over from `latest.pt` on resume.
        progress: Told of every epoch.
        log: Told of every epoch as well, with its learning rates.
        iterations_per_epoch: Batches of an epoch.
        save_every: Write `latest.pt` after so many iterations, counted from the start of training; None: only where
            an epoch was validated.
        stop: Looked at before every iteration; a signal there writes `latest.pt` and ends the training.
        parts: Of the module, those that train.
    """

    def __init__(
        self,
        folder: Path,
        save_interval: int,
        selection: Selection,
        progress: Progress,
        log: EpochLog,
        *,
        iterations_per_epoch: int,
        save_every: int | None,
        stop: StopSignals,
        parts: Sequence[str] = PARTS,
    ) -> None:
        self.folder = folder
        self.selection = selection
        self.history: list[EpochResult] = []
        self.first_epoch, self.first_batch = 0, 0
        self._save_interval = save_interval
        self._progress = progress
        self._log = log
        self._iterations_per_epoch = iterations_per_epoch
        self._save_every = save_every
        self._stop = stop
        self._parts = parts
        self._position = (0, 0)
        self._epoch_began = time.monotonic()
        self._resumed: dict[str, Any] | None = None
        self._learning_rates: dict[str, float] = {}

    @property
    def weights(self) -> dict[str, Path]:
        """The files of the selected model: of a frozen trunk there is none."""
        return {part: self.folder / f"{part}_epoch{self.selection.selected_epoch}.safetensors" for part in self._parts}

    def resume(self, module: EmbeddingModule) -> bool:
        """Takes up the state of an interrupted training. Returns whether there was one.

        Raises:
            RecordError: The file is damaged or of another model.
        """
        path = self.folder / _RESUME_FILE
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            module.load_state_dict(state["module"])
            self.selection = Selection(**state["selection"])
            self.history = [EpochResult(**epoch) for epoch in state["history"]]
            self._log.restore(state["log"])
            self.first_epoch, self.first_batch = state["position"]
            missing = _STATES - state.keys()
            if missing:
                raise KeyError(sorted(missing)[0])
        except (RuntimeError, KeyError, TypeError, EOFError, OSError, ValueError, UnpicklingError) as error:
            raise RecordError(f"{path}: expected the state of this fold ({error}). Remove it to start over.") from error
        self._position = (self.first_epoch, self.first_batch)
        self._resumed = state
        return True

    @property
    def is_over(self) -> bool:
        """Whether patience had ended the training that was taken up, and only its result was missing."""
        was_validated = self.first_batch == 0 and bool(self.history) and self.history[-1].val is not None
        return was_validated and self.selection.should_stop(self.history[-1].epoch)

    def untrained(self, module: EmbeddingModule, seconds: float) -> None:
        """Takes the evaluation before training as epoch 0."""
        self._add(module, UNTRAINED_EPOCH, None, seconds)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gives the resumed optimizer, its schedulers and the scaler of 16-bit gradients their states."""
        assert isinstance(pl_module, EmbeddingModule)
        pl_module.before_iteration = lambda number: self.before_iteration(trainer, pl_module, number)
        if self._resumed is not None:
            trainer.optimizers[0].load_state_dict(self._resumed["optimizer"])
            for name, scheduler in pl_module.schedulers.items():
                scheduler.load_state_dict(self._resumed["schedulers"][name])
            if self._resumed["scaler"]:
                trainer.precision_plugin.load_state_dict(self._resumed["scaler"])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock, and reads the learning rates."""
        self._epoch_began = time.monotonic()
        groups = trainer.optimizers[0].param_groups
        self._learning_rates = {name: float(group["lr"]) for name, group in zip(GROUPS, groups, strict=False)}

    def before_iteration(self, trainer: pl.Trainer, module: EmbeddingModule, number: int) -> None:
        """Takes up the running epoch of a resumed training, saves when it is time, and may stop.

        Args:
            trainer: That trains.
            module: What it trains.
            number: Iterations of this epoch that this process has done.

        Raises:
            TrialStopped: A signal came; the state is saved.
        """
        epoch, done = trainer.current_epoch, number
        if epoch == self.first_epoch:
            done += self.first_batch
        if self._resumed is not None:
            self._take_up_running_epoch(module, self._resumed)
            self._resumed = None
        signum = largest(self._stop.received)
        iteration = epoch * self._iterations_per_epoch + done
        is_time = self._save_every is not None and iteration % self._save_every == 0
        if (is_time or signum) and (epoch, done) != self._position:
            self._position = (epoch, done)
            self._save_resume_state(trainer, module)
        if signum:
            if not (self.folder / _RESUME_FILE).exists():
                self._save_resume_state(trainer, module)
            where = f"{self.folder.name}, epoch {epoch + 1}, after {done} of {self._iterations_per_epoch} iterations"
            raise TrialStopped(signum, where)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Records the epoch. On a validated one it selects, saves and decides whether to stop."""
        assert isinstance(pl_module, EmbeddingModule)
        epoch = trainer.current_epoch + 1
        seconds = time.monotonic() - self._epoch_began
        is_validated = epoch % self._save_interval == 0
        is_selected = self._add(pl_module, epoch, pl_module.train_loss, seconds, is_validated)
        if is_validated:
            if is_selected:
                self._save_weights(pl_module)
            self._position = (epoch, 0)
            self._save_resume_state(trainer, pl_module)
            self._log.flush()
            trainer.should_stop = trainer.should_stop or self.selection.should_stop(epoch)

    def remove_resume_state(self) -> None:
        """Frees the space of what only a resume needs, once the fold's result is on disk."""
        if rank() == 0:
            remove_resume_state(self.folder)

    def _add(
        self,
        module: EmbeddingModule,
        epoch: int,
        loss: float | None,
        seconds: float,
        is_validated: bool = True,
    ) -> bool:
        metrics = module.val_metrics if is_validated else None
        assert metrics is not None or not is_validated
        result = EpochResult(
            epoch=epoch,
            train_loss=loss,
            val=None if metrics is None else dict(module.val_accuracies),
            collapsed=metrics is not None and metrics.collapsed,
            seconds=round(seconds, 3),
        )
        self.history.append(result)
        self._log.add(result, self._learning_rates)
        is_selected = metrics is not None and self.selection.update(epoch, getattr(metrics, MAP_AT_R))
        self._progress.epoch_ended(result, self.selection)
        return is_selected

    def _save_weights(self, module: EmbeddingModule) -> None:
        if rank() > 0:
            return
        for part, path in self.weights.items():
            save_weights(path, getattr(module, part))

    def _take_up_running_epoch(self, module: EmbeddingModule, state: dict[str, Any]) -> None:
        """Restores what the epoch had come to, and the random numbers: the last thing before its next iteration."""
        if self.first_batch > 0:
            module.running_loss = (state["loss_sum"], state["num_losses"])
            self._learning_rates = dict(state["learning_rates"])
            self._epoch_began -= state["seconds"]
        _set_random_states(state["random"])

    def _save_resume_state(self, trainer: pl.Trainer, module: EmbeddingModule) -> None:
        if rank() > 0:
            return
        loss_sum, num_losses = module.running_loss
        buffer = io.BytesIO()
        torch.save(
            {
                "position": self._position,
                "loss_sum": loss_sum,
                "num_losses": num_losses,
                "learning_rates": self._learning_rates,
                "seconds": time.monotonic() - self._epoch_began,
                "scaler": trainer.precision_plugin.state_dict(),
                "module": module.state_dict(),
                "optimizer": trainer.optimizers[0].state_dict(),
                "schedulers": {name: scheduler.state_dict() for name, scheduler in module.schedulers.items()},
                "selection": vars(self.selection),
                "history": [vars(result) for result in self.history],
                "log": self._log.rows,
                "random": _random_states(),
            },
            buffer,
        )
        write_bytes(self.folder / _RESUME_FILE, buffer.getvalue())
        # older weights go only after the state that no longer needs them is safe
        kept = set(self.weights.values())
        for path in self.folder.glob("*_epoch*.safetensors"):
            if path not in kept:
                path.unlink()


def _random_states() -> dict[str, Any]:
    """Returns the states of Python's, numpy's and torch's generators, as what `torch.load` takes without pickles."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_states(states: Mapping[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def remove_resume_state(folder: Path, kept: Collection[Path] = ()) -> None:
    """Removes what a resume of a fold needs: `latest.pt`, and the weights by epoch, those in `kept` excepted."""
    for path in [folder / _RESUME_FILE, *folder.glob("*_epoch*.safetensors")]:
        if path not in kept:
            path.unlink(missing_ok=True)
