"""What channels_last, compile and 16 bits cost or save in a training step of BN-Inception at 227 pixels.

    python benchmarks/options.py                       on a GPU where there is one, else on the CPU
    python benchmarks/options.py --batch 8 --rounds 6  a few steps, for a CPU

The variants take turns, step by step, so that whatever else the machine does befalls all of them. A step is forward,
loss and backward, without data and optimizer. Prints a Markdown table: the median step, and the median of its ratios to
the plain step of the same round, with the smallest and the largest.
"""

import argparse
import statistics
import time
from contextlib import nullcontext
from typing import Any

import mlrc_lightning._torchvision  # noqa: F401

import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning.plugins.precision import MixedPrecision

from mlrc_lightning.files import config_folder
from mlrc_lightning.protocol.build import build_module
from mlrc_lightning.settings.compose import trial_settings
from mlrc_lightning.settings.resolvers import register_resolvers

PLAIN = "32-true"
OVERRIDES = ["experiment=mlrc/cub200", "loss=contrastive", "hyperparameters=paper", "trunk.pretrained=false"]
VARIANTS: dict[str, list[str]] = {
    PLAIN: [],
    "channels_last": ["trainer.channels_last=true"],
    "compile": ["trainer.compile=true"],
    "cudagraphs": ["trainer.compile=cudagraphs"],
    "channels_last, compile": ["trainer.channels_last=true", "trainer.compile=true"],
    "bf16-mixed": ["trainer.precision=bf16-mixed"],
    "bf16-mixed, channels_last": ["trainer.precision=bf16-mixed", "trainer.channels_last=true"],
    "16-mixed": ["trainer.precision=16-mixed"],
}


class Variant:
    """A module with its options, ready to take steps."""

    def __init__(self, overrides: list[str], device: torch.device) -> None:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            cfg = compose("train", [*OVERRIDES, *overrides], return_hydra_config=True)
        settings = trial_settings(cfg, is_sweep_job=False)
        self.module = build_module(settings, 0, 100).to(device).train()
        self.device = device
        precision = settings.trainer.precision
        scaler = torch.amp.GradScaler(device.type) if precision == "16-mixed" else None
        self.context: Any = (
            MixedPrecision(precision, device.type, scaler=scaler).forward_context  # type: ignore[arg-type]
            if precision.endswith("mixed")
            else nullcontext
        )
        self.scaler = scaler

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Takes a step. Returns its seconds."""
        began = time.perf_counter()
        with self.context():
            loss = self.module.objective(self.module(images), labels)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.module.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    arguments = parser.parse_args()
    register_resolvers()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (arguments.batch, 3, 227, 227), dtype=torch.uint8, generator=generator).to(device)
    labels = torch.arange(arguments.batch, device=device) // 4
    left_out = {PLAIN} if device.type == "cuda" else {PLAIN, "cudagraphs"}
    names = [PLAIN, *(name for name in arguments.variants if name not in left_out)]
    variants = {name: Variant(VARIANTS[name], device) for name in names}
    first = {name: variant.step(images, labels) for name, variant in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name, variant in variants.items():
            seconds[name].append(variant.step(images, labels))
    print(f"{where}; batch {arguments.batch}, {arguments.rounds} rounds, torch {torch.__version__}\n")
    print("| options | first step, s | step, s | of the plain step |")
    print("|:--|--:|--:|--:|")
    for name in names:
        ratios = [own / plain for own, plain in zip(seconds[name], seconds[PLAIN], strict=True)]
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {first[name]:.1f} | {statistics.median(seconds[name]):.2f} | {shown} |")


if __name__ == "__main__":
    main()
