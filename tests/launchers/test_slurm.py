"""The SLURM launcher against a SLURM of scripts, which fails on demand."""

import dataclasses
import json
import logging
import os
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from hydra_plugins.mlrc_slurm_launcher import _cluster
from hydra_plugins.mlrc_slurm_launcher._errors import SlurmJobError, SlurmLauncherError
from hydra_plugins.mlrc_slurm_launcher._files import JobFile, JobFolder, read_json
from hydra_plugins.mlrc_slurm_launcher._task import SupersededError
from hydra_plugins.mlrc_slurm_launcher.config import MLRCSlurmLauncherConf

from .conftest import APP, ROOT, App, FakeSlurm, error_of
from .test_local import wait_for

pytest.importorskip("submitit")

QUICK = ("hydra.launcher.poll_seconds=0.1", "hydra.launcher.settle_seconds=0.8")
AT_ONCE = "hydra.launcher.settle_seconds=0.1"
SETTLED = 4.0  # seconds after which an end of another `settle_seconds`, one less, counts
LOST_NODE = {"state": "NODE_FAIL", "reason": "NodeDown"}
NO_CONTROLLER = {"stderr": "slurm_load_jobs error: Unable to contact slurm controller (connect failure)", "status": 1}
Make = Callable[..., Any]


@pytest.fixture
def make(make_launcher: Callable[..., Launcher], fake_slurm: FakeSlurm) -> Make:
    return lambda *overrides: make_launcher("mlrc_slurm", *QUICK, *overrides)


@pytest.fixture
def config_folder(tmp_path: Path) -> Path:
    """The test app's configuration, to be added to."""
    return Path(shutil.copytree(APP / "conf", tmp_path / "conf"))


# a job is an interpreter of its own, and imports Hydra: a second, and several on a busy machine
runs_jobs = pytest.mark.slow


@pytest.fixture
def hold(fake_slurm: FakeSlurm) -> Callable[..., None]:
    """No job begins; the answers given are those of SLURM."""
    return lambda **answers: fake_slurm.answer(hold=True, **answers)


def job_file(tmp_path: Path, number: int = 0) -> dict[str, Any]:
    content = read_json(tmp_path / f"out/.slurm/{number}/job.json")
    assert content is not None
    return content


def has_id(tmp_path: Path, number: int = 0) -> bool:
    content = read_json(tmp_path / f"out/.slurm/{number}/job.json")
    return content is not None and content["job_id"] is not None


