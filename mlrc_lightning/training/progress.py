"""Reports the progress of a training."""

from __future__ import annotations

import logging
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

import mlrc_lightning._torchvision  # noqa: F401

from pytorch_lightning.loggers import Logger
from tqdm import tqdm

from mlrc_lightning.names import MAP_AT_R
from mlrc_lightning.parallel.collectives import rank
from mlrc_lightning.results.records import EpochResult
from mlrc_lightning.training.selection import Selection

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Told of every epoch."""

    def epoch_ended(self, result: EpochResult, selection: Selection) -> None:
        """Shows one epoch."""
        ...


class EpochLog:
    """Losses, learning rates and validation accuracies of every epoch, as rows, and in the logger where there is one.

    The rows are part of the resume state: after an interrupt they are logged again from there, into an empty folder,
    so that no epoch is missing or there twice.

    Args:
        logger: Of Lightning's, any of them that writes to a folder; None: rows only.
    """

    def __init__(self, logger: Logger | None) -> None:
        self.rows: list[dict[str, float]] = []
        self._logger = logger

    def add(self, result: EpochResult, learning_rates: Mapping[str, float]) -> None:
        """Takes one epoch and the learning rates it began with. What it does not have is left out of its row."""
        row: dict[str, float] = {"epoch": result.epoch}
        if result.train_loss is not None:
            row |= {"train/loss": result.train_loss}
            row |= {f"learning_rate/{name}": rate for name, rate in learning_rates.items()}
        row |= {f"val/{name}": value for name, value in (result.val or {}).items()}
        self._append(row)

    def restore(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Takes the rows of an interrupted training."""
        for row in rows:
            self._append(dict(row))

    def flush(self) -> None:
        """Makes what was logged visible to others."""
        if self._logger is not None:
            self._logger.save()

    def close(self) -> None:
        """Writes what is left."""
        if self._logger is not None:
            self._logger.save()
            self._logger.finalize("success")

    def _append(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        if self._logger is not None:
            values = {name: value for name, value in row.items() if name != "epoch"}
            self._logger.log_metrics(values, step=int(row["epoch"]))


class FoldProgress:
    """Fold, epoch, best score and time left: a bar on a terminal, a line per validation elsewhere.

    Args:
        fold: Number of the fold.
        folds: All folds of this trial.
        max_epochs: Last epoch, where patience does not stop earlier.
    """

    def __init__(self, fold: int, folds: Sequence[int], max_epochs: int) -> None:
        self._name = f"fold {fold} ({folds.index(fold) + 1} of {len(folds)})"
        self._max_epochs = max_epochs
        is_alone = multiprocessing.parent_process() is None  # else bars of folds overwrite each other
        has_bar = sys.stderr.isatty() and rank() == 0 and is_alone
        self._bar = tqdm(total=max_epochs, desc=self._name, unit="epoch", leave=False) if has_bar else None
        self._trained: list[float] = []

    def epoch_ended(self, result: EpochResult, selection: Selection) -> None:
        """Shows one epoch."""
        if result.train_loss is not None:
            self._trained.append(result.seconds)
        best = (
            "not validated yet"
            if selection.best_epoch is None
            else f"best {selection.best_score:.4f} (epoch {selection.best_epoch})"
        )
        if self._bar is not None:
            self._bar.n = result.epoch
            self._bar.set_postfix_str(best)
        elif result.val is not None:
            left = (self._max_epochs - result.epoch) * sum(self._trained[-10:]) / max(1, len(self._trained[-10:]))
            loss = "untrained" if result.train_loss is None else f"loss {result.train_loss:.4f}"
            log.info(
                "%s | epoch %d/%d | %s | val MAP@R %.4f | %s | at most %.0f s left%s",
                self._name, result.epoch, self._max_epochs, loss, result.val[MAP_AT_R], best, left,
                " | all embeddings in one point" if result.collapsed else "",
            )  # fmt: skip

    def close(self) -> None:
        """Clears the bar."""
        if self._bar is not None:
            self._bar.close()
