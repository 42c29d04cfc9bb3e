"""One model on real photos, from the first image to its validation, against pytorch-metric-learning's own trainer.

    MLRC_SHARED=FOLDER python benchmarks/end_to_end.py [--trunks pixels tiny lite0] [--rounds 3] [--json FILE]

FOLDER/data/grocery_128.tar (the Grocery Store Dataset at 128 px) and FOLDER/weights/tf_efficientnet_lite0.safetensors.
ArcFace on fold 0 at 128 px, batch 32: a fixed number of iterations, then the accuracies of the validation classes.

- `ours`: `run_trial`, with its record, checkpoints and log; images decoded to the cache before, once for all models
  (`decoding, s` tells how long that took; `times ours and decoding` is for one model alone).
- `ours, torch crops`: with `trainer.augmentation=torch`, whose pixels differ from Pillow's by one here and there.
- `pml`: MetricLossOnly, GlobalEmbeddingSpaceTester and AccuracyCalculator(k="max_bin_count"); images from their files
  by PIL and torchvision's Resize, RandomResizedCrop and flip, in the trainer's process (0 workers) or in its default
  of 2.

The trunk's and the loss's first weights, the images of every batch, the optimizers and the sizes of batches are the
same; the random numbers of the crops are not, so that accuracies agree within noise. One thread a process, in turns.
Data and loop are nearly all that there is to `pixels`, about a third of `tiny`, and nothing of `lite0`.
Ratios are pml's median over ours; `cpu` is the time of a process without workers, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import io
import logging
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlrc_lightning._torchvision  # noqa: F401

import torch
from hydra import compose, initialize_config_dir
from measuring import keep, print_row, shared_data
from PIL import Image
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from pytorch_metric_learning.trainers import MetricLossOnly
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms

from mlrc_lightning.files import config_folder
from mlrc_lightning.models.trunk import Normalization, Trunk
from mlrc_lightning.protocol.build import TrialData, build_datamodule, build_module
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.settings.compose import trial_settings
from mlrc_lightning.settings.resolvers import register_resolvers
from mlrc_lightning.settings.types import TrialSettings

ROOT = Path(__file__).parents[1]
ITERATIONS = {"pixels": 100, "tiny": 100, "lite0": 10}
"""By trunk: pooled pixels, where data and loop are all there is; SmallCNN of width 8; EfficientNet-Lite0."""
GOALS = {"pixels": 3, "lite0": 1}
"""What a peer takes at least, in times of ours: 3 where data and loop dominate, never less than ours."""
METRICS = ("precision_at_1", "r_precision", "mean_average_precision_at_r")


class Photos(Dataset[tuple[Tensor, int]]):
    """Files, decoded and transformed whenever they are asked for."""

    def __init__(self, paths: list[Path], labels: list[int], transform: Any) -> None:
        self._paths, self._labels, self._transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self._paths[index]) as image:
            return self._transform(image.convert("RGB")), self._labels[index]


class PooledPixels(Trunk):
    """One linear layer on means of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__(Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
        self.num_features = 64
        self.layers = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(768, 64), nn.LayerNorm(64))

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


