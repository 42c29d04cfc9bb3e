"""A problem from a command line, without Hydra's start."""

from collections.abc import Callable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from hydra_plugins.mlrc_ax_sweeper._measurements import read_return_value
from hydra_plugins.mlrc_ax_sweeper._problem import Problem, build_problem
from hydra_plugins.mlrc_ax_sweeper._suggest import suggest
from hydra_plugins.mlrc_ax_sweeper.config import MLRCAxSweeperConf
from mlrc_sweeper.state import Trial


def make_problem(*lines: str, **settings: Any) -> Problem:
    sweeper = OmegaConf.merge(OmegaConf.structured(MLRCAxSweeperConf), settings)
    config = OmegaConf.create({"hydra": {"sweeper": sweeper}})
    return build_problem(config, OverridesParser.create().parse_overrides(list(lines)))


def simulate(problem: Problem, task: Callable[[dict[str, Any]], Any], num_trials: int, seed: int = 0) -> list[Trial]:
    """A search without jobs or files; `task` may return what a Hydra task may, None for a failure."""
    trials: list[Trial] = []
    for index in range(num_trials):
        suggestion = suggest(problem, seed, trials)
        trial = Trial(index, suggestion.parameters, suggestion.generator)
        value = task(suggestion.parameters)
        trial.status = "failed" if value is None else "completed"
        if value is not None:
            trial.results[0] = read_return_value(value, problem.objective)
        trials.append(trial)
    return trials
