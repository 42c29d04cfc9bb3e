"""The SLURM launcher on a real SLURM, with one node; see `.ci/slurm`."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.plugins.launcher import Launcher

from hydra_plugins.mlrc_slurm_launcher.__main__ import main as slurm_command
from mlrc_lightning.cli.submit import submit

from .conftest import APP, ROOT, error_of
from .test_local import wait_for

pytest.importorskip("submitit")
pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

QUICK = ("hydra.launcher.poll_seconds=1", "hydra.launcher.settle_seconds=3")


def test_a_cancelled_job_is_a_cancelled_job(make_launcher: Callable[..., Launcher], tmp_path: Path) -> None:
    launcher = make_launcher("mlrc_slurm", *QUICK)
    found = []
    thread = threading.Thread(target=lambda: found.extend(launcher.launch([["behaviour=sleep"]], 0)))
    thread.start()
    wait_for(lambda: (tmp_path / "out/0/runs.txt").exists())
    assert slurm_command(["cancel", str(tmp_path)]) == 0
    thread.join()
    assert error_of(found[0]).state == "CANCELLED"  # type: ignore[attr-defined]


@pytest.mark.timeout(600)
def test_a_submitted_search_runs_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = ["hydra.sweep.dir=out", "hydra.sweeper.n_parallel=4", "hydra.sweeper.ax_config.max_trials=2", *QUICK]
    told = submit(["python", str(APP / "search.py"), "-m", "seconds=0.1", *overrides], ["--time=10"], [], Path("logs"))
    ledger = tmp_path / "out/ledger.jsonl"
    wait_for(lambda: ledger.exists() and '"finished"' in ledger.read_text(), 300)
    assert f"logs/driver-{told.split()[1].rstrip(':')}.log" in told
    payloads = [json.loads(line) for line in ledger.read_text().splitlines()]
    ids = [record["payload"]["id"] for record in payloads if record["type"] == "submitted"]
    assert len(set(ids)) == 8


@pytest.mark.timeout(1800)
def test_a_search_to_which_everything_happens_loses_nothing_and_runs_nothing_twice(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "slurm_search.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "show")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(json.loads(done.stdout)["claims"].values())
