"""What an embedding looks like: its projection to the plane, and what its queries find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mlrc_lightning.reporting.figures.style import BLUE, INK, MARKS, MUTED, SURFACE, VERMILION, drawn, frame, new_figure

HIGHLIGHTED = len(MARKS)
"""As many classes are told apart; the others stay grey."""
RIGHT, WRONG = "\N{CHECK MARK}", "\N{BALLOT X}"


@dataclass(frozen=True)
class NeighborSheet:
    """Queries and what they find.

    Attributes:
        queries: Position among the thumbnails of each query; (Q,), int64.
        neighbors: Of its K nearest images, nearest first; (Q, K), int64.
        similarities: Their cosine similarities; (Q, K), float32.
        labels: Class position of each thumbnail; (T,), int64.
        thumbnails: (T, S, S, 3), uint8.
        class_names: By class position.
    """

    queries: NDArray[np.int64]
    neighbors: NDArray[np.int64]
    similarities: NDArray[np.float32]
    labels: NDArray[np.int64]
    thumbnails: NDArray[np.uint8]
    class_names: tuple[str, ...]


@drawn
def projection(
    title: str, points: NDArray[np.floating], labels: NDArray[np.integer], class_names: Sequence[str]
) -> Figure:
    """Draws a projection of embeddings, with the largest classes marked and named.

    Args:
        title: Of the figure.
        points: (N, 2).
        labels: Class positions; (N,).
        class_names: By class position.

    Returns:
        A scatter plot; axes have no unit, since distances in a t-SNE map have none.
    """
    figure = new_figure(6.6, 5.0, title)
    axes = figure.subplots()
    present, counts = np.unique(labels, return_counts=True)
    # by size, then by position, so that the choice depends on nothing else
    largest = present[np.lexsort((present, -counts))][:HIGHLIGHTED]
    others = ~np.isin(labels, largest)
    for mark, label in zip(MARKS, largest, strict=False):
        own = points[labels == label]
        axes.scatter(own[:, 0], own[:, 1], s=26, marker=mark.marker, color=mark.color, edgecolor=INK, linewidth=0.5,
                     zorder=2.5, label=_name(class_names, int(label)), gid=f"class-{label}")  # fmt: skip
    if others.any():
        axes.scatter(points[others, 0], points[others, 1], s=6, color=MUTED, alpha=0.35, linewidth=0, rasterized=True,
                     gid="others", label=f"{len(present) - len(largest)} other classes")  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    frame(axes)
    figure.legend(loc="outside right upper", title="Largest classes" if others.any() else "Classes", alignment="left")
    return figure


@drawn
def neighbor_sheet(title: str, sheet: NeighborSheet) -> Figure:
    """Draws a row for each query: the query, then its nearest images.

    Returns:
        Images of the query's class have a solid frame and a check mark, others a dashed frame and a cross.
    """
    num_queries, num_neighbors = sheet.neighbors.shape
    figure = new_figure(1.15 * (num_neighbors + 1) + 0.2, 0.85 + 1.3 * num_queries, title)
    all_axes = figure.subplots(num_queries, num_neighbors + 1, squeeze=False)
    for axes in all_axes.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    for row, query in enumerate(sheet.queries):
        first = all_axes[row, 0]
        first.imshow(sheet.thumbnails[query], interpolation="none")
        first.set_title("query" if row == 0 else "", fontsize=8)
        first.set_xlabel(_name(sheet.class_names, int(sheet.labels[query]), 14), fontsize=7.5, fontweight="bold")
        frame(first, INK, width=0.8)
        for rank, neighbor in enumerate(sheet.neighbors[row]):
            axes = all_axes[row, rank + 1]
            axes.imshow(sheet.thumbnails[neighbor], interpolation="none")
            is_right = sheet.labels[neighbor] == sheet.labels[query]
            color = BLUE if is_right else VERMILION
            frame(axes, color, None if is_right else (2, 1.2), 2.2)
            axes.set_title(str(rank + 1) if row == 0 else "", fontsize=8)
            box = {"boxstyle": "round,pad=0.12", "facecolor": SURFACE, "edgecolor": color, "linewidth": 0.8}
            axes.text(0.97, 0.97, RIGHT if is_right else WRONG, transform=axes.transAxes, ha="right", va="top",
                      fontsize=9, fontweight="bold", color=color, bbox=box)  # fmt: skip
            name = "" if is_right else f"\n{_name(sheet.class_names, int(sheet.labels[neighbor]), 14)}"
            axes.set_xlabel(f"{sheet.similarities[row, rank]:.2f}{name}", fontsize=7, color=INK)
    figure.supxlabel(
        f"{RIGHT} solid frame: the query's class.  {WRONG} dashed frame: another class, named."
        "  Below: cosine similarity.",
        fontsize=8,
    )
    return figure


def _name(names: Sequence[str], label: int, longest: int = 28) -> str:
    name = names[label] if label < len(names) else f"class {label}"
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
