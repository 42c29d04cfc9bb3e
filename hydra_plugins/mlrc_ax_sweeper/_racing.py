"""Racing: a trial whose first replicates show that it cannot become the best is spared the rest.

Replicates (folds, seeds) differ from each other in the same way for all trials, so what counts is a trial's value
less the replicate's effect, which the completed trials tell. With residual standard deviation s, the mean over all R
replicates of a trial that has run k of them is that of the adjusted values, give or take s * sqrt(1/k - 1/R).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Forecast:
    """What the mean over all replicates will be."""

    mean: float
    standard_error: float


@dataclass(frozen=True)
class ReplicateEffects:
    """How the replicates differ, from the trials that have run all of them."""

    effects: tuple[float, ...]
    residual_deviation: float
    num_trials: int

    def forecast(self, values: Sequence[float]) -> Forecast:
        """From the values of a trial's first replicates, in order. There is at least one."""
        k, total = len(values), len(self.effects)
        adjusted = [value - effect for value, effect in zip(values, self.effects[:k], strict=True)]
        # the effects are themselves estimates from `num_trials` trials
        variance = self.residual_deviation**2 * (1.0 / k - 1.0 / total) * (1.0 + 1.0 / self.num_trials)
        return Forecast(math.fsum(adjusted) / k, math.sqrt(variance))


def replicate_effects(table: Sequence[Sequence[float]]) -> ReplicateEffects | None:
    """Estimate the effects from completed trials (rows: trials, columns: replicates).

    Returns:
        None where there are fewer than two rows or columns, which tell nothing of the residual.
    """
    num_trials, num_replicates = len(table), len(table[0]) if table else 0
    if num_trials < 2 or num_replicates < 2:
        return None
    trial_means = [math.fsum(row) / num_replicates for row in table]
    effects = tuple(
        math.fsum(row[r] - mean for row, mean in zip(table, trial_means, strict=True)) / num_trials
        for r in range(num_replicates)
    )
    squares = math.fsum(
        (row[r] - mean - effects[r]) ** 2
        for row, mean in zip(table, trial_means, strict=True)
        for r in range(num_replicates)
    )
    deviation = math.sqrt(squares / ((num_trials - 1) * (num_replicates - 1)))
    return ReplicateEffects(effects, deviation, num_trials)


def cannot_win(
    values: Sequence[float], table: Sequence[Sequence[float]], best: float, z: float, minimize: bool
) -> Forecast | None:
    """Whether a trial lies behind the best one by more than `z` standard errors of its forecast.

    Args:
        values: The trial's first replicates, in order.
        table: Completed trials by replicates.
        best: Mean of the best completed trial.
        z: Standard errors.
        minimize: Whether smaller is better.

    Returns:
        The forecast that rules it out, or None where the trial may still win.
    """
    effects = replicate_effects(table)
    if effects is None or not values:
        return None
    forecast = effects.forecast(values)
    behind = forecast.mean - best if minimize else best - forecast.mean
    return forecast if behind > z * forecast.standard_error else None
