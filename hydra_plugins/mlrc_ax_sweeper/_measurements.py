"""What a task returned, and what Ax is told of it: standard errors by mode."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mlrc_sweeper.measurements import Measurement, Measurements, over_replicates

from ._errors import SweepError

NoiseMode = Literal["inferred", "sem", "paired", "none"]

_EXPECTED = (
    "a number, a tuple (mean, standard error or None), a list of replicate values, or a dict of those by metric name"
)


def read_return_value(value: Any, objective_name: str) -> Measurements:
    """The measurements in a task's return value.

    Args:
        value: A number, (mean, sem), a list of replicate values, or a dict of those.
        objective_name: Name that a value outside a dict gets.

    Raises:
        SweepError: It is none of these.
    """
    if isinstance(value, Mapping):
        return {str(name): _measurement(item, str(name)) for name, item in value.items()}
    return {objective_name: _measurement(value, objective_name)}


def _measurement(value: Any, name: str) -> Measurement:
    number = _number(value)
    if number is not None:
        return Measurement(number)
    if isinstance(value, tuple) and len(value) == 2:
        mean, sem = _number(value[0]), _number(value[1])
        if mean is not None and (sem is not None or value[1] is None):
            # upstream's Ax reads a standard error of nan as an unknown one
            return Measurement(mean, None if sem is None or math.isnan(sem) else sem)
    if isinstance(value, list) and value:
        numbers = [_number(item) for item in value]
        if all(item is not None for item in numbers):
            return over_replicates([item for item in numbers if item is not None])
    raise SweepError(f"The task returned {value!r} as `{name}`; expected {_EXPECTED}.")


def _number(value: Any) -> float | None:
    if isinstance(value, bool | str | list | tuple | Mapping) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value)
    # numpy and torch scalars, without importing either
    item = getattr(value, "item", None)
    if callable(item):
        try:
            return _number(item())
        except (ValueError, RuntimeError):
            return None
    return None


def paired_sem(table: Sequence[Sequence[float]]) -> float | None:
    """Standard error of a trial's mean once what all trials share in a replicate is taken out.

    The residual of a two-way table (trials x replicates) after its trial and replicate means: a fold that is
    hard for every trial is no noise when trials are compared on the same folds.

    Returns:
        One value for all trials, or None where the table has fewer than two rows or columns.
    """
    num_trials, num_replicates = len(table), len(table[0]) if table else 0
    if num_trials < 2 or num_replicates < 2:
        return None
    trial_means = [math.fsum(row) / num_replicates for row in table]
    replicate_means = [math.fsum(row[f] for row in table) / num_trials for f in range(num_replicates)]
    grand = math.fsum(trial_means) / num_trials
    squares = math.fsum(
        (row[f] - trial_means[t] - replicate_means[f] + grand) ** 2
        for t, row in enumerate(table)
        for f in range(num_replicates)
    )
    residual_variance = squares / ((num_trials - 1) * (num_replicates - 1))
    return math.sqrt(residual_variance / num_replicates)


def _combined(shared: float | None, own: float | None) -> float | None:
    return None if shared is None or own is None else math.hypot(shared, own)


def observations(
    measured: Sequence[Measurement], mode: NoiseMode | None, is_noisy: bool
) -> list[tuple[float, float | None]]:
    """Mean and standard error of each trial as Ax is to see them. None is an unknown error.

    Known and unknown errors are never mixed, which Ax cannot handle: one unknown makes all unknown.

    Args:
        measured: One metric, trial by trial.
        mode: `inferred`: unknown, Ax estimates one noise level. `sem`: each trial's own. `paired`: see
            `paired_sem`. `none`: exact values. None: `sem` where the task gave a standard error with each mean,
            otherwise by `is_noisy`.
        is_noisy: Whether a value without standard error is noisy.
    """
    if mode is None:
        whole = [m for m in measured if not m.is_forecast]
        gave_sem = all(m.sem is not None and m.replicates is None for m in whole)
        mode = "sem" if gave_sem else "inferred" if is_noisy else "none"
    sems: list[float | None]
    if mode == "none":
        sems = [0.0] * len(measured)
    elif mode == "sem":
        sems = [m.sem for m in measured]
    elif mode == "paired":
        table = [m.replicates or () for m in measured if not m.is_forecast]
        shared = paired_sem(table) if len({len(row) for row in table}) == 1 else None
        sems = [_combined(shared, m.sem) if m.is_forecast else shared for m in measured]
    else:
        sems = [None] * len(measured)
    if any(sem is None for sem in sems):
        sems = [None] * len(sems)
    return [(m.mean, sem) for m, sem in zip(measured, sems, strict=True)]
