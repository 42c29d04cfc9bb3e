"""Plots of a search from its ledger: PNG files, and one HTML page that needs no network."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mlrc_sweeper.ledger import LEDGER_NAME, read
from mlrc_sweeper.state import SearchState, Trial

from ._errors import SweepError
from ._model_summary import ModelSummary, summarize_model
from ._problem import Problem, problem_from_header
from ._results import pareto_front, write_atomically

_MIN_TRIALS_FOR_MODEL = 3
_STYLE = (
    "body{font:15px sans-serif;max-width:1000px;margin:2em auto}"
    "td,th{padding:2px 10px;text-align:right}img{max-width:100%}"
)


def write_report(directory: Path) -> list[Path]:
    """Draw all plots of the search in a directory.

    Returns:
        The files written: `report.html`, and a PNG for each plot.

    Raises:
        SweepError: There is no search, or no completed trial.
    """
    path = directory / LEDGER_NAME
    if not path.exists():
        raise SweepError(f"Expected a ledger at {path}, found none. Name the sweep directory of a search.")
    state = read(path).state
    if state.header is None or not state.num_completed:
        raise SweepError(f"{path}: there is no completed trial to draw yet.")
    problem = problem_from_header(state.header)
    figures: dict[str, tuple[str, Figure]] = {"trace": ("Every trial and the best so far", _trace(problem, state))}
    if problem.is_multi_objective:
        figures["pareto_front"] = ("Pareto front", _pareto(problem, state))
    summary = _model(problem, state)
    if summary is not None:
        figures["slices"] = (
            "The model along each parameter, the others as in the best trial; band: 95 %",
            _slices(problem, state, summary),
        )
        if summary.contour is not None:
            figures["contour"] = (
                "The model over the two parameters that matter most",
                _contour(state, summary),
            )
        figures["sensitivity"] = (
            "Share of the model's variance that each parameter has a part in",
            _sensitivity(summary),
        )
        figures["cross_validation"] = (
            "Each trial as the model predicts it without that trial; bars: 95 %",
            _cross_validation(problem, summary),
        )
    written = [directory / "report.html"]
    images = {}
    for name, (title, figure) in figures.items():
        data = _png(figure)
        images[title] = data
        (directory / f"{name}.png").write_bytes(data)
        written.append(directory / f"{name}.png")
    write_atomically(written[0], _page(problem, state, images))
    return written


def _model(problem: Problem, state: SearchState) -> ModelSummary | None:
    best = problem.best(state.trials)
    has_model = problem.settings.generation.method != "grid" and problem.space.tuned
    if best is None or not has_model or state.num_completed < _MIN_TRIALS_FOR_MODEL:
        return None
    return summarize_model(problem, state.trials, best)


def _trace(problem: Problem, state: SearchState) -> Figure:
    figure, axis = _figure(7, 4)
    completed = state.with_status("completed")
    x = [trial.index for trial in completed]
    y = [trial.measurements[problem.objective].mean for trial in completed]
    best: list[float] = []
    for value in y:
        better = (
            value
            if not best
            else min(best[-1], value)
            if problem.objectives[problem.objective]
            else max(best[-1], value)
        )
        best.append(better)
    axis.plot(x, y, "o", markersize=4, label="trial")
    axis.step(x, best, where="post", label="best so far")
    for trial in state.with_status("failed"):
        axis.axvline(trial.index, color="tab:red", linewidth=0.8, alpha=0.5)
    start_up = sum(trial.generator != "BoTorch" and not trial.generator.startswith("BoTorch") for trial in state.trials)
    if 0 < start_up < len(state.trials):
        axis.axvline(start_up - 0.5, color="grey", linestyle=":", label="first trial of the model")
    axis.set(xlabel="trial (red line: failed)", ylabel=problem.objective)
    axis.legend()
    return figure


def _slices(problem: Problem, state: SearchState, summary: ModelSummary) -> Figure:
    columns = min(3, len(summary.slices))
    rows = -(-len(summary.slices) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    completed = state.with_status("completed")
    for position, part in enumerate(summary.slices, start=1):
        axis = figure.add_subplot(rows, columns, position)
        name = part.parameter.name
        low = [m - 1.96 * e for m, e in zip(part.means, part.standard_errors, strict=True)]
        high = [m + 1.96 * e for m, e in zip(part.means, part.standard_errors, strict=True)]
        with_it = [trial for trial in completed if name in trial.parameters]
        observed = [trial.measurements[problem.objective].mean for trial in with_it]
        if part.parameter.kind == "range":
            axis.plot(part.values, part.means)
            axis.fill_between(part.values, low, high, alpha=0.2)
            axis.plot([trial.parameters[name] for trial in with_it], observed, "k.", markersize=4)
            axis.set_xscale("log" if part.parameter.log_scale else "linear")
        else:
            places = range(len(part.values))
            spans = [1.96 * error for error in part.standard_errors]
            axis.errorbar(places, part.means, yerr=spans, fmt="o", capsize=3)
            spots = [part.values.index(t.parameters[name]) for t in with_it if t.parameters[name] in part.values]
            axis.plot(spots, observed[: len(spots)], "k.", markersize=4)
            axis.set_xticks(list(places), [str(value) for value in part.values], rotation=20)
        axis.set(xlabel=name, ylabel=problem.objective)
    return figure


def _contour(state: SearchState, summary: ModelSummary) -> Figure:
    assert summary.contour is not None
    contour = summary.contour
    figure, axis = _figure(5.5, 4.4)
    drawn = axis.contourf(contour.x_values, contour.y_values, contour.means, levels=20)
    figure.colorbar(drawn, ax=axis)
    points = [t.parameters for t in state.with_status("completed")]
    both = [p for p in points if contour.x.name in p and contour.y.name in p]
    axis.plot([p[contour.x.name] for p in both], [p[contour.y.name] for p in both], "k.", markersize=5)
    axis.set_xscale("log" if contour.x.log_scale else "linear")
    axis.set_yscale("log" if contour.y.log_scale else "linear")
    axis.set(xlabel=contour.x.name, ylabel=contour.y.name)
    return figure


def _sensitivity(summary: ModelSummary) -> Figure:
    ordered = sorted(summary.sensitivity.items(), key=lambda item: item[1])
    figure, axis = _figure(6, 1 + 0.4 * len(ordered))
    axis.barh([name for name, _ in ordered], [value for _, value in ordered])
    axis.set(xlabel="total Sobol index", xlim=(0.0, None))
    return figure


def _cross_validation(problem: Problem, summary: ModelSummary) -> Figure:
    figure, axis = _figure(5, 4.6)
    observed = [row[1] for row in summary.left_out]
    predicted = [row[2] for row in summary.left_out]
    axis.errorbar(
        observed,
        predicted,
        yerr=[1.96 * row[3] for row in summary.left_out],
        fmt="o",
        markersize=4,
        alpha=0.7,
    )
    ends = [min(observed), max(observed)]
    axis.plot(ends, ends, color="grey", linestyle=":")
    axis.set(xlabel=f"observed {problem.objective}", ylabel="predicted")
    return figure


def _pareto(problem: Problem, state: SearchState) -> Figure:
    figure, axis = _figure(5.5, 4.4)
    first, second, *_ = problem.objectives
    front = {trial.index for trial in pareto_front(problem, state)}

    def values(trials: Sequence[Trial], metric: str) -> list[float]:
        return [trial.measurements[metric].mean for trial in trials]

    others = [t for t in state.with_status("completed") if t.index not in front]
    best = sorted((t for t in state.trials if t.index in front), key=lambda t: t.measurements[first].mean)
    axis.plot(values(others, first), values(others, second), "o", color="grey", markersize=4, label="dominated")
    axis.plot(values(best, first), values(best, second), "o-", label="front")
    axis.set(xlabel=first, ylabel=second)
    axis.legend()
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    # no pyplot: the app's own figures and backend stay as they are
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _page(problem: Problem, state: SearchState, images: Mapping[str, bytes]) -> str:
    best = problem.best(state.trials)
    cells = [["trial", "status", *problem.required_metrics, *(p.name for p in problem.space.tuned)]]
    for trial in state.trials:
        means = [trial.measurements[m].mean if m in trial.measurements else "" for m in problem.required_metrics]
        values = [trial.parameters.get(parameter.name, "") for parameter in problem.space.tuned]
        cells.append([_text(cell) for cell in (trial.index, trial.status, *means, *values)])
    rows = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells]
    plots = "".join(
        f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for title, data in images.items()
    )
    summary = f"{state.num_completed} of {state.max_trials} trials done, {state.num_failed} failed."
    if best is not None and not problem.is_multi_objective:
        value = best.measurements[problem.objective].mean
        shown = ", ".join(f"{name} = {_text(v)}" for name, v in best.parameters.items())
        summary += f" Best {problem.objective}: {value:.6g} in trial {best.index}: {shown}."
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Search</title><style>{_STYLE}</style>'
        f"<h1>{html.escape(problem.objective)}</h1><p>{html.escape(summary)}</p>{plots}"
        f"<h2>Trials</h2><table>{''.join(rows)}</table></html>\n"
    )


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
