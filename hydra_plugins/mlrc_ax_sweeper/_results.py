"""Files for people and scripts, derived from the ledger: `optimization_results.yaml` and `trials.csv`."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mlrc_sweeper.state import SearchState, Trial

from ._problem import Problem


def write_results(problem: Problem, state: SearchState, directory: Path) -> dict[str, Any]:
    """Write both files anew.

    Returns:
        The best parameters, with those that all trials share; empty where no trial was completed.
    """
    best = problem.best(state.trials)
    parameters = {} if best is None else {**problem.space.shared, **best.parameters}
    finished = None if state.finished is None else state.finished["cause"]
    results: dict[str, Any] = {"optimizer": "ax", "ax": parameters}
    if problem.is_multi_objective:
        results["pareto_front"] = [
            {"trial": t.index, "values": problem.means(t), "parameters": t.parameters}
            for t in pareto_front(problem, state)
        ]
    results["search"] = {
        "objectives": {name: "minimize" if minimized else "maximize" for name, minimized in problem.objectives.items()},
        "best_trial": None if best is None else best.index,
        "best_values": {} if best is None else problem.means(best),
        "num_completed": state.num_completed,
        "num_failed": state.num_failed,
        "finished": finished,
    }
    write_atomically(directory / "optimization_results.yaml", OmegaConf.to_yaml(OmegaConf.create(results)))
    write_atomically(directory / "trials.csv", trials_csv(problem, state))
    return parameters


def pareto_front(problem: Problem, state: SearchState) -> list[Trial]:
    """Completed, feasible trials that no other one dominates."""
    baseline = problem.baseline(state.trials)
    candidates = [t for t in state.with_status("completed") if problem.is_feasible(t, baseline)]
    scores = {
        t.index: tuple(problem.sign(name) * t.measurements[name].mean for name in problem.objectives)
        for t in candidates
    }

    def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    return [t for t in candidates if not any(dominates(other, scores[t.index]) for other in scores.values())]


def trials_csv(problem: Problem, state: SearchState) -> str:
    """One row a trial: status, parameters, means, replicate values, jobs."""
    names = [parameter.name for parameter in problem.space.tuned]
    metrics = sorted({name for t in state.trials for name in t.measurements} - set(problem.required_metrics))
    metrics = [*problem.required_metrics, *metrics]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["trial", "status", "generator", *names]
        + [column for name in metrics for column in (name, f"{name}/sem", f"{name}/replicates")]
        + ["jobs", "seconds", "reason"]
    )
    for trial in state.trials:
        row: list[Any] = [
            trial.index,
            trial.status,
            trial.generator,
            *(trial.parameters.get(n, "") for n in names),
        ]
        for name in metrics:
            measured = trial.measurements.get(name)
            if measured is None:
                row += ["", "", ""]
            else:
                row += [
                    measured.mean,
                    _blank(measured.sem),
                    " ".join(repr(v) for v in measured.replicates or ()),
                ]
        writer.writerow([*row, " ".join(map(str, trial.jobs)), round(trial.seconds, 3), trial.reason or ""])
    return buffer.getvalue()


def write_atomically(path: Path, text: str) -> None:
    """Replace the file in one step. A reader sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _blank(value: float | None) -> float | str:
    return "" if value is None else value
