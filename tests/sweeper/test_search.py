"""Whole searches through the command line, on a grid, so that Ax is not imported and each takes a second."""

import shutil
import signal
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from .conftest import Sweep, wait_until


def grid(*more: str) -> tuple[str, ...]:
    return ("hydra.sweeper.generation.method=grid", "hydra.sweeper.ax_config.params=${grid_space}", *more)


def test_a_finished_search_has_every_trial_in_its_ledger_and_names_the_best(sweep: Sweep) -> None:
    output = sweep(*grid("hydra.sweeper.ax_config.max_trials=6"))
    assert (
        "AxSweeper is optimizing the following parameters: \nloss.margin: range=[0.0, 1.0], step_size = 0.1" in output
    )
    results = OmegaConf.load(sweep.folder / "out/d1/a/optimization_results.yaml")
    assert list(results)[:2] == ["optimizer", "ax"]
    values = {p["trial"]: p["values"]["objective"] for p in sweep.payloads("completed")}
    best = min(values, key=lambda trial: values[trial])
    assert results.search.best_trial == best
    assert results.ax == sweep.proposals()[best]
    assert f"New best value: {values[best]}, best parameters: {sweep.proposals()[best]}" in output
    assert f"Best parameters: {sweep.proposals()[best]}" in output
    # each step is written before the next one begins
    assert [r["type"] for r in sweep.records()] == [
        "search",
        *["proposed", "started", "result", "completed"] * 6,
        "finished",
    ]
    names = {path.name for path in (sweep.folder / "out/d1/a").iterdir() if path.is_dir()}
    assert names == {"0", "1", "2", "3", "4", "5"}
    files = {path.name for path in (sweep.folder / "out/d1/a").iterdir() if path.is_file()}
    assert {"ledger.jsonl", "optimization_results.yaml", "trials.csv", "multirun.yaml"} <= files
    assert not any(name.endswith((".lock", ".partial")) for name in files)


@pytest.mark.slow
def test_a_finished_search_returns_at_once_and_more_trials_continue_it(sweep: Sweep) -> None:
    sweep(*grid("hydra.sweeper.ax_config.max_trials=3", "log=jobs.txt"))
    before = (sweep.folder / "out/d1/a/ledger.jsonl").read_bytes()
    assert "is finished: 3 of 3 trials done" in sweep(*grid("hydra.sweeper.ax_config.max_trials=3", "log=jobs.txt"))
    assert (sweep.folder / "out/d1/a/ledger.jsonl").read_bytes() == before
    sweep(*grid("hydra.sweeper.ax_config.max_trials=5", "log=jobs.txt"))
    assert len((sweep.folder / "jobs.txt").read_text().splitlines()) == 5
    assert sweep.payloads("extended")[0]["max_trials"] == 5


@pytest.mark.slow
def test_an_exhausted_space_ends_the_search(sweep: Sweep) -> None:
    output = sweep(*grid("hydra.sweeper.ax_config.max_trials=50"))
    assert "exhausted the search space" in output
    margins = [p["loss.margin"] for p in sweep.proposals()]
    assert sorted(margins) == [round(0.1 * i, 1) for i in range(11)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "x=2.0",
        "hydra.sweeper.ax_config.client.random_seed=4",
        "hydra.sweeper.ax_config.experiment.minimize=false",
    ],
)
def test_a_resume_with_other_settings_is_refused_with_the_difference(sweep: Sweep, change: str) -> None:
    sweep(*grid("hydra.sweeper.ax_config.max_trials=2", "x=1.0"))
    before = (sweep.folder / "out/d1/a/ledger.jsonl").read_bytes()
    arguments = grid("hydra.sweeper.ax_config.max_trials=3", *([] if change.startswith("x") else ["x=1.0"]), change)
    output = sweep(*arguments, expect=1)
    assert "SweepError" in output
    expected = {
        "x": "search space, x: ",
        "random_seed": "seed: 3 in the ledger, 4 now",
        "minimize": "objective, objective",
    }
    assert expected[change.partition("=")[0].rpartition(".")[2]] in output
    assert (sweep.folder / "out/d1/a/ledger.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_fixed_override_may_be_declared_free(sweep: Sweep) -> None:
    free = "hydra.sweeper.free_on_resume=[x]"
    sweep(*grid("hydra.sweeper.ax_config.max_trials=2", "x=1.0", free))
    sweep(*grid("hydra.sweeper.ax_config.max_trials=3", "x=2.0", free))
    assert len(sweep.payloads("completed")) == 3


@pytest.mark.slow
def test_a_failing_job_is_retried_in_a_new_directory_and_counts_for_nothing(sweep: Sweep) -> None:
    output = sweep(*grid("hydra.sweeper.ax_config.max_trials=4", "behaviour=raise_third"))
    assert "ValueError: only job 2" in output
    (failure,) = sweep.payloads("job_failed")
    assert failure["job"] == 2
    assert failure["reason"] == "ValueError: only job 2"
    assert 'raise ValueError("only job 2")' in failure["traceback"]
    assert [p["trial"] for p in sweep.payloads("started")] == [0, 1, 2, 2, 3]
    assert [p["job"] for p in sweep.payloads("started")] == [0, 1, 2, 3, 4]
    assert len(sweep.payloads("completed")) == 4


def test_a_failure_that_is_final_is_not_repeated(sweep: Sweep) -> None:
    sweep(*grid("hydra.sweeper.ax_config.max_trials=4", "behaviour=final_third", "hydra.sweeper.max_failures=2"))
    assert [p["trial"] for p in sweep.payloads("started")] == [0, 1, 2, 3, 4]
    assert [p["trial"] for p in sweep.payloads("failed")] == [2]
    assert len(sweep.payloads("completed")) == 4


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["raise_above", "nan_above", "exit"])
def test_failed_trials_have_a_reason_no_score_and_do_not_use_up_trials(sweep: Sweep, behaviour: str) -> None:
    sweep(*grid("hydra.sweeper.ax_config.max_trials=6", f"behaviour={behaviour}", "hydra.sweeper.max_failures=10"))
    failed = {p["trial"]: p["reason"] for p in sweep.payloads("failed")}
    margins = [p["loss.margin"] for p in sweep.proposals()]
    assert set(failed) == {trial for trial, margin in enumerate(margins) if margin > 0.5}
    assert failed
    reason = {
        "raise_above": "ValueError: margin above 0.5",
        "nan_above": "not finite: objective is nan",
        "exit": "SystemExit: 3",
    }
    assert set(failed.values()) == {reason[behaviour]}
    assert len(sweep.payloads("completed")) == 6
    assert len(sweep.payloads("job_failed")) == 2 * len(failed)


