"""What the sweeper asks of a launcher beside `launch`: ids, jobs of an earlier sweeper, room."""

from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from hydra_plugins.mlrc_ax_sweeper._core import num_slots
from hydra_plugins.mlrc_ax_sweeper._jobs import Job, JobResult, _failure, run_job
from hydra_plugins.mlrc_local_launcher._errors import WorkerDiedError
from mlrc_sweeper.records import Record, encode
from mlrc_sweeper.state import SearchState, Trial

from .problems import make_problem

OTHER = OmegaConf.create({"hydra": {"launcher": {"_target_": "some.Launcher"}}})


def state(*records: tuple[str, dict[str, Any]]) -> SearchState:
    first = ("proposed", {"trial": 0, "parameters": {"x": 0.5}, "generator": "Sobol"})
    started = ("started", {"trial": 0, "replicate": 1, "job": 4})
    found = SearchState()
    for seq, record in enumerate([first, started, *records]):
        found.apply(Record(seq, *record))
    return found


def test_the_id_of_a_job_under_way_is_known_and_forgotten_with_its_end() -> None:
    submitted = ("submitted", {"trial": 0, "replicate": 1, "job": 4, "id": "17", "folder": "f"})
    ended = ("job_failed", {"trial": 0, "replicate": 1, "job": 4, "seconds": 1.0, "reason": "TIMEOUT: …"})
    assert state().trials[0].ids == {}
    assert state(submitted).trials[0].ids == {1: "17"}
    assert state(submitted, ended).trials[0].ids == {}


@pytest.mark.parametrize("keeps_job", [True, False, None])
def test_the_retry_of_a_job_that_was_cut_off_keeps_its_number(keeps_job: bool | None) -> None:
    ended = {"trial": 0, "replicate": 1, "job": 4, "attempt": 0, "seconds": 1.0, "reason": "…"}
    if keeps_job is not None:  # older ledgers have no such field
        ended["keeps_job"] = keeps_job
    found = state(("job_failed", ended))
    assert (found.trials[0].open_jobs, found.trials[0].failures, found.next_job) == ({}, {1: 1}, 5)
    assert found.trials[0].kept_jobs == ({1: 4} if keeps_job else {})
    again = ("started", {"trial": 0, "replicate": 1, "attempt": 1, "job": 4})
    raised = ("job_failed", {**ended, "attempt": 1, "keeps_job": False})
    assert state(("job_failed", ended), again).trials[0].kept_jobs == {}
    assert state(("job_failed", ended), again).trials[0].jobs == [4]
    assert state(("job_failed", ended), again, raised).trials[0].kept_jobs == {}


class Launcher:
    def __init__(self, attached: JobReturn | None) -> None:
        self.attached = attached
        self.calls: list[tuple[str, int]] = []

    def attach(self, number: int) -> JobReturn | None:
        self.calls.append(("attach", number))
        return self.attached

    def launch(self, job_overrides: Any, initial_job_idx: int) -> list[JobReturn]:
        self.calls.append(("launch", initial_job_idx))
        return [JobReturn(status=JobStatus.COMPLETED, _return_value=1.0)]


@pytest.mark.parametrize(
    ("is_resumed", "attached", "calls", "value"),
    [
        (False, 2.0, ["launch"], 1.0),
        (True, 2.0, ["attach"], 2.0),
        (True, None, ["attach", "launch"], 1.0),
    ],
)
def test_only_a_resumed_job_is_looked_for(is_resumed: bool, attached: float | None, calls: list, value: float) -> None:
    there = None if attached is None else JobReturn(status=JobStatus.COMPLETED, _return_value=attached)
    launcher = Launcher(there)
    problem = make_problem("x=interval(0, 1)")
    job = Job(4, Trial(0, {"x": 0.5}, "Sobol"), 0, ("x=0.5",), is_resumed)
    result = run_job(launcher, job, problem)  # type: ignore[arg-type]
    assert launcher.calls == [(call, 4) for call in calls]
    assert result.metrics is not None
    assert result.metrics["objective"].mean == value


@pytest.mark.parametrize(
    ("state", "was_cut_off"),
    [("TIMEOUT", True), ("NODE_FAIL", True), ("FAILED", False), ("UNREACHABLE", False), ("pending", False), (7, False)],
)
def test_the_state_of_a_launchers_error_is_kept(state: Any, was_cut_off: bool) -> None:
    error = RuntimeError("late")
    error.state = state  # type: ignore[attr-defined]
    launcher = Launcher(JobReturn(status=JobStatus.FAILED, _return_value=error))
    job = Job(4, Trial(0, {"x": 0.5}, "Sobol"), 0, (), is_resumed=True)
    result = run_job(launcher, job, make_problem("x=interval(0, 1)"))  # type: ignore[arg-type]
    assert (result.state, result.reason) == (None if state == 7 else state, "RuntimeError: late")
    assert result.was_cut_off == was_cut_off


def test_a_worker_that_died_cut_its_job_off() -> None:
    assert JobResult(1.0, exception=WorkerDiedError("killed")).was_cut_off


@pytest.mark.parametrize(
    ("settings", "room", "slots"), [({}, None, 5), ({}, 3, 3), ({"n_parallel": 2}, 3, 2), ({"max_batch_size": 2}, 3, 2)]
)
def test_slots_are_as_many_as_the_launcher_has_room_for(settings: dict, room: int | None, slots: int) -> None:
    problem = make_problem("x=interval(0, 1)", **settings)
    launcher: Any = SimpleNamespace() if room is None else SimpleNamespace(num_slots=room)
    assert num_slots(problem, OTHER, launcher) == slots


class Unspeakable(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("caf\udce9.jpg"), "OSError: caf\\udce9.jpg"),
        (Unspeakable(), "Unspeakable: (its text cannot be made: ValueError)"),
        (ValueError(""), "ValueError: "),
    ],
    ids=["no UTF-8", "no text", "empty"],
)
def test_every_reason_of_a_failure_can_be_written(error: Exception, reason: str) -> None:
    result = _failure(error, 1.0)
    assert result.reason == reason
    encode(Record(0, "job_failed", {"reason": result.reason, "traceback": result.traceback}))
