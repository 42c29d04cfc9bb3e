"""Suggestions: a trial as a function of the search, its seed, the trial's index and the trials before it.

Nothing else is carried from one suggestion to the next, so a search that was killed goes on as if it had not
been. Ax is imported only where it is asked.
"""

import itertools
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from mlrc_sweeper.state import Trial, Value

from ._errors import SpaceExhaustedError, SweepError
from ._problem import Problem

_MAX_GRID = 100_000


@dataclass(frozen=True)
class Suggestion:
    """A trial to run."""

    parameters: dict[str, Value]
    # e.g. "Sobol", "BoTorch"
    generator: str
    seconds: float


def suggest(problem: Problem, seed: int, trials: Sequence[Trial]) -> Suggestion:
    """The next trial.

    Args:
        problem: The search.
        seed: The search's seed, from its ledger.
        trials: All trials so far in order of their index, open ones included.

    Raises:
        SpaceExhaustedError: Every point of a discrete space has been tried.
    """
    begin = time.perf_counter()
    parameters, generator = _choose(problem, seed, trials)
    return Suggestion(parameters, generator, time.perf_counter() - begin)


def _choose(problem: Problem, seed: int, trials: Sequence[Trial]) -> tuple[dict[str, Value], str]:
    index = len(trials)
    if index < len(problem.first_points):
        return dict(problem.first_points[index]), "explicit point"
    if not problem.space.tuned:
        if index:
            raise SpaceExhaustedError
        # a choice of one value is a parameter all the same: more values may be added later
        return {p.name: p.values[0] for p in problem.space.parameters if p.kind == "choice"}, "no tuned parameter"
    num_points = problem.space.num_points()
    if num_points is not None and len({_key(trial.parameters) for trial in trials}) >= num_points:
        raise SpaceExhaustedError
    if problem.settings.generation.method == "grid":
        return _next_of_grid(problem, seed, trials), "grid"
    from ._generation import suggest_from_ax

    return suggest_from_ax(problem, seed, trials)


def _next_of_grid(problem: Problem, seed: int, trials: Sequence[Trial]) -> dict[str, Value]:
    """The next untried point of a discrete space, in an order that the seed shuffles unless asked not to."""
    grids = [parameter.grid() for parameter in problem.space.tuned]
    if any(grid is None for grid in grids):
        continuous = [p.name for p in problem.space.tuned if p.grid() is None]
        raise SweepError(
            f"`generation.method=grid` tries every point of a discrete space; {continuous} is continuous. "
            "Use int bounds, a step_size or a choice, or another method."
        )
    number = math.prod(len(grid) for grid in grids if grid is not None)
    if number > _MAX_GRID:
        raise SweepError(f"`generation.method=grid` would have to try {number} points; at most {_MAX_GRID} are taken.")
    tried = {_key(trial.parameters) for trial in trials}
    names = [parameter.name for parameter in problem.space.tuned]
    points = [dict(zip(names, values, strict=True)) for values in itertools.product(*cast(Any, grids))]
    if problem.settings.generation.shuffle_grid:
        random.Random(seed).shuffle(points)
    for point in points:
        active = {p.name: point[p.name] for p in problem.space.active(point)}
        if _key(active) not in tried:
            return active
    raise SpaceExhaustedError


def _key(parameters: Mapping[str, Value]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in parameters.items()))
