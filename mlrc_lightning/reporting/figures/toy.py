"""Figure 1: three embeddings that clustering scores cannot tell apart, and retrieval scores can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mlrc_lightning.reporting.figures.style import MARKS, MUTED, drawn, frame, new_figure

SCORES = {
    "nmi": "NMI",
    "f1": "F1",
    "precision_at_1": "R@1",
    "r_precision": "R-Precision",
    "mean_average_precision_at_r": "MAP@R",
}
"""The figure's rows and their names; R@1 is Precision@1."""


@dataclass(frozen=True)
class ToyEmbedding:
    """One of the three.

    Attributes:
        name: a, b or c.
        points: (N, 2).
        labels: 0 or 1; (N,).
        scores: Fractions, by the names of `SCORES`.
    """

    name: str
    points: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: Mapping[str, float]


@drawn
def toy_embeddings(title: str, embeddings: Sequence[ToyEmbedding], paper: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draws the points of each embedding, and below them its scores beside the paper's.

    Args:
        title: Of the figure.
        embeddings: Left to right.
        paper: Printed scores by embedding and name, per cent; an embedding may be absent.

    Source: Musgrave et al. 2020, Figure 1.
    """
    figure = new_figure(9.6, 3.7, title)
    all_axes = figure.subplots(2, len(embeddings), height_ratios=(1.3, 1.5), squeeze=False)
    for number, embedding in enumerate(embeddings):
        axes = all_axes[0, number]
        for label in (0, 1):
            own = embedding.points[embedding.labels == label]
            mark = MARKS[label]
            axes.scatter(*own.T, s=4 if label == 0 else 6, marker="o" if label == 0 else "x", color=mark.color,
                         linewidth=0 if label == 0 else 0.6, label=f"class {label + 1}", rasterized=True)  # fmt: skip
        axes.set_aspect("equal")
        axes.set_xlim(-0.2, max(6.2, embedding.points[:, 0].max() + 0.2))
        axes.set_ylim(embedding.points[:, 1].min() - 0.12, embedding.points[:, 1].max() + 0.12)
        axes.set_title(f"({embedding.name})")
        frame(axes)
        axes.set_xticks([])
        axes.set_yticks([])
        table = all_axes[1, number]
        table.set_axis_off()
        printed = paper.get(embedding.name, {})
        table.set_xlim(0, 1)
        table.set_ylim(len(SCORES) + 1, 0)
        for x, text in ((0.62, "recomputed"), (0.98, "printed")):
            table.text(x, 0.5, text, ha="right", va="center", color=MUTED, fontsize=7.5)
        for row, (key, name) in enumerate(SCORES.items()):
            table.text(0.02, row + 1.5, name, va="center")
            table.text(0.62, row + 1.5, f"{100 * embedding.scores[key]:.1f}", ha="right", va="center",
                       fontweight="bold")  # fmt: skip
            table.text(0.98, row + 1.5, f"{printed[key]:g}" if key in printed else "–", ha="right", va="center")
    handles, labels = all_axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, markerscale=2)
    return figure
