import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

APP = Path(__file__).parent / "app" / "task.py"
ROOT = Path(__file__).parents[2]


def wait_until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class Sweep:
    """The command line of the test app, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def command(self, *overrides: str) -> list[str]:
        return [sys.executable, "-Werror::SyntaxWarning", str(APP), "-m", *overrides]

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        return {**os.environ, "PYTHONPATH": path, "HYDRA_FULL_ERROR": "1"}

    def __call__(self, *overrides: str, expect: int = 0) -> str:
        done = subprocess.run(
            self.command(*overrides),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=500,
        )
        output = done.stdout + done.stderr
        assert done.returncode == expect, output[-5000:]
        return output

    def start(self, *overrides: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*overrides),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def wait_for(self, type_: str, count: int, process: subprocess.Popen[str], directory: str = "out/d1/a") -> None:
        """Returns once the ledger holds so many records of a kind."""
        ledger = self.folder / directory / "ledger.jsonl"

        def is_there() -> bool:
            if process.poll() is not None:
                pytest.fail(f"it ended before its {count} records '{type_}': {process.communicate()[0][-3000:]}")
            return ledger.exists() and ledger.read_text().count(f'"type":"{type_}"') >= count

        wait_until(is_there)

    def records(self, directory: str = "out/d1/a") -> list[dict[str, Any]]:
        lines = (self.folder / directory / "ledger.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def payloads(self, type_: str, directory: str = "out/d1/a") -> list[dict[str, Any]]:
        return [r["payload"] for r in self.records(directory) if r["type"] == type_]

    def proposals(self, directory: str = "out/d1/a") -> list[dict[str, Any]]:
        return [p["parameters"] for p in self.payloads("proposed", directory)]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


@pytest.fixture
def make_sweep(tmp_path: Path) -> Callable[[str], Sweep]:
    def make(name: str) -> Sweep:
        (tmp_path / name).mkdir()
        return Sweep(tmp_path / name)

    return make
