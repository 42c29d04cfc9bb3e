"""Papers versus reality: accuracies over the years, and improvements over the two oldest losses (Figures 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mlrc_lightning.reporting.figures.style import (
    BAND,
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    RULE,
    SAND,
    SKY,
    drawn,
    new_figure,
    rule,
)

PAPERS, PAPER_128, PAPER_512, OURS_128, OURS_512 = "papers", "paper_128", "paper_512", "ours_128", "ours_512"
_LOOKS = {
    PAPERS: ("As the papers reported it", GREEN, ""),
    PAPER_128: ("Reality, separated 128 (Musgrave et al.)", SKY, ""),
    PAPER_512: ("Reality, concatenated 512 (Musgrave et al.)", BLUE, ""),
    OURS_128: ("Ours, separated", SAND, "///"),
    OURS_512: ("Ours, concatenated", ORANGE, "///"),
}


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        series: One of the five names of this module.
        value: Per cent; None for one that is missing, which is drawn as a dash.
        half_width: Of the 95 % interval, in percentage points; None where there is none.
    """

    series: str
    value: float | None
    half_width: float | None = None


@dataclass(frozen=True)
class Column:
    """The bars of one method.

    Attributes:
        label: The method.
        year: Of its paper; None: unknown.
        bars: Side by side.
    """

    label: str
    year: int | None
    bars: tuple[Bar, ...]


@drawn
def accuracy_over_years(title: str, axis: str, panels: Mapping[str, Sequence[Column]]) -> Figure:
    """Draws a panel for each dataset, and in each the same methods from old to new.

    Args:
        title: Of the figure.
        axis: What is measured, such as "Precision@1 (%)".
        panels: Columns by dataset; all panels have the same methods and years in the same order.

    Returns:
        A bar chart; bars carry their values in print.

    Source: Musgrave et al. 2020, Figure 2.
    """
    columns = next(iter(panels.values()))
    figure = new_figure(max(6.0, 2.2 + 0.29 * sum(max(1.0, 1.5 * (len(c.bars) - 1)) for c in columns)), 0, title)
    figure.set_figheight(1.7 + 1.9 * len(panels))
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, own) in zip(all_axes, panels.items(), strict=True):
        _draw_columns(axes, own)
        axes.set_title(name)
        axes.set_ylabel(axis)
    for first, last, year in _years(columns):
        all_axes[0].annotate(
            "?" if year is None else str(year), ((first + last) / 2, 1), (0, 3), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", va="bottom", fontsize=8, color=MUTED, fontweight="bold",
        )  # fmt: skip
    all_axes[0].set_title(all_axes[0].get_title(loc="left"), pad=17)
    all_axes[-1].set_xticks(range(len(columns)), [column.label for column in columns], rotation=45, ha="right",
                            rotation_mode="anchor")  # fmt: skip
    all_axes[-1].set_xlim(-0.6, len(columns) - 0.4)
    _legend(figure, [bar.series for column in columns for bar in column.bars])
    return figure


def _draw_columns(axes: Axes, columns: Sequence[Column]) -> None:
    for number, (first, last, _) in enumerate(_years(columns)):
        if number % 2 == 0:
            axes.axvspan(first - 0.5, last + 0.5, color=BAND, linewidth=0, zorder=0)
    rule(axes)
    num_bars = max(len(column.bars) for column in columns)
    width = 0.8 / num_bars
    top = max((bar.value or 0) + (bar.half_width or 0) for column in columns for bar in column.bars)
    for position, column in enumerate(columns):
        for number, bar in enumerate(column.bars):
            center = position + (number - (len(column.bars) - 1) / 2) * width
            _draw_bar(axes, center, width, bar)
    axes.set_ylim(0, max(top, 1e-9) * 1.14)


def _draw_bar(axes: Axes, center: float, width: float, bar: Bar) -> None:
    _, color, hatch = _LOOKS[bar.series]
    label = "–" if bar.value is None else f"{bar.value:.1f}".replace("-", "\N{MINUS SIGN}")
    size = 8 if bar.value is None else 6.2
    height = 0.0
    if bar.value is not None:
        axes.bar(center, bar.value, width * 0.92, color=color, hatch=hatch, edgecolor=INK, linewidth=0.5,
                 yerr=bar.half_width, error_kw={"elinewidth": 0.9, "capsize": 1.8, "ecolor": INK})  # fmt: skip
        half_width = bar.half_width or 0.0
        height = bar.value - half_width if bar.value < 0 else bar.value + half_width
    axes.annotate(label, (center, height), (0, -2 if height < 0 else 2), textcoords="offset points", ha="center",
                  va="top" if height < 0 else "bottom", fontsize=size, color=INK)  # fmt: skip


def _years(columns: Sequence[Column]) -> list[tuple[int, int, int | None]]:
    """Returns first position, last position and year of each stretch of columns of one year."""
    stretches = []
    for year, members in groupby(enumerate(columns), key=lambda item: item[1].year):
        positions = [position for position, _ in members]
        stretches.append((positions[0], positions[-1], year))
    return stretches


def _legend(figure: Figure, series: Sequence[str]) -> None:
    present = [name for name in _LOOKS if name in series]
    patches = [
        Patch(facecolor=_LOOKS[name][1], hatch=_LOOKS[name][2], edgecolor=INK, linewidth=0.5, label=_LOOKS[name][0])
        for name in present
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(2, len(patches)))


@drawn
def relative_improvements(title: str, groups: Mapping[str, Sequence[Bar]]) -> Figure:
    """Draws how much better than a baseline the losses after it are, on average, for each dataset.

    Args:
        title: Of the figure.
        groups: Bars by dataset; values are relative improvements in per cent, a missing one is drawn as a dash.

    Returns:
        A bar chart.

    Source: Musgrave et al. 2020, Figure 3.
    """
    figure = new_figure(7.0, 3.9, title)
    axes = figure.subplots()
    rule(axes)
    num_bars = max(len(bars) for bars in groups.values())
    width = 0.84 / num_bars
    for position, bars in enumerate(groups.values()):
        for number, bar in enumerate(bars):
            _draw_bar(axes, position + (number - (len(bars) - 1) / 2) * width, width, bar)
    axes.axhline(0, color=MUTED, linewidth=0.9)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel("Mean relative improvement of P@1 (%)")
    values = [bar.value for bars in groups.values() for bar in bars if bar.value is not None]
    low, high = min(0.0, *values), max(0.0, *values)
    axes.set_ylim(low - 0.09 * (high - low), high + 0.09 * (high - low))
    for edge in range(1, len(groups)):
        axes.axvline(edge - 0.5, color=RULE, linewidth=0.7, zorder=0.5)
    _legend(figure, [bar.series for bars in groups.values() for bar in bars])
    return figure


def mean_improvement(accuracies: Mapping[str, float], baseline: str, losses: Sequence[str]) -> float | None:
    """Returns the mean over losses of 100·(accuracy / baseline's accuracy − 1).

    Args:
        accuracies: P@1 by loss, in any one unit.
        baseline: The loss that the others are compared with.
        losses: Those averaged over.

    Returns:
        Per cent; None if an accuracy is missing: the mean of fewer losses would be another figure.

    Source: Musgrave et al. 2020, caption of Figure 3.
    """
    if baseline not in accuracies or any(loss not in accuracies for loss in losses):
        return None
    return sum(100 * (accuracies[loss] / accuracies[baseline] - 1) for loss in losses) / len(losses)
