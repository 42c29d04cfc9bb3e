"""Learning curves of one trial."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlrc_lightning.names import MAP_AT_R
from mlrc_lightning.reporting.figures.style import BLUE, INK, ORANGE, VERMILION, drawn, new_figure, rule
from mlrc_lightning.results.records import FoldResult


@drawn
def learning_curves(title: str, folds: Sequence[FoldResult]) -> Figure:
    """Draws training loss and validation MAP@R by epoch, a column for each fold.

    Args:
        title: Of the figure.
        folds: The finished ones, at least one; epoch 0 is the untrained model and has no loss.

    Returns:
        Two rows of panels with common axes; the selected epoch is a dotted line with a star and its value, a collapsed
        validation a cross.
    """
    figure = new_figure(max(4.6, 0.9 + 2.1 * len(folds)), 4.1, title)
    all_axes = figure.subplots(2, len(folds), sharex=True, sharey="row", squeeze=False)
    for number, fold in enumerate(folds):
        losses, scores = all_axes[:, number]
        trained = [(epoch.epoch, epoch.train_loss) for epoch in fold.epochs if epoch.train_loss is not None]
        losses.plot(*zip(*trained, strict=True) if trained else ([], []), color=ORANGE, marker="s", markersize=3,
                    label="mean training loss of the epoch", gid="loss")  # fmt: skip
        validated = [
            (epoch.epoch, 100 * epoch.val[MAP_AT_R], epoch.collapsed) for epoch in fold.epochs if epoch.val is not None
        ]
        scores.plot([epoch for epoch, _, _ in validated], [value for _, value, _ in validated], color=BLUE, marker="o",
                    markersize=3.5, label="validation MAP@R", gid="val")  # fmt: skip
        collapsed = [(epoch, value) for epoch, value, is_collapsed in validated if is_collapsed]
        if collapsed:
            scores.plot(*zip(*collapsed, strict=True), "x", color=VERMILION, markersize=7, markeredgewidth=1.8,
                        label="all embeddings in one point")  # fmt: skip
        selected = 100 * fold.val[MAP_AT_R]
        for axes in (losses, scores):
            rule(axes)
            axes.axvline(fold.selected_epoch, color=INK, linewidth=0.9, linestyle=":")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            axes.margins(y=0.12)
        scores.plot([fold.selected_epoch], [selected], "*", color=INK, markersize=9, linestyle=":",
                    label="selected epoch", gid="selected")  # fmt: skip
        scores.annotate(f"{selected:.1f}", (fold.selected_epoch, selected), (-5, 5), textcoords="offset points",
                        ha="right", fontsize=8, fontweight="bold")  # fmt: skip
        losses.set_title(f"Fold {fold.fold}")
        scores.set_xlabel("Epoch")
    all_axes[0, 0].set_ylabel("Training loss")
    all_axes[1, 0].set_ylabel("Validation MAP@R (%)")
    named = {label: handle for axes in all_axes.flat for handle, label in zip(*axes.get_legend_handles_labels(),
                                                                              strict=True)}  # fmt: skip
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4 if len(folds) > 2 else 2)
    return figure
