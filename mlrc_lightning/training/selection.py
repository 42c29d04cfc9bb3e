"""Which epoch is best, and when to stop: §1.3 of the protocol, without a framework."""

from __future__ import annotations

from dataclasses import dataclass

"""What models and trials are selected by."""
UNTRAINED_EPOCH = 0
"""The epoch of the evaluation before training."""


@dataclass
class Selection:
    """Follows the validation score of one training.

    Epoch 0, the untrained model, counts for patience, but is never the selected model: what is tested was trained.
    Where the untrained model is not evaluated, patience begins with the first validation of a trained one.
    A score must be strictly higher to be the new best.

    Args:
        patience: Stop when the epoch exceeds the best one by more than this; None: never.
        best_epoch: Epoch of the highest score, the untrained one included.
        best_score: That score.
        selected_epoch: Epoch of the highest score after training began.
        selected_score: That score.

    Source: pytorch-metric-learning logging_presets; docs/protocol.md, §1.3.
    """

    patience: int | None
    best_epoch: int | None = None
    best_score: float = float("-inf")
    selected_epoch: int | None = None
    selected_score: float = float("-inf")

    def update(self, epoch: int, score: float) -> bool:
        """Takes the score of an epoch. Returns whether its model is the selected one from now on."""
        if self.best_epoch is None or score > self.best_score:
            self.best_epoch, self.best_score = epoch, score
        if epoch > UNTRAINED_EPOCH and (self.selected_epoch is None or score > self.selected_score):
            self.selected_epoch, self.selected_score = epoch, score
            return True
        return False

    def should_stop(self, epoch: int) -> bool:
        """Returns whether patience has run out at a validated epoch."""
        return self.patience is not None and self.best_epoch is not None and epoch - self.best_epoch > self.patience
