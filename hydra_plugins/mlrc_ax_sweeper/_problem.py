"""What one search is: its space, goal and settings, checked, and compared with the ledger's on resume."""

import dataclasses
import hashlib
import itertools
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlrc_sweeper.state import Trial

from ._constraints import OutcomeConstraint, parse_constraint
from ._errors import SweepError
from ._measurements import NoiseMode
from ._search_space import SearchSpace, bare_name, build_search_space, to_override_text
from .config import MLRCAxSweeperConf

METHODS = ("fast", "sobol", "random", "grid")
NOISE_MODES = ("inferred", "sem", "paired", "none")
LEDGER_FORMAT = 1
_SEED_BITS = 31


@dataclass(frozen=True)
class Problem:
    """A search as the config and the command line describe it."""

    settings: MLRCAxSweeperConf
    space: SearchSpace
    # metric name and whether it is minimised; more than one: a Pareto search
    objectives: Mapping[str, bool]
    constraints: tuple[OutcomeConstraint, ...]
    replicates: tuple[tuple[str, ...], ...]
    # points to try before any that is proposed, status quo first
    first_points: tuple[dict[str, Any], ...]

    @property
    def objective(self) -> str:
        """The (first) objective."""
        return next(iter(self.objectives))

    @property
    def is_multi_objective(self) -> bool:
        """Whether there is a Pareto front instead of a best trial."""
        return len(self.objectives) > 1

    @property
    def noise(self) -> NoiseMode | None:
        """The mode by which Ax is told of noise."""
        return cast(NoiseMode | None, self.settings.noise)

    @property
    def initialization_budget(self) -> int:
        """Start-up trials, at least one: a model needs a value."""
        budget = self.settings.generation.initialization_budget
        return 5 if budget is None else max(1, budget)

    @property
    def required_metrics(self) -> tuple[str, ...]:
        """Metrics that every trial must return."""
        named = [metric for constraint in self.constraints for metric in constraint.metrics]
        return tuple(dict.fromkeys([*self.objectives, *named]))

    def sign(self, metric: str) -> float:
        """Factor that makes larger better."""
        return -1.0 if self.objectives[metric] else 1.0

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The completed trial with the best objective that violates no outcome constraint."""
        baseline = self.baseline(trials)
        candidates = [t for t in trials if t.status == "completed" and self.is_feasible(t, baseline)]
        if not candidates:
            return None
        return max(candidates, key=lambda t: self.sign(self.objective) * t.measurements[self.objective].mean)

    def baseline(self, trials: Sequence[Trial]) -> dict[str, float] | None:
        """Means of the status quo, which is the first trial where there is one."""
        if self.settings.ax_config.experiment.status_quo is None or not trials:
            return None
        is_measured = set(self.required_metrics) <= trials[0].measurements.keys()
        return self.means(trials[0]) if trials[0].status == "completed" and is_measured else None

    def means(self, trial: Trial) -> dict[str, float]:
        """The trial's means of the metrics that the search needs."""
        return {name: trial.measurements[name].mean for name in self.required_metrics}

    def is_feasible(self, trial: Trial, baseline: Mapping[str, float] | None) -> bool:
        """Whether the trial's means meet every outcome constraint. One that lacks a mean meets none."""
        if not set(self.required_metrics) <= trial.measurements.keys():
            return False
        means = self.means(trial)
        return all(constraint.holds(means, baseline) for constraint in self.constraints)

    def signature(self) -> dict[str, Any]:
        """What a resumed search must have in common with its ledger, as JSON."""
        experiment = self.settings.ax_config.experiment
        generation = self.settings.generation
        fields = {
            "search space": self.space.signature(),
            "objective": {name: "minimize" if minimized else "maximize" for name, minimized in self.objectives.items()},
            "seed": self.settings.ax_config.client.random_seed,
            "parameter constraints": list(experiment.parameter_constraints or ()),
            "outcome constraints": list(experiment.outcome_constraints or ()),
            "status quo": experiment.status_quo,
            "replicates": [list(combination) for combination in self.replicates],
            "racing": dataclasses.asdict(self.settings.racing),
            "noise": self.settings.noise,
            "is_noisy": self.settings.ax_config.is_noisy,
            "generation": {
                "method": generation.method,
                "initialization_budget": self.initialization_budget,
                "initialize_with_center": generation.initialize_with_center,
            },
            "first points": list(self.first_points),
        }
        return cast(dict[str, Any], json.loads(json.dumps(fields)))

    def max_failures(self) -> int:
        """Failed trials that the search survives."""
        allowed = self.settings.max_failures
        return math.ceil(allowed * self.settings.ax_config.max_trials - 1e-9) if allowed < 1 else int(allowed)


