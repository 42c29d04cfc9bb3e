"""How long a whole search takes with a frozen trunk, at the size of CUB200.

    python benchmarks/frozen_search.py [--losses arcface contrastive] [--trials 50] [--cores 2] [--json FILE]

5,864 images of 100 classes to train and validate on, each with the 1,280 features of EfficientNet-Lite0 for a centre
crop and 8 views; trials of 4 folds, at most 2,000 iterations a model, validation and patience as the protocol has them
for CUB200; a fold a core at once. Images are generated, 32 px, and the trunk is untrained: neither changes what a
search costs once the features are there. `search` is the wall time of the command, start-up and suggestions included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import ROOT, keep, print_row
from PIL import Image

TRUNK = "tf_efficientnet_lite0"
IMAGES, CLASSES = 5_864, 100
"""Of each half of CUB200."""
ITERATIONS_PER_EPOCH, MAX_ITERATIONS = 100, 2_000
GOAL_MINUTES = 8.5
"""Of a search of 50 trials, on two cores that do nothing else."""


def make_images(folder: Path) -> None:
    """Writes a folder of images for each class, and their table. Classes differ in four by four coloured fields."""
    random = np.random.default_rng(0)
    rows = ["path,label"]
    for label in range(2 * CLASSES):
        fields = random.integers(0, 256, (4, 4, 3))
        for number in range(len(range(label % CLASSES, IMAGES, CLASSES))):
            noisy = np.clip(fields + random.normal(0, 40, (4, 4, 3)), 0, 255).astype(np.uint8)
            path = folder / f"{label:03d}_{number:03d}.png"
            Image.fromarray(noisy).resize((36, 32), Image.Resampling.BICUBIC).save(path)
            rows.append(f"{path.name},{label}")
    (folder / "birds.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def make_weights(folder: Path) -> None:
    """Writes what the trunk begins with where it has learnt nothing."""
    import mlrc_lightning._torchvision  # noqa: F401

    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model(TRUNK, pretrained=False).state_dict(), folder / "weights.safetensors")


def run(folder: Path, cores: int, *command: str) -> float:
    """Runs a command on the images. Returns the seconds that it took."""
    common = [
        "dataset=image_csv", "dataset.name=birds", f"data_root={folder}", f"output_root={folder / 'outputs'}",
        "trunk=timm", f"trunk.name={TRUNK}", f"trunk.pretrained={folder / 'weights.safetensors'}", "trunk.frozen=true",
        "trunk.learning_rate=1e-4", "transform.resize=32", "transform.crop=32",
        f"schedule.iterations_per_epoch={ITERATIONS_PER_EPOCH}",
        f"schedule.max_epochs={MAX_ITERATIONS // ITERATIONS_PER_EPOCH}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores)}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command, *common],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(
            f"{' '.join(command)}: expected to end well, found exit code {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return time.monotonic() - began


def models(folder: Path, loss: str) -> list[dict[str, Any]]:
    """Returns the records of all models of a search."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.rglob("record.json")]
    return [fold for record in records if record["settings"]["loss"]["name"] == loss for fold in record["folds"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", default=["arcface", "contrastive"])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write all figures here")
    arguments = parser.parse_args()
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder)
        make_weights(folder)
        features = run(folder, arguments.cores, "-m", "mlrc_lightning", "prepare")
        for loss in arguments.losses:
            seconds = run(
                folder, arguments.cores, "train.py", "-m", f"loss={loss}", "stage=search",
                f"max_trials={arguments.trials}",
                f"trainer.parallel_folds={arguments.cores}",
            )  # fmt: skip
            trained = models(folder / "outputs", loss)
            iterations = sum(fold["epochs"][-1]["epoch"] for fold in trained) * ITERATIONS_PER_EPOCH
            figures.append(
                {
                    "loss": loss,
                    "trials": arguments.trials,
                    "cores": arguments.cores,
                    "models": len(trained),
                    "iterations": iterations,
                    "search, min": round(seconds / 60, 2),
                    "milliseconds an iteration and core, all included": round(
                        1000 * seconds * arguments.cores / iterations, 2
                    ),
                    "features before it, min": round(features / 60, 2),
                    **(
                        {"goals": {f"≤ {GOAL_MINUTES} min": seconds <= 60 * GOAL_MINUTES}}
                        if (arguments.trials, arguments.cores) == (50, 2)
                        else {}
                    ),
                }
            )
            print_row(figures)
    keep(figures, arguments.json)


if __name__ == "__main__":
    main()
