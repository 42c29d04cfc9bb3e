"""Suggestions by Ax: a new client for each, to which the ledger's trials are attached."""

import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from mlrc_sweeper.measurements import Measurement
from mlrc_sweeper.state import Trial, Value

from ._ax import (
    CenterGenerationNode,
    ChoiceParameterConfig,
    Client,
    Data,
    DataRow,
    GenerationNode,
    GenerationStrategy,
    Generators,
    GeneratorSpec,
    RangeParameterConfig,
    SearchSpaceExhausted,
    torch,
)
from ._errors import SpaceExhaustedError
from ._measurements import observations
from ._problem import Problem, derived_seed
from ._search_space import Parameter, bare_name

log = logging.getLogger(__name__)


def suggest_from_ax(problem: Problem, seed: int, trials: Sequence[Trial]) -> tuple[dict[str, Value], str]:
    """Ax's suggestion and the name of the generator that made it.

    Raises:
        SpaceExhaustedError: Ax finds no point that has not been tried.
    """
    with quiet_single_thread(problem.settings.ax_config.client.verbose_logging):
        return _from_ax(problem, seed, trials)


def _from_ax(problem: Problem, seed: int, trials: Sequence[Trial]) -> tuple[dict[str, Value], str]:
    index = len(trials)
    # the same seed each time, as in a client that lives as long as the search: with it, and the same trials, the
    # model's suggestions are that client's, bit for bit
    client = attach(problem, trials, random_seed=seed)
    method = problem.settings.generation.method
    if method == "random":
        spec = GeneratorSpec(Generators.UNIFORM, generator_kwargs={"seed": derived_seed(seed, index)})
        client.set_generation_strategy(_single_node_strategy("Uniform", spec))
        return _next_of(client, problem)
    if method == "fast" and not is_start_up(problem, trials):
        client.configure_generation_strategy(method="fast", initialization_budget=0, initialize_with_center=False)
        try:
            return _next_of(client, problem)
        except SpaceExhaustedError:
            raise
        except Exception as error:
            # numerical trouble of one model should not end a search of days; the next trial has other data
            log.warning("The model failed for trial %d, which comes from the Sobol sequence: %s", index, error)
            client = attach(problem, trials, random_seed=seed)
    if method == "fast" and not trials and problem.settings.generation.initialize_with_center:
        client.set_generation_strategy(_center_strategy())
        return _next_of(client, problem)
    # one sequence for the whole search: its points are spread evenly only together. Its seed follows from the
    # client's, as in Ax
    position = sum(trial.generator == "Sobol" for trial in trials)
    spec = GeneratorSpec(Generators.SOBOL, generator_kwargs={"init_position": position})
    client.set_generation_strategy(_single_node_strategy("Sobol", spec))
    return _next_of(client, problem)


def _next_of(client: Client, problem: Problem) -> tuple[dict[str, Value], str]:
    """The next trial of the client's own strategy, and the generator's name."""
    try:
        suggested = client.get_next_trials(max_trials=1)
    except SearchSpaceExhausted as error:
        raise SpaceExhaustedError from error
    if not suggested:
        raise SpaceExhaustedError
    (index, values), *_ = suggested.items()
    return _from_ax_values(problem, values), _generator_name(client._experiment.trials[index].generator_runs[0])


