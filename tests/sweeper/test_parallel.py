"""Parallel trials through launchers with processes of their own."""

import pytest
from omegaconf import OmegaConf

from .conftest import Sweep

pytestmark = pytest.mark.slow

GRID = ("hydra.sweeper.generation.method=grid", "hydra.sweeper.ax_config.params=${grid_space}")
MIXED = (
    *GRID,
    "hydra/launcher=submitit_local",
    "hydra.sweeper.n_parallel=3",
    "behaviour=mixed",
    "hydra.sweeper.retries=0",
    "hydra.sweeper.ax_config.max_trials=10",
)


def overlaps(sweep: Sweep, directory: str) -> int:
    """Largest number of jobs that were under way at one time."""
    under_way = most = 0
    for record in sweep.records(directory):
        under_way += {"started": 1, "result": -1, "job_failed": -1}.get(record["type"], 0)
        most = max(most, under_way)
    return most


def test_slots_run_side_by_side_and_never_more_than_there_are(sweep: Sweep) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep(
        *GRID,
        "hydra/launcher=joblib",
        "hydra.sweeper.n_parallel=2",
        "behaviour=slow",
        "hydra.sweeper.ax_config.max_trials=6",
    )
    assert overlaps(sweep, "out/d1/a") == 2
    assert len(sweep.payloads("completed")) == 6
    folders = {path.name for path in (sweep.folder / "out/d1/a").iterdir() if path.is_dir()}
    assert folders >= {"0", "1", "2", "3", "4", "5"}


def test_a_slow_trial_does_not_hold_up_the_others(sweep: Sweep) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep(
        *GRID,
        "hydra/launcher=joblib",
        "hydra.sweeper.n_parallel=2",
        "behaviour=first_slow",
        "hydra.sweeper.ax_config.max_trials=6",
    )
    order = [p["trial"] for p in sweep.payloads("completed")]
    assert order.index(0) >= 3


def test_replicates_run_side_by_side(sweep: Sweep) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep(
        *GRID,
        "hydra/launcher=joblib",
        "hydra.sweeper.n_parallel=2",
        "behaviour=slow",
        "hydra.sweeper.ax_config.max_trials=2",
        "hydra.sweeper.replicates={fold: [0, 1]}",
    )
    first = [r["payload"]["trial"] for r in sweep.records() if r["type"] == "started"][:2]
    assert first == [0, 0]
    assert overlaps(sweep, "out/d1/a") == 2


def test_the_model_takes_pending_trials_into_account(sweep: Sweep) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep(
        "hydra/launcher=joblib", "hydra.sweeper.n_parallel=3", "behaviour=slow", "hydra.sweeper.ax_config.max_trials=10"
    )
    margins = [p["loss.margin"] for p in sweep.proposals()]
    assert len(set(margins)) == 10
    assert len(sweep.payloads("completed")) == 10


@pytest.mark.fault
def test_killed_raising_and_non_finite_jobs_do_not_end_a_parallel_search(sweep: Sweep) -> None:
    pytest.importorskip("submitit")
    sweep(*MIXED, "hydra.sweeper.max_failures=100")
    fates = {p["job"]: p["reason"] for p in sweep.payloads("job_failed")}
    for job, reason in fates.items():
        assert {1: "UncompletedJobError", 2: "ValueError: one in five", 3: "not finite"}[job % 5] in reason
    numbers = {p["job"] for p in sweep.payloads("started")}
    assert set(fates) == {job for job in numbers if job % 5 in (1, 2, 3)}
    values = {p["trial"]: p["values"]["objective"] for p in sweep.payloads("completed")}
    results = OmegaConf.load(sweep.folder / "out/d1/a/optimization_results.yaml")
    assert results.search.best_values.objective == min(values.values())
    # every job that began has its end in the ledger
    ended = {p["job"] for type_ in ("result", "job_failed") for p in sweep.payloads(type_)}
    assert ended == numbers


@pytest.mark.fault
def test_the_default_number_of_failures_ends_it_early_and_it_can_be_resumed(sweep: Sweep) -> None:
    pytest.importorskip("submitit")
    output = sweep(*MIXED, expect=1)
    assert "trials failed, and `hydra.sweeper.max_failures` allows 1" in output
    stopped_with = len(sweep.payloads("completed"))
    sweep(*MIXED, "hydra.sweeper.max_failures=100")
    assert len(sweep.payloads("completed")) > stopped_with
    assert sweep.payloads("finished")[0]["cause"] in ("exhausted", "max_trials")