def build_problem(config: DictConfig, overrides: Sequence[Override]) -> Problem:
    """Read and check the settings of one search.

    Args:
        config: The composed config of the search, with `hydra.sweeper`.
        overrides: Its command line, parsed, without the sweeps that made it one of several searches.
    """
    settings = read_settings(config)
    experiment = settings.ax_config.experiment
    objectives = _objectives(settings)
    replicate_values = _replicate_values(settings)
    replicated = {bare_name(name) for name in replicate_values}
    for override in overrides:
        if override.key_or_group in replicated:
            raise SweepError(
                f"`{override.input_line}` is on the command line, and `hydra.sweeper.replicates` sets "
                f"`{override.key_or_group}` for every trial. Remove one of the two."
            )
    racing_needs = replicate_values and len(objectives) == 1 and not experiment.outcome_constraints
    if settings.racing.enabled and not racing_needs:
        raise SweepError(
            "`hydra.sweeper.racing` compares a trial's first replicates with those of other trials, by one number: "
            "it needs `hydra.sweeper.replicates`, a single objective and no outcome constraints."
        )
    space = build_search_space(settings.ax_config.params, overrides, settings.refused_dimensions)
    replicates = tuple(
        tuple(f"{name}={to_override_text(value)}" for name, value in zip(replicate_values, values, strict=True))
        for values in itertools.product(*replicate_values.values())
    )
    constraints = tuple(parse_constraint(text) for text in experiment.outcome_constraints or ())
    if experiment.status_quo is None and any(constraint.is_relative for constraint in constraints):
        raise SweepError(
            "An outcome constraint relative to `baseline` needs the baseline's parameters in "
            "`hydra.sweeper.ax_config.experiment.status_quo`."
        )
    first = [*([experiment.status_quo] if experiment.status_quo else []), *settings.generation.initialization]
    return Problem(
        settings=settings,
        space=space,
        objectives=objectives,
        constraints=constraints,
        replicates=replicates,
        first_points=tuple(_checked_point(point, space) for point in first),
    )


def _replicate_values(settings: MLRCAxSweeperConf) -> dict[str, list[Any]]:
    replicates = settings.replicates
    if replicates is None:
        return {}
    if not isinstance(replicates, dict) or not all(isinstance(v, list) and v for v in replicates.values()):
        raise SweepError(
            "`hydra.sweeper.replicates`: expected overrides with lists of values, e.g. {seed: [0, 1, 2]}; "
            f"found {replicates!r}."
        )
    return {str(name): values for name, values in replicates.items()}


def read_settings(config: DictConfig) -> MLRCAxSweeperConf:
    """The typed settings under `hydra.sweeper`, interpolations into the app's config resolved."""
    try:
        plain = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(MLRCAxSweeperConf), plain))
    except OmegaConfBaseException as error:
        raise SweepError(f"`hydra.sweeper` cannot be read: {error}") from error
    settings = cast(MLRCAxSweeperConf, typed)
    checks = [
        (
            settings.ax_config.max_trials >= 1,
            "ax_config.max_trials",
            "at least 1",
            settings.ax_config.max_trials,
        ),
        (settings.retries >= 0, "retries", "at least 0", settings.retries),
        (settings.max_failures >= 0, "max_failures", "at least 0", settings.max_failures),
        (
            settings.n_parallel is None or settings.n_parallel >= 1,
            "n_parallel",
            "at least 1",
            settings.n_parallel,
        ),
        (
            settings.max_batch_size is None or settings.max_batch_size >= 1,
            "max_batch_size",
            "at least 1",
            settings.max_batch_size,
        ),
        (
            settings.generation.method in METHODS,
            "generation.method",
            " | ".join(METHODS),
            settings.generation.method,
        ),
        (
            settings.noise is None or settings.noise in NOISE_MODES,
            "noise",
            " | ".join(NOISE_MODES),
            settings.noise,
        ),
    ]
    for holds, key, expected, found in checks:
        if not holds:
            raise SweepError(f"`hydra.sweeper.{key}`: expected {expected}, found {found!r}.")
    return settings


def _objectives(settings: MLRCAxSweeperConf) -> dict[str, bool]:
    experiment = settings.ax_config.experiment
    if not experiment.objectives:
        return {experiment.objective_name: experiment.minimize}
    for name, direction in experiment.objectives.items():
        if direction not in ("minimize", "maximize"):
            raise SweepError(
                f"`hydra.sweeper.ax_config.experiment.objectives.{name}`: expected minimize or maximize, "
                f"found {direction!r}."
            )
    return {name: direction == "minimize" for name, direction in experiment.objectives.items()}


