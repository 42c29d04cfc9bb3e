"""The training loop against a bare loop of PyTorch and against its peers, and what a step waits for the device.

    python benchmarks/step.py [--rounds 7] [--json FILE]

Loops: a toy step (SmallCNN of width 8 at 24 px, batch 32, ArcFace over 100 classes, one thread), the same batches
from memory and the same arithmetic in all rows: they must come to the same weights. Every row trains `--epochs` epochs
of 100 iterations a round, in turns, the first epoch aside. Ours has logging, progress and checkpoints on, as a trial
has them; what comes once a validation (accuracies, the best weights, patience) is none of a step's. Ratios are a row's
median time of a round over the bare loop's; `cpu` is the process's own time, which a busy machine disturbs less.

Waits: what a step of each loss (at its optimum for CUB200, batch 32) dispatches that makes a GPU's host wait: reading a
number (`.item()`, `if tensor`), `nonzero` and its kind, and indexing by a mask. And how many operations a step of
BN-Inception dispatches, by parameter (foreach=False) and by group (foreach=True, PyTorch's choice on a GPU).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlrc_lightning._torchvision  # noqa: F401

import pytorch_lightning as pl
import torch
import yaml
from hydra import compose, initialize_config_dir
from lightning_fabric import Fabric
from measuring import keep
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import CSVLogger
from pytorch_metric_learning import losses
from pytorch_metric_learning.trainers import MetricLossOnly
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from mlrc_lightning.files import config_folder
from mlrc_lightning.models.bn_inception import BNInception
from mlrc_lightning.models.small_cnn import SmallCNN
from mlrc_lightning.parallel.signals import StopSignals
from mlrc_lightning.protocol.build import build, build_trainer
from mlrc_lightning.settings.compose import trial_settings
from mlrc_lightning.settings.resolvers import register_resolvers
from mlrc_lightning.training.checkpoint import FoldCheckpoint
from mlrc_lightning.training.module import EmbeddingModule
from mlrc_lightning.training.objective import Objective
from mlrc_lightning.training.progress import EpochLog, FoldProgress
from mlrc_lightning.training.selection import Selection

GOAL = 1.25
"""What our loop costs at most, in times of the bare one."""
ITERATIONS, BATCH, CLASSES, EMBEDDING_SIZE, PIXELS, WIDTH = 100, 32, 100, 128, 24, 8
CHECKPOINT_EVERY = 200
"""Iterations: as often as the protocol validates and saves where it does so most often."""
OPTIMIZER = partial(torch.optim.RMSprop, lr=1e-5, momentum=0.9, weight_decay=1e-4)


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches that are in memory already."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (ITERATIONS, BATCH, 3, PIXELS, PIXELS)
        self._images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self._labels = torch.randint(0, CLASSES, (ITERATIONS, BATCH), generator=generator)

    def __len__(self) -> int:
        return ITERATIONS

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self._images[number], self._labels[number]


BATCHES = Batches()


class Clock(pl.Callback):
    """Wall and processor time at the start of every epoch and at the end of the last."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def __call__(self, *_: Any) -> None:
        self.times.append((time.perf_counter(), time.process_time()))

    def on_train_epoch_start(self, *_: Any) -> None:
        self()

    def on_train_end(self, *_: Any) -> None:
        self()


def loader() -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(BATCHES, batch_size=None)


def parts() -> tuple[SmallCNN, nn.Linear, nn.Module]:
    torch.manual_seed(0)
    trunk = SmallCNN(WIDTH)
    return trunk, nn.Linear(trunk.num_features, EMBEDDING_SIZE), losses.ArcFaceLoss(CLASSES, EMBEDDING_SIZE)


class Embeddings(nn.Module):
    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, features: Tensor) -> Tensor:
        return normalize(self.embedder(features), dim=1)


def bare(epochs: int, clock: Clock) -> nn.Module:
    trunk, embedder, loss_function = parts()
    optimizers = [OPTIMIZER(part.parameters()) for part in (trunk, embedder, loss_function)]
    for _ in range(epochs):
        clock()
        for images, labels in loader():
            loss = loss_function(normalize(embedder(trunk(images)), dim=1), labels)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    clock()
    return embedder


