"""Training images per second by data path and precision, against images that are on the device already.

    python benchmarks/throughput.py [--workers 0 4 16] [--rounds 5] [--seconds 3] [--json FILE]
    python benchmarks/throughput.py --model small_cnn            a small trunk, for a machine without a GPU

BN-Inception at 227 pixels, batch 32, on a GPU where there is one. A step is what training does: the batch from our
loader to the device, crops there where that is asked for, forward, Contrastive, backward, RMSprop.

    synthetic      one batch that stays on the device: what the arithmetic allows
    resident       augmentation=device, all decoded images on the device
    device         augmentation=device, the boxes' pixels sent
    torch, pil     cropped on the host from the decoded cache, by that many processes

TF32 is PyTorch's own setting, and not one of ours: by default it is on for convolutions and off for products.
Photos are those of benchmarks/data.py. All variants of a precision take turns; a row is the median of its rounds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlrc_lightning._torchvision  # noqa: F401

import torch
from data import BATCH, CROP, RESIZE, make_photos, our_datamodule
from hydra import compose, initialize_config_dir
from lightning_utilities.core.apply_func import apply_to_collection
from measuring import keep, print_row
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor

from mlrc_lightning.files import config_folder
from mlrc_lightning.protocol.build import build_module
from mlrc_lightning.settings.compose import trial_settings
from mlrc_lightning.settings.resolvers import register_resolvers
from mlrc_lightning.settings.types import TrialSettings
from mlrc_lightning.training.module import EmbeddingModule

OVERRIDES = {
    "bn_inception": ["experiment=mlrc/cub200", "trunk.pretrained=false"],
    "small_cnn": ["dataset=glyphs", "trunk=small_cnn", f"transform.resize={RESIZE}", f"transform.crop={CROP}"],
}
PRECISIONS = {
    "fp32": ("32-true", False), "tf32": ("32-true", True), "bf16": ("bf16-mixed", True), "fp16": ("16-mixed", True)
}  # fmt: skip
"""By name: the trainer's precision, and whether PyTorch may use TF32."""


def settings_of(overrides: list[str]) -> TrialSettings:
    """Returns the settings of a trial on whatever device there is."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", ["trainer=auto", *overrides], return_hydra_config=True)
    return trial_settings(cfg, is_sweep_job=False)


def allow_tf32(is_allowed: bool) -> None:
    """Sets whether PyTorch may use TF32 for products and convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_allowed


class Training:
    """A module that takes steps on batches of one path.

    Args:
        settings: The trial whose module it is.
        precision: The trainer's precision, in the place of the settings'.
        device: The training device.
        datamodule: Its training batches do not end; None for one random batch that is on the device.
        batch_size: Images of a batch.
    """

    def __init__(
        self, settings: TrialSettings, precision: str, device: torch.device, datamodule: Any, batch_size: int = BATCH
    ) -> None:
        self.module: EmbeddingModule = build_module(settings, 0, 100).to(device).train()
        self.optimizer = self.module.configure_optimizers()
        self.device, self.datamodule, self.batch_size = device, datamodule, batch_size
        plugin = MixedPrecision(precision, device.type) if precision.endswith("mixed") else None  # type: ignore[arg-type]
        self.context: Any = nullcontext if plugin is None else plugin.forward_context
        self.scaler = None if plugin is None else plugin.scaler
        loader = None if datamodule is None else datamodule.train_dataloader()
        # what the loader's processes have ready by the time that a measurement begins is none of their rate
        self._warm_up_steps = 2 if loader is None else 2 + loader.num_workers * (loader.prefetch_factor or 0)
        self.batches = _endless(loader, device, batch_size, settings.transform.crop)
        self._images_per_class = settings.loss.samples_per_class

    def images_per_second(self, seconds: float) -> float:
        """Trains for at least so long, after a few steps that are not timed."""
        for _ in range(self._warm_up_steps):
            self.step()
        self.wait()
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            self.step()
            steps += 1
        self.wait()
        return steps * self.batch_size / (time.perf_counter() - began)

    def step(self) -> Tensor:
        """Takes a step and returns its loss, (), without waiting for the device."""
        batch = next(self.batches)
        if self.datamodule is not None:
            batch = self.datamodule.on_after_batch_transfer(batch)
        with self.context():
            loss = self.module.batch_loss((batch[0], batch[1] // self._images_per_class))
        self.optimizer.zero_grad()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.module.update(self.optimizer, self.scaler)
        return loss.detach()

    def wait(self) -> None:
        """Returns once the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _endless(loader: Any, device: torch.device, batch_size: int, crop: int) -> Iterator[Any]:
    if loader is None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (batch_size, 3, crop, crop), dtype=torch.uint8, generator=generator).to(device)
        labels = torch.arange(batch_size, device=device)
        while True:
            yield images, labels
    for batch in loader:
        yield apply_to_collection(batch, Tensor, lambda values: values.to(device, non_blocking=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(OVERRIDES), default="bn_inception")
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 4, 16], help="processes that crop on the host")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--json", type=Path, help="also write all figures here")
    arguments = parser.parse_args()
    register_resolvers()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    settings = settings_of([*OVERRIDES[arguments.model], "loss=contrastive"])
    paths = {"synthetic": None, "resident": ("device", True, 0)}
    for workers in arguments.workers:
        paths |= {f"{crops}, {workers} workers": (crops, False, workers) for crops in ("device", "torch", "pil")}
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_photos(folder / "photos", arguments.images)
        for precision in arguments.precisions:
            of_trainer, has_tf32 = PRECISIONS[precision]
            allow_tf32(has_tf32)
            trainings = {
                path: Training(settings, of_trainer, device, how and our_datamodule(folder, *how))
                for path, how in paths.items()
            }
            rates: dict[str, list[float]] = {path: [] for path in trainings}
            for number in range(arguments.rounds):
                for path in list(trainings)[:: -1 if number % 2 else 1]:
                    rates[path].append(trainings[path].images_per_second(arguments.seconds))
            median = {path: statistics.median(values) for path, values in rates.items()}
            for path in trainings:
                fraction = median[path] / median["synthetic"]
                figures.append(
                    {
                        "device": name,
                        "precision": precision,
                        "path": path,
                        "images per second": round(median[path], 1),
                        "of synthetic": round(fraction, 3),
                        **({"goals": {"≥ 0.9 of synthetic": fraction >= 0.9}} if path == "resident" else {}),
                    }
                )
                print_row(figures)
    keep(figures, arguments.json)


if __name__ == "__main__":
    main()
