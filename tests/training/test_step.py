"""An epoch in one of Lightning's batches: nothing waits for the device, and only the forward pass is in 16 bits."""

from functools import partial
from types import MethodType

import pytest
import torch
from pytorch_metric_learning import losses
from step import Operations
from torch import nn
from torch.utils.data import DataLoader

from mlrc_lightning.protocol.build import TrialData, build_datamodule, build_module, build_trainer
from mlrc_lightning.training.module import EmbeddingModule
from mlrc_lightning.training.objective import Objective
from tests.training.test_module import TrunkWithBatchNorm

QUICK = ["fold=0", "schedule.iterations_per_epoch=3", "trunk.model.width=8"]
FREE = ["arcface", "cosface", "normalized_softmax", "proxy_nca", "soft_triple"]


def operations_of_an_epoch(settings, tmp_path, *overrides, loss=None):
    """What the training step of a whole epoch dispatches: data, losses, gradients, clipping, optimizer, schedules."""
    s = settings(*QUICK, *overrides)
    data = TrialData(s)
    module = build_module(s, 0, len(data.splits[0].classes("train")))
    if loss is not None:
        module.objective = Objective(loss)
    train, operations = module.training_step, Operations()

    def counted(self, dataloader_iter):
        with operations:
            train(dataloader_iter)

    module.training_step = MethodType(counted, module)
    trainer = build_trainer(s, tmp_path, max_epochs=1, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(module, build_datamodule(s, data, data.splits[0]))
    assert operations.all > 300
    return operations


@pytest.mark.parametrize("loss", FREE)
@pytest.mark.slow
def test_a_step_reads_no_number_of_these_losses_and_counts_no_entries(settings, tmp_path, loss):
    found = operations_of_an_epoch(settings, tmp_path, f"loss={loss}", "gradient_clip.model=1", "scheduler=warmup")
    assert (found.reads, found.searches) == (0, 0)


@pytest.mark.parametrize("loss", FREE[2:])
@pytest.mark.slow
def test_a_step_of_these_losses_never_waits_for_the_device(settings, tmp_path, loss):
    found = operations_of_an_epoch(settings, tmp_path, f"loss={loss}")
    assert (found.reads, found.searches, found.masks) == (0, 0, 0)


@pytest.mark.slow
def test_a_wait_would_be_counted(settings, tmp_path):
    class Waiting(nn.Module):
        def forward(self, embeddings, labels):
            positive = embeddings[embeddings > 0]
            return positive.mean() if bool(positive.sum() > 0) else embeddings.sum() + labels.nonzero().sum()

    found = operations_of_an_epoch(settings, tmp_path, "loss=triplet", loss=Waiting())
    assert (found.reads, found.masks) == (3, 6), "three steps; a mask costs the backward pass another wait"
    with Operations() as operations:
        torch.arange(3).nonzero()
        torch.arange(3).unique()
    assert operations.searches == 2


def test_gradients_of_a_mixed_training_are_computed_outside_autocast(settings, tmp_path):
    def build():
        torch.manual_seed(0)
        loss = losses.ArcFaceLoss(num_classes=9, embedding_size=16)
        descent = partial(torch.optim.SGD, lr=1.0)
        return EmbeddingModule(TrunkWithBatchNorm(), nn.Linear(8, 16), Objective(loss), descent)

    generator = torch.Generator().manual_seed(1)
    batch = (torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8, generator=generator), torch.arange(9))
    expected, trained = build().train(), build()
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        loss = expected.batch_loss(batch)
    loss.backward()
    expected.update(expected.configure_optimizers())
    s = settings("trainer.precision=bf16-mixed")
    trainer = build_trainer(s, tmp_path, max_epochs=1, enable_checkpointing=False, limit_val_batches=0)
    loader = DataLoader([batch], batch_size=None)
    trainer.fit(trained, loader, loader)
    for (name, mine), (_, other) in zip(trained.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(mine, other), name
    inside = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        inside.batch_loss(batch).backward()
    weight = expected.objective.loss.W
    assert not torch.equal(inside.objective.loss.W.grad, weight.grad), "where it is computed would make no difference"