@runs_jobs
def test_jobs_run_and_their_ids_are_told_before_the_wait(make: Make, tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    launcher = make()
    told = []

    def tell(number: int, job_id: str, folder: Path) -> None:
        begun_and_ended = (tmp_path / f"out/.slurm/{number}").glob("*/*_result.pkl")
        told.append((number, job_id, job_file(tmp_path, number)["job_id"], folder.parent.name, any(begun_and_ended)))

    launcher.on_submitted = tell
    first, second = (r.return_value for r in launcher.launch([["x=1", "behaviour=sleep", "seconds=0.3"], ["x=2"]], 0))
    assert told[0] == (0, "1", "1", "0", False)
    assert [entry[:4] for entry in told] == [(0, "1", "1", "0"), (1, "2", "2", "1")]
    assert (first["doubled"], second["doubled"]) == (2, 4)
    assert (first["id"], second["id"]) == ("1", "2")
    assert first["argument"] == Path(__import__("sys").argv[0]).name  # which DDP starts again
    assert (tmp_path / "out/1/.hydra/overrides.yaml").read_text() == "- x=2\n"


@runs_jobs
def test_what_a_task_raises_comes_back(make: Make) -> None:
    launcher = make()
    raised, exited, unpicklable = launcher.launch([[f"behaviour={b}"] for b in ("raise", "exit", "unpicklable")], 0)
    assert isinstance(error_of(raised), ValueError)
    assert "ValueError: no luck" in str(error_of(raised).__cause__)
    assert str(error_of(exited)).startswith("FAILED: job 2 failed by exit status 3")
    assert "returned a generator" in str(error_of(unpicklable))


@runs_jobs
@pytest.mark.parametrize("knows", ["everybody", "squeue alone", "nobody"])
def test_a_killed_job_fails_with_its_signal_whoever_remembers_it(
    make: Make, fake_slurm: FakeSlurm, tmp_path: Path, knows: str
) -> None:
    if knows == "nobody":
        fake_slurm.answer(job_1={"state": "RUNNING"})

        def forget() -> None:
            wait_for(lambda: bool(list(tmp_path.glob("out/.slurm/0/*/exit_code"))))
            fake_slurm.answer(job_1={"forgotten": True})

        threading.Thread(target=forget).start()
    if knows == "squeue alone":
        (fake_slurm.bin / "scontrol").unlink()
        (fake_slurm.bin / "sacct").unlink()
    error = error_of(make().launch([["behaviour=kill"]], 0)[0])
    assert isinstance(error, SlurmJobError)
    assert error.state == ("GONE" if knows == "nobody" else "FAILED")
    assert "by signal SIGKILL" in str(error)
    assert "1_0_log.err" in str(error)


@pytest.mark.slow
def test_jobs_that_slurm_ended_have_each_their_own_state(make: Make, hold: Make) -> None:
    cases = [
        (LOST_NODE, "NODE_FAIL", "lost its node (NodeDown). Its log is"),
        ({"state": "PREEMPTED"}, "PREEMPTED", "was preempted, and not requeued"),
        ({"state": "CANCELLED"}, "CANCELLED", "was cancelled"),
        ({"state": "TIMEOUT", "reason": "TimeLimit"}, "TIMEOUT", "(TimeLimit). Raise `hydra.launcher.timeout_min`"),
        ({"state": "OUT_OF_MEMORY"}, "OUT_OF_MEMORY", "Ask for more by `hydra.launcher.mem_gb`"),
        ({"state": "DEADLINE"}, "DEADLINE", "missed its deadline"),
        ({"forgotten": True}, "GONE", "known to neither squeue, scontrol nor sacct"),
    ]
    hold(**{f"job_{number}": answer for number, (answer, _, _) in enumerate(cases, start=1)})
    returned = make(AT_ONCE).launch([[]] * len(cases), 0)
    for number, ((_, state, text), job) in enumerate(zip(cases, returned, strict=True), start=1):
        error = error_of(job)
        assert isinstance(error, SlurmJobError)
        assert (error.state, error.job_id) == (state, str(number))
        assert text in str(error)


@pytest.mark.parametrize(
    ("said", "state"),
    [("TIMEOUT|0:15\n", "TIMEOUT"), ("CANCELLED by 1000|0:0\n", "CANCELLED"), ("RUNNING|0:0\n", "GONE"), ("", "GONE")],
)
@pytest.mark.slow
def test_the_accounting_is_asked_where_the_controller_forgot_and_stale_rows_are_not_believed(
    make: Make, hold: Make, said: str, state: str
) -> None:
    hold(job_1={"forgotten": True}, sacct={"stdout": said})
    error = error_of(make(AT_ONCE).launch([[]], 0)[0])
    assert isinstance(error, SlurmJobError)
    assert error.state == state


@pytest.mark.slow
def test_one_answer_is_no_end_however_seldom_the_controller_is_asked(
    make: Make, hold: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is preempted for a moment, seen only then, and polled less often than an end has to last."""
    hold(job_1={"state": "PREEMPTED"})
    states = iter([_cluster.JobState("PREEMPTED")])
    asked = []

    def squeue(job_ids: list[str]) -> dict[str, _cluster.JobState]:
        asked.append(time.monotonic())
        return dict.fromkeys(job_ids, next(states, _cluster.JobState("NODE_FAIL")))

    monkeypatch.setattr(_cluster, "_squeue", squeue)
    monkeypatch.setattr(_cluster, "_scontrol", lambda job_id: None)
    monkeypatch.setattr(_cluster, "_sacct", lambda job_id: None)
    error = error_of(make("hydra.launcher.poll_seconds=1", "hydra.launcher.settle_seconds=0.5").launch([[]], 0)[0])
    assert isinstance(error, SlurmJobError)
    assert error.state == "NODE_FAIL"
    assert len(asked) >= 2


@runs_jobs
def test_a_preempted_job_that_is_requeued_has_not_failed(
    make: Make, fake_slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm.answer(job_1={"state": "PREEMPTED"})

    seen = []
    real = _cluster._squeue
    monkeypatch.setattr(_cluster, "_squeue", lambda ids: seen.append(answer := real(ids)) or answer)

    def requeue() -> None:
        wait_for(lambda: any("PREEMPTED" in str(answer) for answer in seen))
        fake_slurm.answer(job_1={"state": "PENDING", "reason": "BeginTime"})  # within settle_seconds
        time.sleep(SETTLED)
        fake_slurm.answer()
        (tmp_path / "out/told.txt").touch()

    thread = threading.Thread(target=requeue)
    thread.start()
    returned = make(f"hydra.launcher.settle_seconds={SETTLED - 1}").launch([["behaviour=until_told"]], 0)[0]
    thread.join()
    assert returned.status == JobStatus.COMPLETED
    assert len((tmp_path / "out/0/runs.txt").read_text().splitlines()) == 1


@runs_jobs
@pytest.mark.parametrize("requeues", [0, 1])
def test_a_job_told_of_its_time_limit_is_requeued_as_often_as_wanted(
    make: Make, fake_slurm: FakeSlurm, tmp_path: Path, requeues: int
) -> None:
    runs = tmp_path / "out/0/runs.txt"

    def warn() -> None:
        wait_for(runs.with_name("resumed.txt").exists)  # it sleeps, and would not sleep again
        os.kill(int(runs.read_text().split()[0]), signal.SIGUSR2)

    thread = threading.Thread(target=warn)
    thread.start()
    launcher = make("hydra.launcher.timeout_min=1", f"hydra.launcher.max_num_timeout={requeues}")
    returned = launcher.launch([["behaviour=sleep_once", "seconds=30"]], 0)[0]
    thread.join()
    restarts = [line.split()[2] for line in runs.read_text().splitlines()]
    if requeues:
        assert returned.status == JobStatus.COMPLETED
        assert restarts == ["0", "1"], "in its folder, where it goes on"
    else:
        error = error_of(returned)
        assert isinstance(error, SlurmJobError)
        assert error.state == "TIMEOUT"
        assert "Raise `hydra.launcher.timeout_min`, or let jobs be requeued" in str(error)
        assert restarts == ["0"]


def leave_result(tmp_path: Path, returned: JobReturn, number: int = 0) -> None:
    job = job_file(tmp_path, number)
    path = tmp_path / f"out/.slurm/{number}/{job['token']}/{job['job_id']}_0_result.pkl"
    path.with_suffix(".partial").write_bytes(cloudpickle.dumps(("success", returned)))
    path.with_suffix(".partial").replace(path)


@pytest.mark.slow
def test_a_failure_counts_only_once_slurm_is_done_with_the_job(make: Make, hold: Make, tmp_path: Path) -> None:
    # a requeue ends the first run's data loaders, say, and its task raises for that
    hold(job_1={"state": "COMPLETING"})
    found: list[JobReturn] = []
    thread = threading.Thread(target=lambda: found.extend(make().launch([[]], 0)))
    thread.start()
    wait_for(lambda: has_id(tmp_path))
    leave_result(tmp_path, JobReturn(status=JobStatus.FAILED, _return_value=RuntimeError("worker exited")))
    time.sleep(1.5)
    assert thread.is_alive()
    hold(job_1={"state": "PENDING"})
    time.sleep(0.5)
    assert thread.is_alive()
    leave_result(tmp_path, JobReturn(status=JobStatus.COMPLETED, _return_value=7))
    thread.join()
    assert found[0].return_value == 7


@runs_jobs
def test_a_controller_that_is_away_for_a_while_ends_nothing(
    make: Make, fake_slurm: FakeSlurm, caplog: pytest.LogCaptureFixture
) -> None:
    fake_slurm.answer(squeue=[NO_CONTROLLER] * 6)
    with caplog.at_level(logging.WARNING):
        returned = make().launch([["behaviour=kill"], ["behaviour=sleep", "seconds=0.5"]], 0)
    assert [r.status for r in returned] == [JobStatus.FAILED, JobStatus.COMPLETED]
    assert [line for line in caplog.messages if "Unable to contact slurm controller" in line]


@pytest.mark.slow
def test_a_controller_that_stays_away_is_given_up_in_the_end(make: Make, hold: Make) -> None:
    hold(squeue=NO_CONTROLLER)
    error = error_of(make("hydra.launcher.give_up_after_min=0.02").launch([[]], 0)[0])
    assert isinstance(error, SlurmJobError)
    assert error.state == "UNREACHABLE"


@pytest.mark.slow
def test_a_held_job_is_waited_for_and_said_to_be_held(
    make: Make, hold: Make, fake_slurm: FakeSlurm, caplog: pytest.LogCaptureFixture
) -> None:
    hold(job_1={"state": "PENDING", "reason": "launch failed requeued held"})

    def lose() -> None:
        wait_for(lambda: "it waits until somebody releases it (scontrol release 1)" in caplog.text)
        hold(job_1=LOST_NODE)

    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=lose)
        thread.start()
        make().launch([[]], 0)
        thread.join()
    assert "it waits until somebody releases it (scontrol release 1)" in caplog.text


@runs_jobs
def test_one_question_serves_all_jobs(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = _cluster._squeue
    monkeypatch.setattr(_cluster, "_squeue", lambda ids: asked.append(list(ids)) or real(ids))
    launcher = make("hydra.launcher.poll_seconds=60")
    threads = [
        threading.Thread(target=launcher.launch, args=([["behaviour=until_told"]], number)) for number in range(3)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(asked) == 3)
    (tmp_path / "out/told.txt").touch()
    for thread in threads:
        thread.join()
    # a job new to the launcher is asked for at once, together with the others
    assert len(asked) == 3
    assert sorted(asked[-1]) == ["1", "2", "3"]


# submitting


@pytest.mark.slow
def test_sbatch_is_asked_for_what_the_config_says(make: Make, hold: Make, fake_slurm: FakeSlurm) -> None:
    hold(job_1=LOST_NODE)
    launcher = make(
        AT_ONCE,
        "hydra.launcher.name=search",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.account=lab",
        "hydra.launcher.qos=long",
        "hydra.launcher.timeout_min=90",
        "hydra.launcher.gpus_per_node=2",
        "hydra.launcher.cpus_per_task=8",
        "hydra.launcher.mem_gb=24",
        "hydra.launcher.signal_delay_s=60",
        "hydra.launcher.setup=['module load cuda','source /venv/bin/activate']",
        "hydra.launcher.additional_parameters={mail-type: FAIL, exclusive: true}",
        "hydra.launcher.python=/opt/python",
    )
    launcher.launch([[]], 0)
    script = Path(fake_slurm.jobs[0]["script"]).read_text().splitlines()
    wanted = ["job-name=search", "partition=gpu", "account=lab", "qos=long", "time=90", "gpus-per-node=2"]
    wanted += ["cpus-per-task=8", "mem=24GB", "signal=USR2@60", "mail-type=FAIL", "exclusive", "requeue"]
    assert {f"#SBATCH --{option}" for option in wanted} <= set(script)
    trap = next(number for number, line in enumerate(script) if line.startswith("trap "))
    assert script[trap + 2 : trap + 4] == ["module load cuda", "source /venv/bin/activate"]
    command = next(line for line in script if line.startswith("srun"))
    assert "--cpus-per-task=8 /opt/python -u -m submitit.core._submit" in command


@pytest.mark.slow
def test_the_documented_configuration_of_a_cluster_comes_to_sbatch(
    make_launcher: Callable[..., Launcher], hold: Make, fake_slurm: FakeSlurm, config_folder: Path
) -> None:
    text = (ROOT / "docs" / "launchers.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(# conf/hydra/launcher/cluster.yaml.*?)```", text, re.DOTALL)
    (config_folder / "hydra" / "launcher").mkdir(parents=True)
    (config_folder / "hydra" / "launcher" / "cluster.yaml").write_text(example, encoding="utf-8")
    hold(job_1=LOST_NODE)
    make_launcher("cluster", *QUICK, AT_ONCE, folder=config_folder).launch([[]], 0)
    script = Path(fake_slurm.jobs[0]["script"]).read_text().splitlines()
    wanted = ["partition=gpu", "account=my_lab", "qos=normal", "time=720", "nodes=1", "ntasks-per-node=1"]
    wanted += ["gpus-per-node=1", "cpus-per-task=16", "mem=120GB", "mail-type=FAIL", "reservation=spring", "requeue"]
    assert {f"#SBATCH --{option}" for option in wanted} <= set(script)
    trap = next(number for number, line in enumerate(script) if line.startswith("trap "))
    assert script[trap + 1].startswith(
        'if [ -z "$OMP_NUM_THREADS" ]; then export OMP_NUM_THREADS=16 MKL_NUM_THREADS=16 '
    )
    assert script[trap + 2 : trap + 4] == ["module load cuda/12.4", "source $HOME/mlrc/.venv/bin/activate"]
    documented = set(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| .* \|$", text.partition("## mlrc_slurm")[2], re.MULTILINE))
    keys = {key for cell in documented for key in re.findall(r"`(\w+)`", cell)}
    assert keys == {field.name for field in dataclasses.fields(MLRCSlurmLauncherConf)} - {"_target_"}


@pytest.mark.slow
def test_the_variables_of_the_drivers_own_job_are_not_handed_on(
    make: Make, hold: Make, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(job_1=LOST_NODE)
    for name, value in (("SLURM_MEM_PER_NODE", "100"), ("SLURM_JOB_ID", "77"), ("SLURM_CONF", "/etc/slurm.conf")):
        monkeypatch.setenv(name, value)
    make(AT_ONCE).launch([[]], 0)
    assert fake_slurm.jobs[0]["inherited"] == ["SLURM_CONF"]
    assert os.environ["SLURM_JOB_ID"] == "77"


def test_a_refusal_of_sbatch_is_an_error_of_the_command(make: Make, fake_slurm: FakeSlurm) -> None:
    refusal = "sbatch: error: invalid partition specified: nowhere\nsbatch: error: Batch job submission failed"
    fake_slurm.answer(sbatch=[{"stderr": refusal, "status": 1}])
    with pytest.raises(SlurmLauncherError, match="invalid partition specified: nowhere") as caught:
        make().launch([[]], 0)
    assert caught.value.is_usage_error


def test_where_there_is_no_slurm_it_says_so(make: Make, fake_slurm: FakeSlurm) -> None:
    (fake_slurm.bin / "srun").unlink()
    with pytest.raises(SlurmLauncherError, match=r"srun.*hydra/launcher=mlrc_local"):
        make().launch([[]], 0)


@runs_jobs
@pytest.mark.parametrize("is_done", [False, True])
def test_an_answer_of_sbatch_that_got_lost_makes_no_second_job(
    make: Make, fake_slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    from hydra_plugins.mlrc_slurm_launcher import _core

    monkeypatch.setattr(_core, "_SUBMIT_PAUSE_SECONDS", 0.1)
    lost = {"stderr": "sbatch: error: Batch job submission failed: Socket timed out on send/recv", "status": 1}
    fake_slurm.answer(sbatch=[{**lost, "is_done_all_the_same": is_done}])
    assert make().launch([["behaviour=sleep", "seconds=1"]], 0)[0].return_value["id"] == "1"
    assert len(fake_slurm.jobs) == 1
    assert len((tmp_path / "out/0/runs.txt").read_text().splitlines()) == 1


# finding again


@runs_jobs
def test_results_that_nobody_saw_are_collected_and_those_returned_are_made_anew(
    make: Make, fake_slurm: FakeSlurm, tmp_path: Path
) -> None:
    jobs = [["x=3"], ["behaviour=kill"]]
    good, bad = make().launch(jobs, 0)
    for number in (0, 1):  # as if the process had been killed before it returned them
        files = JobFolder(tmp_path / "out/.slurm", number)
        job = files.read()
        assert job is not None
        assert job.told
        files.write(dataclasses.replace(job, told=False))
    again, still_bad = make().launch(jobs, 0)
    assert [job["id"] for job in fake_slurm.jobs] == ["1", "2"]
    assert again.return_value == good.return_value  # to the second of its beginning
    assert str(error_of(still_bad)) == str(error_of(bad))
    anew = make().launch([["x=3"]], 0)[0].return_value
    assert (anew["id"], anew["doubled"]) == ("3", 6)


@runs_jobs
def test_attach_tells_a_failure_once(make: Make, fake_slurm: FakeSlurm) -> None:
    assert make().attach(0) is None
    make().launch([["x=3"], ["behaviour=raise"]], 0)
    assert make().attach(0).return_value["doubled"] == 6
    assert make().attach(1) is None


@pytest.mark.slow
def test_a_job_under_way_with_other_settings_is_not_taken_for_this_one(make: Make, hold: Make, tmp_path: Path) -> None:
    hold(job_1={"state": "RUNNING"})
    threading.Thread(target=lambda: make().launch([["x=1"]], 0), daemon=True).start()
    wait_for(lambda: has_id(tmp_path))
    other = make()
    with pytest.raises(SlurmLauncherError, match=r"SLURM job 1 is under way as job 0 .* with other settings: x=1"):
        other.launch([["x=2"]], 0)
    hold(job_1=LOST_NODE)


@runs_jobs
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGHUP])  # SIGHUP: the SSH session is closed
def test_a_killed_driver_finds_its_jobs_again(app: App, fake_slurm: FakeSlurm, by: signal.Signals) -> None:
    command = ("hydra/launcher=mlrc_slurm", *QUICK, "x=1,2", "behaviour=until_told")
    process = app.start(*command)
    wait_for(lambda: len(app.runs(0)) == len(app.runs(1)) == 1)
    process.send_signal(by)
    process.communicate()
    assert process.returncode == -by
    again = app.start(*command)
    assert again.stdout is not None
    assert any("#0 : SLURM job 1 of" in line for line in again.stdout)  # reads up to that line
    (app.folder / "out/told.txt").touch()
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert len(fake_slurm.jobs) == 2
    assert len(app.runs(0)) == len(app.runs(1)) == 1


@pytest.fixture
def unanswered(make: Make, fake_slurm: FakeSlurm, tmp_path: Path) -> tuple[JobFolder, JobFile]:
    """A job whose launcher was killed after sbatch and before it had written down the answer."""
    fake_slurm.answer(hold=True, job_1=LOST_NODE)
    make(AT_ONCE).launch([["x=5"]], 0)
    files = JobFolder(tmp_path / "out/.slurm", 0)
    job = files.read()
    assert job is not None
    (files.attempt(job) / "1_submitted.pkl").rename(files.attempt(job) / f"{'ab' * 16}.pkl")
    return files, files.write(dataclasses.replace(job, job_id=None, told=False))


@pytest.mark.parametrize("trace", ["started", "script", "queue"])
@pytest.mark.slow
def test_a_submission_without_an_answer_is_found_and_completed(
    make: Make, fake_slurm: FakeSlurm, unanswered: tuple[JobFolder, JobFile], trace: str
) -> None:
    files, job = unanswered
    attempt = files.attempt(job)
    script = attempt / "1_submission.sh"
    if trace == "started":
        (attempt / "started.json").write_text(json.dumps({"job_id": "1"}))
    if trace != "script":
        script.unlink()
    fake_slurm.answer(hold=True, job_1={"state": "PENDING"})
    found = make()._submitter.find(0)
    assert found.job.job_id == "1"
    assert files.read() == found.job
    assert (attempt / "1_submitted.pkl").exists()


@runs_jobs
def test_a_submission_that_never_was_is_made_and_its_late_twin_does_not_run(
    make: Make, fake_slurm: FakeSlurm, unanswered: tuple[JobFolder, JobFile]
) -> None:
    files, job = unanswered
    (files.attempt(job) / "1_submission.sh").unlink()
    fake_slurm.answer(job_1={"forgotten": True}, squeue=[{"stdout": ""}])
    assert make().attach(0) is None
    assert make().launch([["x=5"]], 0)[0].return_value["id"] == "2"
    twin = cloudpickle.loads((files.attempt(job) / f"{'ab' * 16}.pkl").read_bytes()).function
    with pytest.raises(SupersededError, match="names another submission"):
        twin._claim("1")


GRID = (
    *("hydra/launcher=mlrc_slurm", *QUICK, "hydra/sweeper=mlrc_ax", "hydra.sweeper.n_parallel=3"),
    *("hydra.sweeper.generation.method=grid", "hydra.sweeper.report=false", "hydra.sweeper.max_failures=9"),
    *("hydra.sweeper.ax_config.max_trials=9", "hydra.sweeper.ax_config.experiment.objective_name=doubled"),
)


def ledger_of(app: App, type_: str) -> list[dict[str, Any]]:
    path = app.folder / "out/ledger.jsonl"
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return [record["payload"] for record in map(json.loads, lines) if record["type"] == type_]


@runs_jobs
def test_a_disk_that_fills_up_ends_the_search_which_then_goes_on(app: App, fake_slurm: FakeSlurm) -> None:
    command = (*GRID, "behaviour=sleep", "seconds=1", "x=int(interval(1,9))")
    process = app.start(*command)
    wait_for(lambda: len(ledger_of(app, "result")) >= 2)
    # the next record is written in part, as where the disk has no room for the rest of it
    limit = (app.folder / "out/ledger.jsonl").stat().st_size + 20
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "All earlier results are safe; make room and repeat the command" in output
    app(*command)
    assert sorted(p["metrics"]["doubled"]["mean"] for p in ledger_of(app, "result")) == [2 * x for x in range(1, 10)]
    assert {p["job"] for p in ledger_of(app, "started")} == set(range(9))
    assert [len(app.runs(job)) for job in range(9)] == [1] * 9, "a job that ran was run again"


@runs_jobs
def test_a_search_killed_twice_loses_nothing_and_runs_nothing_twice(app: App, fake_slurm: FakeSlurm) -> None:
    command = (*GRID, "behaviour=kill_first", "x=int(interval(1,9))")
    for stop in (2, 5):
        process = app.start(*command)
        wait_for(lambda stop=stop: len(ledger_of(app, "result")) >= stop)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    app(*command)
    jobs = {p["job"] for p in ledger_of(app, "started")}
    assert len(jobs) == len(fake_slurm.jobs) == 10
    assert all(len(app.runs(job)) == 1 for job in jobs)
    assert {p["job"]: p["id"] for p in ledger_of(app, "submitted")}.keys() == jobs
    assert sorted(p["metrics"]["doubled"]["mean"] for p in ledger_of(app, "result")) == [2 * x for x in range(1, 10)]
    assert [p["state"] for p in ledger_of(app, "job_failed")] == ["FAILED"]


@pytest.mark.slow
def test_a_job_that_was_requeued_after_its_failure_was_told_is_no_second_one(
    make: Make, hold: Make, fake_slurm: FakeSlurm
) -> None:
    hold(job_1=LOST_NODE)
    assert isinstance(error_of(make(AT_ONCE).launch([["x=5"]], 0)[0]), SlurmJobError)
    fake_slurm.answer(hold=True, job_1={"state": "RUNNING"})
    assert make()._submitter.submit_or_find(0, ["x=5"]).job.job_id == "1"
    with pytest.raises(SlurmLauncherError, match="SLURM job 1 is under way as job 0 of .* with other settings"):
        make()._submitter.submit_or_find(0, ["x=6"])
    assert len(fake_slurm.jobs) == 1
    fake_slurm.answer(hold=True, job_1=LOST_NODE)
    assert make()._submitter.submit_or_find(0, ["x=5"]).job.job_id == "2"


@runs_jobs
@pytest.mark.parametrize("is_killed", [False, True], ids=["at once", "by the next driver"])
def test_a_job_at_its_time_limit_is_submitted_anew_under_its_number(
    app: App, fake_slurm: FakeSlurm, is_killed: bool
) -> None:
    more = (
        "hydra.sweeper.n_parallel=1",
        "hydra.sweeper.ax_config.max_trials=2",
        "hydra.sweeper.free_on_resume=[seconds]",
    )
    command = (*GRID, *more, "behaviour=sleep_once", "seconds=600", "x=int(interval(1,2))")
    process = app.start(*command)

    def end_job(job_id: int) -> None:
        """As SLURM does at the time limit."""
        os.killpg(fake_slurm.jobs[job_id - 1]["pid"], signal.SIGKILL)
        fake_slurm.answer(**{f"job_{number}": {"state": "TIMEOUT"} for number in range(1, job_id + 1)})

    wait_for(lambda: (app.folder / "out/0/resumed.txt").exists())
    if is_killed:
        # between the record of the failure and that of the retry there is no room for a kill; the file tells the same
        end_job(1)
        wait_for(lambda: bool(ledger_of(app, "job_failed")))
        process.kill()
        process.communicate()
        lines = (app.folder / "out/ledger.jsonl").read_text().splitlines(keepends=True)
        last = next(number for number, line in enumerate(lines) if '"type":"job_failed"' in line)
        (app.folder / "out/ledger.jsonl").write_text("".join(lines[: last + 1]))
        process = app.start(*command)
    else:
        end_job(1)
    wait_for(lambda: (app.folder / "out/1/resumed.txt").exists())  # the second trial's, which sleeps
    assert [p["state"] for p in ledger_of(app, "job_failed")] == ["TIMEOUT"]
    first = [(p["job"], p["attempt"], p["resumed"]) for p in ledger_of(app, "started") if p["trial"] == 0]
    assert first == [(0, 0, False), (0, 1, False)]
    ids = [p["id"] for p in ledger_of(app, "submitted") if p["job"] == 0]
    assert ids[0] == "1"
    assert len(ids) == 2
    end_job(len(fake_slurm.jobs))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert {p["job"] for p in ledger_of(app, "started")} == {0, 1}
    assert sorted(p["metrics"]["doubled"]["mean"] for p in ledger_of(app, "result")) == [2, 4]
