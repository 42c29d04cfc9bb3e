"""A search submitted as a driver job, and the commands about a search's SLURM jobs."""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.plugins.launcher import Launcher

from hydra_plugins.mlrc_slurm_launcher.__main__ import main as slurm_command
from mlrc_lightning.__main__ import main
from mlrc_lightning.cli.submit import submit
from mlrc_lightning.errors import ConfigError

from .conftest import FakeSlurm, error_of
from .test_local import wait_for
from .test_slurm import has_id

pytest.importorskip("submitit")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my work").mkdir()
    monkeypatch.chdir(tmp_path / "my work")
    return tmp_path / "my work"


def script_of(fake_slurm: FakeSlurm) -> list[str]:
    return Path(fake_slurm.jobs[0]["script"]).read_text().splitlines()


def test_a_search_becomes_a_driver_with_the_launcher_inside(
    here: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_slurm.answer(hold=True)
    options = ("--sbatch=--time=3-00:00", "--sbatch=--partition=long", "--setup", "module load cuda")
    main(["submit", *options, "python", "train.py", "-m", "loss=arcface", "hydra.launcher.setup=['a b']"])
    told = capsys.readouterr().out
    assert told.startswith("Job 1: ")
    assert "outputs/driver-1.log" in told
    assert "scancel 1" in told
    script = script_of(fake_slurm)
    assert {"#SBATCH --time=3-00:00", "#SBATCH --partition=long", "#SBATCH --requeue"} <= set(script)
    assert f"#SBATCH --output={here}/outputs/driver-%j.log" in script
    first = script.index(f"cd '{here}' || exit 1")
    assert script[first + 1] == "module load cuda"
    words = f"{sys.executable} train.py -m loss=arcface 'hydra.launcher.setup=['\"'\"'a b'\"'\"']'"
    assert script[first + 2] == f"{words} hydra/launcher=mlrc_slurm &"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["make", "table", "LAUNCHER=slurm"], "make table LAUNCHER=slurm &"),
        (["--", "./run.sh"], "./run.sh &"),
        (["/opt/python", "a.py", "-m", "hydra/launcher=mlrc_local"], "/opt/python a.py -m hydra/launcher=mlrc_local &"),
        (["/opt/python", "a.py", "x=1"], "/opt/python a.py x=1 &"),
    ],
)
def test_other_commands_stay_as_they_are(fake_slurm: FakeSlurm, command: list[str], line: str) -> None:
    fake_slurm.answer(hold=True)
    submit(command, [], [], Path("outputs"))
    assert line in script_of(fake_slurm)


def test_the_drivers_exit_status_is_its_commands(here: Path, fake_slurm: FakeSlurm) -> None:
    submit(["bash", "-c", "echo done > file; exit 7"], [], [], Path("outputs"))
    status = fake_slurm.folder / "1.status"
    wait_for(lambda: status.exists() and bool(status.read_text()))
    assert status.read_text() == "7\n"
    assert (here / "file").read_text() == "done\n"


@pytest.mark.usefixtures("here")
def test_what_cannot_be_submitted_says_why(fake_slurm: FakeSlurm) -> None:
    with pytest.raises(ConfigError, match="Expected a command to submit"):
        submit([], [], [], Path("outputs"))
    fake_slurm.answer(sbatch=[{"stderr": "sbatch: error: invalid partition specified: no", "status": 1}])
    with pytest.raises(ConfigError, match="invalid partition specified: no"):
        submit(["make"], [], [], Path("outputs"))
    (fake_slurm.bin / "sbatch").unlink()
    with pytest.raises(ConfigError, match="Expected `sbatch` on the PATH"):
        submit(["make"], [], [], Path("outputs"))


@pytest.mark.slow
def test_jobs_of_a_search_are_listed_and_cancelled(
    make_launcher: Callable[..., Launcher],
    fake_slurm: FakeSlurm,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_slurm.answer(hold=True, job_1={"state": "RUNNING"}, job_2={"state": "TIMEOUT"})
    quick = ("hydra.launcher.poll_seconds=0.1", "hydra.launcher.settle_seconds=0.1")
    launcher = make_launcher("mlrc_slurm", *quick)
    found = []
    thread = threading.Thread(target=lambda: found.extend(launcher.launch([[], []], 0)))
    thread.start()
    wait_for(lambda: has_id(tmp_path, 1))
    assert slurm_command(["jobs", str(tmp_path)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].endswith("out  job 0  SLURM job 1  RUNNING")
    assert listed[1].endswith("out  job 1  SLURM job 2  TIMEOUT")
    assert slurm_command(["cancel", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip().endswith("SLURM job 1  RUNNING, now cancelled")
    # of a job whose launcher was killed before it had the answer, the number is found as the launcher would
    file = tmp_path / "out/.slurm/0/job.json"
    content = file.read_text()
    file.write_text(json.dumps({**json.loads(content), "job_id": None}))
    assert slurm_command(["cancel", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip().endswith("SLURM job 1  RUNNING, now cancelled")
    file.write_text(content)
    fake_slurm.answer(hold=True, job_1={"state": "CANCELLED"}, job_2={"state": "TIMEOUT"})
    thread.join()
    assert [error_of(job).state for job in found] == ["CANCELLED", "TIMEOUT"]  # type: ignore[attr-defined]
    fake_slurm.answer(squeue={"stderr": "slurm_load_jobs error: Unable to contact slurm controller", "status": 1})
    assert slurm_command(["jobs", str(tmp_path)]) == 2
