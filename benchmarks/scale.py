"""What the paper's whole study costs, computed from the protocol and from measured parts: the tables of docs/scale.md.

    python benchmarks/scale.py [--into docs/scale.md]

Every number of these tables is made here, and a test makes them again. Nothing is timed: what was is in `MEASURED`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).parents[1] / "conf"
BEGIN, END = "<!-- computed by benchmarks/scale.py -->", "<!-- end of what was computed -->"
LOSSES, TRIALS, RUNS, FOLDS = 14, 50, 10, 4
"""Paper, section 3.3."""
ITERATIONS_PER_EPOCH = 100
GMAC = 2.049
"""Multiplications and additions of BN-Inception at 227 px, in pairs, forward, one image; the embedder adds 0.0001."""
PASSES = 3
"""Forward, and twice as much backward: gradients of inputs and of weights."""
SIDE = 256
ASPECT = 4 / 3
"""Assumed of a photo: a cached image is 256 px by 341."""


@dataclass(frozen=True)
class Setting:
    """One of the paper's four.

    Attributes:
        images: Of the first half of the classes: trainval.
        val_images: Of a fold's validation, on average: its share of the classes.
        batch_size: Images of an iteration.
    """

    name: str
    dataset: str
    images: int
    val_images: int
    batch_size: int


# images of a half as the literature has them; classes of validation int(n/8) of n, the original's MLRCSplitManager
SETTINGS = (
    Setting("CUB200", "cub200", 5_864, 5_864 * 25 // 100, 32),
    Setting("Cars196", "cars196", 8_054, 8_054 * 24 // 98, 32),
    Setting("SOP", "sop", 59_551, 59_551 * 2_829 // 11_317, 32),
    Setting("CUB200, batch 256", "cub200", 5_864, 5_864 * 25 // 100, 256),
)

EPOCHS = (("as few epochs as can be", None), ("100 epochs", 100), ("1,000 epochs, the limit", 1_000))
"""Lengths of a model's training: how long the published ones were is not known."""
EXAMPLE = 100
"""Epochs of a model where one length stands for all."""
MEASURED = {
    "images decoded and transformed by PIL, per second and core": 511,
    "the same from cached Resize(256), PIL crop: times as many": 5.2,
    "gathered from the cache alone, augmented on the device: times as many": 54,
    "one suggestion of the sweeper at trial 50, seconds": 0.24,
    "sweeper and launcher per trial, processor seconds": 0.16,
}
"""On two cores of an AMD EPYC, of photos of 375 px and 87 kB; benchmarks/{data,search}.py measure them anew."""
PEAK = {"FP32": 67, "TF32": 495, "BF16": 989}
"""TFLOP/s of an H100 SXM without sparsity, as its maker's data sheet has them: reached by nothing real."""
PIL_WORKERS = 2
"""Of the original, for each of which a core is counted here."""
RATES = (1_000, 3_000, 10_000)
"""Training images per second and GPU: examples, none of them measured."""
GPUS = (1, 8, 56, 224)
"""A GPU a search, and one a fold of each search, are the last two."""
DAY = 86_400


def gflop_per_training_image() -> float:
    """Of BN-Inception at 227 px."""
    return 2 * GMAC * PASSES