@pytest.mark.slow
def test_too_many_failures_stop_the_search_with_the_reason_and_it_can_go_on(sweep: Sweep) -> None:
    arguments = grid(
        "hydra.sweeper.ax_config.max_trials=10",
        "behaviour=raise_always",
        "hydra.sweeper.free_on_resume=[behaviour]",
    )
    output = sweep(*arguments, expect=1)
    assert "2 trials failed, and `hydra.sweeper.max_failures` allows 1" in output
    assert "ValueError: no luck with margin" in output
    assert len(sweep.payloads("failed")) == 2
    assert len(sweep.payloads("job_failed")) == 4
    assert OmegaConf.load(sweep.folder / "out/d1/a/optimization_results.yaml").ax == {}
    sweep(*[a.replace("raise_always", "quadratic") for a in arguments])
    assert len(sweep.payloads("completed")) == 9  # all points of the space that did not fail


@pytest.mark.slow
def test_max_failures_as_a_fraction_is_rounded_up(sweep: Sweep) -> None:
    sweep(*grid("hydra.sweeper.ax_config.max_trials=4", "behaviour=raise_third", "hydra.sweeper.retries=0"))
    assert len(sweep.payloads("failed")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["behaviour=usage"], "UsageError: the dataset is not there"),
        (["behaviour=none"], "SweepError: The task returned None"),
        (["nonsense=1,2"], "ConfigCompositionException"),
        (
            ["hydra.sweeper.ax_config.experiment.outcome_constraints=['cost <= 3']"],
            "the search needs ['cost']",
        ),
    ],
)
def test_an_error_that_would_befall_every_trial_stops_the_search_at_once(
    sweep: Sweep, arguments: list[str], message: str
) -> None:
    output = sweep(*grid("hydra.sweeper.ax_config.max_trials=10", *arguments), expect=1)
    assert message in output
    assert len(sweep.payloads("started")) == 1
    assert sweep.payloads("failed") == []
    assert sweep.payloads("stopped")[0]["cause"] == "usage error"


@pytest.mark.slow
def test_a_search_stopped_by_a_usage_error_goes_on_with_the_same_trial(sweep: Sweep) -> None:
    free = ("hydra.sweeper.ax_config.max_trials=2", "hydra.sweeper.free_on_resume=[behaviour]")
    sweep(*grid("behaviour=usage", *free), expect=1)
    sweep(*grid("behaviour=quadratic", *free))
    assert [p["job"] for p in sweep.payloads("started")] == [0, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra.sweeper.n_parallel=2"], "Hydra's basic launcher runs jobs in this process"),
        (["hydra.sweeper.generation.method=magic"], "expected fast | sobol | random | grid"),
        (["fold=0,1", "+hydra.sweeper.refused_dimensions.fold=use replicates"], "use replicates"),
        (
            [
                "loss=a,b",
                "hydra.sweeper.search_per=[loss]",
                "seed=interval(0,1)",
                "hydra.sweeper.ax_config.max_trials=0",
            ],
            "expected at least 1, found 0",
        ),
        (["x=interval(0,1)"], "is continuous"),
    ],
)
@pytest.mark.slow
def test_a_mistake_in_the_settings_is_named_before_any_job_runs(
    sweep: Sweep, arguments: list[str], message: str
) -> None:
    output = sweep(*grid("log=jobs.txt", *arguments), expect=1)
    assert message in output
    assert "SweepError" in output
    assert not (sweep.folder / "jobs.txt").exists()


