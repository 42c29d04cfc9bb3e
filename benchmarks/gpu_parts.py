"""What each part of `gpu_check.py` measures. A part runs in a process of its own and writes a row when it has one."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import mlrc_lightning._torchvision  # noqa: F401

import metrics
import torch
import torch.distributed as dist
from data import make_photos, our_datamodule
from distributed import losses as papers_losses
from options import PLAIN, VARIANTS
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.inference import CustomKNN
from safetensors.torch import load_file
from throughput import PRECISIONS, Training, allow_tf32, settings_of
from torch import Tensor, nn

from mlrc_lightning.metrics import retrieval_metrics
from mlrc_lightning.parallel.collectives import join
from mlrc_lightning.parallel.ranks import rank_environment
from mlrc_lightning.parallel.signals import TrialStopped
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.results.records import TrialRecord
from mlrc_lightning.settings.resolvers import register_resolvers
from mlrc_lightning.settings.types import TrialSettings
from mlrc_lightning.training.checkpoint import FoldCheckpoint

GOAL_OF_SYNTHETIC = 0.9
"""Fraction of the images per second of synthetic input that a data path reaches."""
LARGEST_DIFFERENCE = 0.01
"""Of MAP@R between the card and the CPU, whose sums have another order."""
NUM_STEPS = 20
"""Training steps of each loss."""
MAP_AT_R = "mean_average_precision_at_r"


class Skipped(Exception):  # noqa: N818
    """This machine cannot run the part. The text is the reason."""


@dataclass(frozen=True)
class Size:
    """How much a part does.

    Attributes:
        model: Overrides that choose trunk and transform.
        batch_sizes: Images of a batch: the protocol's two.
        seconds: Length of a throughput measurement.
        rounds: Measurements of each data path, in turns.
        workers: Processes that read the cached images.
        pillow_workers: Processes that crop by Pillow.
        photos: Images of the data paths.
        samples: Embeddings of the retrieval metrics.
        glyphs: Overrides of a trial on glyphs.
        compiled: Those variants of `options.py` that compile.
        at_once: Folds that are trained at the same time.
    """

    model: list[str]
    batch_sizes: tuple[int, int]
    seconds: float
    rounds: int
    workers: tuple[int, ...]
    pillow_workers: tuple[int, ...]
    photos: int
    samples: tuple[int, ...]
    glyphs: list[str]
    compiled: tuple[str, ...]
    at_once: tuple[int, ...]


FULL = Size(
    model=["experiment=mlrc/cub200", "trunk.pretrained=false"],
    batch_sizes=(32, 256),
    seconds=1.0,
    rounds=2,
    workers=(0, 4, 8),
    pillow_workers=(8, 16),
    photos=256,
    samples=(6000, 60000),
    glyphs=["dataset=glyphs", "evaluation.baselines=false"],
    compiled=("compile", "channels_last, compile"),
    at_once=(2, 4),
)
TINY = Size(
    model=[
        "experiment=mlrc/cub200", "trunk=small_cnn", "trunk.model.width=8", "transform.resize=40", "transform.crop=32"
    ],
    batch_sizes=(8, 16),
    seconds=0.1,
    rounds=1,
    workers=(0, 1),
    pillow_workers=(1,),
    photos=18,
    samples=(400,),
    glyphs=["experiment=smoke", "evaluation.baselines=false", "trunk.model.width=8"],
    compiled=("compile",),
    at_once=(2, 4),
)  # fmt: skip


@dataclass
class Check:
    """Where a part runs, and where its rows go.

    Attributes:
        device: The device that is checked.
        size: How much a part does.
        folder: Images and caches, shared by all parts.
        write: Takes each row.
        has_failed: Whether some attempt raised.
    """

    device: torch.device
    size: Size
    folder: Path
    write: Callable[[dict[str, Any]], None]
    has_failed: bool = field(default=False, init=False)

    @property
    def is_on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def row(self, of: str, figures: dict[str, Any], goals: dict[str, bool] | None = None) -> None:
        """Writes one row.

        Args:
            of: What was measured.
            figures: By name; one without a value is left out.
            goals: By text, whether the goal is met.
        """
        found = {name: _plain(value) for name, value in figures.items() if value is not None}
        self.write({"of": of, **found, **({"goals": goals} if goals else {})})

    @contextlib.contextmanager
    def attempt(self, of: str) -> Iterator[None]:
        """Turns an exception into a row, so that the others of the part are still measured."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.has_failed = True
            text = str(error).strip().partition("\n")[0]
            self.row(of, {"failed": f"{type(error).__name__}: {text}"})

    def trial(self, *overrides: str, accelerator: str | None = None) -> TrialSettings:
        """Returns the settings of a trial on glyphs."""
        trainer = accelerator or ("gpu" if self.is_on_gpu else "cpu")
        return settings_of([*self.size.glyphs, f"trainer={trainer}", f"data_root={self.folder / 'data'}", *overrides])


