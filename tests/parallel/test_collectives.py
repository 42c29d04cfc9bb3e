"""A batch on 1, 2 and 4 gloo ranks against one process: loss, gradients, weights after ten steps, for every loss."""

import functools
import json
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mlrc_lightning.models.trunk import Normalization, Trunk
from mlrc_lightning.parallel.collectives import (
    gather_in_order,
    gather_rows,
    join,
    largest,
    of_rank_zero,
    own_blocks,
    own_part,
    part_of,
    part_sizes,
    rank,
)
from mlrc_lightning.settings.resolvers import register_resolvers
from mlrc_lightning.training.module import EmbeddingModule
from tests.training.losses.cases import LOSSES, NUM_CLASSES, SETTINGS, case

EMBEDDING_SIZE, NUM_STEPS, BATCH = 8, 10, 30  # 30 rows on 4 ranks: 8, 8, 7, 7
WORLD_SIZES = (1, 2, 4)
EVERY_TIME = 2  # the number of ranks on which every loss is compared at every setting; on others at one setting
CLASSIFICATION = {"proxy_nca", "normalized_softmax", "cosface", "arcface", "soft_triple"}  # §1.4


class TinyTrunk(Trunk):
    """Images of 2 x 2 pixels to 16 features."""

    def __init__(self):
        super().__init__(Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
        self.num_features = 16
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh())

    def features(self, images):
        return self.layers(images)


class TrainingStep(nn.Module):
    """The module's own training step, which is in float32, on this rank's images."""

    def __init__(self, loss, setting):
        super().__init__()
        torch.manual_seed(0)
        trunk, embedder = TinyTrunk(), nn.Linear(16, EMBEDDING_SIZE)
        self.module = EmbeddingModule(trunk, embedder, case(loss, setting).objective(EMBEDDING_SIZE, torch.float32))

    def forward(self, inputs, labels):
        images = (128 + 40 * inputs).clamp(0, 255).byte().reshape(-1, 3, 2, 2)
        return self.module.batch_loss((images[own_part(len(inputs))], labels))


class Step(nn.Module):
    """Trunk, embedder, gathering and objective, as the module's training step has them, in any type."""

    def __init__(self, loss, setting, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(12, 16), nn.Tanh())
        self.embedder = nn.Linear(16, EMBEDDING_SIZE)
        self.objective = case(loss, setting).objective(EMBEDDING_SIZE, dtype)
        self.to(dtype)

    def forward(self, inputs, labels):
        part = nn.functional.normalize(self.embedder(self.trunk(inputs[own_part(len(inputs))])))
        embeddings = gather_rows(part, len(inputs))
        miner = self.objective.miner
        return self.objective.loss(embeddings, labels, None if miner is None else miner(embeddings, labels))


