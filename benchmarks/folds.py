"""The four folds of a trial one after the other against two at once, on the same number of threads.

    MLRC_SHARED=FOLDER python benchmarks/folds.py [--trunks pixels tiny lite0] [--rounds 3] [--json FILE]

The photos and trunks of benchmarks/end_to_end.py; `--threads` are one process's, or are divided among those at once.
Each measurement is a process of its own, in turns, and times its second trial: the first one starts the server that
processes are forked from, as the first trial of a search does. OMP_WAIT_POLICY=PASSIVE: threads that wait do not spin.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from end_to_end import ITERATIONS, grocery, settings_of
from measuring import in_a_process, keep, print_row, shared_data

SIDES = {"one after the other": 1, "two at once": 2}


def measure(trunk: str, at_once: int, table: Path, weights: Path, folder: Path) -> dict[str, Any]:
    import mlrc_lightning._torchvision  # noqa: F401

    from mlrc_lightning.protocol.trial import run_trial
    from mlrc_lightning.settings.resolvers import register_resolvers

    register_resolvers()
    settings = settings_of(trunk, table, weights, folder)
    hardware = dataclasses.replace(settings.trainer, parallel_folds=at_once)
    settings = dataclasses.replace(settings, fold="all", trainer=hardware)
    for _ in range(2):
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
            began = time.perf_counter()
            record = run_trial(settings, Path(name))
            seconds = time.perf_counter() - began
    return {"seconds": seconds, "values": [fold.val["mean_average_precision_at_r"] for fold in record.folds]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunks", nargs="+", choices=list(ITERATIONS), default=list(ITERATIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write all figures here")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        trunk, at_once, *paths = arguments.child
        print(json.dumps(measure(trunk, int(at_once), *map(Path, paths))))  # type: ignore[arg-type]
        return
    shared = shared_data()
    weights = shared / "weights" / "tf_efficientnet_lite0.safetensors"
    figures: list[dict[str, Any]] = []
    with grocery(shared) as (table, folder):
        for trunk in arguments.trunks:
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for number in range(arguments.rounds):
                for side in list(SIDES)[:: -1 if number % 2 else 1]:
                    child = ["--child", trunk, str(SIDES[side]), str(table), str(weights), str(folder)]
                    runs[side].append(in_a_process(__file__, child, arguments.threads))
            median = {side: statistics.median(run["seconds"] for run in runs[side]) for side in SIDES}
            expected = runs["one after the other"][0]["values"]
            for side in SIDES:
                found = runs[side][0]["values"]
                figures.append(
                    {
                        "trunk": trunk,
                        "threads": arguments.threads,
                        "folds": side,
                        "seconds": round(median[side], 2),
                        "times as fast": round(median["one after the other"] / median[side], 2),
                        "largest difference of MAP@R": max(abs(a - b) for a, b in zip(found, expected, strict=True)),
                    }
                )
                print_row(figures)
    keep(figures, arguments.json)


if __name__ == "__main__":
    main()