def trial(check: Check) -> None:
    """Describes the device, then trains two folds on it and on the CPU."""
    check.row("the device", _description(check.device))
    records, sides = [], {"the device": None, "the CPU": "cpu"}
    for side, accelerator in sides.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            settings = check.trial("fold=[0,1]", "schedule.max_epochs=4", accelerator=accelerator)
            _reset_peak(check.device)
            record, seconds = _timed_trial(settings)
        records.append(record)
        assert record.test is not None
        figures = {
            "val MAP@R": _mean_map_at_r(record),
            "test MAP@R": record.test.separated[MAP_AT_R],
            "seconds": round(seconds, 1),
        }
        if accelerator is None:
            figures |= {"peak memory, MB": _peak_megabytes(check.device)}
            figures |= {"operations without a deterministic form": _nondeterministic(caught)}
        check.row(f"two folds on {side}", figures)
    difference = _largest_difference(*records)
    goals = {f"MAP@R at most {LARGEST_DIFFERENCE} from the CPU's": difference <= LARGEST_DIFFERENCE}
    check.row("the device beside the CPU", {"largest difference of MAP@R": difference}, goals)


def synthetic(check: Check) -> None:
    """Trains on one batch that stays on the device, in each precision: what the arithmetic allows."""
    _as_trials_do(check)
    settings = settings_of([*check.size.model, "loss=contrastive"])
    for batch_size in check.size.batch_sizes:
        rates: dict[str, float] = {}
        for name, (precision, has_tf32) in PRECISIONS.items():
            of = f"batch {batch_size}, {name}"
            with check.attempt(of):
                allow_tf32(has_tf32)
                _reset_peak(check.device)
                training = Training(settings, precision, check.device, None, batch_size)
                rates[name] = training.images_per_second(check.size.seconds)
                figures = {
                    "images per second": round(rates[name], 1),
                    "times fp32": round(rates[name] / rates["fp32"], 2) if "fp32" in rates else None,
                    "peak memory, MB": _peak_megabytes(check.device),
                }
                check.row(of, figures)
                del training
    # deterministic algorithms are what a trial takes unless trainer.deterministic=false
    torch.use_deterministic_algorithms(False)
    batch_size = check.size.batch_sizes[0]
    with check.attempt("deterministic=false"):
        allow_tf32(True)
        training = Training(settings, PRECISIONS["bf16"][0], check.device, None, batch_size)
        figures = {"images per second": round(training.images_per_second(check.size.seconds), 1)}
        check.row(f"batch {batch_size}, bf16, deterministic=false", figures)