class Features(nn.Module):
    """The trunk behind its normalisation, which the transform has done."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk.features(images)


def settings_of(trunk: str, table: Path, weights: Path, folder: Path) -> TrialSettings:
    choice = {
        "pixels": ["trunk=small_cnn"],
        "tiny": ["trunk=small_cnn", "trunk.model.width=8"],
        "lite0": ["trunk=timm", "trunk.name=tf_efficientnet_lite0", f"trunk.pretrained={weights}"],
    }[trunk]
    overrides = [
        "dataset=image_csv", "dataset.name=grocery", f"dataset.images.csv={table}", *choice, "loss=arcface", "fold=0",
        "transform.resize=128", "transform.crop=128", f"schedule.iterations_per_epoch={ITERATIONS[trunk]}",
        "schedule.max_epochs=1", "schedule.save_interval=1", "evaluation.check_untrained_accuracy=false",
        "trainer=cpu", f"data_root={folder / trunk}", "logger=csv",
    ]  # fmt: skip
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        settings = trial_settings(compose("train", overrides), is_sweep_job=True)
    if trunk == "pixels":
        own = dataclasses.replace(
            settings.trunk,
            model={"_target_": f"{__name__}.PooledPixels"},
        )
        settings = dataclasses.replace(settings, trunk=own)
    return settings


def ours(settings: TrialSettings, data: TrialData, workers: int, augmentation: str = "pil") -> dict[str, float]:
    settings = dataclasses.replace(settings, trainer=dataclasses.replace(settings.trainer, augmentation=augmentation))
    with tempfile.TemporaryDirectory() as folder:
        record = run_trial(settings, Path(folder))
    return dict(record.folds[0].val)


def pml(settings: TrialSettings, data: TrialData, workers: int) -> dict[str, float]:
    split, images = data.splits[0], data.images
    module = build_module(settings, 0, len(split.classes("train")))
    assert module.objective is not None
    trunk, embedder, loss = Features(module.trunk), module.embedder, module.objective.loss
    pixels = module.trunk.normalization
    assert pixels.value_range == 1.0
    assert not pixels.is_bgr
    end = [transforms.ToTensor(), transforms.Normalize(pixels.mean, pixels.std)]
    own = settings.transform
    crop = transforms.RandomResizedCrop(own.crop, own.scale, own.ratio)
    flip = transforms.RandomHorizontalFlip(own.flip_probability)
    train = transforms.Compose([transforms.Resize(own.resize), crop, flip, *end])
    evaluation = transforms.Compose([transforms.Resize(own.resize), transforms.CenterCrop(own.crop), *end])
    positions = {label: number for number, label in enumerate(split.classes("train"))}
    labels = [positions.get(label, -1) for label in images.labels.tolist()]
    paths = [Path(path) for path in images.paths]  # type: ignore[attr-defined]
    batches = build_datamodule(settings, data, split).batches
    iterations = settings.schedule.iterations_per_epoch
    optimizer = partial(torch.optim.RMSprop, **{k: v for k, v in settings.optimizer.items() if k != "_target_"})
    of_loss = partial(torch.optim.RMSprop, **{**optimizer.keywords, **settings.loss.optimizer})
    trainer = MetricLossOnly(
        models={"trunk": trunk, "embedder": embedder},
        optimizers={
            "trunk_optimizer": optimizer(trunk.parameters()),
            "embedder_optimizer": optimizer(embedder.parameters()),
            "metric_loss_optimizer": of_loss(loss.parameters()),
        },
        batch_size=settings.batch_size,
        loss_funcs={"metric_loss": loss},
        dataset=Photos(paths, labels, train),
        sampler=[index for number in range(iterations) for index, _ in batches.batch(number)],
        dataloader_num_workers=workers,
        data_device=torch.device("cpu"),
        freeze_trunk_batchnorm=True,
        iterations_per_epoch=iterations,
    )
    trainer.train(num_epochs=1)
    tester = GlobalEmbeddingSpaceTester(
        batch_size=settings.evaluation.batch_size,
        dataloader_num_workers=workers,
        data_device=torch.device("cpu"),
        accuracy_calculator=AccuracyCalculator(include=METRICS, k="max_bin_count", device=torch.device("cpu")),
    )
    val = Photos([paths[i] for i in split.val], images.labels[split.val].tolist(), evaluation)
    found = tester.test({"val": val}, 1, trunk, embedder)["val"]
    return {name: float(found[f"{name}_level0"]) for name in METRICS}


SIDES: dict[str, tuple[Callable[..., dict[str, float]], int]] = {
    "ours": (ours, 0),
    "ours, torch crops": (partial(ours, augmentation="torch"), 0),
    "pml, 0 workers": (pml, 0),
    "pml, 2 workers": (pml, 2),
}


def _goals(trunk: str, side: str, wall: dict[str, float]) -> dict[str, bool]:
    ours_too = [own for own in SIDES if own.startswith("ours")]
    return {f"≥ {GOALS[trunk]} times the seconds of {own}": wall[side] >= GOALS[trunk] * wall[own] for own in ours_too}


@contextlib.contextmanager
def grocery(shared: Path) -> Iterator[tuple[Path, Path]]:
    """Yields a table of the photos and a folder to work in."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(shared / "data" / "grocery_128.tar") as archive:
            archive.extractall(folder, filter="data")
        table = folder / "grocery.csv"
        script = ROOT / "examples" / "grocery_csv.py"
        subprocess.run([sys.executable, script, folder / "grocery_128" / "dataset", table], check=True)
        yield table, folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunks", nargs="+", choices=list(ITERATIONS), default=list(ITERATIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write all figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    register_resolvers()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    shared = shared_data()
    figures = []
    with grocery(shared) as (table, folder):
        for trunk in arguments.trunks:
            settings = settings_of(trunk, table, shared / "weights" / "tf_efficientnet_lite0.safetensors", folder)
            began = time.perf_counter()
            data = TrialData(settings)
            decoding = time.perf_counter() - began
            runs: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
            accuracies: dict[str, dict[str, float]] = {}
            if not figures:  # imports, and whatever else is done once a process
                for function, workers in SIDES.values():
                    with contextlib.redirect_stderr(io.StringIO()):
                        function(settings, data, workers)
                gc.collect()
            for number in range(arguments.rounds):
                for side in list(SIDES)[:: -1 if number % 2 else 1]:
                    function, workers = SIDES[side]
                    start, start_cpu = time.perf_counter(), time.process_time()
                    with contextlib.redirect_stderr(io.StringIO()):
                        accuracies[side] = function(settings, data, workers)
                    runs[side].append((time.perf_counter() - start, time.process_time() - start_cpu))
                    gc.collect()  # loaders wait for their processes to end, else within the time of the next side
            wall, cpu = ({side: statistics.median(run[i] for run in runs[side]) for side in SIDES} for i in (0, 1))
            for side in SIDES:
                figures.append(
                    {
                        "trunk": trunk,
                        "iterations": ITERATIONS[trunk],
                        "side": side,
                        "seconds": round(wall[side], 2),
                        "times ours": round(wall[side] / wall["ours"], 2),
                        "times ours, torch crops": round(wall[side] / wall["ours, torch crops"], 2),
                        # that of workers is not the process's
                        "times ours, cpu": None if SIDES[side][1] else round(cpu[side] / cpu["ours"], 2),
                        "times ours and decoding": round(wall[side] / (wall["ours"] + decoding), 2),
                        "decoding, s": round(decoding, 1) if side == "ours" else None,
                        **{name: round(accuracies[side][name], 4) for name in METRICS},
                        **({"goals": _goals(trunk, side, wall)} if trunk in GOALS and side.startswith("pml") else {}),
                    }
                )
                print_row(figures)
    keep(figures, arguments.json)


if __name__ == "__main__":
    main()
