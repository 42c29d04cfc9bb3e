"""How well the sweeper searches, beside a long-lived Ax client, Optuna's samplers and random search.

    python benchmarks/search_quality.py run --seeds 10   # an hour on one core; resumes
    python benchmarks/search_quality.py race             # what racing saves, and what it costs
    python benchmarks/search_quality.py report           # table, tests and plot of what is there

Branin and Hartmann6 are noise-free. The three landscapes are rebuilt from the original benchmark's published
one-parameter searches: the curve through each search's trials, one value a fold, with the folds' spread and a
residual of 0.006. A method recommends the trial with the best observed mean; its regret is the curve's there.
"""

import argparse
import csv
import hashlib
import json
import logging
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from mlrc_sweeper import LEDGER_NAME, read

RESULTS = Path("outputs/benchmarks/search_quality.jsonl")
REFERENCE = Path(__file__).parents[1] / "mlrc_lightning/reference/original_trials_one_parameter.csv"
RESIDUAL = 0.006
NUM_FOLDS = 4
CHECKPOINTS = (10, 20, 30, 50)
METHODS = ("sweeper", "ax_client", "optuna_tpe", "optuna_gp", "random")


@dataclass(frozen=True)
class Dimension:
    lower: float
    upper: float
    log: bool = False
    is_int: bool = False

    def from_unit(self, u: float) -> float:
        if self.is_int:
            return min(int(self.lower + u * (self.upper - self.lower + 1)), int(self.upper))
        if self.log:
            return float(math.exp(math.log(self.lower) + u * (math.log(self.upper) - math.log(self.lower))))
        return self.lower + u * (self.upper - self.lower)


@dataclass(frozen=True)
class Landscape:
    """A function to minimise."""

    dimensions: dict[str, Dimension]
    true: Callable[[dict[str, float]], float]
    optimum: float
    fold_spread: float = 0.0

    def observe(self, point: dict[str, float], seed: int) -> float | list[float]:
        if not self.fold_spread:
            return self.true(point)
        folds = _generator("folds", seed).normal(0.0, self.fold_spread, NUM_FOLDS)
        residuals = _generator("residual", seed, json.dumps(point, sort_keys=True)).normal(0.0, RESIDUAL, NUM_FOLDS)
        return [float(self.true(point) + a + b) for a, b in zip(folds - folds.mean(), residuals, strict=True)]

    def scale(self) -> float:
        """Mean regret of one random point."""
        generator = _generator("scale")
        points = [self.random(generator) for _ in range(4000)]
        return statistics.fmean(self.true(point) for point in points) - self.optimum

    def random(self, generator: np.random.Generator) -> dict[str, float]:
        return {name: d.from_unit(float(generator.uniform())) for name, d in self.dimensions.items()}


def _generator(*key: object) -> np.random.Generator:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def branin(point: dict[str, float]) -> float:
    x, y = point["x0"], point["x1"]
    inner = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return inner**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def hartmann6(point: dict[str, float]) -> float:
    a = np.array(
        [
            [10, 3, 17, 3.5, 1.7, 8],
            [0.05, 10, 17, 0.1, 8, 14],
            [3, 3.5, 1.7, 10, 17, 8],
            [17, 8, 0.05, 10, 0.1, 14],
        ]
    )
    p = 1e-4 * np.array(
        [
            [1312, 1696, 5569, 124, 8283, 5886],
            [2329, 4135, 8307, 3736, 1004, 9991],
            [2348, 1451, 3522, 2883, 3047, 6650],
            [4047, 8828, 8732, 5743, 1091, 381],
        ]
    )
    x = np.array([point[f"x{i}"] for i in range(6)])
    return float(-np.array([1.0, 1.2, 3.0, 3.2]) @ np.exp(-(a * (x - p) ** 2).sum(axis=1)))