def data_paths(check: Check) -> None:
    """Trains from each data path. The paths take turns with synthetic input."""
    _as_trials_do(check)
    settings = settings_of([*check.size.model, "loss=contrastive"])
    folder = _photos(check)
    paths: dict[str, tuple[str, bool, int] | None] = {"synthetic": None, "resident cache": ("device", True, 0)}
    paths |= {f"host cache, {n} workers": ("device", False, n) for n in check.size.workers}
    paths |= {f"Pillow, {n} workers": ("pil", False, n) for n in check.size.pillow_workers}
    small, large = check.size.batch_sizes
    for batch_size, name in ((small, "fp32"), (small, "bf16"), (large, "bf16")):
        precision, has_tf32 = PRECISIONS[name]
        allow_tf32(has_tf32)
        trainings = {}
        for path, how in paths.items():
            with check.attempt(f"batch {batch_size}, {name}, {path}"):
                crop = settings.transform.crop
                datamodule = how and our_datamodule(folder, *how, batch_size=batch_size, crop=crop)
                trainings[path] = Training(settings, precision, check.device, datamodule, batch_size)
        rates: dict[str, list[float]] = {path: [] for path in trainings}
        for number in range(check.size.rounds):
            for path in list(trainings)[:: -1 if number % 2 else 1]:
                with check.attempt(f"batch {batch_size}, {name}, {path}"):
                    rates[path].append(trainings[path].images_per_second(check.size.seconds))
        median = {path: statistics.median(values) for path, values in rates.items() if values}
        for path, rate in median.items():
            fraction = rate / median["synthetic"] if "synthetic" in median else math.nan
            goal = {f"≥ {GOAL_OF_SYNTHETIC} of synthetic": fraction >= GOAL_OF_SYNTHETIC}
            figures = {"images per second": round(rate, 1), "of synthetic": round(fraction, 3)}
            check.row(f"batch {batch_size}, {name}, {path}", figures, goal if path != "synthetic" else None)


def losses(check: Check) -> None:
    """Takes some steps of each of the paper's losses at its optimum, in 32 and in 16 bits."""
    allow_tf32(False)
    batch_size = check.size.batch_sizes[0]
    for loss in papers_losses():
        with check.attempt(loss):
            settings = settings_of([*check.size.model, f"loss={loss}", "hyperparameters=paper"])
            expected = _trained(settings, PRECISIONS["fp32"][0], check.device, batch_size)
            for name in ("bf16", "fp16"):
                with check.attempt(f"{loss}, {name}"):
                    found = _trained(settings, PRECISIONS[name][0], check.device, batch_size)
                    difference = (found.embeddings - expected.embeddings).abs().max()
                    figures = {
                        "first loss": found.losses[0].item(),
                        "largest difference of a loss from fp32, of the largest": found.loss_distance(expected),
                        "largest difference of an embedding's entry": difference.item(),
                        "steps that the scaler skipped": found.num_skipped,
                    }
                    check.row(f"{loss}, {name}", figures, {"finite": found.is_finite and expected.is_finite})


def retrieval(check: Check) -> None:
    """Computes the retrieval metrics on the device, beside pytorch-metric-learning's there and ours on the CPU."""
    # its own default needs faiss; blocks of queries bound the memory
    knn = CustomKNN(CosineSimilarity(), batch_size=8192)
    warm_up = [values.to(check.device) for values in metrics.problem(500)]
    retrieval_metrics(*warm_up)
    metrics.pml(*warm_up, knn=knn)
    for size in check.size.samples:
        of = f"{size:,} x {metrics.EMBEDDING_SIZE}"
        embeddings, labels = metrics.problem(size)
        with check.attempt(of):
            on_device = embeddings.to(check.device), labels.to(check.device)
            _reset_peak(check.device)
            found, seconds = _timed(lambda on_device=on_device: retrieval_metrics(*on_device))
            peak = _peak_megabytes(check.device)
            expected, seconds_on_cpu = _timed(
                lambda embeddings=embeddings, labels=labels: retrieval_metrics(embeddings, labels)
            )
            means = [abs(found[name] - expected[name]) for name in metrics.NAMES]
            figures = {
                "seconds": round(seconds, 4),
                "peak memory, MB": peak,
                "seconds on the CPU": round(seconds_on_cpu, 3),
                "queries whose figures differ from the CPU's": int(
                    (found.per_query != expected.per_query).any(dim=1).sum()
                ),
                "largest difference of a mean": max(means),
            }
            goals = {"the CPU's figures of every query, exactly": torch.equal(found.per_query, expected.per_query)}
            check.row(f"{of}, ours", figures, goals)
        with check.attempt(f"{of}, pytorch-metric-learning"):
            _reset_peak(check.device)
            theirs, their_seconds = _timed(lambda on_device=on_device: metrics.pml(*on_device, knn=knn))
            difference = max(abs(a - found[name]) for name, a in zip(metrics.NAMES, theirs, strict=True))
            figures = {
                "seconds": round(their_seconds, 4),
                "peak memory, MB": _peak_megabytes(check.device),
                "times the seconds of ours": round(their_seconds / seconds, 2),
                "largest difference from ours": difference,
            }
            goal = f"ours at most {metrics.GOAL_DIFFERENCE:.0e} from it"
            check.row(f"{of}, pytorch-metric-learning", figures, {goal: difference <= metrics.GOAL_DIFFERENCE})


