"""How a search went: every trial, the best so far, and the paper's own best so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlrc_lightning.reporting.figures.style import BLUE, MUTED, ORANGE, VERMILION, drawn, new_figure, rule
from mlrc_lightning.reporting.statistics import best_so_far


@dataclass(frozen=True)
class TrialPoint:
    """One trial of a search.

    Attributes:
        number: From 0, in the order of proposal.
        value: Mean over folds of validation MAP@R, a fraction; None if the trial failed.
        folds: Its values by fold; empty if not known.
    """

    number: int
    value: float | None
    folds: tuple[float, ...] = ()


@drawn
def optimisation(title: str, trials: Sequence[TrialPoint], paper: Sequence[float] = ()) -> Figure:
    """Draws a search.

    Args:
        title: Of the figure.
        trials: Finished ones, in order of number.
        paper: The paper's best so far after each of its trials, fractions; empty where it has no such search.

    Returns:
        Trials as points with a thin line over their folds, failed ones as crosses at the foot, both best-so-far
        curves as steps.
    """
    figure = new_figure(6.4, 3.8, title)
    axes = figure.subplots()
    rule(axes)
    done = [trial for trial in trials if trial.value is not None]
    for trial in done:
        if len(trial.folds) > 1:
            axes.vlines(trial.number + 1, 100 * min(trial.folds), 100 * max(trial.folds), color=MUTED, linewidth=0.7,
                        alpha=0.6, zorder=1.5)  # fmt: skip
    if any(len(trial.folds) > 1 for trial in done):
        axes.plot([], [], color=MUTED, linewidth=0.7, label="its folds, lowest to highest")
    axes.plot([trial.number + 1 for trial in done], [100 * (trial.value or 0.0) for trial in done], "o", color=BLUE,
              markersize=4.5, label="trial, mean over folds", gid="trials")  # fmt: skip
    best = 100 * best_so_far([trial.value for trial in trials])
    axes.step([trial.number + 1 for trial in trials], best, where="post", color=BLUE, label="best so far", gid="best")
    if paper:
        axes.step(np.arange(len(paper)) + 1, 100 * np.asarray(paper), where="post", color=ORANGE, linestyle=(0, (5, 2)),
                  linewidth=2, label="best so far in the paper's search", gid="paper")  # fmt: skip
    failed = [trial.number + 1 for trial in trials if trial.value is None]
    if failed:
        axes.plot(failed, [0.02] * len(failed), "x", color=VERMILION, markersize=6, markeredgewidth=1.6,
                  label="failed", transform=axes.get_xaxis_transform(), clip_on=False, gid="failed")  # fmt: skip
    axes.set_xlabel("Trial")
    axes.set_ylabel("Validation MAP@R (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    last = max([trial.number + 1 for trial in trials] + [len(paper)])
    axes.set_xlim(0.5 - 0.02 * last, last + 0.5 + 0.02 * last)
    axes.margins(y=0.08)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
