"""Runs the benchmarks one after the other, keeps their figures with the circumstances, and renders RESULTS.md.

    python benchmarks/bench.py [NAME…] [--results FOLDER] [--page FILE]      # all of them: make bench, an hour

A benchmark that lacks its data prints why as its last line, writes no figures, and is shown with that reason; one
that fails is shown with its error, and fails this command once the others have run. Figures of an earlier run stay
where nothing new came out.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import render

from mlrc_lightning.results.environment import environment

RUNS = {"metrics": [["--threads", "1"], ["--threads", "2", "--sizes", "14888", "60000"]]}
"""Arguments of each run of a benchmark; one without any where nothing is said."""
HERE = [name for name in render.BENCHMARKS if name not in render.ON_ANOTHER_MACHINE]
FURTHER_PACKAGES = ("hydra-joblib-launcher", "optuna", "opencv-python-headless", "kornia", "open-metric-learning")
"""Peers and options that `environment` does not know."""


def run(name: str, scripts: Path, runs: list[list[str]]) -> dict[str, Any]:
    """Returns a benchmark's rows with all that they depend on, or without any and with the reason."""
    load, began = [os.getloadavg()[0]], time.monotonic()
    rows: list[dict[str, Any]] = []
    reason = None
    failed = False
    for arguments in runs:
        with tempfile.TemporaryDirectory() as folder:
            figures = Path(folder) / "figures.json"
            command = [sys.executable, str(scripts / f"{name}.py"), *arguments, "--json", str(figures)]
            print("$", " ".join(command[1:-2]), flush=True)
            done = subprocess.run(command, capture_output=True, text=True)
            print(done.stdout, end="", flush=True)
            if done.returncode != 0:
                failed, rows = True, []  # those of one run alone would stand for all
                reason = _last_line(done.stderr) or f"it ended with {done.returncode}"
                print(done.stderr, file=sys.stderr)
                break
            if figures.exists():
                rows += json.loads(figures.read_text(encoding="utf-8"))
            else:
                reason = _last_line(done.stdout) or "it wrote no figures"
    load.append(os.getloadavg()[0])
    return {
        "rows": rows,
        "reason": reason,
        "failed": failed,
        **circumstances([" ".join(arguments) for arguments in runs if arguments], load, time.monotonic() - began),
    }


def circumstances(arguments: list[str], load: list[float], seconds: float) -> dict[str, Any]:
    """Returns what figures depend on: date, machine, packages, code.

    Args:
        arguments: Words of each command line.
        load: The machine's load when the measurement began and when it ended.
        seconds: Length of the measurement.
    """
    known = environment()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(seconds),
        "arguments": arguments,
        "load": [round(value, 2) for value in load],
        "machine": {
            "processor": known["processor"],
            "cores": len(os.sched_getaffinity(0)),
            "memory, GB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
            "gpus": _gpus(),
        },
        "python": known["python"],
        "packages": {
            **known["packages"],
            **{name: v for name in FURTHER_PACKAGES if (v := _version(name)) is not None},
        },
        "code": known["code"],
    }


def _gpus() -> list[str]:
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    except (OSError, subprocess.CalledProcessError):
        return []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(HERE)}; by default all")
    parser.add_argument("--results", type=Path, default=render.RESULTS, help="where figures are kept")
    parser.add_argument("--page", type=Path, default=render.PAGE)
    parser.add_argument("--scripts", type=Path, default=Path(__file__).parent, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(HERE))
    if unknown:
        parser.error(f"{unknown[0]}: expected one of {', '.join(HERE)}")
    arguments.results.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in arguments.names or HERE:
        if not (arguments.scripts / f"{name}.py").exists():
            print(f"{name}: there is no such script", flush=True)
            continue
        result = run(name, arguments.scripts, RUNS.get(name, [[]]))
        path = arguments.results / f"{name}.json"
        if result.pop("failed"):
            failed.append(name)
        if not result["rows"] and path.exists():
            print(f"{name}: {result['reason']}; the figures of an earlier run stay", flush=True)
        else:
            path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        page = render.render(render.read(arguments.results), render.about(arguments.scripts))
        arguments.page.write_text(page, encoding="utf-8")
    print(f"Written: {arguments.page}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