def crops(check: Check) -> None:
    """Compares the pixels of augmentation=device with Pillow's."""
    folder, batch_size, num_batches = _photos(check), check.size.batch_sizes[0], 8
    crop = settings_of(check.size.model).transform.crop

    def batches(augmentation: str, is_resident: bool) -> Iterator[Tensor]:
        datamodule = our_datamodule(folder, augmentation, is_resident, batch_size=batch_size, crop=crop)
        for batch, _ in zip(datamodule.train_dataloader(), range(num_batches), strict=False):
            moved = type(batch)(_to(part, check.device) for part in batch)
            yield datamodule.on_after_batch_transfer(moved)[0]

    expected = [images.cpu() for images in batches("pil", False)]
    for name, is_resident in (("sent to the device", False), ("resident cache", True)):
        with check.attempt(name):
            _reset_peak(check.device)
            found = [images.cpu() for images in batches("device", is_resident)]
            num_different = sum(int((a != b).sum()) for a, b in zip(found, expected, strict=True))
            figures = {
                "images": num_batches * batch_size,
                "bytes that differ from Pillow's": num_different,
                "peak memory, MB": _peak_megabytes(check.device),
            }
            check.row(name, figures, {"Pillow's pixels, exactly": num_different == 0})


def options(check: Check) -> None:
    """Measures channels_last, 16 bits and captured graphs, and their distance from the plain step."""
    names = [name for name in VARIANTS if "compile" not in name]
    # a capture that fails may leave the device of no use to others
    _compare_variants(check, sorted(names, key=lambda name: name == "cudagraphs"))


def compiled(check: Check) -> None:
    """Measures the compiled trunk beside the plain step. The first step of it takes longest of all."""
    if not check.is_on_gpu and shutil.which("g++") is None:
        raise Skipped("torch.compile needs a C++ compiler on a CPU, and there is none")
    _compare_variants(check, [PLAIN, *check.size.compiled])


def _compare_variants(check: Check, names: list[str]) -> None:
    """Writes a row for each variant of `options.py`. The first is the plain step."""
    _as_trials_do(check)
    batch_size = check.size.batch_sizes[0]
    plain: _FirstStep | None = None
    for name in names:
        if name == "cudagraphs" and not check.is_on_gpu:
            check.row(name, {"skipped": "it captures what a CUDA device does, and there is none"})
            continue
        with check.attempt(name):
            _reset_peak(check.device)
            settings = settings_of([*check.size.model, "loss=contrastive", "hyperparameters=paper", *VARIANTS[name]])
            training = Training(settings, settings.trainer.precision, check.device, None, batch_size)
            _set_batchnorm_statistics(training)
            first, seconds = _timed(lambda training=training: _first_step(training))
            plain = plain or first
            rate = training.images_per_second(check.size.seconds)
            distance = (first.gradient - plain.gradient).norm() / plain.gradient.norm()
            figures = {
                "first step, seconds": round(seconds, 2),
                "images per second": round(rate, 1),
                "times plain": round(rate / plain.rate, 2) if plain is not first else 1.0,
                "distance of the gradient, of its length": distance.item(),
                "difference of the loss": abs(first.loss - plain.loss),
                "peak memory, MB": _peak_megabytes(check.device),
            }
            first.rate = rate
            check.row(name, figures)
            del training
            torch._dynamo.reset()


