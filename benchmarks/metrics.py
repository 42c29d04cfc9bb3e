"""The retrieval metrics against pytorch-metric-learning's AccuracyCalculator: time, peak memory, agreement.

    python benchmarks/metrics.py [--threads 1] [--rounds 3] [--sizes 6000 8000 14888 60000] [--json FILE]

Each measurement is a process of its own, so that peaks of memory are its own; both sides take turns in every round.
`pml` is AccuracyCalculator(k="max_bin_count"), `pml default k` the same with k=None, which asks for N x N neighbours
(only up to 8,000 samples: at 60,000 it wants 28.8 GB), `oml` the metrics of open-metric-learning with the largest R as
`k`, of which Precision@1 alone means what ours does (where it is installed, as `make bench` does), `product` one
float32 matrix product of all samples with all, which no exact search can do without. Ratios are pml's median time over
the row's, and the same of processor seconds, which a busy machine disturbs less; with more than one thread they say
what is computed, not how long it takes.
"""

import argparse
import importlib.util
import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

from measuring import in_a_process, keep, resident_megabytes

EMBEDDING_SIZE = 128
CLASSES = {6000: 100, 8000: 100, 14888: 2829, 60000: 11316}
"""Classes by number of samples: CUB200's and Cars196's test halves, one SOP fold's validation, SOP's test half."""
NAMES = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
LARGEST_FOR_DEFAULT_K = 8000
GOALS = {(6000, 1): 1.15, (8000, 1): 1.15, (14888, 1): 1.7, (60000, 1): 1.6, (60000, 2): 1.9}
"""How many times as fast as pml, by samples and threads; for a quiet machine, as both sides are timed in one run."""
GOAL_AGAINST_DEFAULT_K = 20
GOAL_EXTRA_MEGABYTES = 100
GOAL_DIFFERENCE = 1e-6


def measure(side: str, num_samples: int, num_threads: int) -> dict[str, Any]:
    """Runs one side once, after a warm-up on a small problem. It is called in a process of its own."""
    import torch

    torch.set_num_threads(num_threads)
    embeddings, labels = problem(num_samples)
    function = SIDES[side]
    function(*problem(500))
    before = resident_megabytes()
    began, busy = time.perf_counter(), time.process_time()
    values = function(embeddings, labels)
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    extra = max(0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
    return {"seconds": seconds, "processor_seconds": busy, "extra_megabytes": extra, "values": values}


def problem(num_samples: int) -> tuple[Any, Any]:
    """Embeddings of middling quality: MAP@R is neither 0 nor 1."""
    import torch

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_samples) % CLASSES.get(num_samples, 50)
    centers = torch.randn(int(labels.max()) + 1, EMBEDDING_SIZE, generator=generator)
    noise = torch.randn(num_samples, EMBEDDING_SIZE, generator=generator)
    return torch.nn.functional.normalize(centers[labels] + 1.5 * noise), labels


def ours(embeddings: Any, labels: Any) -> list[float]:
    from mlrc_lightning.metrics import retrieval_metrics

    return list(retrieval_metrics(embeddings, labels).as_dict().values())


def pml(embeddings: Any, labels: Any, k: Any = "max_bin_count", knn: Any = None) -> list[float]:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    calculator = AccuracyCalculator(include=NAMES, k=k, device=embeddings.device, knn_func=knn)
    found = calculator.get_accuracy(embeddings, labels)
    return [float(found[name]) for name in NAMES]


def oml(embeddings: Any, labels: Any) -> list[float]:
    import mlrc_lightning._torchvision  # noqa: F401

    import torch
    from oml.functional.knn import batched_knn
    from oml.functional.metrics import calc_retrieval_metrics

    everything, k = torch.arange(len(labels)), int(torch.bincount(labels).max()) - 1
    _, retrieved, relevant = batched_knn(embeddings, everything, everything, top_n=k, labels_gt=labels)
    found = calc_retrieval_metrics(
        retrieved, relevant, cmc_top_k=(1,), precision_top_k=(k,), map_top_k=(k,), verbose=False
    )
    return [float(found["cmc"][1])]


def product(embeddings: Any, labels: Any) -> list[float]:
    for start in range(0, len(embeddings), 1024):
        embeddings[start : start + 1024] @ embeddings.T
    return []


SIDES = {"pml": pml, "ours": ours, "pml default k": lambda e, y: pml(e, y, None), "oml": oml, "product": product}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(CLASSES))
    parser.add_argument("--json", type=Path, help="also write all figures here")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, size = arguments.child
        print(json.dumps(measure(side, int(size), arguments.threads)))
        return
    figures = []
    for size in arguments.sizes:
        sides = [side for side in SIDES if side != "pml default k" or size <= LARGEST_FOR_DEFAULT_K]
        if importlib.util.find_spec("oml") is None:
            sides.remove("oml")
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for number in range(arguments.rounds):
            for side in sides[::-1] if number % 2 else sides:
                child = ["--threads", str(arguments.threads), "--child", side, str(size)]
                runs[side].append(in_a_process(__file__, child, arguments.threads))
        median = {side: statistics.median(run["seconds"] for run in runs[side]) for side in sides}
        busy = {side: statistics.median(run["processor_seconds"] for run in runs[side]) for side in sides}
        expected = runs["pml"][0]["values"]
        for side in sides:
            values = runs[side][0]["values"]
            figures.append(
                {
                    "samples": size,
                    "classes": CLASSES.get(size, 50),
                    "threads": arguments.threads,
                    "side": side,
                    "times as fast as pml": round(median["pml"] / median[side], 3),
                    "the same, of the processor": round(busy["pml"] / busy[side], 3),
                    "extra memory, MB": round(statistics.median(run["extra_megabytes"] for run in runs[side])),
                    "largest difference from pml": max(
                        (abs(a - b) for a, b in zip(values, expected, strict=False)), default=None
                    ),
                }
            )
            if side == "ours":
                figures[-1]["goals"] = goals(figures[-1], median)
            print(_row(figures[-1]), flush=True)
    keep(figures, arguments.json)


def goals(figure: dict[str, Any], median: dict[str, float]) -> dict[str, bool]:
    """What is asked of ours, and whether it is so. `median` has the seconds of every side."""
    found = {f"at most {GOAL_DIFFERENCE:.0e} from pml": figure["largest difference from pml"] <= GOAL_DIFFERENCE}
    ratio = GOALS.get((figure["samples"], figure["threads"]))
    if ratio is not None:
        found[f"≥ {ratio} times as fast as pml"] = median["pml"] / median["ours"] >= ratio
    if figure["samples"] == 6000 and "pml default k" in median:
        text = f"≥ {GOAL_AGAINST_DEFAULT_K} times as fast as pml with its default k"
        found[text] = median["pml default k"] / median["ours"] >= GOAL_AGAINST_DEFAULT_K
    if figure["samples"] == 60000:
        found[f"≤ {GOAL_EXTRA_MEGABYTES} MB extra"] = figure["extra memory, MB"] <= GOAL_EXTRA_MEGABYTES
    return found


def _row(figure: dict[str, Any]) -> str:
    difference = figure["largest difference from pml"]
    return (
        f"{figure['samples']:>7,} x {EMBEDDING_SIZE}, {figure['classes']:>6,} classes, {figure['threads']} threads |"
        f" {figure['side']:<13} | {figure['times as fast as pml']:>7.3f}x |"
        f" {figure['the same, of the processor']:>7.3f}x | {figure['extra memory, MB']:>6,} MB |"
        f" {'' if difference is None else f'{difference:.1e}'}"
    )


if __name__ == "__main__":
    main()