def _checked_point(point: Any, space: SearchSpace) -> dict[str, Any]:
    if not isinstance(point, Mapping):
        raise SweepError(f"A point to try first must be a mapping of parameters to values, found {point!r}.")
    given = {bare_name(str(name)): value for name, value in point.items()}
    values: dict[str, Any] = {}
    for parameter in space.tuned:
        key = bare_name(parameter.name)
        if key in given:
            value = given[key]
            if parameter.value_type == "float" and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if not parameter.contains(value):
                raise SweepError(
                    f"A point to try first has `{key}` = {value!r}, which is outside the search space: "
                    f"{parameter.describe()}."
                )
            values[parameter.name] = value
    missing = [p.name for p in space.active(values) if p.name not in values]
    unknown = set(given) - {bare_name(p.name) for p in space.parameters}
    if missing or unknown:
        raise SweepError(
            f"A point to try first must name every tuned parameter and no other: {given} "
            f"lacks {missing or 'none'}, has in excess {sorted(unknown) or 'none'}."
        )
    return {p.name: values[p.name] for p in space.active(values)}


def new_header(problem: Problem, versions: Mapping[str, str], created: str) -> dict[str, Any]:
    """The ledger's first record. Draws a seed where the user gave none."""
    signature = problem.signature()
    seed = signature["seed"]
    return {
        "format": LEDGER_FORMAT,
        "created": created,
        "versions": dict(versions),
        "max_trials": problem.settings.ax_config.max_trials,
        "seed": secrets.randbits(_SEED_BITS) if seed is None else seed,
        "signature": signature,
    }


def check_resume(problem: Problem, header: Mapping[str, Any], where: str) -> None:
    """Refuse to continue a search with another one's settings.

    Raises:
        SweepError: With the differences.
    """
    if header.get("format") != LEDGER_FORMAT:
        raise SweepError(
            f"The ledger in {where} has format {header.get('format')}, expected {LEDGER_FORMAT}: it was "
            "written by "
            "another version of the sweeper. Continue it with that version, or choose another "
            "`hydra.sweep.dir`."
        )
    free = {bare_name(name) for name in problem.settings.free_on_resume}

    def parts(signature: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in signature.items():
            if isinstance(value, dict):
                found.update({f"{key}, {name}": item for name, item in value.items()})
            else:
                found[key] = value
        return {key: value for key, value in found.items() if bare_name(key.partition(", ")[2]) not in free}

    old, new = parts(header["signature"]), parts(problem.signature())
    differences = [
        f"  {key}: {_shown(old, key)} in the ledger, {_shown(new, key)} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, ...) != new.get(key, ...)
    ]
    if differences:
        raise SweepError(
            f"The search in {where} was begun with other settings, and continuing it would mix two "
            "searches:\n"
            + "\n".join(differences)
            + "\nRepeat the original command, or choose another `hydra.sweep.dir` "
            "(`hydra.sweeper.free_on_resume` names fixed overrides that may differ)."
        )


def _shown(fields: Mapping[str, Any], key: str) -> str:
    return json.dumps(fields[key]) if key in fields else "(not there)"


def problem_from_header(header: Mapping[str, Any]) -> Problem:
    """The search as its ledger knows it, for plots: neither the app nor its config is needed."""
    signature = header["signature"]
    params: dict[str, Any] = {}
    for name, fields in signature["search space"].items():
        if not name.startswith("("):
            entry = {key: value for key, value in fields.items() if key != "value_type"}
            if entry["type"] == "fixed":
                entry["value"] = entry.pop("values")[0]
            elif entry["type"] == "choice" and "dependents" in entry:
                by_text = {str(value): value for value in entry["values"]}
                entry["dependents"] = {by_text[text]: names for text, names in entry["dependents"].items()}
            params[name] = entry
    experiment = {
        "objectives": signature["objective"],
        "parameter_constraints": signature["parameter constraints"],
        "outcome_constraints": signature["outcome constraints"],
        "status_quo": signature["status quo"],
    }
    ax_config = {"params": params, "experiment": experiment, "is_noisy": signature["is_noisy"]}
    sweeper = {
        "ax_config": {**ax_config, "max_trials": header["max_trials"]},
        "noise": signature["noise"],
        "generation": signature["generation"],
    }
    merged = OmegaConf.merge(OmegaConf.structured(MLRCAxSweeperConf), sweeper)
    return build_problem(OmegaConf.create({"hydra": {"sweeper": merged}}), [])


def derived_seed(seed: int, index: int) -> int:
    """A seed for one purpose, unrelated to its neighbours'."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