def folds(check: Check) -> None:
    """Trains four folds one after the other, then two and four at once."""
    record, seconds = None, math.nan
    with check.attempt("one after the other"):
        with _DeviceMemory(check.device) as memory:
            record, seconds = _timed_trial(check.trial("fold=all"))
        figures = {"seconds": round(seconds, 1), "val MAP@R": _mean_map_at_r(record), "peak memory, MB": memory.peak}
        check.row("four folds, one after the other", figures)
    for at_once in check.size.at_once:
        of = f"four folds, {at_once} at once"
        with check.attempt(of):
            overrides = ["fold=all", f"trainer.parallel_folds={at_once}"]
            if at_once == check.size.at_once[0]:
                # the first trial starts the server that processes are forked from, as the first of a search does
                _timed_trial(check.trial(*overrides, "schedule.max_epochs=1"))
            with _DeviceMemory(check.device) as memory:
                found, own_seconds = _timed_trial(check.trial(*overrides))
            figures = {
                "seconds": round(own_seconds, 1),
                "times as fast": round(seconds / own_seconds, 2),
                "largest difference of MAP@R": None if record is None else _largest_difference(found, record),
                "peak memory, MB": memory.peak,
            }
            check.row(of, figures)


def resume(check: Check) -> None:
    """Stops a trial by a signal between two steps, repeats it, and compares with the trial that nothing stopped."""
    settings = check.trial("fold=0", "schedule.max_epochs=2")
    stop_at = settings.schedule.iterations_per_epoch * 3 // 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _reset_peak(check.device)
        whole = run_trial(settings, folder / "whole")
        peak = _peak_megabytes(check.device)
        again = run_trial(settings, folder / "again")
        with _signal_before_step(stop_at, settings.schedule.iterations_per_epoch):
            try:
                run_trial(settings, folder / "stopped")
                raise RuntimeError(f"expected a stop before step {stop_at}, found a finished trial")
            except TrialStopped as stopped:
                where = str(stopped)
        resumed = run_trial(settings, folder / "stopped")
        of_again, of_resumed = (_weight_difference(folder / "whole", folder / n) for n in ("again", "stopped"))
    check.row(
        "the same trial twice",
        {
            "largest difference of a weight": of_again,
            "largest difference of MAP@R": _largest_difference(again, whole),
            "peak memory, MB": peak,
        },
    )
    figures = {
        "message": where,
        "largest difference of a weight": of_resumed,
        "largest difference of MAP@R": _largest_difference(resumed, whole),
    }
    # a device that does not repeat itself cannot say whether a resume does
    goals = {"the weights of the uninterrupted trial": of_resumed == 0.0} if of_again == 0.0 else None
    check.row("stopped and resumed", figures, goals)


def ddp(check: Check) -> None:
    """Trains in a process group of one rank: DistributedDataParallel, gathers and broadcasts are the group's."""
    if not dist.is_available():
        raise Skipped("this torch has no torch.distributed")
    if check.is_on_gpu and not _has_nccl():
        raise Skipped("this torch has no NCCL")
    settings = check.trial("fold=0", "schedule.max_epochs=2")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _reset_peak(check.device)
        alone, seconds_alone = _timed(lambda: run_trial(settings, folder / "alone"))
        peak_alone = _peak_megabytes(check.device)
        os.environ.update(rank_environment(os.environ, 0, 1, 0))
        device = torch.device("cuda", 0) if check.is_on_gpu else check.device
        join(dist.HashStore(), 0, 1, device, timedelta(seconds=60))
        try:
            backend = dist.get_backend_config()
            _reset_peak(check.device)
            grouped, seconds = _timed(lambda: run_trial(settings, folder / "grouped"))
        finally:
            dist.destroy_process_group()
        difference = _weight_difference(folder / "alone", folder / "grouped")
    check.row(
        "no process group",
        {"seconds": round(seconds_alone, 1), "val MAP@R": _mean_map_at_r(alone), "peak memory, MB": peak_alone},
    )
    figures = {
        "backends": str(backend),
        "seconds": round(seconds, 1),
        "largest difference of a weight": difference,
        "largest difference of MAP@R": _largest_difference(grouped, alone),
        "peak memory, MB": _peak_megabytes(check.device),
    }
    is_near = _largest_difference(grouped, alone) <= LARGEST_DIFFERENCE
    check.row("one rank", figures, {f"MAP@R at most {LARGEST_DIFFERENCE} from no process group": is_near})


PARTS: dict[str, Callable[[Check], None]] = {
    function.__name__: function
    for function in (trial, synthetic, data_paths, losses, retrieval, crops, options, compiled, folds, resume, ddp)
}


