"""Searches with Ax's models."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

from hydra_plugins.mlrc_ax_sweeper._suggest import suggest
from mlrc_sweeper.state import Trial

from .conftest import ROOT, Sweep
from .problems import make_problem, simulate

TRIALS = "hydra.sweeper.ax_config.max_trials"


def several(slow: int, nightly: int) -> list[Any]:
    """Numbers of trials: the first five have no model, and each further one takes seconds."""
    return [pytest.param(slow, marks=pytest.mark.slow), pytest.param(nightly, marks=pytest.mark.nightly)]


def test_hydra_discovers_the_sweeper() -> None:
    assert "MLRCAxSweeper" in {found.__name__ for found in Plugins.instance().discover(Sweeper)}


@pytest.mark.slow
def test_trials_after_the_start_up_are_model_based_and_find_the_minimum(sweep: Sweep) -> None:
    sweep("loss=b", f"{TRIALS}=24", "behaviour=quadratic")
    generators = [p["generator"].partition(" ")[0] for p in sweep.payloads("proposed", "out/d1/b")]
    assert generators == ["CenterOfSearchSpace"] + ["Sobol"] * 4 + ["BoTorch"] * 19
    results = OmegaConf.load(sweep.folder / "out/d1/b/optimization_results.yaml")
    values = [p["metrics"]["objective"]["mean"] for p in sweep.payloads("result", "out/d1/b")]
    assert results.search.best_values.objective == min(values)
    # margin 0.3 and scale 1 give 0.01. How near it 19 suggestions come depends on the processor and what is below Ax;
    # of as many random points 28 % of searches have one as near as this, and 0.4 % have three
    assert sum(value < 0.06 for value in values[5:]) >= 3
    assert results.ax["loss.margin"] == pytest.approx(0.3, abs=0.15)


@pytest.mark.slow
def test_integers_choices_and_failures_go_through_ax(sweep: Sweep) -> None:
    sweep(
        "n=int(interval(1, 6))",
        "kind=plain,fancy",
        "x=-1.5,0,2",
        f"{TRIALS}=9",
        "behaviour=raise_above",
        "hydra.sweeper.max_failures=50",
    )
    for parameters in sweep.proposals():
        assert type(parameters["n"]) is int
        assert parameters["kind"] in ("plain", "fancy")
        assert parameters["x"] in (-1.5, 0.0, 2.0)
    assert len(sweep.payloads("completed")) == 9
    points = [tuple(parameters.values()) for parameters in sweep.proposals()]
    assert len(set(points)) == len(points)


@pytest.mark.slow
def test_a_failed_trial_is_no_value_to_the_model() -> None:
    from hydra_plugins.mlrc_ax_sweeper._generation import attach
    from mlrc_sweeper.measurements import Measurement

    problem = make_problem("x=interval(0, 1)")
    trials = [Trial(index, {"x": 0.1 * index}, "Sobol") for index in range(4)]
    trials[0].status, trials[1].status, trials[2].status = "completed", "failed", "completed"
    trials[0].results[0] = trials[2].results[0] = {"objective": Measurement(1.0)}
    experiment = attach(problem, trials)._experiment
    assert sorted(experiment.lookup_data().df["trial_index"]) == [0, 2]
    statuses = [experiment.trials[index].status.name for index in range(4)]
    assert statuses == ["COMPLETED", "ABANDONED", "COMPLETED", "RUNNING"]


@pytest.mark.slow
def test_the_example_app_runs(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "examples/ax_sweeper/banana.py"),
        "-m",
        "banana.x=int(interval(-5, 5))",
        "banana.y=interval(-5, 10.1)",
        f"{TRIALS}=2",
    ]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "banana.x: range=[-5, 5]" in done.stdout
    assert "banana.y: range=[-5.0, 10.1]" in done.stdout


@pytest.mark.parametrize("num_trials", several(7, nightly=10))
def test_parameter_constraints_hold_for_every_trial(num_trials: int) -> None:
    problem = make_problem(
        "a.x=interval(0, 1)",
        "a.x2=interval(0, 1)",
        ax_config={"experiment": {"parameter_constraints": ["a.x +a.x2 <= 1.0"]}},
    )
    trials = simulate(problem, lambda p: (p["a.x"] - 1.0) ** 2 + (p["a.x2"] - 1.0) ** 2, num_trials)
    sums = [sum(t.parameters.values()) for t in trials]
    assert max(sums) <= 1.0 + 1e-6
    assert max(sums[5:]) > 0.9  # the model presses against the constraint


@pytest.mark.slow
def test_the_best_trial_meets_the_outcome_constraints() -> None:
    experiment = {"outcome_constraints": ["val/cost <= 0.5"], "objective_name": "val/acc", "minimize": False}
    problem = make_problem("x=interval(0, 1)", ax_config={"experiment": experiment})
    trials = simulate(problem, lambda p: {"val/acc": p["x"], "val/cost": p["x"] ** 2}, 10)
    best = problem.best(trials)
    assert best is not None
    assert best.parameters["x"] == pytest.approx(0.5**0.5, abs=0.06)
    assert best.measurements["val/cost"].mean <= 0.5


@pytest.mark.slow
def test_a_relative_constraint_refers_to_the_status_quo_which_runs_first() -> None:
    experiment = {"outcome_constraints": ["cost <= 0.5 * baseline"], "status_quo": {"x": 0.8}}
    problem = make_problem("x=interval(0, 1)", ax_config={"experiment": experiment})
    trials = simulate(problem, lambda p: {"objective": -p["x"], "cost": p["x"]}, 9)
    assert trials[0].parameters == {"x": 0.8}
    best = problem.best(trials)
    assert best is not None
    assert best.parameters["x"] <= 0.4
    assert best.parameters["x"] == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize("num_trials", several(7, nightly=12))
def test_several_objectives_give_a_pareto_front(tmp_path: Path, num_trials: int) -> None:
    from hydra_plugins.mlrc_ax_sweeper._results import pareto_front, write_results
    from mlrc_sweeper.state import SearchState

    objectives = {"acc": "maximize", "cost": "minimize"}
    problem = make_problem("x=interval(0, 2)", ax_config={"experiment": {"objectives": objectives}})
    # between 0 and 1 one trades accuracy for cost; beyond 1 both get worse
    trials = simulate(problem, lambda p: {"acc": -((p["x"] - 1.0) ** 2), "cost": p["x"]}, num_trials)
    state = SearchState(trials=trials, max_trials=num_trials)
    front = [t.index for t in pareto_front(problem, state)]
    assert len(front) >= 3
    for t in trials:
        better = [
            o
            for o in trials
            if o.measurements["acc"].mean > t.measurements["acc"].mean
            and o.measurements["cost"].mean < t.measurements["cost"].mean
        ]
        assert (t.index in front) == (not better)
    write_results(problem, state, tmp_path)
    results = OmegaConf.load(tmp_path / "optimization_results.yaml")
    assert [entry.trial for entry in results.pareto_front] == front


@pytest.mark.slow
def test_conditional_parameters_exist_only_in_the_trials_that_have_them() -> None:
    params = {
        "kind": {
            "type": "choice",
            "values": ["sgd", "adam"],
            "dependents": {"sgd": ["momentum"], "adam": ["beta"]},
        },
        "momentum": {"type": "range", "bounds": [0.0, 1.0]},
        "beta": {"type": "range", "bounds": [0.0, 1.0]},
        "lr": {"type": "range", "bounds": [1e-4, 1.0], "log_scale": True},
    }
    problem = make_problem(ax_config={"params": params})
    trials = simulate(problem, lambda p: p.get("momentum", 0.5) + p["lr"], 9)
    assert {t.parameters["kind"] for t in trials} == {"sgd", "adam"}
    for t in trials:
        assert ("momentum" in t.parameters) == (t.parameters["kind"] == "sgd")
        assert ("beta" in t.parameters) == (t.parameters["kind"] == "adam")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "generator"), [("sobol", "Sobol"), ("random", "Uniform")])
def test_other_methods_use_no_model_and_are_repeatable(method: str, generator: str) -> None:
    problem = make_problem("x=interval(0, 1)", generation={"method": method})
    trials = simulate(problem, lambda p: p["x"], 12)
    assert {t.generator for t in trials} == {generator}
    points = [t.parameters["x"] for t in trials]
    assert len(set(points)) == 12
    assert [t.parameters["x"] for t in simulate(problem, lambda p: p["x"], 12)] == points
    assert [t.parameters["x"] for t in simulate(problem, lambda p: p["x"], 12, seed=1)] != points
    if method == "sobol":
        # one sequence: each half of the interval has exactly half of the first 8 points
        assert sum(x < 0.5 for x in points[:8]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["inferred", "sem", "paired", "none"])
def test_every_noise_mode_searches(noise: str) -> None:
    problem = make_problem("x=interval(0, 1)", noise=noise)
    trials = simulate(problem, lambda p: [(p["x"] - 0.4) ** 2 + 0.1 * fold for fold in range(4)], 10)
    best = problem.best(trials)
    assert best is not None
    assert best.parameters["x"] == pytest.approx(0.4, abs=0.05)


@pytest.mark.slow
def test_a_suggestion_depends_on_the_ledger_alone_and_takes_open_trials_into_account() -> None:
    problem = make_problem("x=interval(0, 1)", "y=interval(0, 1)")
    trials = simulate(problem, lambda p: (p["x"] - 0.4) ** 2 + p["y"], 7)
    first = suggest(problem, 0, trials).parameters
    assert suggest(problem, 0, trials).parameters == first
    pending = [*trials, Trial(7, first, "BoTorch")]
    second = suggest(problem, 0, pending).parameters
    assert abs(second["x"] - first["x"]) + abs(second["y"] - first["y"]) > 1e-3


@pytest.mark.slow
def test_training_in_the_same_process_keeps_its_threads_and_random_numbers() -> None:
    import torch

    problem = make_problem("x=interval(0, 1)")
    trials = simulate(problem, lambda p: p["x"], 6)
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    random.seed(0)
    expected = (float(torch.rand(1)), random.random())
    torch.manual_seed(0)
    random.seed(0)
    suggest(problem, 0, trials)
    assert (float(torch.rand(1)), random.random()) == expected
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_ax_is_told_exactly_what_its_client_would_have_been_told() -> None:
    from hydra_plugins.mlrc_ax_sweeper import _generation

    problem = make_problem("x=interval(0,1)", ax_config={"is_noisy": False})
    trials = simulate(problem, lambda p: p["x"], 4)
    with _generation.quiet_single_thread(verbose=False):
        ours = _generation.attach(problem, trials)
        client = _generation.Client()
        client.configure_experiment([_generation.RangeParameterConfig("p0", (0.0, 1.0), "float")])
        client.configure_optimization("-m0")
        for trial in trials:
            index = client.attach_trial({"p0": trial.parameters["x"]})
            client.complete_trial(index, raw_data={"m0": (trial.parameters["x"], 0.0)})
    assert ours._experiment.lookup_data().full_df.equals(client._experiment.lookup_data().full_df)


@pytest.mark.slow
def test_a_trial_that_lost_a_race_is_told_as_its_forecast() -> None:
    from hydra_plugins.mlrc_ax_sweeper._generation import attach
    from mlrc_sweeper.measurements import over_replicates

    problem = make_problem("x=interval(0, 1)", noise="paired")
    trials = [Trial(index, {"x": 0.1 * index}, "Sobol", status="completed") for index in range(3)]
    for trial, noise in zip(trials, (0.0, 0.1, -0.1), strict=True):
        trial.results[0] = {"objective": over_replicates([1.0 + noise, 2.0 - noise])}
    trials[2].status, trials[2].forecast = "raced_out", (5.0, 0.3)
    data = attach(problem, trials)._experiment.lookup_data().df.sort_values("trial_index")
    assert list(data["mean"]) == [1.5, 1.5, 5.0]
    shared = data["sem"].iloc[0]
    assert shared > 0.0
    assert data["sem"].iloc[2] == pytest.approx((shared**2 + 0.3**2) ** 0.5)


@pytest.mark.slow
def test_a_model_that_fails_is_replaced_by_the_sobol_sequence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hydra_plugins.mlrc_ax_sweeper import _generation

    problem = make_problem("x=interval(0, 1)")
    trials = simulate(problem, lambda p: p["x"], 6)
    assert trials[5].generator.startswith("BoTorch")
    expected = simulate(make_problem("x=interval(0, 1)", generation={"method": "sobol"}), lambda p: p["x"], 6)

    original = _generation._next_of
    calls: list[int] = []

    def fail_once(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("not positive definite")
        return original(*arguments)

    monkeypatch.setattr(_generation, "_next_of", fail_once)
    suggestion = suggest(problem, 0, trials[:5])
    assert suggestion.generator == "Sobol"
    # the centre is not of the sequence
    assert suggestion.parameters == expected[4].parameters
    assert "not positive definite" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("with_center", [True, False])
def test_suggestions_from_the_ledger_are_those_of_a_client_that_lives_as_long_as_the_search(with_center: bool) -> None:
    from hydra_plugins.mlrc_ax_sweeper import _generation
    from mlrc_sweeper.measurements import Measurement

    problem = make_problem(
        "x=interval(0, 1)",
        "y=tag(log, interval(1e-3, 1))",
        "n=int(interval(1, 9))",
        generation={"initialize_with_center": with_center},
    )
    trials: list[Trial] = []
    with _generation.quiet_single_thread(verbose=False):
        names = _generation.ax_parameter_names(problem)
        client = _generation.Client(random_seed=7)
        client.configure_experiment([_generation._ax_parameter(p, names) for p in problem.space.tuned])
        client.configure_optimization("-m0")
        client.configure_generation_strategy(method="fast", initialize_with_center=with_center)
        for index in range(11):
            ((ax_index, point),) = client.get_next_trials(max_trials=1).items()
            parameters = {name: point[ax_name] for name, ax_name in names.items()}
            assert suggest(problem, 7, trials).parameters == parameters
            value = (parameters["x"] - 0.3) ** 2 + parameters["y"] + 0.01 * parameters["n"]
            client.complete_trial(ax_index, raw_data={"m0": value})
            trials.append(Trial(index, parameters, "", status="completed"))
            trials[-1].results[0] = {"objective": Measurement(value)}