def rebuilt(setting: str, loss: str, dimension: Dimension) -> Landscape:
    """The curve through the trials of a published search, negated: MAP@R is maximised there."""
    with REFERENCE.open() as file:
        rows = [row for row in csv.DictReader(file) if (row["setting"], row["loss"]) == (setting, loss)]
    transform = math.log if dimension.log else float
    grouped: dict[float, list[float]] = {}
    for row in rows:
        grouped.setdefault(transform(float(row["value"])), []).append(float(row["val_map_at_r"]))
    x = np.array(sorted(grouped))
    y = np.array([statistics.fmean(grouped[key]) for key in x])
    # neighbours average out the trials' own residual; a running mean of three keeps the shape
    smooth = np.convolve(np.pad(y, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    spread = statistics.median(float(row["two_sem_over_folds"]) for row in rows) / 2 * math.sqrt(NUM_FOLDS)

    def true(point: dict[str, float]) -> float:
        return -float(np.interp(transform(point["x0"]), x, smooth))

    return Landscape({"x0": dimension}, true, -float(smooth.max()), spread)


def landscapes() -> dict[str, Landscape]:
    found = {
        "branin": Landscape({"x0": Dimension(-5.0, 10.0), "x1": Dimension(0.0, 15.0)}, branin, 0.39788735772973816),
        "hartmann6": Landscape({f"x{i}": Dimension(0.0, 1.0) for i in range(6)}, hartmann6, -3.322368011415515),
    }
    if REFERENCE.exists():
        found["ntxent_cub200"] = rebuilt("cub200", "NTXent", Dimension(1e-5, 100.0, log=True))
        found["triplet_cars196"] = rebuilt("cars196", "Triplet", Dimension(-0.2, 2.0))
        found["fastap_cub200_batch256"] = rebuilt("cub200_batch256", "FastAP", Dimension(2, 250, is_int=True))
    else:
        print(f"{REFERENCE} is not there: the three rebuilt landscapes are left out", file=sys.stderr)
    return found


def mean_of(observed: float | list[float]) -> float:
    """As the sweeper has it: another rounding of the last bit would make another search."""
    return math.fsum(observed) / len(observed) if isinstance(observed, list) else observed


Trial = tuple[dict[str, float], float | list[float]]


def random_search(landscape: Landscape, seed: int, num_trials: int) -> Iterator[Trial]:
    generator = _generator("random", seed)
    for _ in range(num_trials):
        point = landscape.random(generator)
        yield point, landscape.observe(point, seed)


def ax_client(landscape: Landscape, seed: int, num_trials: int) -> Iterator[Trial]:
    """Ax as its tutorial uses it: one client from the first trial to the last, all defaults."""
    from hydra_plugins.mlrc_ax_sweeper import _ax  # imports Ax without its warnings

    del _ax
    import torch
    from ax.api.client import Client
    from ax.api.configs import RangeParameterConfig

    torch.set_num_threads(1)
    client = Client(random_seed=seed)
    client.configure_experiment(
        parameters=[
            RangeParameterConfig(
                name=name,
                bounds=(d.lower, d.upper),
                parameter_type="int" if d.is_int else "float",
                scaling="log" if d.log else None,
            )
            for name, d in landscape.dimensions.items()
        ]
    )
    client.configure_optimization(objective="-objective")
    for _ in range(num_trials):
        ((index, point),) = client.get_next_trials(max_trials=1).items()
        observed = landscape.observe(point, seed)
        client.complete_trial(index, raw_data={"objective": mean_of(observed)})
        yield dict(point), observed


def optuna_search(landscape: Landscape, seed: int, num_trials: int, sampler: str) -> Iterator[Trial]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = optuna.samplers.TPESampler(seed=seed) if sampler == "tpe" else optuna.samplers.GPSampler(seed=seed)
    study = optuna.create_study(sampler=made)
    for _ in range(num_trials):
        trial = study.ask()
        point: dict[str, float] = {}
        for name, d in landscape.dimensions.items():
            if d.is_int:
                point[name] = trial.suggest_int(name, int(d.lower), int(d.upper))
            else:
                point[name] = trial.suggest_float(name, d.lower, d.upper, log=d.log)
        observed = landscape.observe(point, seed)
        study.tell(trial, mean_of(observed))
        yield point, observed


ConfigStore.instance().store(
    name="search_quality",
    node={
        "defaults": ["_self_", {"override hydra/sweeper": "ax"}, {"override hydra/hydra_logging": "disabled"},
                     {"override hydra/job_logging": "disabled"}],
        "landscape": "???", "noise_seed": 0, **{f"x{i}": 0.0 for i in range(6)},
        "hydra": {"output_subdir": None},
    },
)  # fmt: skip


@hydra.main(version_base=None, config_path=None, config_name="search_quality")
def _job(cfg: DictConfig) -> float | list[float]:
    landscape = landscapes()[cfg.landscape]
    return landscape.observe({name: cfg[name] for name in landscape.dimensions}, cfg.noise_seed)


def sweeper(landscape: Landscape, seed: int, num_trials: int, name: str, *more: str) -> Iterator[Trial]:
    """Our plugin through Hydra's own entry point."""
    with tempfile.TemporaryDirectory() as directory:
        ax = "hydra.sweeper.ax_config"
        arguments = [
            "search_quality.py",
            "-m",
            f"landscape={name}",
            f"noise_seed={seed}",
            f"hydra.sweep.dir={directory}",
            f"{ax}.max_trials={num_trials}",
            f"{ax}.client.random_seed={seed}",
            f"{ax}.early_stop.max_epochs_without_improvement=null",
            "hydra.sweeper.report=false",
            *more,
        ]
        for key, d in landscape.dimensions.items():
            interval = f"interval({d.lower},{d.upper})"
            kind = f"int({interval})" if d.is_int else f"tag(log,{interval})" if d.log else interval
            arguments.append(f"{key}={kind}")
        before, sys.argv = sys.argv, arguments
        try:
            _job()
        finally:
            sys.argv = before
        points: dict[int, dict[str, float]] = {}
        for record in read(Path(directory) / LEDGER_NAME).records:
            if record.type == "proposed":
                points[record.payload["trial"]] = record.payload["parameters"]
            elif record.type == "result":
                measured = record.payload["metrics"]["objective"]
                yield points[record.payload["trial"]], measured.get("replicates", measured["mean"])


def run_one(name: str, method: str, seed: int, num_trials: int) -> dict[str, Any]:
    landscape = landscapes()[name]
    begin = time.perf_counter()
    base, _, variant = method.partition("+")
    if base == "sweeper":
        trials = list(sweeper(landscape, seed, num_trials, name, *([variant] if variant else [])))
    elif base == "ax_client":
        trials = list(ax_client(landscape, seed, num_trials))
    elif base == "random":
        trials = list(random_search(landscape, seed, num_trials))
    else:
        trials = list(optuna_search(landscape, seed, num_trials, base.removeprefix("optuna_")))
    best, regrets = math.inf, []
    for point, observed in trials:
        mean = mean_of(observed)
        if mean < best:
            best, regret = mean, landscape.true(point) - landscape.optimum
        regrets.append(max(regret, 0.0))
    seconds = time.perf_counter() - begin
    return {
        "landscape": name,
        "method": method,
        "seed": seed,
        "seconds": round(seconds, 1),
        "regrets": regrets,
    }


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(options: argparse.Namespace) -> None:
    options.results.parent.mkdir(parents=True, exist_ok=True)
    done = {(r["landscape"], r["method"], r["seed"]) for r in read_results(options.results)}
    begin = time.monotonic()
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.landscapes or landscapes():
            for method in options.methods:
                if (name, method, seed) in done:
                    continue
                if time.monotonic() - begin > 60 * options.minutes:
                    print("time is up; the same command goes on")
                    return
                result = run_one(name, method, seed, options.trials)
                with options.results.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                print(name, method, seed, result["seconds"], "s, regret", result["regrets"][-1], flush=True)


def report(options: argparse.Namespace) -> None:
    results = read_results(options.results)
    methods = [
        m for m in dict.fromkeys([*METHODS, *(r["method"] for r in results)]) if any(r["method"] == m for r in results)
    ]
    names = [n for n in landscapes() if any(r["landscape"] == n for r in results)]
    table: dict[tuple[str, str], dict[int, list[float]]] = {}
    for r in results:
        table.setdefault((r["landscape"], r["method"]), {})[r["seed"]] = r["regrets"]
    for name in names:
        print(f"\n{name}: regret of the recommended trial, median [quartiles] over seeds")
        print(f"  {'method':28}" + "".join(f"{n:>28}" for n in CHECKPOINTS) + "    runs")
        for method in methods:
            runs = table.get((name, method), {})
            cells = []
            for n in CHECKPOINTS:
                values = [regrets[n - 1] for regrets in runs.values() if len(regrets) >= n]
                low, middle, high = np.percentile(values, [25, 50, 75]) if values else (math.nan,) * 3
                cells.append(f"{middle:.2e} [{low:.1e},{high:.1e}]")
            print(f"  {method:28}" + "".join(f"{cell:>28}" for cell in cells) + f"    {len(runs)}")
    compare(table, names, methods)
    plot(table, names, methods, options.results.with_suffix(".png"))


def compare(table: dict[tuple[str, str], dict[int, list[float]]], names: list[str], methods: list[str]) -> None:
    """Paired over landscapes and seeds, on regret divided by the regret of one random point."""
    from scipy.stats import wilcoxon

    scales = {name: landscape.scale() for name, landscape in landscapes().items() if name in names}
    for n in CHECKPOINTS:
        print(f"\npooled normalised regret at {n} trials; p: paired Wilcoxon, one-sided, sweeper better")
        for method in methods:
            pairs = [
                (table[name, "sweeper"][seed][n - 1] / scales[name], regrets[n - 1] / scales[name])
                for name in names
                for seed, regrets in table.get((name, method), {}).items()
                if seed in table.get((name, "sweeper"), {}) and len(regrets) >= n
            ]
            if not pairs:
                continue
            ours, theirs = zip(*pairs, strict=True)
            p = wilcoxon(ours, theirs, alternative="less").pvalue if any(a != b for a, b in pairs) else 1.0
            print(
                f"  {method:28} median {np.median(theirs):.2e}  mean {np.mean(theirs):.2e}   sweeper "
                f"{np.median(ours):.2e}  {np.mean(ours):.2e}   p = {p:.2g}   pairs {len(pairs)}"
            )


def plot(
    table: dict[tuple[str, str], dict[int, list[float]]], names: list[str], methods: list[str], path: Path
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for method in methods:
            runs = list(table.get((name, method), {}).values())
            if runs:
                length = min(map(len, runs))
                low, middle, high = np.percentile(np.array([r[:length] for r in runs]), [25, 50, 75], axis=0)
                x = np.arange(1, length + 1)
                (line,) = axis.plot(x, np.maximum(middle, 1e-6), label=method)
                axis.fill_between(x, np.maximum(low, 1e-6), np.maximum(high, 1e-6), alpha=0.15, color=line.get_color())
        axis.set(title=name, xlabel="trials", ylabel="regret", yscale="log")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"\nplot: {path}")


def race(options: argparse.Namespace) -> None:
    """Prints what racing saves, and what it costs, by its threshold."""
    searches = published_trials()
    print(f"{len(searches)} searches, {20 * options.seeds} replays each; residual {RESIDUAL}")
    for z in (1.5, 2.0, 2.5, 3.0):
        found = raced(searches, z, 20 * options.seeds)
        print(
            f"z = {z}: {found['saved']:.1%} of the replicate runs saved, winner kept in {found['kept']:.1%},"
            f" its true mean {found['regret']:.1e} lower on average"
        )


def published_trials() -> dict[tuple[str, str], list[tuple[float, float]]]:
    """The nine one-parameter searches: mean over folds and twice its standard error, trial by trial."""
    searches: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with REFERENCE.open() as file:
        for row in csv.DictReader(file):
            entry = (float(row["val_map_at_r"]), float(row["two_sem_over_folds"]))
            searches.setdefault((row["setting"], row["loss"]), []).append(entry)
    return searches


def raced(searches: dict[tuple[str, str], list[tuple[float, float]]], z: float, replays: int) -> dict[str, float]:
    """Replays searches in random order with racing, fold values redrawn around the published means.

    Returns:
        Means over all replays: fraction of the replicate runs saved, whether the winner is that of a search without
        racing, and how much lower its mean is.
    """
    from hydra_plugins.mlrc_ax_sweeper._racing import cannot_win

    saved, kept, regret = [], [], []
    for key, trials in searches.items():
        spread = statistics.median(two_sem for _, two_sem in trials) / 2 * math.sqrt(NUM_FOLDS)
        for repeat in range(replays):
            generator = _generator("race", key, repeat)
            means = generator.permutation([mean for mean, _ in trials])
            folds = generator.normal(0.0, spread, NUM_FOLDS)
            values = means[:, None] + folds + generator.normal(0.0, RESIDUAL, (len(means), NUM_FOLDS))
            table: list[list[float]] = []
            finished: list[int] = []
            num_runs = 0
            for index, row in enumerate(values.tolist()):
                for k in range(1, NUM_FOLDS + 1):
                    num_runs += 1
                    best = max((statistics.fmean(other) for other in table), default=-math.inf)
                    ready = k < NUM_FOLDS and len(table) >= 5
                    if ready and cannot_win(row[:k], table, best, z, minimize=False):
                        break
                else:
                    table.append(row)
                    finished.append(index)
            full = int(values.mean(axis=1).argmax())
            winner = max(finished, key=lambda i: values[i].mean())
            saved.append(1.0 - num_runs / values.size)
            kept.append(full == winner)
            regret.append(means[full] - means[winner])
    return {"saved": statistics.fmean(saved), "kept": statistics.fmean(kept), "regret": statistics.fmean(regret)}


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "report", "race"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after this time")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--landscapes", nargs="+", default=None)
    options = parser.parse_args()
    {"run": run, "report": report, "race": race}[options.action](options)


if __name__ == "__main__":
    main()