def fabric(epochs: int, clock: Clock) -> nn.Module:
    trunk, embedder, loss_function = parts()
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(
        nn.Sequential(trunk, Embeddings(embedder)),
        OPTIMIZER([*trunk.parameters(), *embedder.parameters(), *loss_function.parameters()]),
    )
    batches = fabric.setup_dataloaders(loader())
    for _ in range(epochs):
        clock()
        for images, labels in batches:
            loss = loss_function(model(images), labels)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
    clock()
    return embedder


class Plain(pl.LightningModule):
    """As a tutorial has it, with or without `self.log` in the step."""

    def __init__(self, logs: bool) -> None:
        super().__init__()
        self.trunk, self.embedder, self.loss_function = parts()
        self._logs = logs

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss: Tensor = self.loss_function(normalize(self.embedder(self.trunk(images)), dim=1), labels)
        if self._logs:
            self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        if not self._logs:
            self.log("train_loss_epoch", 0.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZER(self.parameters())


def lightning(epochs: int, clock: Clock, logs: bool = True) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        module = Plain(logs)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=CSVLogger(folder),
            callbacks=[clock, EarlyStopping("train_loss_epoch", patience=10**6)],
            enable_model_summary=False,
        )
        trainer.fit(module, loader())
    return module.embedder


def pml(epochs: int, clock: Clock) -> nn.Module:
    trunk, embedder, loss_function = parts()
    modules = {"trunk": trunk, "embedder": Embeddings(embedder), "metric_loss": loss_function}
    trainer = MetricLossOnly(
        models={name: modules[name] for name in ("trunk", "embedder")},
        optimizers={f"{name}_optimizer": OPTIMIZER(module.parameters()) for name, module in modules.items()},
        batch_size=1,
        collate_fn=lambda batches: batches[0],
        loss_funcs={"metric_loss": loss_function},
        dataset=BATCHES,
        sampler=range(ITERATIONS),
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        iterations_per_epoch=ITERATIONS,
        end_of_epoch_hook=clock,
    )
    clock()
    trainer.train(num_epochs=epochs)
    return embedder


def ours(epochs: int, clock: Clock) -> nn.Module:
    trunk, embedder, loss_function = parts()
    module = EmbeddingModule(trunk, embedder, Objective(loss_function), OPTIMIZER)
    with tempfile.TemporaryDirectory() as name, StopSignals() as stop:
        folder = Path(name)
        checkpoint = FoldCheckpoint(
            folder, epochs + 1, Selection(1), FoldProgress(0, [0], epochs), EpochLog(CSVLogger(folder)),
            iterations_per_epoch=ITERATIONS, save_every=CHECKPOINT_EVERY, stop=stop,
        )  # fmt: skip
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            settings = trial_settings(compose("train", ["trainer=cpu"]), is_sweep_job=False)
        trainer = build_trainer(settings, folder, max_epochs=epochs, callbacks=[clock, checkpoint], limit_val_batches=0)
        trainer.fit(module, loader())
    return module.embedder


SIDES: dict[str, Callable[[int, Clock], nn.Module]] = {
    "bare loop, three optimizers": bare,
    "ours": ours,
    "Fabric": fabric,
    "PML MetricLossOnly": pml,
    "Lightning without self.log in the step": partial(lightning, logs=False),
    "Lightning with self.log in the step": lightning,
}


def loops(rounds: int, epochs: int) -> list[dict[str, Any]]:
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    weights = {}
    for number in range(rounds + 1):
        for side in list(SIDES)[:: -1 if number % 2 else 1]:
            clock = Clock()
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                weights[side] = SIDES[side](epochs, clock).weight.detach().clone()  # type: ignore[operator]
            (wall_began, cpu_began), *_, (wall_ended, cpu_ended) = clock.times[1:]  # the first epoch warms up
            spans = ((wall_ended - wall_began) / (epochs - 1), (cpu_ended - cpu_began) / (epochs - 1))
            times[side] += [spans] if number else []  # and so does the first round
    expected = weights["bare loop, three optimizers"]
    for side, found in weights.items():
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=f"{side}: other weights")
    wall, cpu = ({side: statistics.median(t[i] for t in times[side]) for side in SIDES} for i in (0, 1))
    base = "bare loop, three optimizers"
    return [
        {
            "side": side,
            "milliseconds a step": round(1000 * wall[side] / ITERATIONS, 3),
            "times the bare loop": round(wall[side] / wall[base], 3),
            "times the bare loop, cpu": round(cpu[side] / cpu[base], 3),
            **({"goals": {f"≤ {GOAL} times the bare loop": wall[side] <= GOAL * wall[base]}} if side == "ours" else {}),
        }
        for side in SIDES
    ]