def batch(loss, number, dtype):
    generator = torch.Generator().manual_seed(number)
    m = 1 if loss in CLASSIFICATION else 4
    labels = torch.randperm(NUM_CLASSES, generator=generator)[: -(-BATCH // m)].repeat_interleave(m)[:BATCH]
    means = torch.randn(NUM_CLASSES, 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    noise = torch.randn(BATCH, 12, generator=generator, dtype=torch.float64)
    return (means[labels] + noise).to(dtype), labels


def measured(loss, setting):
    """(loss and gradients in float32, weights after some steps in float64), as plain lists by name."""
    step = TrainingStep(loss, setting)
    wrapped = DistributedDataParallel(step) if dist.is_initialized() else step
    value = wrapped(*batch(loss, 0, torch.float32))
    value.backward()
    gradients = {name: p.grad.flatten().tolist() for name, p in step.named_parameters() if p.grad is not None}
    gradients["loss"] = [value.item()]
    step = Step(loss, setting, torch.float64)
    wrapped = DistributedDataParallel(step) if dist.is_initialized() else step
    model = [*step.trunk.parameters(), *step.embedder.parameters()]
    # at 1e-3, 250 bins of FastAP multiply any rounding by ten a step, in one process as well
    groups = [{"params": model}, {"params": list(step.objective.parameters()), "lr": 1e-2}]
    optimizer = torch.optim.RMSprop([g for g in groups if g["params"]], lr=1e-4, momentum=0.9, weight_decay=1e-4)
    for number in range(NUM_STEPS):
        optimizer.zero_grad()
        wrapped(*batch(loss, number, torch.float64)).backward()
        optimizer.step()
    return gradients, {name: p.flatten().tolist() for name, p in step.named_parameters()}


def check_collectives():
    """Seven blocks of two or, the last, one row on any number of ranks, each of a value of its own."""
    everything = torch.arange(13 * 3).reshape(13, 3)
    own = [torch.arange(13)[2 * number :][:2] for number in own_blocks(7)]
    positions = torch.cat(own)
    assert torch.equal(gather_in_order(everything[positions], positions), everything)
    one = torch.arange(4)  # one block alone: whoever has none takes it as well
    assert own_blocks(1) == [0]
    assert torch.equal(gather_in_order(one, one), one)
    assert of_rank_zero({"rank": rank()}) == {"rank": 0}
    assert largest(rank()) == dist.get_world_size() - 1


def main(number, world_size, port, folder, cells):
    """One rank: measures losses at settings, and leaves what it found."""
    register_resolvers()
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=int(number), world_size=int(world_size))
    check_collectives()
    found = {f"{loss} {setting}": measured(loss, setting) for loss, setting in json.loads(cells)}
    (Path(folder) / f"{rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@functools.cache
def alone(loss, setting):
    return measured(loss, setting)


def cells():
    """Every loss at every setting on every number of ranks; at one setting each time, at the others nightly."""
    found = []
    for world_size in WORLD_SIZES:
        for number, loss in enumerate(LOSSES):
            for place, setting in enumerate(SETTINGS):
                is_nightly = world_size != EVERY_TIME and number % len(SETTINGS) != place
                found.append(pytest.param(world_size, loss, setting, marks=pytest.mark.nightly if is_nightly else ()))
    return found


@pytest.fixture(scope="module")
def ranks(request, tmp_path_factory):
    """Returns what every rank of a world found, for the cells that are tested: `ranks(world_size)`."""
    asked = [i.callspec.params for i in request.session.items if i.path == request.path and hasattr(i, "callspec")]

    # no parameter of the fixture: pytest makes a fixture anew for every set of several parameters
    @functools.cache
    def found_by(world_size):
        wanted = [(of["loss"], of["setting"]) for of in asked if of.get("world_size") == world_size]
        return _world(request, tmp_path_factory.mktemp(f"world_{world_size}"), world_size, wanted)

    return found_by


def _world(request, folder, world_size, wanted):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    began = time.perf_counter()
    command = [
        sys.executable,
        "-c",
        "import sys; from tests.parallel.test_collectives import main; main(*sys.argv[1:])",
    ]
    arguments = [str(world_size), port, str(folder), json.dumps(wanted)]
    running = [subprocess.Popen([*command, str(number), *arguments]) for number in range(world_size)]
    try:
        assert [process.wait(timeout=500) for process in running] == [0] * world_size
    finally:
        for process in running:
            process.kill()
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        sys.stdout.write(f"\n{world_size} ranks, {len(wanted)} cells: {time.perf_counter() - began:.0f} s\n")
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(world_size)]


def largest_error(found, expected):
    """The largest difference, relative to the largest entry of each tensor."""
    assert found.keys() == expected.keys()
    errors = []
    for name, values in expected.items():
        reference, other = torch.tensor(values, dtype=torch.float64), torch.tensor(found[name], dtype=torch.float64)
        scale = reference.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
        errors.append(float((reference - other).abs().max() / scale))
    return max(errors)


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "loss", "setting"), cells())
def test_ranks_compute_what_one_process_does(ranks, world_size, loss, setting):
    expected_gradients, expected_weights = alone(loss, setting)
    for found in ranks(world_size):
        gradients, weights = found[f"{loss} {setting}"]
        assert largest_error(gradients, expected_gradients) <= 1e-5
        assert largest_error(weights, expected_weights) <= 1e-10


def test_parts_are_consecutive_and_a_row_apart():
    assert part_sizes(30, 4) == [8, 8, 7, 7]
    assert part_sizes(3, 4) == [1, 1, 1, 0]
    assert part_sizes(32, 1) == [32]


def test_every_row_has_one_rank():
    for num_ranks in (1, 2, 3, 7):
        parts = [part_of(30, number, num_ranks) for number in range(num_ranks)]
        assert [row for part in parts for row in range(30)[part]] == list(range(30))


def test_a_process_alone_gathers_nothing():
    rows = torch.randn(5, 3, requires_grad=True)
    assert gather_rows(rows, 5) is rows
    assert own_part(5) == slice(0, 5)
    assert own_blocks(3) == [0, 1, 2]
    assert gather_in_order(rows, torch.tensor([4, 3, 2, 1, 0])) is rows
    assert (largest(7), of_rank_zero("mine")) == (7, "mine")


def test_a_group_of_one_rank_uses_its_collectives(monkeypatch):
    gathered, all_gather = [], dist.all_gather
    monkeypatch.setattr(dist, "all_gather", lambda parts, part: (gathered.append(len(part)), all_gather(parts, part)))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    join(dist.HashStore(), 0, 1, torch.device("cpu"), timedelta(seconds=60))
    try:
        rows = torch.randn(5, 3, requires_grad=True)
        whole = gather_rows(rows, 5)
        (whole * torch.arange(15.0).view(5, 3)).sum().backward()
        order = gather_in_order(rows, torch.tensor([4, 3, 2, 1, 0]))
        assert (largest(7), of_rank_zero("mine")) == (7, "mine")
    finally:
        dist.destroy_process_group()
    assert gathered == [5, 1, 5, 5], "the rows; their number, positions and values"
    assert torch.equal(whole, rows)
    assert torch.equal(rows.grad, torch.arange(15.0).view(5, 3))
    assert torch.equal(order, rows.flip(0))