@pytest.mark.slow
def test_one_search_per_combination_each_with_its_own_space_and_folder(sweep: Sweep) -> None:
    arguments = grid(
        "hydra.sweeper.search_per=[loss,dataset]",
        "loss=a,b",
        "dataset=d1,d2",
        "log=jobs.txt",
        "hydra.sweeper.ax_config.max_trials=3",
    )
    output = sweep(*arguments)
    assert "Search 4 of 4: loss=b,dataset=d2" in output
    for dataset in ("d1", "d2"):
        assert set(sweep.proposals(f"out/{dataset}/a")[0]) == {"loss.margin"}
        assert set(sweep.proposals(f"out/{dataset}/b")[0]) == {"loss.margin", "loss.scale"}
        results = OmegaConf.load(sweep.folder / f"out/{dataset}/b/optimization_results.yaml")
        assert (results.ax.loss, results.ax.dataset) == ("b", dataset)
    # the one that lost its folder is run again, the others are not
    shutil.rmtree(sweep.folder / "out/d2/a")
    sweep(*arguments)
    assert len((sweep.folder / "jobs.txt").read_text().splitlines()) == 4 * 3 + 3


@pytest.mark.slow
def test_a_failing_search_does_not_keep_the_others_from_running(sweep: Sweep) -> None:
    sweep(*grid("hydra.sweeper.ax_config.max_trials=2", "loss=b", "x=7"))
    arguments = grid("hydra.sweeper.search_per=[loss]", "loss=a,b,c", "hydra.sweeper.ax_config.max_trials=2")
    output = sweep(*arguments, expect=1)
    assert "1 of 3 searches failed" in output
    assert "begun with other settings" in output
    assert len(sweep.payloads("completed", "out/d1/c")) == 2


@pytest.mark.slow
def test_searches_without_a_folder_of_their_own_get_one(sweep: Sweep) -> None:
    sweep(
        *grid(
            "hydra.sweeper.search_per=[loss]",
            "loss=a,c",
            "hydra.sweep.dir=same",
            "hydra.sweeper.ax_config.max_trials=2",
        )
    )
    for name in ("loss=a", "loss=c"):
        assert len(sweep.payloads("completed", f"same/{name}")) == 2
        assert (sweep.folder / "same" / name / "1" / ".hydra").is_dir()


@pytest.mark.slow
def test_without_search_per_a_group_choice_is_a_dimension_of_one_search(sweep: Sweep) -> None:
    sweep(
        "loss=a,c",
        "hydra.sweeper.generation.method=grid",
        "hydra.sweeper.ax_config.params={}",
        "hydra.sweep.dir=one",
    )
    assert sorted(p["loss"] for p in sweep.proposals("one")) == ["a", "c"]


@pytest.mark.slow
def test_a_trial_runs_once_per_replicate_and_is_their_mean(sweep: Sweep) -> None:
    sweep(
        *grid(
            "hydra.sweeper.replicates={fold: [0, 1, 3]}",
            "behaviour=replicates",
            "hydra.sweeper.ax_config.max_trials=2",
            "log=jobs.txt",
        )
    )
    results = sweep.payloads("result")
    assert [(r["trial"], r["replicate"]) for r in results] == [(t, f) for t in (0, 1) for f in (0, 1, 2)]
    values = [r["metrics"]["objective"]["mean"] for r in results[:3]]
    assert values[2] - values[0] == pytest.approx(0.3)
    assert sweep.payloads("completed")[0]["values"]["objective"] == pytest.approx(sum(values) / 3)
    assert "fold=3" in (sweep.folder / "jobs.txt").read_text().splitlines()[2]


@pytest.mark.slow
def test_lists_of_replicate_values_and_further_metrics_are_kept(sweep: Sweep) -> None:
    sweep(*grid("behaviour=dict", "hydra.sweeper.ax_config.max_trials=1"))
    metrics = sweep.payloads("result")[0]["metrics"]
    assert len(metrics["objective"]["replicates"]) == 4
    assert set(metrics) == {"objective", "cost"}
    header, row = (sweep.folder / "out/d1/a/trials.csv").read_text().splitlines()
    assert header.startswith("trial,status,generator,loss.margin,objective,objective/sem,objective/replicates,cost,")
    assert row.startswith("0,completed,grid,")


