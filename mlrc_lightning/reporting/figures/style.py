"""How every figure looks: palette, type, sizes, and the switch from light to dark. Colours are never the only sign."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

P = ParamSpec("P")

INK, MUTED, RULE, BAND, SURFACE = "#1b1f24", "#57606a", "#d0d7de", "#f1f4f7", "#ffffff"
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#b5588f", "#56b4e9"
SAND = "#f6d48a"
"""Okabe and Ito's palette without its yellow, which vanishes in print; the purple is darker, sand is a light orange."""
TITLE_CHARACTERS_PER_INCH = 10
"""Of the bold title, with room to spare."""
ON_LIGHT, ON_DARK, HATCH_ON_LIGHT = "#0b0b0b", "#fdfdfd", "#4d555e"
"""Text and hatching on a coloured cell: the cell stays as it is in the dark, so these do too."""

DARK = {
    INK: "#e6e8eb",
    MUTED: "#a9b1ba",
    RULE: "#3d444d",
    BAND: "#1d2228",
    SURFACE: "#14171b",
    BLUE: "#4ba3dc",
    ORANGE: "#e9a820",
    GREEN: "#2fbf95",
    VERMILION: "#ef7b35",
    PURPLE: "#dd9bc2",
    SKY: "#8ccdf4",
    SAND: "#f3d9a0",
}
"""What a page shows in place of each colour where the reader prefers dark."""


@dataclass(frozen=True)
class Mark:
    """How one series is told from the others, also without colour."""

    color: str
    marker: str
    hatch: str


MARKS = (
    Mark(BLUE, "o", ""),
    Mark(ORANGE, "s", "///"),
    Mark(GREEN, "^", "..."),
    Mark(VERMILION, "D", "xxx"),
    Mark(PURPLE, "v", "\\\\\\"),
    Mark(SKY, "P", "---"),
)

_SETTINGS: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "figure.facecolor": SURFACE,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "figure.dpi": 100,
    "savefig.facecolor": "auto",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "mlrc-lightning",
}


@contextmanager
def style() -> Iterator[None]:
    """Draws by these settings alone, whatever the user's matplotlibrc says, and leaves matplotlib as it was."""
    with matplotlib.rc_context():
        settings: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"} | _SETTINGS
        matplotlib.rcParams.update(settings)
        yield


def drawn(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Makes a function draw in this style, and lays its figure out once: every format then shows the same places."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style():
            figure = draw(*args, **kwargs)
            FigureCanvasAgg(figure)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure

    return styled


def new_figure(width: float, height: float, title: str) -> Figure:
    """Returns an empty figure with a title at its left.

    Args:
        width: In inches.
        height: In inches.
        title: Broken into lines where it is wider than the figure.
    """
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
    lines = textwrap.fill(title, round(TITLE_CHARACTERS_PER_INCH * width), break_on_hyphens=False)
    figure.suptitle(lines, x=0.01, ha="left", gid="heading")
    return figure


def frame(axes: Axes, color: str = RULE, dashes: tuple[float, float] | None = None, width: float = 0.7) -> None:
    """Draws a frame around axes, dashed by lengths on and off in line widths, or solid."""
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(color)
        spine.set_linestyle("-" if dashes is None else (0, dashes))
        spine.set_linewidth(width)


def rule(axes: Axes, axis: Literal["both", "x", "y"] = "y") -> None:
    """Draws the light lines that help to read values off an axis."""
    axes.grid(visible=True, axis=axis)
    axes.tick_params(length=0)
