"""What each light command costs before it does anything, beside bare Python, an empty Hydra app and all imports.

    python benchmarks/startup.py [--rounds 5] [--json FILE]        # two minutes

Every run is a process of its own; all commands take turns in every round, after one that is not counted. Processor
seconds are user and system time of the process: they hold on a busy machine too, and the goal is judged by them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EMPTY_APP = """
import hydra
@hydra.main(version_base=None, config_path=None)
def app(cfg): pass
app()
"""
EVERYTHING = (
    "import mlrc_lightning._torchvision, torch, timm, pytorch_lightning, pytorch_metric_learning, ax.api.client"
)
GOAL = 0.6
"""Processor seconds of a light command."""
PEER = "an empty Hydra app"


def commands(places: Path) -> dict[str, tuple[list[str], bool]]:
    """Command lines after `python`, and whether the goal is theirs.

    Args:
        places: Folder with a finished run and a finished search, as `prepare` leaves them.
    """
    app = places / "empty_app.py"
    app.write_text(EMPTY_APP, encoding="utf-8")
    outputs = str(places / "outputs")
    train, package = [str(ROOT / "train.py")], ["-m", "mlrc_lightning"]
    return {
        "python -c pass": (["-c", "pass"], False),
        PEER: ([str(app), f"hydra.run.dir={places}/empty"], False),
        "train.py --help": ([*train, "--help"], True),
        "train.py --cfg job": ([*train, "--cfg", "job"], True),
        "status": ([*package, "status", outputs], True),
        "table, nothing new": ([*package, "table", "smoke", "--outputs", outputs], True),
        "report, nothing new": ([*package, "report", "--outputs", outputs], True),
        "report, after a new result": ([*package, "report", "--outputs", outputs], False),
        "train.py, a finished run": ([*train, *smoke(places)], False),
        "import torch": (["-c", "import torch"], False),
        "import pytorch_lightning": (
            ["-c", "import mlrc_lightning._torchvision, pytorch_lightning"],
            False,
        ),
        "import ax": (["-W", "ignore", "-c", "import ax.api.client"], False),
        "import everything": (["-W", "ignore", "-c", EVERYTHING], False),
    }


def smoke(places: Path) -> list[str]:
    return ["experiment=smoke", "trainer=cpu", f"output_root={places}/outputs", f"data_root={places}/data"]


def prepare(places: Path) -> None:
    """Trains what the commands tell about: one run, and a search of two trials."""
    train = str(ROOT / "train.py")
    run([train, *smoke(places)])
    run([train, "-m", *smoke(places), "max_trials=2", "hydra.sweeper.generation.method=random"])


def run(arguments: list[str]) -> tuple[float, float]:
    """Returns wall and processor seconds of a process."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=printed, stderr=printed)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
        if process.returncode != 0:
            printed.seek(0)
            raise SystemExit(f"{arguments} ended with {process.returncode}:\n{printed.read().decode()[-3000:]}")
    return wall, usage.ru_utime + usage.ru_stime


def measure(places: Path, rounds: int) -> list[dict[str, Any]]:
    known = commands(places)
    record = next((places / "outputs").glob("*/*/*/train/*/record.json"))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in known}
    for number in range(rounds + 1):
        for name, (arguments, _) in list(known.items())[:: -1 if number % 2 else 1]:
            if name == "report, nothing new":
                run(arguments)  # the state that it is to find
            elif name == "report, after a new result":
                os.utime(record)
            timed = run(arguments)
            if number > 0:
                times[name].append(timed)
    wall = {name: statistics.median(w for w, _ in taken) for name, taken in times.items()}
    processor = {name: statistics.median(p for _, p in taken) for name, taken in times.items()}
    rows = []
    for name, (_, has_goal) in known.items():
        row: dict[str, Any] = {
            "command": name,
            "wall, s": round(wall[name], 3),
            "processor, s": round(processor[name], 3),
            f"times {PEER}": round(processor[name] / processor[PEER], 2),
        }
        if has_goal:
            row["goals"] = {f"≤ {GOAL} s of the processor": processor[name] <= GOAL}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write all figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        rows = measure(Path(folder), arguments.rounds)
    for row in rows:
        goals = "".join(f" | {goal}: {'met' if is_met else 'not met'}" for goal, is_met in row.get("goals", {}).items())
        print(
            f"{row['command']:<28} | {row['wall, s']:7.3f} s | {row['processor, s']:7.3f} s of processor |"
            f" {row[f'times {PEER}']:6.2f}x{goals}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