@pytest.mark.slow
def test_explicit_points_come_first(sweep: Sweep) -> None:
    points = "hydra.sweeper.generation.initialization=[{loss.margin: 0.7}, {loss.margin: 0.2}]"
    sweep(*grid(points, "hydra.sweeper.ax_config.max_trials=4"))
    assert [p["loss.margin"] for p in sweep.proposals()[:2]] == [0.7, 0.2]
    assert [p["generator"] for p in sweep.payloads("proposed")] == ["explicit point"] * 2 + ["grid"] * 2
    assert len({p["loss.margin"] for p in sweep.proposals()}) == 4


@pytest.mark.slow
def test_early_stop_counts_trials_without_improvement(sweep: Sweep) -> None:
    # every value is the same, so that nothing improves after the first; start-up trials count as one epoch
    output = sweep(
        "n=1",
        "hydra.sweeper.ax_config.params=${seed_space}",
        "hydra.sweeper.generation.method=grid",
        "hydra.sweeper.ax_config.max_trials=50",
        "hydra.sweeper.ax_config.early_stop.max_epochs_without_improvement=3",
    )
    assert "Early stopping, best known value" in output
    assert len(sweep.payloads("completed")) == 5 + 3
    assert sweep.payloads("finished")[0]["cause"] == "early stop"


@pytest.mark.slow
def test_params_may_come_from_a_resolver_that_returns_a_plain_dict(sweep: Sweep) -> None:
    sweep(
        "hydra.sweeper.ax_config.params=${space:margin}",
        "hydra.sweeper.generation.initialization=[{loss.margin: 1.5}]",
        "hydra.sweeper.ax_config.max_trials=1",
    )
    assert sweep.proposals() == [{"loss.margin": 1.5}]


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 8])
def test_of_several_sweepers_started_at_once_exactly_one_runs(sweep: Sweep, number: int) -> None:
    arguments = grid("hydra.sweeper.ax_config.max_trials=6", "behaviour=slow", "log=jobs.txt")
    processes = [sweep.start(*arguments) for _ in range(number)]
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    codes = [process.returncode for process in processes]
    refused = [output for output, code in zip(outputs, codes, strict=True) if code != 0]
    # a sweeper that comes after the first has finished finds a finished search
    assert codes.count(0) >= 1
    assert all("A sweeper is already at work in out/d1/a: host" in output for output in refused)
    assert sum("Continuing the search" in output for output in outputs) == 0
    assert len((sweep.folder / "jobs.txt").read_text().splitlines()) == 6
    assert not (sweep.folder / "out/d1/a/search.lock").exists()


@pytest.mark.slow
def test_an_interrupted_job_is_run_again_under_its_number(sweep: Sweep) -> None:
    arguments = grid("hydra.sweeper.ax_config.max_trials=4", "behaviour=hang_at_1")
    process = sweep.start(*arguments)
    sweep.wait_for("started", 2, process)
    wait_until((sweep.folder / "out/d1/a/1/hung.txt").exists)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = sweep.proposals()
    sweep(*arguments)
    started = sweep.payloads("started")
    assert [p["job"] for p in started] == [0, 1, 1, 2, 3]
    assert started[2]["resumed"]
    assert sweep.proposals()[: len(before)] == before


def test_plugin_modules_import_nothing_heavy() -> None:
    code = (
        "import sys, hydra_plugins.mlrc_ax_sweeper.mlrc_ax_sweeper, hydra_plugins.mlrc_ax_sweeper.config, "
        "hydra_plugins.mlrc_ax_sweeper.search_path; "
        "print(sorted({'ax', 'torch', 'numpy', 'pandas', 'plotly', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.slow
def test_a_race_spares_hopeless_trials_their_further_replicates_and_keeps_the_winner(sweep: Sweep) -> None:
    arguments = grid(
        "hydra.sweeper.replicates={fold: [0, 1, 2, 3]}",
        "behaviour=replicates",
        "hydra.sweeper.ax_config.max_trials=11",
        "log=jobs.txt",
    )
    sweep(*arguments, "hydra.sweep.dir=full")
    sweep(*arguments, "hydra.sweep.dir=raced", "hydra.sweeper.racing.enabled=true")
    out = {p["trial"] for p in sweep.payloads("raced_out", "raced")}
    assert len(out) >= 3
    runs = dict.fromkeys(range(11), 0)
    for result in sweep.payloads("result", "raced"):
        runs[result["trial"]] += 1
    # without noise one replicate tells everything
    assert {trial for trial, number in runs.items() if number == 1} == out
    full, raced = (OmegaConf.load(sweep.folder / d / "optimization_results.yaml") for d in ("full", "raced"))
    assert raced.ax == full.ax
    assert raced.search.num_completed == 11
