"""What the sweeper costs: a suggestion at trial 50, the overhead per trial without it, and a restart.

    python benchmarks/sweeper_overhead.py        # two to five minutes on two cores

Upstream's approach is one Ax client that lives as long as the sweep and uses as many threads as torch likes.
Both are measured in one process, one after the other, so that the ratios hold on other machines.
"""

import contextlib
import logging
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from mlrc_sweeper import LEDGER_NAME, read

NUM_TRIALS = 50
NUM_REPEATS = 3
PARAMETERS = ("a", "b", "c", "d")

ConfigStore.instance().store(
    name="sweeper_overhead",
    node={
        "defaults": [
            "_self_",
            {"override hydra/sweeper": "ax"},
            {"override hydra/hydra_logging": "disabled"},
            {"override hydra/job_logging": "disabled"},
        ],
        **dict.fromkeys(PARAMETERS, 0.5),
        "hydra": {"output_subdir": None},
    },
)


def objective(point: dict[str, Any]) -> float:
    return sum((float(point[name]) - 0.3) ** 2 for name in PARAMETERS)


@hydra.main(version_base=None, config_path=None, config_name="sweeper_overhead")
def _job(cfg: DictConfig) -> float:
    return objective(dict(cfg))


def sweep(directory: str) -> float:
    """Seconds of a whole sweep of 50 trials through Hydra."""
    ax = "hydra.sweeper.ax_config"
    spaces = [f"{name}=interval(0,1)" for name in PARAMETERS]
    before, sys.argv = (
        sys.argv,
        [
            "sweeper_overhead.py",
            "-m",
            f"hydra.sweep.dir={directory}",
            f"{ax}.max_trials={NUM_TRIALS}",
            f"{ax}.client.random_seed=0",
            f"{ax}.early_stop.max_epochs_without_improvement=null",
            "hydra.sweeper.report=false",
            *spaces,
        ],
    )
    begin = time.perf_counter()
    try:
        _job()
    finally:
        sys.argv = before
    return time.perf_counter() - begin


def suggestion_times() -> dict[str, float]:
    """Median seconds of one suggestion with 50 trials known."""
    import torch
    from ax.api.client import Client
    from ax.api.configs import RangeParameterConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from hydra_plugins.mlrc_ax_sweeper._measurements import read_return_value
    from hydra_plugins.mlrc_ax_sweeper._problem import build_problem
    from hydra_plugins.mlrc_ax_sweeper._suggest import suggest
    from hydra_plugins.mlrc_ax_sweeper.config import MLRCAxSweeperConf
    from mlrc_sweeper.state import Trial

    config = OmegaConf.create({"hydra": {"sweeper": OmegaConf.structured(MLRCAxSweeperConf)}})
    lines = [f"{name}=interval(0,1)" for name in PARAMETERS]
    problem = build_problem(config, OverridesParser.create().parse_overrides(lines))
    generator = random.Random(0)
    points = [{name: generator.random() for name in PARAMETERS} for _ in range(NUM_TRIALS)]
    trials = []
    client = Client(random_seed=0)
    client.configure_experiment(
        [RangeParameterConfig(name=name, bounds=(0.0, 1.0), parameter_type="float") for name in PARAMETERS]
    )
    client.configure_optimization(objective="-objective")
    for index, point in enumerate(points):
        trial = Trial(index, dict(point), "Sobol", status="completed")
        trial.results[0] = read_return_value(objective(point), "objective")
        trials.append(trial)
        client.complete_trial(client.attach_trial(point), raw_data={"objective": objective(point)})

    def upstream() -> None:
        ((index, point),) = client.get_next_trials(max_trials=1).items()
        client.complete_trial(index, raw_data={"objective": objective(dict(point))})

    threads = torch.get_num_threads()
    sides = {"ours": (lambda: suggest(problem, 0, trials), threads), "upstream, 1 thread": (upstream, 1)}
    if threads > 1:
        sides[f"upstream, {threads} threads"] = (upstream, threads)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(NUM_REPEATS):
        for name, (call, num_threads) in list(sides.items())[:: -1 if number % 2 else 1]:
            torch.set_num_threads(num_threads)
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    torch.set_num_threads(threads)
    return {name: statistics.median(taken) for name, taken in times.items()}


def bare_jobs() -> float:
    """Seconds of the same 50 jobs under Hydra's basic sweeper: the floor that no sweeper goes below."""
    with tempfile.TemporaryDirectory() as directory:
        before, sys.argv = (
            sys.argv,
            [
                "sweeper_overhead.py",
                "-m",
                "hydra/sweeper=basic",
                f"hydra.sweep.dir={directory}",
                "a=" + ",".join(str(index / NUM_TRIALS) for index in range(NUM_TRIALS)),
            ],
        )
        begin = time.perf_counter()
        try:
            _job()
        finally:
            sys.argv = before
        return time.perf_counter() - begin


def proposal_seconds(directory: str) -> float:
    records = read(Path(directory) / LEDGER_NAME).records
    return sum(record.payload["seconds"] for record in records if record.type == "proposed")


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    begin = time.perf_counter()
    from hydra_plugins.mlrc_ax_sweeper import _generation  # noqa: F401

    print(f"import of Ax: {time.perf_counter() - begin:.1f} s")
    times = suggestion_times()
    print(f"one suggestion with {NUM_TRIALS} trials known and {len(PARAMETERS)} parameters, median of {NUM_REPEATS}:")
    for name, seconds in times.items():
        print(f"  {name:24}{seconds:8.2f} s   {seconds / times['ours']:6.2f} times ours")
    with tempfile.TemporaryDirectory() as directory:
        total = sweep(directory)
        suggesting = proposal_seconds(directory)
        floor = bare_jobs()
        print(f"{NUM_TRIALS} trials: {total:.1f} s, of which suggestions {suggesting:.1f} s")
        print(f"  the same jobs under Hydra's basic sweeper: {floor:.1f} s")
        print(f"  overhead per trial without the suggestion: {(total - suggesting - floor) / NUM_TRIALS * 1e3:.1f} ms")
        begin = time.perf_counter()
        with contextlib.redirect_stdout(None):
            sweep(directory)
        print(f"  the finished search again: {time.perf_counter() - begin:.2f} s")
        ledger = Path(directory) / LEDGER_NAME
        lines = ledger.read_text().splitlines(keepends=True)
        last = max(index for index, line in enumerate(lines) if '"type":"proposed"' in line)
        ledger.write_text("".join(lines[:last]))
        seconds = sweep(directory)
        print(f"  a restart for its last trial, suggestion included: {seconds:.2f} s")


if __name__ == "__main__":
    main()