class Operations(TorchDispatchMode):
    """Counts what is dispatched, and what of it makes the host wait for a GPU."""

    READS = ("_local_scalar_dense", "equal", "is_nonzero")
    SEARCHES = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.all = self.reads = self.searches = self.masks = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.all += 1
        self.reads += name in self.READS
        self.searches += name in self.SEARCHES or (name == "repeat_interleave" and function._overloadname == "Tensor")
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            self.masks += any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        return function(*args, **(kwargs or {}))


def waits() -> list[dict[str, Any]]:
    rows = []
    for file in sorted((config_folder() / "loss").glob("*.yaml")):
        if yaml.safe_load(file.read_text(encoding="utf-8"))["paper_name"] is None:
            continue
        overrides = ["experiment=mlrc/cub200", f"loss={file.stem}", "hyperparameters=paper", "trunk=small_cnn"]
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            cfg = compose("train", overrides, return_hydra_config=True)
        settings: Any = OmegaConf.to_container(cfg.loss, resolve=True)
        facts = {"num_train_classes": CLASSES, "embedding_size": EMBEDDING_SIZE}
        miner = settings["miner"]
        objective = Objective(
            build(settings["function"], "loss.function", **facts),
            None if miner is None else build(miner, "loss.miner", **facts),
        )
        torch.manual_seed(0)
        trunk = SmallCNN(WIDTH)
        module = EmbeddingModule(trunk, nn.Linear(trunk.num_features, EMBEDDING_SIZE), objective, OPTIMIZER)
        m = settings["samples_per_class"]
        batch = (BATCHES[0][0], torch.arange(BATCH // m).repeat_interleave(m))
        found = count(module, batch)
        rows.append(
            {
                "loss": file.stem, "reads": found.reads, "searches": found.searches, "masks": found.masks,
                "operations": found.all,
            }
        )  # fmt: skip
    return rows


def count(module: EmbeddingModule, batch: tuple[Tensor, Tensor]) -> Operations:
    """Counts one step of a module: its second, because the first makes the optimizer's state."""
    optimizer = module.configure_optimizers()
    for _ in range(2):
        with Operations() as operations:
            loss = module.batch_loss(batch)
            optimizer.zero_grad()
            loss.backward()
            module.update(optimizer)
    return operations


def dispatched() -> list[dict[str, Any]]:
    rows = []
    for foreach in (False, True):
        torch.manual_seed(0)
        trunk = BNInception(pretrained=False)
        objective = Objective(losses.ArcFaceLoss(CLASSES, EMBEDDING_SIZE))
        embedder = nn.Linear(trunk.num_features, EMBEDDING_SIZE)
        module = EmbeddingModule(trunk, embedder, objective, partial(OPTIMIZER, foreach=foreach)).train()
        images = torch.zeros(4, 3, 96, 96, dtype=torch.uint8)
        rows.append({"foreach": foreach, "operations": count(module, (images, torch.arange(4))).all})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=4, help="of 100 iterations, a round")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    register_resolvers()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    figures: list[dict[str, Any]] = []
    for make in (partial(loops, arguments.rounds, arguments.epochs), waits, dispatched):
        rows = make()
        figures += rows
        print("| " + " | ".join(rows[0]) + " |\n|:--" + "|--:" * (len(rows[0]) - 1) + "|")
        for row in rows:
            print("| " + " | ".join(str(value) for key, value in row.items() if key != "goals") + " |", flush=True)
        print()
    keep(figures, arguments.json)


if __name__ == "__main__":
    main()