def epochs_of(setting: Setting, epochs: int | None) -> int:
    """Epochs of a model.

    It is None for one that nothing improves on after the first validation, which patience then ends.
    """
    dataset = yaml.safe_load((CONF / "dataset" / f"{setting.dataset}.yaml").read_text(encoding="utf-8"))
    interval, patience = dataset["save_interval"], dataset["patience"]
    if epochs is not None:
        return min(epochs, int(dataset["max_epochs"]))
    # the untrained model is the best: the first validated epoch more than `patience` after it
    return interval * (patience // interval + 1)


def images_of(setting: Setting, epochs: int | None) -> tuple[float, float]:
    """Images of one model: trained on, and validated on, the untrained model included."""
    dataset = yaml.safe_load((CONF / "dataset" / f"{setting.dataset}.yaml").read_text(encoding="utf-8"))
    number = epochs_of(setting, epochs)
    validations = 1 + number // dataset["save_interval"]
    return number * ITERATIONS_PER_EPOCH * setting.batch_size, validations * setting.val_images


def of_models(
    epochs: int | None, settings: Sequence[Setting] = SETTINGS, trials: int = TRIALS + RUNS
) -> tuple[float, float]:
    """Images of so many trials of every loss, trained and validated on. The default is the whole study."""
    each = [images_of(setting, epochs) for setting in settings]
    models = LOSSES * trials * FOLDS
    return models * sum(train for train, _ in each), models * sum(val for _, val in each)


def seconds(train: float, val: float, rate: float | None) -> float:
    """Of one GPU at a training rate, where validation costs a forward pass. At None, fed by PIL, it costs a decode."""
    if rate is None:
        return (train + val) / (PIL_WORKERS * MEASURED["images decoded and transformed by PIL, per second and core"])
    return (train + val / PASSES) / rate


def days_on(num_gpus: int, all_models: float, longest_model: float, trials: int) -> str:
    """Days of so many GPUs for models of so many seconds in all. No search is quicker than its trials in a row."""
    side_by_side = min(FOLDS, max(1, num_gpus // GPUS[2]))  # folds of a trial
    # with GPUs to spare, reproductions run side by side
    in_a_row = trials if side_by_side == 1 else min(trials, TRIALS + 1)
    chain = in_a_row * FOLDS / side_by_side * longest_model
    divided = all_models / num_gpus
    return f"{max(divided, chain) / DAY:,.2f}{' (longest search)' if chain > divided else ''}"


def tables() -> list[tuple[str, list[str], list[list[Any]]]]:
    """Title, columns and rows of every table."""
    search = LOSSES * TRIALS * FOLDS
    runs = LOSSES * RUNS * FOLDS
    work = [
        ["searches", LOSSES * 3, LOSSES, LOSSES * 4],
        ["models of searches", search * 3, search, search * 4],
        ["models of reproductions", runs * 3, runs, runs * 4],
        ["models", (search + runs) * 3, search + runs, (search + runs) * 4],
    ]
    model: list[list[Any]] = []
    for setting in SETTINGS:
        train, val = images_of(setting, EXAMPLE)
        least = epochs_of(setting, None)
        share = f"{100 * val / (PASSES * train):.1f} %"
        model.append([setting.name, setting.images, setting.val_images, least, f"{train:,}", f"{val:,}", share])
    arithmetic = []
    for title, epochs in EPOCHS:
        train, val = of_models(epochs)
        flop = train * gflop_per_training_image() * 1e9 + val * 2 * GMAC * 1e9
        days = [f"{flop / (peak * 1e12) / DAY:,.1f}" for peak in PEAK.values()]
        arithmetic.append([title, f"{train / 1e9:.2f}", f"{val / 1e9:.2f}", f"{flop / 1e18:,.0f}", *days])
    rates = [("two PIL workers, a core each", None), *((f"{rate:,} images/s", rate) for rate in RATES)]
    cost = []
    for name, settings, trials in (("the 8,400", SETTINGS[:3], TRIALS), ("all 13,440", SETTINGS, TRIALS + RUNS)):
        images = of_models(EXAMPLE, settings, trials)
        for title, rate in rates:
            longest = max(seconds(*images_of(setting, EXAMPLE), rate) for setting in settings)
            days = [days_on(number, seconds(*images, rate), longest, trials) for number in GPUS]
            cost.append([f"{name}, {title}", *days])
    chain = []
    for title, rate in rates:
        row = [title]
        for setting in SETTINGS:
            one = seconds(*images_of(setting, EXAMPLE), rate)
            row.append(f"{one / 60:.1f} min, {(TRIALS + 1) * one / 3600:.1f} h")
        chain.append(row)
    pil, cached, gathered = list(MEASURED.values())[:3]
    peaks = [(f"{name} at its peak", peak * 1e3 / gflop_per_training_image()) for name, peak in PEAK.items()]
    host = [
        [name, f"{rate:,.0f}", f"{rate / pil:.0f}", f"{rate / (pil * cached):.1f}", f"{rate / (pil * gathered):.2f}"]
        for name, rate in [*(("example", float(rate)) for rate in RATES), *peaks]
    ]
    suggestion, overhead = list(MEASURED.values())[3:]
    serial = [
        ["a search of 50 trials", f"{TRIALS * suggestion / 60:.1f}", f"{TRIALS * overhead / 60:.1f}"],
        ["56 searches", f"{56 * TRIALS * suggestion / 60:.0f}", f"{56 * TRIALS * overhead / 60:.0f}"],
    ]
    memory = [[s.name, f"{s.images * SIDE * SIDE * ASPECT * 3 / 1e9:.1f}"] for s in SETTINGS[:3]]
    return [
        ("Models (computed)", ["", "batch 32, 3 datasets", "batch 256", "all"], work),
        (
            f"One model; images in {EXAMPLE} epochs (computed)",
            ["", "trainval images", "validation images of a fold", "fewest epochs", "images trained on",
             "validated on", "validation's share of the arithmetic of training"],
            model,
        ),
        (
            "The study's arithmetic (computed)",
            ["length of every model", "billion images trained on", "validated on", "EFLOP",
             *(f"days of an H100 at its {name} peak" for name in PEAK)],
            arithmetic,
        ),
        (
            f"Days for the study by training rate of a GPU, {EXAMPLE} epochs a model (computed)",
            ["models, rate", *(f"{number} GPU{'s' * (number > 1)}" for number in GPUS)],
            cost,
        ),
        (
            f"One model of {EXAMPLE} epochs; and the longest chain, 50 trials and a run, folds side by side (computed)",
            ["rate", *(setting.name for setting in SETTINGS)],
            chain,
        ),
        (
            "Cores that feed one GPU (computed from measured rates)",
            ["", "images per second", "PIL, from the files", "cached, PIL crop", "cached, augmented on the device"],
            host,
        ),
        (
            "Minutes of one core (computed from measured parts)",
            ["", "suggestions", "sweeper and launcher"],
            serial,
        ),
        (f"Cached images of a first half, at {SIDE} px by {SIDE * ASPECT:.0f} (computed)", ["", "GB"], memory),
        ("Measured parts used here", ["", "value"], [[name, value] for name, value in MEASURED.items()]),
    ]  # fmt: skip


def render() -> str:
    """Returns all tables as Markdown."""
    lines = []
    for title, columns, rows in tables():
        lines += [f"**{title}**", "", f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"]
        for row in rows:
            cells = [f"{value:,}" if isinstance(value, int) else str(value) for value in row]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def replaced(page: str) -> str:
    """Returns a page with what is between its marks made anew."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{render()}{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, help="a page with the marks")
    arguments = parser.parse_args()
    if arguments.into is None:
        print(render())
    else:
        arguments.into.write_text(replaced(arguments.into.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
