"""What a search costs and finds, in short: overhead per trial, suggestions, quality, and how few trials are enough.

    python benchmarks/search.py [--parts overhead suggestion quality economy] [--json FILE]     # five minutes

- overhead: from the end of one trial's task to the beginning of the next one's, with random points, which cost nothing,
  on both launchers beside Hydra's basic sweeper, in wall seconds and in those of the processor, by which the goal is
  judged; and what importing torch costs the first trial and the later ones.
- suggestion: one at trial 50, beside one long-lived Ax client with torch's threads and with one (sweeper_overhead.py).
- quality: regret after 30 trials on two landscapes, beside the Ax client and random search (more: search_quality.py).
- economy: the best of the first n trials of the 53 published searches, as a fraction of the best of 50; and what
  racing saves in nine of them, and whether the winner stays.
"""

import argparse
import itertools
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import search_quality
import sweeper_overhead

from mlrc_lightning.reference import rows
from mlrc_lightning.reporting.statistics import paper_curve

Row = dict[str, Any]

GOAL = 0.2
"""Seconds of sweeper and launcher per trial, without the suggestion."""
NUM_TRIALS = 30
BUDGETS = (5, 10, 15, 20, 30, 40)
APP = r"""
import os, time
from pathlib import Path
import hydra
from omegaconf import DictConfig

def processor_seconds():
    '''Of this process, and of the one that launched it.'''
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in {os.getpid(), int(os.environ["APP_PID"])}]
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    return sum(int(ticks) for stat in fields for ticks in stat[11:13]) / os.sysconf("SC_CLK_TCK")

@hydra.main(version_base=None, config_path=".", config_name="app")
def app(cfg: DictConfig) -> float:
    began = time.monotonic()
    import torch
    imported = time.monotonic()
    with open(cfg.times, "a") as file:
        file.write(f"{began} {imported - began} {processor_seconds()} {time.monotonic()}\n")
    return float(cfg.x)

if __name__ == "__main__":
    os.environ["APP_PID"] = str(os.getpid())
    app()
"""
CONFIG = """
defaults: [_self_, {override hydra/sweeper: ax}]
x: 0.0
times: ???
hydra: {sweep: {dir: sweep}, output_subdir: null}
"""
OURS = [
    "x=interval(0,1)",
    f"hydra.sweeper.ax_config.max_trials={NUM_TRIALS}",
    "hydra.sweeper.ax_config.early_stop.max_epochs_without_improvement=null",
    "hydra.sweeper.generation.method=random",
    "hydra.sweeper.report=false",
]
SIDES = {
    "Hydra's basic sweeper": ["hydra/sweeper=basic", "x=" + ",".join(str(n / NUM_TRIALS) for n in range(NUM_TRIALS))],
    "ours": OURS,
    "ours, mlrc_local, 1 worker": [*OURS, "hydra/launcher=mlrc_local", "hydra.sweeper.n_parallel=1"],
}


def overhead() -> list[Row]:
    found = []
    for side, overrides in SIDES.items():
        with tempfile.TemporaryDirectory() as folder:
            tasks = _sweep(Path(folder), overrides)
        wall = statistics.median(after.began - before.ended for before, after in itertools.pairwise(tasks))
        processor = (tasks[-1].processor - tasks[1].processor) / (len(tasks) - 2)
        row: Row = {
            "part": "overhead",
            "side": side,
            "per trial: wall, s": round(wall, 3),
            "processor, s": round(processor, 3),
            "import of torch in the first trial, s": round(tasks[0].importing, 2),
            "in a later one, s": round(max(task.importing for task in tasks[1:]), 4),
        }
        if overrides[0] == OURS[0]:
            row["goals"] = {f"≤ {GOAL} s of the processor per trial": processor <= GOAL}
        found.append(row)
    return found


@dataclass(frozen=True)
class Task:
    """When a task began and ended, how long it imported, and the processor seconds of its processes until then."""

    began: float
    importing: float
    processor: float
    ended: float


