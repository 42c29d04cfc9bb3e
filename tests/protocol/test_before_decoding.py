"""What needs no images is built before any is decoded."""

import numpy as np
import pytest
import torch

from mlrc_lightning.data.datasets.glyphs import Glyphs
from mlrc_lightning.errors import ConfigError, MlrcError
from mlrc_lightning.protocol.build import TrialData


@pytest.fixture
def decoded(monkeypatch):
    """Counts images that are read."""
    read, calls = Glyphs.read, []
    monkeypatch.setattr(Glyphs, "read", lambda images, index: (calls.append(index), read(images, index))[1])
    return calls


@pytest.mark.parametrize(
    "wrong",
    [
        ["loss=arcface", "loss.function.margin=abc"],
        ["trunk=timm", "trunk.name=resnet51"],
        ["trunk=timm", "trunk.name=resnet18", "trunk.pretrained=none.safetensors"],
        ["+optimizer.rate=1"],
        ["loss=contrastive", "loss.function.neg_margin=abc"],
        ["loss=multi_similarity_miner", "loss.miner.epsilon={}"],
        ["sampler.length_before_new_list=many"],
        ["scheduler=step", "scheduler.model.step_size=often"],
        ["trainer.accelerator=tpu"],
        ["logger={_target_: mlrc_lightning.data.Glyphs}"],
    ],
    ids=lambda words: words[-1],
)
def test_what_cannot_be_built_is_refused_before_images_are_decoded(settings, decoded, wrong):
    with pytest.raises(MlrcError):
        TrialData(settings(*wrong))
    assert not decoded


@pytest.mark.parametrize("loss", ["contrastive", "triplet", "ntxent", "margin", "fastap", "multi_similarity_miner"])
@pytest.mark.parametrize("sizes", [(8, 8), (2, 1), (2, 2)], ids=str)
def test_a_batch_without_what_the_loss_compares_is_refused(settings, decoded, loss, sizes):
    batch_size, of_class = sizes
    asked = settings(f"loss={loss}", f"batch_size={batch_size}", f"loss.samples_per_class={of_class}")
    with pytest.raises(ConfigError, match=f"loss={loss}: expected batches with images of one class and of others"):
        TrialData(asked)
    assert not decoded


@pytest.mark.parametrize(("loss", "of_class"), [("arcface", 1), ("soft_triple", 8), ("triplet", 4), ("margin", 2)])
def test_batches_that_suffice_are_not_refused(settings, loss, of_class):
    TrialData(settings(f"loss={loss}", "batch_size=8", f"loss.samples_per_class={of_class}"))


def test_building_beforehand_shifts_no_stream_of_random_numbers(settings, decoded):
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    TrialData(settings())
    assert decoded
    assert (torch.rand(1), np.random.rand()) == expected


def test_a_frozen_trunk_is_built_beforehand_too(settings, decoded):
    with pytest.raises(MlrcError, match="resnet51"):
        TrialData(
            settings(
                "trunk=timm", "trunk.name=resnet51", "trunk.pretrained=true", "trunk.frozen=true",
                "trunk.learning_rate=1e-3",
            )
        )  # fmt: skip
    assert not decoded


def test_preparing_needs_no_trunk(settings, decoded):
    TrialData(settings("trunk=timm", "trunk.name=resnet51"), needs_cache=True)
    with pytest.raises(ConfigError, match="resnet51"):
        TrialData(settings("trunk=timm", "trunk.name=resnet51", "seed=1", "dataset.images.seed=5"))