def is_start_up(problem: Problem, trials: Sequence[Trial]) -> bool:
    """Whether the next trial still comes from the Sobol sequence.

    As in Ax: until `initialization_budget` trials are done or under way, of which at least half are done;
    failed ones are replaced.
    """
    alive = [trial for trial in trials if trial.status != "failed"]
    observed = [trial for trial in trials if trial.status == "completed"]
    budget = problem.initialization_budget
    return len(alive) < budget or len(observed) < max(1, budget // 2)


def attach(problem: Problem, trials: Sequence[Trial], random_seed: int | None = None) -> Client:
    """A new Ax client that knows the search and all its trials.

    Failed trials are abandoned, which keeps Ax away from their points without telling it a value; open ones
    are pending.
    """
    names = ax_parameter_names(problem)
    experiment = problem.settings.ax_config.experiment
    bare = {bare_name(name): ax_name for name, ax_name in names.items()}
    client = Client(random_seed=random_seed)
    client.configure_experiment(
        parameters=[_ax_parameter(p, names) for p in problem.space.tuned],
        parameter_constraints=[_rename(text, bare) for text in experiment.parameter_constraints or ()],
        name=experiment.name,
    )
    metrics = ax_metric_names(problem)
    client.configure_optimization(
        objective=", ".join(
            f"-{metrics[m]}" if minimized else metrics[m] for m, minimized in problem.objectives.items()
        ),
        outcome_constraints=[_rename(text, metrics) for text in experiment.outcome_constraints or ()] or None,
    )
    for trial in trials:
        parameters = {names[name]: value for name, value in trial.parameters.items()}
        is_baseline = trial.index == 0 and experiment.status_quo is not None
        ax_index = client.attach_baseline(parameters) if is_baseline else client.attach_trial(parameters)
        assert ax_index == trial.index
        if trial.status == "failed":
            client.mark_trial_abandoned(ax_index)
    rows = _data_rows(problem, trials, client)
    if rows:
        # all at once: telling the client trial by trial takes longer than the suggestion itself
        client._experiment.attach_data(Data(data_rows=rows))
        for index in {row.trial_index for row in rows}:
            client._experiment.trials[index].mark_completed()
    return client


def _data_rows(problem: Problem, trials: Sequence[Trial], client: Client) -> list[DataRow]:
    """What `Client.complete_trial` would have attached, for every trial that has something to tell."""
    told = [trial for trial in trials if trial.status in ("completed", "raced_out")]
    rows = []
    for metric, ax_name in ax_metric_names(problem).items():
        measured = [_measured(trial, metric) for trial in told]
        seen = observations(measured, problem.noise, problem.settings.ax_config.is_noisy)
        for trial, (mean, sem) in zip(told, seen, strict=True):
            (arm,) = client._experiment.trials[trial.index].arms
            rows.append(
                DataRow(
                    trial_index=trial.index,
                    arm_name=arm.name,
                    metric_name=ax_name,
                    metric_signature=client._experiment.metrics[ax_name].signature,
                    mean=mean,
                    se=math.nan if sem is None else sem,
                    step=math.nan,
                )
            )
    return rows


def _measured(trial: Trial, metric: str) -> Measurement:
    """The trial's measurement, or the forecast of one that lost a race."""
    if trial.forecast is None:
        return trial.measurements[metric]
    mean, standard_error = trial.forecast
    return Measurement(mean, standard_error, is_forecast=True)


def _ax_parameter(parameter: Parameter, names: Mapping[str, str]) -> RangeParameterConfig | ChoiceParameterConfig:
    if parameter.kind == "range" and parameter.step_size is None:
        assert parameter.bounds is not None
        return RangeParameterConfig(
            name=names[parameter.name],
            bounds=parameter.bounds,
            parameter_type=cast(Any, parameter.value_type),
            scaling="log" if parameter.log_scale else None,
        )
    dependents = {
        value: [names[name] for name in group if name in names] for value, group in parameter.dependents.items()
    }
    return ChoiceParameterConfig(
        name=names[parameter.name],
        values=cast(Any, list(parameter.grid() or ())),
        parameter_type=parameter.value_type,
        is_ordered=parameter.is_ordered or parameter.step_size is not None,
        dependent_parameters=cast(Any, dependents) or None,
    )


def ax_parameter_names(problem: Problem) -> dict[str, str]:
    """Names without the dots, slashes and plus signs that Ax's expressions would trip over."""
    return {parameter.name: f"p{position}" for position, parameter in enumerate(problem.space.tuned)}


def ax_metric_names(problem: Problem) -> dict[str, str]:
    """Ax's names of the metrics it is told."""
    return {metric: f"m{position}" for position, metric in enumerate(problem.required_metrics)}


def _rename(text: str, names: Mapping[str, str]) -> str:
    by_length = sorted(names, key=len, reverse=True)
    pattern = "|".join(rf"(?<![\w.]){re.escape(name)}(?![\w.])" for name in by_length)
    return re.sub(pattern, lambda match: names[match[0]], text) if pattern else text


def _from_ax_values(problem: Problem, values: Mapping[str, Any]) -> dict[str, Value]:
    """Ax's point under the parameters' own names, in plain Python types (Ax may return NumPy's)."""
    plain: dict[str, Value] = {}
    names = ax_parameter_names(problem)
    for parameter in problem.space.tuned:
        if names[parameter.name] in values:
            value = values[names[parameter.name]]
            grid = parameter.grid()
            if grid is None:
                assert parameter.bounds is not None
                plain[parameter.name] = min(max(float(value), parameter.bounds[0]), parameter.bounds[1])
            elif parameter.value_type == "int":
                plain[parameter.name] = int(value)
            elif parameter.value_type == "float":
                plain[parameter.name] = min(cast(Sequence[float], grid), key=lambda known: abs(known - value))
            else:
                plain[parameter.name] = bool(value) if parameter.value_type == "bool" else str(value)
    return {p.name: plain[p.name] for p in problem.space.active(plain)}


def _generator_name(run: Any) -> str:
    key = str(run._generator_key)
    used = (run.gen_metadata or {}).get("models_used") or []
    models = sorted({str(model) for entry in used for model in entry.values()})
    return f"{key} ({', '.join(models)})" if models else key


def _center_strategy() -> GenerationStrategy:
    """The centre of the search space, with which Ax begins."""
    sobol = GenerationNode(name="Sobol", generator_specs=[GeneratorSpec(Generators.SOBOL)])
    return GenerationStrategy(name="Center", nodes=[CenterGenerationNode(next_node_name="Sobol"), sobol])


def _single_node_strategy(name: str, spec: GeneratorSpec) -> GenerationStrategy:
    return GenerationStrategy(
        name=name, nodes=[GenerationNode(name=name, generator_specs=[spec], should_deduplicate=True)]
    )


@contextmanager
def quiet_single_thread(verbose: bool) -> Iterator[None]:
    """Run Ax with one torch thread and, unless `verbose`, without its log lines and warnings."""
    with _one_thread(), _quiet(verbose):
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread: the models are tiny, and a pool of threads makes each step 10 to 20 times slower.

    Training in the same process gets its threads back.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Ax's own log lines and numerical warnings, unless asked for."""
    if verbose:
        yield
        return
    logger = logging.getLogger("ax")
    levels = {name: logging.getLogger(name).level for name in _ax_loggers()}
    before = logger.level
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _ax_loggers() -> list[str]:
    return [name for name in logging.root.manager.loggerDict if name.startswith("ax.")]
