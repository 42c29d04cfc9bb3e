"""What a reader of a run's figures must know: trainings that learned nothing, copies of images, weights in part."""

from __future__ import annotations

from collections.abc import Sequence

from mlrc_lightning.names import METRICS, UNTRAINED
from mlrc_lightning.results.records import EpochResult, FoldResult, TrialRecord

MARK = "†"
"""Behind the name of a row whose figures have such a note."""


def without_mark(title: str) -> str:
    """Returns the title of a row, whether or not its figures have a note."""
    return title.removesuffix(f" {MARK}")


def doubts_of_run(record: TrialRecord) -> list[str]:
    """Returns what is to be known of a finished run, a clause each. Empty for an ordinary one."""
    notes = [f"fold {fold.fold}: {doubt}" for fold in record.folds for doubt in doubts_of_fold(fold)]
    copies = record.dataset.get("copies") or record.dataset.get("copies_in_trainval") or {}
    if copies:
        counts = ", ".join(f"{number:,} {where}" for where, number in copies.items())
        notes.append(f"images with the pixels of an earlier one: {counts}")
    if record.settings.get("trunk", {}).get("strict", True) is False and record.stage != UNTRAINED:
        notes.append("trunk.strict=false: of the weight file what fitted was taken")
    return notes


def doubts_of_fold(fold: FoldResult) -> list[str]:
    """Returns why a training may have learned nothing, a clause each. Empty for one that learned."""
    return training_doubts(fold.epochs, fold.selected_epoch)


def training_doubts(epochs: Sequence[EpochResult], selected_epoch: int) -> list[str]:
    """Returns why a training may have learned nothing, a clause each.

    Args:
        epochs: All epochs, 0 first where the untrained model was evaluated.
        selected_epoch: Of the model that is kept.
    """
    losses = [epoch.train_loss for epoch in epochs if epoch.train_loss is not None]
    validated = [epoch for epoch in epochs if epoch.val is not None]
    figures = {tuple(epoch.val[name] for name in METRICS) for epoch in validated if epoch.val is not None}
    doubts = []
    if losses and not any(losses):
        doubts.append("the loss was 0 in every epoch")
    elif len(losses) > 1 and len(set(losses)) == 1:
        doubts.append("the loss was the same in every epoch")
    if len(validated) > 1 and len(figures) == 1:
        doubts.append("validation never changed, as if the weights had not")
    if selected_epoch == 0:
        doubts.append("no epoch was better than the untrained model, which was selected")
    if any(epoch.collapsed for epoch in validated if epoch.epoch == selected_epoch):
        doubts.append("all validation embeddings lie in one point")
    return doubts
