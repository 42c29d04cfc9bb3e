"""The local launcher: warm workers, each death a failed job, everything divided, nothing left behind."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from hydra_plugins.mlrc_local_launcher import _devices
from hydra_plugins.mlrc_local_launcher._devices import divide, visible_devices
from hydra_plugins.mlrc_local_launcher._errors import JobFailedError, JobStopped, LocalLauncherError, WorkerDiedError
from hydra_plugins.mlrc_local_launcher._pool import _pools

from .conftest import App, error_of

MakeLauncher = Callable[..., Launcher]


@pytest.fixture(autouse=True)
def _no_pool_stays():
    yield
    for pool in _pools.values():
        pool.close()
    _pools.clear()


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_worker_keeps_its_imports_from_job_to_job(make_launcher: MakeLauncher, tmp_path: Path) -> None:
    launcher = make_launcher("mlrc_local", "hydra.launcher.workers=1")
    first, second = (r.return_value for r in launcher.launch([["x=1"], ["x=2"]], 0))
    third = launcher.launch([["x=3"]], 2)[0].return_value
    assert [r["was_warm"] for r in (first, second, third)] == [False, True, True]
    assert len({r["pid"] for r in (first, second, third)}) == 1
    assert first["pid"] != os.getpid()
    # the app's own resolver, Hydra's number of the job, and the files
    assert [r["doubled"] for r in (first, second, third)] == [2, 4, 6]
    assert [r["id"] for r in (first, second, third)] == ["0", "1", "2"]
    for number in range(3):
        assert (tmp_path / f"out/{number}/stdout.txt").read_text() == f"job {number} prints\n"
        assert "and complains" in (tmp_path / f"out/{number}/stderr.txt").read_text()
        assert (tmp_path / f"out/{number}/.hydra/overrides.yaml").read_text() == f"- x={number + 1}\n"


@pytest.mark.slow
def test_a_second_search_of_the_process_finds_the_workers_warm(make_launcher: MakeLauncher) -> None:
    before = make_launcher("mlrc_local", "hydra.launcher.workers=1").launch([[]], 0)[0].return_value
    after = make_launcher("mlrc_local", "hydra.launcher.workers=1").launch([[]], 1)[0].return_value
    assert after["pid"] == before["pid"]
    assert after["was_warm"]


@pytest.mark.slow
def test_slots_call_from_several_threads_and_jobs_run_side_by_side(make_launcher: MakeLauncher) -> None:
    launcher = make_launcher("mlrc_local", "hydra.launcher.workers=2")
    launcher.launch([[], []], 0)  # warm both
    found = {}

    def slot(number: int) -> None:
        found[number] = launcher.launch([["behaviour=meet"]], number)[0].return_value

    threads = [threading.Thread(target=slot, args=(number,)) for number in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[2]["pid"] != found[3]["pid"]
    # each began before the other ended
    assert max(job["began"] for job in found.values()) < min(job["ended"] for job in found.values())


@pytest.mark.slow
def test_more_jobs_than_workers_wait_for_a_free_one(make_launcher: MakeLauncher) -> None:
    launcher = make_launcher("mlrc_local", "hydra.launcher.workers=2")
    returned = [r.return_value for r in launcher.launch([["behaviour=meet"]] * 2 + [[]] * 4, 0)]
    assert [r["id"] for r in returned] == [str(number) for number in range(6)]
    assert len({r["pid"] for r in returned}) == 2


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("kill", "killed by SIGKILL"), ("segfault", "killed by SIGSEGV")],
)
@pytest.mark.slow
def test_a_dead_worker_fails_its_job_alone_and_is_replaced(
    make_launcher: MakeLauncher, tmp_path: Path, behaviour: str, reason: str
) -> None:
    launcher = make_launcher("mlrc_local", "hydra.launcher.workers=1")
    good, dead, after = launcher.launch([["x=1"], [f"behaviour={behaviour}"], ["x=2"]], 0)
    error = error_of(dead)
    assert isinstance(error, WorkerDiedError)
    assert reason in str(error)
    assert str(tmp_path / "out/1/stderr.txt") in str(error)
    assert "and complains" in (tmp_path / "out/1/stderr.txt").read_text()
    assert good.status == after.status == JobStatus.COMPLETED
    assert after.return_value["pid"] != good.return_value["pid"]


@pytest.mark.slow
def test_a_worker_that_died_while_idle_costs_no_job(make_launcher: MakeLauncher) -> None:
    launcher = make_launcher("mlrc_local", "hydra.launcher.workers=1")
    pid = launcher.launch([[]], 0)[0].return_value["pid"]
    os.kill(pid, signal.SIGKILL)
    assert launcher.launch([[]], 1)[0].return_value["pid"] != pid


def test_what_a_task_raises_comes_back_with_its_traceback(make_launcher: MakeLauncher) -> None:
    launcher = make_launcher("mlrc_local", "hydra.launcher.workers=1")
    raised, awkward, exited, returned = launcher.launch(
        [[f"behaviour={name}"] for name in ("raise", "awkward", "exit", "unpicklable")], 0
    )
    error = error_of(raised)
    assert isinstance(error, ValueError)
    assert str(error) == "no luck"
    assert 'raise ValueError("no luck")' in str(error.__cause__) or "in run" in str(error.__cause__)
    assert str(error_of(awkward)) == "AwkwardError: this at there"
    assert isinstance(error_of(awkward), JobFailedError)
    assert isinstance(error_of(exited), SystemExit)
    assert "returned a generator" in str(error_of(returned))
    # one worker served them all
    assert launcher.launch([[]], 4)[0].return_value["was_warm"]


@pytest.mark.slow
def test_a_job_that_cannot_be_composed_says_so(make_launcher: MakeLauncher) -> None:
    launcher = make_launcher("mlrc_local", "hydra.launcher.workers=1")
    assert "nonsense" in str(error_of(launcher.launch([["nonsense=1"]], 0)[0]))


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGHUP])
@pytest.mark.slow
def test_workers_end_with_a_killed_launcher_and_take_their_children_along(app: App, by: signal.Signals) -> None:
    process = app.start("hydra/launcher=mlrc_local", "hydra.launcher.workers=2", "behaviour=sleep", "x=1,2")
    wait_for(lambda: len(app.runs(0)) == len(app.runs(1)) == 1)
    workers = [int(app.runs(job)[0].split()[0]) for job in (0, 1)]
    assert all(is_running(pid) for pid in workers)
    process.send_signal(by)
    process.communicate()
    wait_for(lambda: not any(is_running(pid) for pid in workers), 30)  # the jobs themselves last a minute


@pytest.mark.slow
def test_a_worker_that_is_interrupted_before_it_begins_is_not_replaced(
    make_launcher: MakeLauncher, tmp_path: Path
) -> None:
    launcher = make_launcher("mlrc_local", "hydra.launcher.workers=1")
    found: list[JobReturn] = []
    thread = threading.Thread(target=lambda: found.extend(launcher.launch([[]], 0)))
    thread.start()
    wait_for(lambda: any(worker.is_busy for pool in _pools.values() for worker in pool._workers.values()))
    (pool,) = _pools.values()
    pool.close()  # while the worker's interpreter starts
    thread.join()
    assert isinstance(error_of(found[0]), WorkerDiedError)
    assert not pool._workers
    assert not (tmp_path / "out/0/runs.txt").exists()
    # a later launch has workers again
    assert launcher.launch([[]], 1)[0].status == JobStatus.COMPLETED


@pytest.mark.slow
def test_an_interrupt_reaches_the_job_which_may_clean_up(app: App) -> None:
    process = app.start("hydra/launcher=mlrc_local", "hydra.launcher.workers=1", "behaviour=interrupted", "x=1,2")
    wait_for((app.folder / "out/0/listens.txt").exists)
    worker = int(app.runs(0)[0].split()[0])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=40)  # the job itself lasts a minute
    assert (app.folder / "out/0/cleaned.txt").exists()
    assert not is_running(worker)
    assert not app.runs(1)


SEARCH = (
    *("hydra/launcher=mlrc_local", "hydra/sweeper=mlrc_ax", "hydra.sweeper.generation.method=grid"),
    *("hydra.sweeper.report=false", "hydra.sweeper.ax_config.experiment.objective_name=doubled"),
)


def ledger_of(app: App, type_: str) -> list[dict[str, Any]]:
    records = map(json.loads, (app.folder / "out/ledger.jsonl").read_text().splitlines())
    return [record["payload"] for record in records if record["type"] == type_]


@pytest.mark.slow
def test_a_parallel_search_of_the_sweeper_runs_in_warm_workers(app: App) -> None:
    app(
        *SEARCH,
        "hydra.sweeper.n_parallel=2",
        "hydra.sweeper.ax_config.max_trials=5",
        "hydra.sweeper.max_failures=5",
        "behaviour=kill_first",
        "x=int(interval(1,5))",
    )
    # job 0 kills its worker, and the retry goes on in its folder
    assert [len(app.runs(job)) for job in range(5)] == [2, 1, 1, 1, 1]
    assert len({line.split()[0] for job in range(5) for line in app.runs(job)}) == 3
    (failure,) = ledger_of(app, "job_failed")
    assert failure["reason"].startswith("WorkerDiedError: the worker was killed by SIGKILL")
    assert (failure["job"], failure["attempt"], failure["state"], failure["keeps_job"]) == (0, 0, "WORKER_DIED", True)
    started = [(p["attempt"], p["resumed"]) for p in ledger_of(app, "started") if p["job"] == 0]
    assert started == [(0, False), (1, False)]


@pytest.mark.slow
def test_a_job_whose_worker_always_dies_is_retried_in_its_folder_as_often_as_allowed(app: App) -> None:
    output = app(
        *SEARCH, "hydra.sweeper.retries=2", "hydra.sweeper.max_failures=0", "behaviour=kill", "x=1,2", expect=1
    )
    assert "1 trials failed" in output
    assert [len(app.runs(job)) for job in (0, 1)] == [3, 0]
    assert [p["attempt"] for p in ledger_of(app, "job_failed")] == [0, 1, 2]
    # a repeated command makes the same state of the same records, and tries another trial
    app(*SEARCH, "hydra.sweeper.retries=2", "hydra.sweeper.max_failures=0", "behaviour=kill", "x=1,2", expect=1)
    assert [len(app.runs(job)) for job in (0, 1)] == [3, 3]


# stopping

NAMES = ["SIGTERM", "SIGUSR1", "SIGUSR2"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_a_signal_to_a_sweep_reaches_its_jobs_and_the_command_ends_with_75(app: App, name: str) -> None:
    command = ("hydra/launcher=mlrc_local", "hydra.launcher.workers=2", "behaviour=stoppable", "x=1,2,3")
    process = app.start(*command)
    wait_for(lambda: all((app.folder / f"out/{job}/listens.txt").exists() for job in (0, 1)))
    process.send_signal(signal.Signals[name])
    output, _ = process.communicate(timeout=120)
    assert process.returncode == os.EX_TEMPFAIL, output
    assert [(app.folder / f"out/{job}/stopped.txt").read_text() for job in (0, 1)] == [name, name]
    assert "Job 0: SystemExit: 75" in output
    assert not app.runs(2), "a job began after the signal"


@pytest.mark.slow
def test_a_job_that_says_by_itself_that_it_was_stopped_ends_a_sweep_with_75(app: App) -> None:
    process = app.start("hydra/launcher=mlrc_local", "hydra.launcher.workers=1", "behaviour=stoppable", "x=1,2")
    wait_for((app.folder / "out/0/listens.txt").exists)
    os.kill(int(app.runs(0)[0].split()[0]), signal.SIGTERM)  # its worker alone
    output, _ = process.communicate(timeout=120)
    assert process.returncode == os.EX_TEMPFAIL, output
    assert not app.runs(1)


@pytest.mark.slow
def test_a_job_that_does_not_listen_is_ended_by_the_signal(app: App) -> None:
    process = app.start("hydra/launcher=mlrc_local", "hydra.launcher.workers=1", "behaviour=sleep", "x=1,2")
    wait_for(lambda: len(app.runs(0)) == 1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == os.EX_TEMPFAIL, output
    assert "Job 0: the worker was killed by SIGTERM" in output
    assert not app.runs(1)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["search", "worker"])
@pytest.mark.parametrize("slots", [1, 2])
def test_a_search_that_is_stopped_leaves_its_jobs_open_and_goes_on_with_them(app: App, slots: int, to: str) -> None:
    command = (*SEARCH, f"hydra.sweeper.n_parallel={slots}", "behaviour=stoppable", "x=int(interval(1,3))")
    process = app.start(*command)
    wait_for(lambda: all((app.folder / f"out/{job}/listens.txt").exists() for job in range(slots)))
    workers = [int(app.runs(job)[0].split()[0]) for job in range(slots)]
    for pid in [process.pid] if to == "search" else workers:
        os.kill(pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == os.EX_TEMPFAIL, output
    assert ledger_of(app, "job_failed") == ledger_of(app, "failed") == []
    assert not (app.folder / "out/search.lock").exists()
    for job in range(slots, 3):  # those that are still to come are to be left alone
        (app.folder / f"out/{job}").mkdir(exist_ok=True)
        (app.folder / f"out/{job}/stopped.txt").write_text("")
    app(*command)
    assert [len(app.runs(job)) for job in range(3)] == [2] * slots + [1] * (3 - slots)
    resumed = [p["job"] for p in ledger_of(app, "started") if p["resumed"]]
    assert resumed == list(range(slots))
    assert {p["attempt"] for p in ledger_of(app, "started")} == {0}
    assert sorted(p["metrics"]["doubled"]["mean"] for p in ledger_of(app, "result")) == [2, 4, 6]


@pytest.mark.slow
def test_the_handlers_of_before_come_back_and_hear_of_the_signal(make_launcher: MakeLauncher, tmp_path: Path) -> None:
    heard = []
    launcher = make_launcher("mlrc_local", "hydra.launcher.workers=1")

    def handler(number: int, frame: object) -> None:
        heard.append((number, (tmp_path / "out/0/stopped.txt").exists()))

    def send() -> None:
        wait_for((tmp_path / "out/0/listens.txt").exists)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        threading.Thread(target=send).start()
        with pytest.raises(JobStopped) as stopped:
            launcher.launch([["behaviour=stoppable"]], 0)
        assert signal.getsignal(signal.SIGUSR1) == handler
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert stopped.value.code == os.EX_TEMPFAIL
    assert heard == [(signal.SIGUSR1, True)]
    # the launcher works as before
    assert launcher.launch([["behaviour=report"]], 1)[0].status == JobStatus.COMPLETED


@pytest.mark.slow
def test_a_signal_that_came_too_late_for_the_last_job_is_not_lost(make_launcher: MakeLauncher) -> None:
    launcher = make_launcher("mlrc_local", "hydra.launcher.workers=1")
    with pytest.raises(JobStopped, match="SIGTERM came"), launcher.passing_on_signals():
        launcher.launch([["behaviour=report"]], 0)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# dividing

SETTINGS = {"workers": None, "devices": None, "devices_per_worker": 1, "workers_per_device": 1, "threads": None}


def of(slots: tuple[_devices.Slot, ...], name: str) -> list[str | None]:
    return [dict(slot.environment).get(name) for slot in slots]


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_devices, "num_cores", lambda: 8)
    monkeypatch.setattr(_devices.shutil, "which", lambda name: None)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("settings", "devices", "threads"),
    [
        ({}, [None, None], "4"),
        ({"workers": 3}, [None] * 3, "2"),
        ({"workers": 20}, [None] * 20, "1"),
        ({"workers": 2, "threads": 1}, [None] * 2, "1"),
        ({"devices": []}, ["", ""], "4"),
        ({"devices": [0, 1]}, ["0", "1"], "4"),
        ({"devices": [0, 1], "workers_per_device": 2}, ["0", "1", "0", "1"], "2"),
        ({"devices": [0, 1, 2, 3], "devices_per_worker": 2}, ["0,1", "2,3"], "4"),
        ({"devices": [0, 1, 2], "devices_per_worker": 2}, ["0,1"], "8"),
        ({"devices": ["GPU-a", "GPU-b"], "workers": 3}, ["GPU-a", "GPU-b", "GPU-a"], "2"),
    ],
)
def test_devices_and_threads_are_divided(settings: dict, devices: list, threads: str) -> None:
    slots = divide(**{**SETTINGS, **settings})
    assert of(slots, "CUDA_VISIBLE_DEVICES") == devices
    assert of(slots, "OMP_NUM_THREADS") == of(slots, "MKL_NUM_THREADS") == [threads] * len(devices)
    assert of(slots, "MLRC_LOCAL_THREADS") == [threads] * len(devices)


@pytest.mark.usefixtures("eight_cores")
def test_threads_that_the_user_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    slots = divide(**{**SETTINGS, "workers": 4})
    assert of(slots, "OMP_NUM_THREADS") == of(slots, "MLRC_LOCAL_THREADS") == [None] * 4
    assert of(slots, "MKL_NUM_THREADS") == ["2"] * 4


@pytest.mark.usefixtures("eight_cores")
def test_settings_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(LocalLauncherError, match=r"hydra.launcher.workers`: expected at least 1, found 0"):
        divide(**{**SETTINGS, "workers": 0})
    with pytest.raises(LocalLauncherError, match=r"devices_per_worker` is 4, and the launcher has the devices 0, 1"):
        divide(**{**SETTINGS, "devices": [0, 1], "devices_per_worker": 4})


def test_visible_devices_are_those_of_the_environment() -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "2, GPU-x"}) == ["2", "GPU-x"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "-1"}) == []


def test_all_gpus_are_counted_by_the_driver_not_by_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho 'GPU 1: A (UUID: GPU-2)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert visible_devices({}) == ["0", "1"]


@pytest.mark.slow
def test_workers_see_their_own_device_and_threads(make_launcher: MakeLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launcher = make_launcher("mlrc_local", "hydra.launcher.devices=[0,1]", "hydra.launcher.threads=3")
    returned = [r.return_value for r in launcher.launch([["behaviour=meet"]] * 2, 0)]
    assert sorted(r["devices"] for r in returned) == ["0", "1"]
    assert [r["threads"] for r in returned] == ["3", "3"]


def test_the_number_of_workers_follows_the_sweeper(make_launcher: MakeLauncher) -> None:
    follows = make_launcher("mlrc_local", "hydra/sweeper=mlrc_ax", "hydra.sweeper.n_parallel=3")
    assert follows.num_slots == 3
    own = make_launcher("mlrc_local", "hydra.launcher.devices=[0,1]", "hydra.launcher.workers_per_device=2")
    assert own.num_slots == 4
