"""SIGKILL at random places: nothing acknowledged is lost, and the search goes on as if it had not been killed.

MLRC_KILL_SEARCHES sets the number of searches, each killed ten times; all but the first are nightly.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT, Sweep, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.fault]

NUM_SEARCHES = int(os.environ.get("MLRC_KILL_SEARCHES", "2"))
NUM_KILLS = 10
ARGUMENTS = ("loss=b", "hydra.sweeper.ax_config.max_trials=14", "behaviour=slow")
DIRECTORY = "out/d1/b"


class ForkRuns:
    """The app in forks of one process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def start(self, folder: Path, *arguments: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(folder), *arguments]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def fork_runs() -> Iterator[ForkRuns]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).parent / "fork_runs.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield ForkRuns(process)
        assert process.stdin is not None
        process.stdin.close()


def without_times(payloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in p.items() if key not in ("time", "seconds")} for p in payloads]


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "number", [0, *(pytest.param(number, marks=pytest.mark.nightly) for number in range(1, NUM_SEARCHES))]
)
def test_a_killed_search_is_the_search_that_was_not_killed(fork_runs: ForkRuns, tmp_path: Path, number: int) -> None:
    seed = f"hydra.sweeper.ax_config.client.random_seed={number}"
    whole, broken = Sweep(tmp_path / "whole"), Sweep(tmp_path / "broken")
    for sweep in (whole, broken):
        sweep.folder.mkdir()
    fork_runs.start(whole.folder, *ARGUMENTS, seed)
    assert fork_runs.wait() == 0
    generator = random.Random(number)
    ledger = broken.folder / DIRECTORY / "ledger.jsonl"
    acknowledged = b""
    num_killed = 0
    size = (whole.folder / DIRECTORY / "ledger.jsonl").stat().st_size
    # some of them come twice or thrice in a row before the ledger has grown, and so while a search starts
    for place in sorted(generator.choices(range(0, size * 3 // 4, size // 16), k=NUM_KILLS)):
        pid = fork_runs.start(broken.folder, *ARGUMENTS, seed)
        wait_until(lambda place=place: ledger.exists() and ledger.stat().st_size >= place)
        time.sleep(generator.uniform(0.0, 0.3))  # anywhere in what comes next
        os.kill(pid, signal.SIGKILL)
        num_killed += fork_runs.wait() == signal.SIGKILL
        if ledger.exists():
            data = ledger.read_bytes()
            # a record is acknowledged once it stands there with its line break
            assert data.startswith(acknowledged)
            acknowledged = data[: data.rfind(b"\n") + 1]
    fork_runs.start(broken.folder, *ARGUMENTS, seed)
    assert fork_runs.wait() == 0, (broken.folder / "output.txt").read_text()[-3000:]
    assert num_killed >= NUM_KILLS // 2
    assert broken.proposals(DIRECTORY) == whole.proposals(DIRECTORY)
    for type_ in ("proposed", "completed", "finished"):
        assert without_times(broken.payloads(type_, DIRECTORY)) == without_times(whole.payloads(type_, DIRECTORY))
    results = [(s.folder / DIRECTORY / "optimization_results.yaml").read_text() for s in (broken, whole)]
    assert results[0] == results[1]
    names = [sorted(path.name for path in (s.folder / DIRECTORY).iterdir()) for s in (broken, whole)]
    assert names[0] == names[1]  # no lock, no temporary file, no second directory of a job