def run_part(name: str, device: str, is_tiny: bool, folder: Path, rows: Path) -> int:
    """Runs one part in this process.

    Args:
        name: Its key in `PARTS`.
        device: cuda or cpu.
        is_tiny: Whether it does as little as it can.
        folder: Images and caches, shared by all parts.
        rows: Takes a line of JSON for each row as soon as it is there.

    Returns:
        The exit code: 0 if nothing failed.
    """
    with rows.open("a", encoding="utf-8") as file:

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()

        register_resolvers()
        check = Check(torch.device(device), TINY if is_tiny else FULL, folder, write)
        try:
            PARTS[name](check)
        except Skipped as skipped:
            write({"skipped": str(skipped)})
        return int(check.has_failed)


def uses(device: str) -> bool:
    """Returns whether this process can compute on a device. If not, it prints why."""
    try:
        return torch.ones(2, device=device).sum().item() == 2.0
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts that it has it
        print(str(error).strip().partition("\n")[0])
        return False


@dataclass(frozen=True)
class _Trained:
    """What some steps of a loss gave.

    Attributes:
        losses: Loss after k updates of the weights, for each k; (K,), float64.
        embeddings: Embeddings of the batch before the first step; (B, E), float32.
        is_finite: Whether losses, embeddings and weights are.
        num_skipped: Steps that the gradients' scaler skipped; None without one.
    """

    losses: Tensor
    embeddings: Tensor
    is_finite: bool
    num_skipped: int | None

    def loss_distance(self, other: _Trained) -> float:
        """Returns the largest difference of a loss after as many updates, as a fraction of the other's largest."""
        number = min(len(self.losses), len(other.losses))
        difference = (self.losses[:number] - other.losses[:number]).abs().max()
        return (difference / other.losses.abs().max()).item()


def _trained(settings: TrialSettings, precision: str, device: torch.device, batch_size: int) -> _Trained:
    training = Training(settings, precision, device, None, batch_size)
    _set_batchnorm_statistics(training)
    with torch.no_grad(), training.context():
        embeddings = training.module(next(training.batches)[0])
    found, scales = [], []
    for _ in range(NUM_STEPS):
        scales.append(training.scaler.get_scale() if training.scaler is not None else 1.0)
        found.append(training.step())
    # the scale is halved by a step that was skipped, and no weight has changed then
    is_repeated = [after < before for before, after in itertools.pairwise(scales)]
    losses = torch.stack(found).double()
    is_new = torch.tensor([True, *(not repeated for repeated in is_repeated)], device=device)
    parts = [losses, embeddings, *(p.detach() for p in training.module.parameters())]
    return _Trained(
        losses[is_new].cpu(),
        embeddings.cpu(),
        all(bool(part.isfinite().all()) for part in parts),
        None if training.scaler is None else sum(is_repeated),
    )


@dataclass
class _FirstStep:
    """One step.

    Attributes:
        loss: Its loss.
        gradient: Gradient of trunk and embedder; (P,), float32.
        rate: Images per second of the steps after it.
    """

    loss: float
    gradient: Tensor
    rate: float = math.nan


def _first_step(training: Training) -> _FirstStep:
    loss = training.step().item()
    model = [*training.module.trunk.parameters(), *training.module.embedder.parameters()]
    gradients = [p.grad.flatten().float().cpu() for p in model if p.grad is not None]
    return _FirstStep(loss, torch.cat(gradients))


