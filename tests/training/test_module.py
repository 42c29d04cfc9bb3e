"""The training step: normalisation, frozen BatchNorm, optimizer groups, precision, divergence."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn

from mlrc_lightning.errors import NonFiniteError
from mlrc_lightning.models.trunk import Normalization, Trunk
from mlrc_lightning.protocol.build import TrialData, build_datamodule, build_module, build_trainer
from mlrc_lightning.training.module import EmbeddingModule
from mlrc_lightning.training.objective import Objective


class TrunkWithBatchNorm(Trunk):
    def __init__(self):
        super().__init__(Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
        self.num_features = 8
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def features(self, images):
        return self.layers(images)


def module_with_batchnorm(is_frozen=True, loss_optimizer=None, loss=None):
    torch.manual_seed(0)
    trunk = TrunkWithBatchNorm()
    objective = Objective(loss if loss is not None else losses.ArcFaceLoss(num_classes=9, embedding_size=16))
    optimizer = partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9, weight_decay=1e-4)
    return EmbeddingModule(trunk, nn.Linear(8, 16), objective, optimizer, loss_optimizer, is_frozen)


def fit(settings, module, tmp_path, epochs=2, **arguments):
    s = settings("fold=0", "schedule.iterations_per_epoch=3")
    data = TrialData(s)
    trainer = build_trainer(s, tmp_path, max_epochs=epochs, enable_checkpointing=False, **arguments)
    trainer.fit(module, build_datamodule(s, data, data.splits[0]))
    return module


@pytest.mark.slow
def test_batchnorm_keeps_its_statistics_and_trains_its_affine_weights(settings, tmp_path):
    module = module_with_batchnorm()
    batchnorm = module.trunk.layers[1]
    before = {name: tensor.clone() for name, tensor in batchnorm.state_dict().items()}
    modes = []
    batchnorm.register_forward_hook(lambda layer, *_: modes.append((layer.training, torch.is_grad_enabled())))
    fit(settings, module, tmp_path)
    after = batchnorm.state_dict()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(after[name], before[name]), name
    for name in ("weight", "bias"):
        assert not torch.equal(after[name], before[name]), name
    assert (False, True) in modes, "no training step ran"
    assert not any(is_training for is_training, _ in modes)


def test_batchnorm_that_is_not_frozen_moves_its_statistics(settings, tmp_path):
    module = module_with_batchnorm(is_frozen=False)
    before = module.trunk.layers[1].running_mean.clone()
    fit(settings, module, tmp_path)
    assert not torch.equal(module.trunk.layers[1].running_mean, before)


def test_everything_but_batchnorm_is_in_training_mode_while_training():
    module = module_with_batchnorm()
    module.eval()
    module.on_train_epoch_start()
    assert module.training
    assert module.embedder.training
    assert not module.trunk.layers[1].training


def test_embeddings_have_length_one_and_type_float32():
    module = module_with_batchnorm().eval()
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = module(images)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))


def test_the_loss_s_parameters_have_their_own_values_and_share_the_rest():
    module = module_with_batchnorm(loss_optimizer={"lr": 0.5, "weight_decay": 0.0})
    of_model, of_loss = module.configure_optimizers().param_groups
    assert (of_model["lr"], of_model["momentum"], of_model["weight_decay"]) == (1e-3, 0.9, 1e-4)
    assert (of_loss["lr"], of_loss["momentum"], of_loss["weight_decay"]) == (0.5, 0.9, 0.0)
    assert of_model["alpha"] == of_loss["alpha"] == 0.99
    assert of_model["eps"] == 1e-8
    assert not of_model["centered"]
    everything = {id(parameter) for parameter in module.parameters()}
    assert {id(p) for group in (of_model, of_loss) for p in group["params"]} == everything


def test_one_optimizer_with_groups_steps_as_the_originals_three():
    images = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(9)
    ours, theirs = (module_with_batchnorm(loss_optimizer={"lr": 0.01}).train() for _ in range(2))
    optimizer = ours.configure_optimizers()
    rmsprop = partial(torch.optim.RMSprop, momentum=0.9, weight_decay=1e-4)
    three = [
        rmsprop(theirs.trunk.parameters(), lr=1e-3),
        rmsprop(theirs.embedder.parameters(), lr=1e-3),
        rmsprop(theirs.objective.parameters(), lr=0.01),
    ]
    for _ in range(4):
        ours.batch_loss((images, labels)).backward()
        theirs.batch_loss((images, labels)).backward()
        optimizer.step()
        optimizer.zero_grad()
        for one in three:
            one.step()
            one.zero_grad()
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(mine, other), name


@pytest.mark.parametrize("make", [
    lambda: losses.ArcFaceLoss(9, 16), lambda: losses.ProxyNCALoss(9, 16), lambda: losses.SoftTripleLoss(9, 16),
    lambda: losses.ContrastiveLoss(), lambda: losses.MarginLoss(learn_beta=True),
])  # fmt: skip
def test_the_loss_is_float32_under_autocast_and_its_parameters_stay_so(make):
    objective = Objective(make())
    embeddings = nn.functional.normalize(torch.randn(9, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(9) % 3
    expected = objective(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(embeddings, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert all(parameter.dtype == torch.float32 for parameter in objective.parameters())


def test_the_training_loss_is_the_mean_over_the_epochs_batches(settings, tmp_path):
    module = module_with_batchnorm()
    losses_seen = []
    loss = module.batch_loss
    module.batch_loss = lambda batch: (losses_seen.append(loss(batch)), losses_seen[-1])[1]
    fit(settings, module, tmp_path, epochs=1)
    assert len(losses_seen) == 3
    assert module.train_loss == pytest.approx(np.mean([loss.item() for loss in losses_seen]), rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_training_with_the_epoch(settings, tmp_path, value):
    class Exploding(nn.Module):
        calls = 0

        def forward(self, embeddings, labels):
            self.calls += 1
            return embeddings.sum() * 0 + (value if self.calls > 4 else 1.0)

    with pytest.raises(NonFiniteError, match="diverged in epoch 2"):
        fit(settings, module_with_batchnorm(loss=Exploding()), tmp_path, limit_val_batches=0)


@pytest.mark.slow
def test_validation_images_query_each_other_and_no_training_image(settings, tmp_path):
    s = settings("fold=1")
    data = TrialData(s)
    split = data.splits[1]
    module = build_module(s, 1, len(split.train))
    datamodule = build_datamodule(s, data, split)
    build_trainer(s, tmp_path, enable_checkpointing=False).validate(module, datamodule, verbose=False)
    assert module.val_metrics.num_queries == len(split.val)
    labels = torch.cat([labels for _, labels, _ in datamodule.val_dataloader()])
    assert set(labels.tolist()) == set(split.classes("val"))


@pytest.mark.slow
def test_training_labels_are_positions_within_the_fold(settings):
    s = settings("fold=2")
    data = TrialData(s)
    images, labels = next(iter(build_datamodule(s, data, data.splits[2]).train_dataloader()))
    assert images.dtype == torch.uint8
    assert images.shape == (32, 3, 32, 32)
    assert 0 <= int(labels.min()) <= int(labels.max()) < len(data.splits[2].train)


@pytest.mark.slow
def test_batches_are_the_same_with_and_without_worker_processes(settings):
    alone, workers = settings("fold=0"), settings("fold=0", "trainer.num_workers=2")
    data = TrialData(alone)
    one = list(build_datamodule(alone, data, data.splits[0]).train_dataloader())
    two = list(build_datamodule(workers, data, data.splits[0]).train_dataloader())
    assert len(one) == len(two) == 4
    for (images, labels), (other_images, other_labels) in zip(one, two, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
