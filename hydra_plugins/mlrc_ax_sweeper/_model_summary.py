"""What Ax's model has learned from a search, as plain numbers: slices, sensitivity, cross-validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlrc_sweeper.state import Trial, Value

from ._ax import ax_parameter_sens, cross_validate
from ._generation import attach, ax_metric_names, ax_parameter_names, quiet_single_thread
from ._problem import Problem
from ._search_space import Parameter

_SLICE_POINTS = 60
_CONTOUR_POINTS = 25


@dataclass(frozen=True)
class Slice:
    """Predictions along one parameter, the others as in the best trial."""

    parameter: Parameter
    values: list[Value]
    means: list[float]
    standard_errors: list[float]


@dataclass(frozen=True)
class Contour:
    """Predictions over two parameters, the others as in the best trial. `means` has a row for each y."""

    x: Parameter
    y: Parameter
    x_values: list[Value]
    y_values: list[Value]
    means: list[list[float]]


@dataclass(frozen=True)
class ModelSummary:
    """All of it, for the first objective."""

    slices: list[Slice]
    contour: Contour | None
    # share of the prediction's variance that goes away when the parameter is known, interactions included
    sensitivity: dict[str, float]
    # trial index, observed mean, prediction without that trial and its standard error
    left_out: list[tuple[int, float, float, float]]


def summarize_model(problem: Problem, trials: Sequence[Trial], best: Trial) -> ModelSummary:
    """Fit the model that the next suggestion would use, and ask it."""
    with quiet_single_thread(verbose=False):
        client = attach(problem, trials, random_seed=0)
        client.configure_generation_strategy(method="fast", initialization_budget=0, initialize_with_center=False)
        node = client._generation_strategy.current_node
        node._fit(experiment=client._experiment)
        adapter = client._generation_strategy.adapter
        assert adapter is not None
        names, metric = ax_parameter_names(problem), ax_metric_names(problem)[problem.objective]

        def predict(points: Sequence[dict[str, Value]]) -> list[tuple[float, float]]:
            predicted = client.predict([{names[name]: value for name, value in p.items()} for p in points])
            return [(float(entry[metric][0]), float(entry[metric][1])) for entry in predicted]

        active = problem.space.active(best.parameters)
        slices = [_slice(parameter, best, predict) for parameter in active]
        sensitivity = _sensitivity(problem, adapter, metric)
        ranges = sorted(
            (p for p in active if p.kind == "range"), key=lambda p: sensitivity.get(p.name, 0.0), reverse=True
        )
        contour = _contour(ranges[0], ranges[1], best, predict) if len(ranges) > 1 else None
        left_out = [_left_out(result, metric) for result in cross_validate(adapter)]
    return ModelSummary(slices, contour, sensitivity, left_out)


def _slice(parameter: Parameter, best: Trial, predict: Any) -> Slice:
    values = _values_along(parameter, _SLICE_POINTS)
    predicted = predict([{**best.parameters, parameter.name: value} for value in values])
    return Slice(parameter, values, [mean for mean, _ in predicted], [error for _, error in predicted])


def _contour(x: Parameter, y: Parameter, best: Trial, predict: Any) -> Contour:
    x_values, y_values = _values_along(x, _CONTOUR_POINTS), _values_along(y, _CONTOUR_POINTS)
    points = [{**best.parameters, x.name: a, y.name: b} for b in y_values for a in x_values]
    means = [mean for mean, _ in predict(points)]
    rows = [means[i : i + len(x_values)] for i in range(0, len(means), len(x_values))]
    return Contour(x, y, x_values, y_values, rows)


def _values_along(parameter: Parameter, number: int) -> list[Value]:
    grid = parameter.grid()
    if grid is not None:
        stride = max(1, len(grid) // number)
        return list(grid[::stride])
    assert parameter.bounds is not None
    lower, upper = parameter.bounds
    shares = [index / (number - 1) for index in range(number)]
    if parameter.log_scale:
        return [min(max(lower * (upper / lower) ** share, lower), upper) for share in shares]
    return [min(lower + share * (upper - lower), upper) for share in shares]


def _sensitivity(problem: Problem, adapter: Any, metric: str) -> dict[str, float]:
    names = ax_parameter_names(problem)
    found = dict.fromkeys(names, 0.0)
    for key, value in ax_parameter_sens(adapter, order="total", signed=False)[metric].items():
        # a choice without order is several columns to the model
        column = str(key).partition("_OH_PARAM_")[0]
        owner = next(name for name, ax_name in names.items() if ax_name == column)
        found[owner] += max(0.0, float(value))
    return found


def _left_out(result: Any, metric: str) -> tuple[int, float, float, float]:
    position = list(result.observed.data.metric_signatures).index(metric)
    error = float(result.predicted.covariance[position, position]) ** 0.5
    observed, predicted = float(result.observed.data.means[position]), float(result.predicted.means[position])
    return int(result.observed.features.trial_index), observed, predicted, error