def _sweep(folder: Path, overrides: list[str]) -> list[Task]:
    """Returns every task of a sweep, in order."""
    (folder / "app.py").write_text(APP)
    (folder / "app.yaml").write_text(CONFIG)
    command = [sys.executable, "app.py", "-m", f"times={folder}/times", *overrides]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    tasks = [Task(*map(float, line.split())) for line in (folder / "times").read_text().splitlines()]
    assert len(tasks) == NUM_TRIALS
    return tasks


def suggestion() -> list[Row]:
    times = sweeper_overhead.suggestion_times()
    return [
        {
            "part": "suggestion",
            "side": side,
            "seconds": round(seconds, 3),
            "times ours": round(seconds / times["ours"], 2),
        }
        for side, seconds in times.items()
    ]


def quality() -> list[Row]:
    names, methods = ("branin", "ntxent_cub200"), ("sweeper", "ax_client", "random")
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        command = [sys.executable, search_quality.__file__, "run", "--results", str(results)]
        command += ["--seeds", "2", "--trials", str(NUM_TRIALS), "--landscapes", *names, "--methods", *methods]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        runs = search_quality.read_results(results)
    found = []
    for name in names:
        scale = search_quality.landscapes()[name].scale()
        regrets = {m: [r["regrets"] for r in runs if (r["landscape"], r["method"]) == (name, m)] for m in methods}
        for method, values in regrets.items():
            row: Row = {
                "part": "quality",
                "landscape": name,
                "side": method,
                "searches": len(values),
                f"regret at {NUM_TRIALS} trials / that of a random point": round(
                    statistics.fmean(of_search[-1] for of_search in values) / scale, 5
                ),
            }
            if method == "sweeper":
                row["goals"] = {"that of the Ax client, trial by trial": values == regrets["ax_client"]}
            found.append(row)
    return found


def economy() -> list[Row]:
    return [*budgets(), *racing()]


def budgets() -> list[Row]:
    """How near the best of the first trials comes to the best of 50, over the published searches."""
    curves = np.array(published_curves())
    found: list[Row] = []
    for budget in BUDGETS:
        share = 100 * curves[:, budget - 1] / curves[:, -1]
        low, quarter, middle = np.percentile(share, [10, 25, 50])
        found.append(
            {
                "part": "fewer trials",
                "trials": budget,
                "searches": len(curves),
                "best so far in % of the best of 50: median": round(float(middle), 2),
                "25th percentile": round(float(quarter), 2),
                "10th": round(float(low), 2),
                "worst": round(float(share.min()), 2),
                "searches below 98 %": int((share < 98).sum()),
            }
        )
    return found


def racing() -> list[Row]:
    trials = search_quality.published_trials()
    found: list[Row] = []
    for z in (1.5, 2.0, 2.5, 3.0):
        replayed = search_quality.raced(trials, z, 20)
        found.append(
            {
                "part": "racing",
                "z": z,
                "searches": len(trials),
                "replays of each": 20,
                "replicate runs saved, %": round(100 * replayed["saved"], 1),
                "winner kept, %": round(100 * replayed["kept"], 1),
                "lower mean of the winner, MAP@R": round(replayed["regret"], 6),
            }
        )
    return found


def published_curves() -> list[Any]:
    """The best so far after each trial of every published search, (50,) each."""
    searches = dict.fromkeys((row["setting"], row["loss"]) for row in rows("original_searches.csv"))
    return [paper_curve(setting, loss) for setting, loss in searches]


PARTS: dict[str, Callable[[], list[Row]]] = {
    "overhead": overhead,
    "suggestion": suggestion,
    "quality": quality,
    "economy": economy,
}


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="also write all figures here")
    arguments = parser.parse_args()
    found = []
    for part in arguments.parts:
        for row in PARTS[part]():
            found.append(row)
            print(" | ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
