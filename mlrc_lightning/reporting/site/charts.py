"""Small plots as SVG text, a few hundred bytes each, in the colours of the page. `figures` draws the large ones."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence

from mlrc_lightning.names import MAP_AT_R
from mlrc_lightning.results.records import FoldResult
from mlrc_lightning.results.searches import SearchTrial

_Place = Callable[[float], float]
_SPARK = (120.0, 36.0)
_SEARCH = (720.0, 300.0)
_CURVE = (260.0, 160.0)
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 24.0, 34.0
"""Margins of a plot with axes, in user units (pixels at the page's own size)."""


def sparkline(label: str, trials: Sequence[SearchTrial], paper: Sequence[float], num_trials: int) -> str:
    """Draws a search in the space of a word: trials as dots, best so far, the paper's best so far dashed.

    Args:
        label: What a screen reader says in its place.
        trials: In order of index; those without a mean leave no dot, failed ones a cross at the foot.
        paper: The paper's best so far after each of its trials; empty where it has no such search.
        num_trials: Trials that the width stands for, at least.
    """
    width, height = _SPARK
    done = [(trial.index, trial.mean) for trial in trials if trial.mean is not None]
    last = max([num_trials, len(paper), *(trial.index + 1 for trial in trials), 2])
    scale = _Scale([value for _, value in done] + list(paper), height - 4, 3)

    def x(index: float) -> float:
        return 3 + (width - 6) * index / (last - 1)

    parts = []
    if paper:
        parts.append(f'<path class="paper-line" d="{_steps(enumerate(paper), x, scale)}"/>')
    if done:
        parts.append(f'<path class="dots" d="{_dots(done, x, scale)}"/>')
        parts.append(f'<path class="best-line" d="{_steps(_best(done), x, scale)}"/>')
    failed = [trial.index for trial in trials if trial.state == "failed"]
    if failed:
        parts.append(f'<path class="crosses" d="{_crosses(failed, x, height - 3, 1.8)}"/>')
    return _svg(label, width, height, parts, "spark")


def search_chart(label: str, trials: Sequence[SearchTrial], paper: Sequence[float]) -> str:
    """Draws a search at full size: trials with their folds' range, failures, best so far, the paper's best so far."""
    width, height = _SEARCH
    done = [(trial.index, trial.mean) for trial in trials if trial.mean is not None]
    ranges = [(t.index, min(t.values), max(t.values)) for t in trials if t.mean is not None and len(t.values) > 1]
    last = max([len(paper), *(trial.index + 1 for trial in trials), 2])
    values = [value for _, value in done] + list(paper) + [end for _, *ends in ranges for end in ends]
    scale = _Scale([100 * value for value in values], height - _BOTTOM, _TOP)

    def x(index: float) -> float:
        return _LEFT + 8 + (width - _LEFT - _RIGHT - 16) * index / (last - 1)

    def percent(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
        return [(index, 100 * value) for index, value in points]

    marks = [int(mark) for mark in _ticks(1, last, 8) if mark == int(mark) and 1 <= mark <= last]
    parts = _axes(width, height, scale, [(x(mark - 1), str(mark)) for mark in marks], "Trial", "Validation MAP@R (%)")
    if ranges:
        lines = "".join(f"M{_n(x(i))} {_n(scale(100 * a))}V{_n(scale(100 * b))}" for i, a, b in ranges)
        parts.append(f'<path class="ranges" d="{lines}"/>')
    if paper:
        parts.append(f'<path class="paper-line" d="{_steps(percent(enumerate(paper)), x, scale)}"/>')
    if done:
        parts.append(f'<path class="dots large" d="{_dots(percent(done), x, scale)}"/>')
        parts.append(f'<path class="best-line" d="{_steps(percent(_best(done)), x, scale)}"/>')
    failed = [trial.index for trial in trials if trial.state == "failed"]
    if failed:
        parts.append(f'<path class="crosses" d="{_crosses(failed, x, height - _BOTTOM - 5, 4)}"/>')
    return _svg(label, width, height, parts, "chart")


def learning_curves(fold: FoldResult, label: str) -> str:
    """Draws training loss (above) and validation MAP@R (below) of one fold by epoch, the selected epoch marked."""
    width, height = _CURVE
    last = max(2, fold.epochs[-1].epoch if fold.epochs else 2)

    def x(epoch: float) -> float:
        return _LEFT + (width - _LEFT - _RIGHT) * epoch / last

    marks = [(x(mark), f"{mark:g}") for mark in _ticks(0, last, 4) if mark == int(mark) and 0 <= mark <= last]
    loss = [(e.epoch, e.train_loss) for e in fold.epochs if e.train_loss is not None and math.isfinite(e.train_loss)]
    val = [(e.epoch, 100 * e.val[MAP_AT_R]) for e in fold.epochs if e.val is not None]
    panels = []
    for number, (name, points, title) in enumerate((("loss", loss, "Training loss"), ("val", val, "Val. MAP@R (%)"))):
        scale = _Scale([value for _, value in points], height - _BOTTOM, _TOP)
        parts = _axes(width, height, scale, marks, "Epoch" if number else "", title)
        parts.append(f'<path class="selected" d="M{_n(x(fold.selected_epoch))} {_n(_TOP)}V{_n(height - _BOTTOM)}"/>')
        if points:
            line = "L".join(f"{_n(x(epoch))} {_n(scale(value))}" for epoch, value in points)
            parts.append(f'<path class="{name}-line" d="M{line}"/>')
            if len(points) <= 60:
                parts.append(f'<path class="{name}-dots" d="{_dots(points, x, scale)}"/>')
        if number:
            collapsed = [(e.epoch, 100 * e.val[MAP_AT_R]) for e in fold.epochs if e.collapsed and e.val is not None]
            for epoch, value in collapsed:
                parts.append(f'<path class="crosses" d="{_crosses([epoch], x, scale(value), 4)}"/>')
            chosen = 100 * fold.val[MAP_AT_R]
            at, up = x(fold.selected_epoch), scale(chosen)
            anchor, side = ("start", 6) if at < width / 2 else ("end", -6)
            parts.append(f'<circle class="chosen" cx="{_n(at)}" cy="{_n(up)}" r="3.5"/>')
            parts.append(
                f'<text x="{_n(at + side)}" y="{_n(height - _BOTTOM - 5)}" text-anchor="{anchor}">{chosen:.1f}</text>'
            )
        panels.append(f'<g transform="translate(0 {_n(number * (height - 14))})">{"".join(parts)}</g>')
    return _svg(label, width, 2 * height - 14, panels, "chart")


class _Scale:
    """Maps values onto heights, the lowest value to `low`, the highest to `high`. A single value goes to the middle."""

    def __init__(self, values: Sequence[float], low: float, high: float) -> None:
        self.least, self.most = (min(values), max(values)) if values else (0.0, 1.0)
        if self.most - self.least < 1e-9:
            self.least, self.most = self.least - 0.5, self.most + 0.5
        self._low, self._high = low, high

    def __call__(self, value: float) -> float:
        return self._low + (self._high - self._low) * (value - self.least) / (self.most - self.least)


def _svg(label: str, width: float, height: float, parts: Sequence[str], name: str) -> str:
    # width and height keep the place before the style sheet is there
    return (
        f'<svg class="{name}" role="img" aria-label="{html.escape(label, quote=True)}" width="{_n(width)}"'
        f' height="{_n(height)}" viewBox="0 0 {_n(width)} {_n(height)}">{"".join(parts)}</svg>'
    )


def _axes(
    width: float, height: float, scale: _Scale, marks: Sequence[tuple[float, str]], x_title: str, y_title: str
) -> list[str]:
    left, right, foot = _LEFT, width - _RIGHT, height - _BOTTOM
    levels = [level for level in _ticks(scale.least, scale.most, 5) if scale.least <= level <= scale.most]
    rules = "".join(f"M{_n(left)} {_n(scale(level))}H{_n(right)}" for level in levels)
    parts = [f'<path class="rule" d="{rules}M{_n(left)} {_n(foot)}H{_n(right)}"/>']
    decimals = _decimals(levels)
    for level in levels:
        text = f"{level:.{decimals}f}".replace("-", "\N{MINUS SIGN}")
        parts.append(f'<text x="{_n(left - 6)}" y="{_n(scale(level) + 4)}" text-anchor="end">{text}</text>')
    for at, text in marks:
        parts.append(f'<text x="{_n(at)}" y="{_n(foot + 15)}" text-anchor="middle">{text}</text>')
    parts.append(f'<text class="axis" x="0" y="11">{y_title}</text>')
    if x_title:
        parts.append(f'<text class="axis" x="{_n(right)}" y="{_n(height - 4)}" text-anchor="end">{x_title}</text>')
    return parts


def _ticks(least: float, most: float, wanted: int) -> list[float]:
    """Returns round numbers from below `least` to above `most`, about as many as wanted."""
    raw = (most - least) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if raw <= factor * power * (1 + 1e-9))
    first = math.floor(least / step)
    return [round(number * step, 10) for number in range(first, math.ceil(most / step) + 1)]


def _decimals(levels: Sequence[float]) -> int:
    return next((d for d in range(6) if all(abs(level - round(level, d)) < 1e-9 for level in levels)), 6)


def _best(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    best, found = -math.inf, []
    for index, value in points:
        best = max(best, value)
        found.append((index, best))
    return found


def _steps(points: Iterable[tuple[int, float]], x: _Place, scale: _Scale) -> str:
    text, before = "", None
    for index, value in points:
        if before is None:
            text += f"M{_n(x(index))} {_n(scale(value))}"
        else:
            text += f"H{_n(x(index))}" + (f"V{_n(scale(value))}" if value != before else "")
        before = value
    return text


def _dots(points: Iterable[tuple[int, float]], x: _Place, scale: _Scale) -> str:
    """Returns lines of no length, which round caps make into dots."""
    return "".join(f"M{_n(x(index))} {_n(scale(value))}h0" for index, value in points)


def _crosses(indices: Iterable[int], x: _Place, y: float, size: float) -> str:
    long = 2 * size
    strokes = f"l{_n(long)} {_n(long)}m0 {_n(-long)}l{_n(-long)} {_n(long)}"
    return "".join(f"M{_n(x(i) - size)} {_n(y - size)}{strokes}" for i in indices)


def _n(number: float) -> str:
    """Returns a coordinate to a tenth, without a needless zero."""
    text = f"{number:.1f}"
    return text[:-2] if text.endswith(".0") else text
