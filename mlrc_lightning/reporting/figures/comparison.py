"""The pairwise tests of a table as a heat map."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mlrc_lightning.reporting.figures.style import HATCH_ON_LIGHT, MUTED, ON_DARK, ON_LIGHT, RULE, drawn, new_figure
from mlrc_lightning.reporting.pairs import Pair

LEVELS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
"""Holm-corrected p-values below which a difference gets so many stars (at the value itself, too)."""
# PuOr is told apart by the colour-blind; its ends, too dark for text, are left out
_COLORS = LinearSegmentedColormap.from_list("effect", matplotlib.colormaps["PuOr_r"](np.linspace(0.12, 0.88, 65)))


def stars(p_holm: float | None) -> str:
    """Returns the stars of a corrected p-value. There are none if it is not significant, or not tested."""
    return next((text for level, text in LEVELS if p_holm is not None and p_holm <= level), "")


@drawn
def pairwise_heat_map(title: str, losses: Sequence[str], tests: Sequence[Pair]) -> Figure:
    """Draws the difference of every two losses, row minus column, in percentage points.

    Args:
        title: Of the figure.
        losses: Order of rows and columns.
        tests: Each pair once, in either order; a pair without a test is drawn as a dash.

    Returns:
        A square of cells; stars mark what is significant after Holm's correction, hatching what is not, brackets
        what has no test.
    """
    position = {loss: number for number, loss in enumerate(losses)}
    size = len(losses)
    effects = np.full((size, size), np.nan)
    texts = np.full((size, size), "", dtype=object)
    for test in tests:
        row, column = position[test.loss_a], position[test.loss_b]
        for r, c, effect in ((row, column, test.effect), (column, row, -test.effect)):
            effects[r, c] = 100 * effect
            text = f"{round(100 * effect, 1) + 0.0:+.1f}".replace("-", "\N{MINUS SIGN}")
            texts[r, c] = f"({text})" if test.p_holm is None else f"{text}\n{stars(test.p_holm)}"
    width = max(4.4, 2.6 + 0.58 * size)  # a narrow one has no room for the words
    figure = new_figure(width, 2.2 + 0.5 * size, title)
    axes = figure.subplots()
    largest = max(float(np.nanmax(np.abs(effects))) if np.isfinite(effects).any() else 0.0, 1e-9)
    norm = TwoSlopeNorm(0, -largest, largest)
    image = axes.imshow(np.ma.masked_invalid(effects), cmap=_COLORS, norm=norm, aspect="auto")
    for row in range(size):
        for column in range(size):
            if row == column:
                continue
            if np.isnan(effects[row, column]):
                axes.text(column, row, "–", ha="center", va="center", color=MUTED)
                continue
            if "*" not in texts[row, column]:
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor=HATCH_ON_LIGHT,
                                         hatch="////", linewidth=0, alpha=0.35))  # fmt: skip
            is_dark = _luminance(_COLORS(norm(effects[row, column]))) < 0.18
            axes.text(column, row, texts[row, column].strip(), ha="center", va="center", fontsize=7, linespacing=0.85,
                      color=ON_DARK if is_dark else ON_LIGHT)  # fmt: skip
    axes.set_xticks(range(size), list(losses), rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), list(losses))
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(visible=True, which="minor", color=RULE, linewidth=0.8)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("Row minus column (percentage points)")
    bar.outline.set_visible(False)
    levels = ", ".join(f"{text} p \N{LESS-THAN OR EQUAL TO} {level:g}" for level, text in reversed(LEVELS))
    words = f"After Holm's correction: {levels}; hatched: not significant; (in brackets): not tested"
    figure.supxlabel(textwrap.fill(words, round(14 * width)), fontsize=8)
    return figure


def _luminance(color: Sequence[float]) -> float:
    """Returns the relative luminance of an sRGB colour. Below 0.18 white text stands out more than black (WCAG 2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