def _set_batchnorm_statistics(training: Training) -> None:
    """Gives BatchNorm the statistics of the batch: without any, random weights embed all images alike."""
    layers = [layer for layer in training.module.trunk.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = 1.0
        nn.Module.train(layer, True)
    with torch.no_grad():
        # not as a call, which a variant may have compiled for frozen BatchNorm
        training.module.trunk.forward(next(training.batches)[0])
    training.module.train()


def _as_trials_do(check: Check) -> None:
    """Takes deterministic algorithms, as a Lightning trainer with trainer.deterministic=true does."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Returns a result and its seconds. The function waits for the device itself."""
    began = time.perf_counter()
    found = function()
    return found, time.perf_counter() - began


def _timed_trial(settings: TrialSettings) -> tuple[TrialRecord, float]:
    with tempfile.TemporaryDirectory() as folder:
        return _timed(lambda: run_trial(settings, Path(folder)))


def _mean_map_at_r(record: TrialRecord) -> float:
    return statistics.mean(fold.val[MAP_AT_R] for fold in record.folds)


def _largest_difference(record: TrialRecord, other: TrialRecord) -> float:
    """Returns the largest difference of a fold's validation MAP@R between two trials."""
    pairs = zip(record.folds, other.folds, strict=True)
    return max(abs(a.val[MAP_AT_R] - b.val[MAP_AT_R]) for a, b in pairs)


def _weight_difference(folder: Path, other: Path) -> float:
    """Returns the largest difference of a weight between the kept models of two trials.

    It is inf where the files differ.
    """
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors"))
    if not files or files != sorted(path.relative_to(other) for path in other.rglob("*.safetensors")):
        return math.inf
    pairs = [(load_file(folder / file), load_file(other / file)) for file in files]
    return max((a[name].double() - b[name].double()).abs().max().item() for a, b in pairs for name in a)


@contextlib.contextmanager
def _signal_before_step(step: int, iterations_per_epoch: int) -> Iterator[None]:
    """Sends SIGTERM to this process before one step of the next training, counted from 0."""
    original = FoldCheckpoint.before_iteration

    def signalled(self: FoldCheckpoint, trainer: Any, module: Any, number: int) -> None:
        if trainer.current_epoch * iterations_per_epoch + number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, module, number)

    FoldCheckpoint.before_iteration = signalled  # type: ignore[method-assign]
    try:
        yield
    finally:
        FoldCheckpoint.before_iteration = original  # type: ignore[method-assign]


class _DeviceMemory:
    """Watches the memory of a GPU that all processes together use while the block runs.

    Attributes:
        peak: MB above what was in use before; None on a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_over = threading.Event()
        self.peak: int | None = None

    def __enter__(self) -> _DeviceMemory:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            self._before = torch.cuda.mem_get_info(self._device)[0]
            self.peak = 0
            self._thread = threading.Thread(target=self._watch)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self._is_over.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.02):
            used = self._before - torch.cuda.mem_get_info(self._device)[0]
            self.peak = max(self.peak or 0, used // 2**20)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_megabytes(device: torch.device) -> int | None:
    """Returns the largest memory of this process's tensors on a GPU since `_reset_peak`. It is None on a CPU."""
    return torch.cuda.max_memory_allocated(device) // 2**20 if device.type == "cuda" else None


def _photos(check: Check) -> Path:
    """Returns the folder of the photos, which the first part that needs them makes."""
    folder = check.folder / "photos"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=check.folder) as name:
            made = Path(name) / "made"
            made.mkdir()
            make_photos(made / "photos", check.size.photos)
            made.replace(folder)
    return folder


def _to(part: Any, device: torch.device) -> Any:
    """Moves a tensor, or the tensors of a named tuple."""
    return part.to(device) if isinstance(part, Tensor) else type(part)(*(_to(value, device) for value in part))


def _nondeterministic(caught: list[warnings.WarningMessage]) -> str:
    """Returns the operations that PyTorch warned of, by name."""
    texts = {str(warning.message).partition(" does not have a deterministic implementation") for warning in caught}
    return ", ".join(sorted(name for name, found, _ in texts if found)) or "none"


def _description(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "CPU threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "CUDA of torch": torch.version.cuda or "none",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "name": properties.name,
            "memory, GB": round(properties.total_memory / 2**30, 1),
            "compute capability": f"{properties.major}.{properties.minor}",
            "cuDNN": torch.backends.cudnn.version(),
            "NCCL": ".".join(map(str, torch.cuda.nccl.version())) if _has_nccl() else "none",
            "bf16": torch.cuda.is_bf16_supported(),
        }
    return facts


def _has_nccl() -> bool:
    return dist.is_available() and dist.is_nccl_available()


def _plain(value: Any) -> Any:
    """Returns a value that JSON has: NaN and infinities are told by name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
