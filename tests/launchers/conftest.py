import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode

from .app.task import run

ROOT = Path(__file__).parents[2]
APP = Path(__file__).parent / "app"


@pytest.fixture
def make_launcher(tmp_path: Path) -> Iterator[Callable[..., Launcher]]:
    """A launcher of the test app, set up as Hydra sets it up, without a sweeper: `make_launcher("mlrc_local")`."""
    state = Singleton.get_state()

    def make(name: str, *overrides: str, task: Any = run.__wrapped__, folder: Path = APP / "conf") -> Launcher:
        GlobalHydra.instance().clear()
        hydra = Hydra.create_main_hydra2("task", create_config_search_path(str(folder)))
        config = hydra.compose_config(
            config_name="config",
            overrides=[f"hydra/launcher={name}", f"hydra.sweep.dir={tmp_path / 'out'}", *overrides],
            run_mode=RunMode.MULTIRUN,
        )
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        return Plugins.instance().instantiate_launcher(config=config, hydra_context=context, task_function=task)

    yield make
    Singleton.set_state(state)


def error_of(returned: JobReturn) -> BaseException:
    assert returned.status == JobStatus.FAILED
    with pytest.raises(BaseException) as caught:
        _ = returned.return_value
    return caught.value


class App:
    """The command line of the test app, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def command(self, *overrides: str) -> list[str]:
        return [sys.executable, str(APP / "task.py"), "-m", "hydra.sweep.dir=out", *overrides]

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
        return {**os.environ, "PYTHONPATH": path, "HYDRA_FULL_ERROR": "1"}

    def __call__(self, *overrides: str, expect: int = 0, timeout: float = 300) -> str:
        done = subprocess.run(
            self.command(*overrides),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        output = done.stdout + done.stderr
        assert done.returncode == expect, output[-5000:]
        return output

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*overrides),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def runs(self, job: int) -> list[str]:
        """A line for each time that a job began."""
        path = self.folder / "out" / str(job) / "runs.txt"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path)


class FakeSlurm:
    """A folder in which `fake_slurm.py` keeps its jobs, and the commands, which are all that PATH has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        source = f"#!{sys.executable} -IS\n{(Path(__file__).parent / 'fake_slurm.py').read_text()}"
        for name in ("sbatch", "srun", "squeue", "scontrol", "sacct", "scancel"):
            (self.bin / name).write_text(source)
            (self.bin / name).chmod(0o755)
        for name in ("bash", "sleep", "mv"):
            (self.bin / name).symlink_to(str(shutil.which(name)))

    def answer(self, **answers: Any) -> None:
        temporary = self.folder / "answers.partial"
        temporary.write_text(json.dumps({name.removeprefix("job_"): answer for name, answer in answers.items()}))
        temporary.replace(self.folder / "answers.json")

    @property
    def jobs(self) -> list[dict[str, Any]]:
        paths = sorted(self.folder.glob("[0-9]*.json"), key=lambda path: int(path.stem))
        return [json.loads(path.read_text()) for path in paths]


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    folder = tmp_path / "cluster"
    folder.mkdir()
    fake = FakeSlurm(folder)
    monkeypatch.setenv("PATH", str(fake.bin))
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("SLURM_CONF", raising=False)
    return fake


@pytest.fixture(scope="session")
def slurm_conf() -> str:
    """Of a running SLURM: that of the environment, or the one that `.ci/slurm start` has started."""
    started = Path(os.environ.get("MLRC_SLURM", f"{tempfile.gettempdir()}/mlrc-slurm-{os.getuid()}"), "slurm.conf")
    if shutil.which("sinfo") is None:
        pytest.skip("SLURM is not installed; `.ci/slurm start` installs and starts one where apt and root allow")
    conf = os.environ.get("SLURM_CONF") or str(started)
    done = subprocess.run(
        ["sinfo", "--noheader"], env={**os.environ, "SLURM_CONF": conf}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("SLURM does not run; `.ci/slurm start` starts one where root allows")
    return conf


@pytest.fixture
def slurm(slurm_conf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm_conf)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
