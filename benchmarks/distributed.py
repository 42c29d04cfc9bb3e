"""Gradients of one batch on several ranks against one process, ours and by pytorch-metric-learning's wrapper.

    python benchmarks/distributed.py            the table, as Markdown: 14 losses x 2 and 4 gloo ranks on the CPU

Every loss is at the paper's optimum for CUB200, its trunk and embedder a linear layer each. An error is the largest
difference of a gradient from the single process's, as a fraction of the largest entry of that gradient.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mlrc_lightning.files import config_folder
from mlrc_lightning.parallel.collectives import gather_rows, join, own_part
from mlrc_lightning.protocol.build import build
from mlrc_lightning.settings.resolvers import register_resolvers
from mlrc_lightning.training.objective import Objective

NUM_CLASSES, EMBEDDING_SIZE, BATCH, INPUTS = 40, 8, 32, 12
GROUPS = ("trunk", "embedder", "loss parameters")
OURS, THEIRS = "ours", "wrapper"


def losses() -> list[str]:
    """The paper's, by the name of their file."""
    files = sorted((config_folder() / "loss").glob("*.yaml"))
    return [file.stem for file in files if yaml.safe_load(file.read_text(encoding="utf-8"))["paper_name"] is not None]


def settings_of(loss: str) -> Any:
    """The loss's settings at the paper's optimum for CUB200."""
    overrides = ["experiment=mlrc/cub200", f"loss={loss}", "hyperparameters=paper", "trunk=small_cnn"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return OmegaConf.to_container(compose("train", overrides, return_hydra_config=True).loss, resolve=True)


class Step(nn.Module):
    """The loss of one batch. `way`: alone or gathered by us, or by pytorch-metric-learning."""

    def __init__(self, settings: Any, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh())
        self.embedder = nn.Linear(16, EMBEDDING_SIZE)
        facts = {"num_train_classes": NUM_CLASSES, "embedding_size": EMBEDDING_SIZE}
        loss = build(settings["function"], "loss.function", **facts)
        miner = None if settings["miner"] is None else build(settings["miner"], "loss.miner", **facts)
        if way == THEIRS:
            loss = DistributedLossWrapper(loss)
            miner = None if miner is None else DistributedMinerWrapper(miner)
        self.objective = Objective(loss, miner)
        self._way = way

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        part = own_part(len(inputs))
        embeddings = nn.functional.normalize(self.embedder(self.trunk(inputs[part])))
        if self._way == THEIRS:
            return self.objective(embeddings, labels[part])
        return self.objective(gather_rows(embeddings, len(inputs)), labels)


def gradients(settings: Any, way: str) -> dict[str, list[float]]:
    """The gradients of one batch by group."""
    generator = torch.Generator().manual_seed(1)
    m = settings["samples_per_class"]
    labels = torch.randperm(NUM_CLASSES, generator=generator)[: BATCH // m].repeat_interleave(m)
    means = torch.randn(NUM_CLASSES, INPUTS, generator=generator)
    step = Step(settings, way)
    wrapped = DistributedDataParallel(step) if dist.is_initialized() else step
    wrapped(means[labels] + torch.randn(BATCH, INPUTS, generator=generator), labels).backward()
    parts = dict(zip(GROUPS, (step.trunk, step.embedder, step.objective), strict=True))
    return {
        name: torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None]).tolist()
        for name, part in parts.items()
        if any(p.grad is not None for p in part.parameters())
    }


def rank(number: int, num_ranks: int, port: int, file: Path) -> None:
    """Measures as one rank."""
    store = dist.TCPStore("127.0.0.1", port, num_ranks, is_master=number == 0)
    join(store, number, num_ranks, torch.device("cpu"), timedelta(minutes=5))
    found = {loss: {way: gradients(settings_of(loss), way) for way in (OURS, THEIRS)} for loss in losses()}
    file.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(num_ranks: int, folder: Path) -> list[Any]:
    """What each rank measured."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = [folder / f"{num_ranks}_{number}.json" for number in range(num_ranks)]
    command = [sys.executable, __file__, "--rank"]
    ranks = [
        subprocess.Popen([*command, str(number), str(num_ranks), str(port), str(file)])
        for number, file in enumerate(files)
    ]
    codes = [process.wait(timeout=600) for process in ranks]
    if any(codes):
        sys.exit(f"a rank of {num_ranks} failed: exit codes {codes}")
    return [json.loads(file.read_text()) for file in files]


def error(found: list[float], expected: list[float]) -> float:
    reference, other = torch.tensor(expected, dtype=torch.float64), torch.tensor(found, dtype=torch.float64)
    return float((reference - other).abs().max() / reference.abs().max().clamp(min=1e-300))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="sizes of the world, divisors of 32")
    parser.add_argument("--rank", nargs=4, metavar=("NUMBER", "RANKS", "PORT", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    register_resolvers()
    if arguments.rank:
        number, num_ranks, port, file = arguments.rank
        rank(int(number), int(num_ranks), int(port), Path(file))
        return
    began = time.perf_counter()
    print("| loss | ranks | " + " | ".join(f"{group}: {way}" for way in (OURS, THEIRS) for group in GROUPS) + " |")
    print("|:--|--:" + "|--:" * (2 * len(GROUPS)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        worlds = {num_ranks: on_ranks(num_ranks, Path(folder)) for num_ranks in arguments.ranks}
    for loss in losses():
        expected = gradients(settings_of(loss), OURS)
        for num_ranks, world in worlds.items():
            cells = [
                f"{max(error(of_rank[loss][way][group], expected[group]) for of_rank in world):.0e}"
                if group in expected
                else "–"
                for way in (OURS, THEIRS)
                for group in GROUPS
            ]
            print(f"| {loss} | {num_ranks} | " + " | ".join(cells) + " |")
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
