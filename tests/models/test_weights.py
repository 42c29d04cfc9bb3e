"""Weight files that are another network's, or damaged, and those that are taken in part on purpose."""

import mlrc_lightning._torchvision  # noqa: F401

import pytest
import safetensors.torch
import timm
import torch

from mlrc_lightning.errors import WeightsError
from mlrc_lightning.models.bn_inception import BNInception
from mlrc_lightning.models.timm_trunk import TimmTrunk


@pytest.fixture
def file(tmp_path):
    def written(state, name="weights.safetensors"):
        path = tmp_path / name
        safetensors.torch.save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, path)
        return str(path)

    return written


@pytest.fixture
def state():
    torch.manual_seed(5)
    return timm.create_model("test_resnet", pretrained=False).state_dict()


def sibling():
    """All tensors of test_resnet, and a block more."""
    torch.manual_seed(5)
    own = timm.create_model("test_resnet", pretrained=False).state_dict()
    return own | {name.replace("layer4.0", "layer4.9"): own[name] for name in own if name.startswith("layer4.0")}


def changed(state, name, change):
    return state | {name: change(state[name])}


def first(state, words):
    return next(name for name in state if words in name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: sibling(), r"18 left over \(layer4.9."),
        (lambda s: {n: t for n, t in s.items() if "layer4" not in n}, r"missing \(layer4.0.conv1.weight"),
        (lambda s: {n: t for n, t in s.items() if n != first(s, "running_mean")}, r"1 missing \(.*running_mean\)"),
        (lambda s: {n: t for n, t in s.items() if n != first(s, "bn1.bias")}, r"1 missing \(.*bias\)"),
        (lambda s: changed(s, first(s, "running_var"), lambda t: t.repeat(2)), r"1 of another shape \(.*running_var\)"),
        (lambda s: changed(s, first(s, "conv1.weight"), lambda t: t * torch.nan), r"1 not finite \(.*conv1.weight\)"),
        (lambda s: changed(s, first(s, "running_var"), lambda t: t / 0), r"1 not finite \(.*running_var\)"),
        (lambda s: changed(s, first(s, "bn1.bias"), lambda t: t - torch.inf), r"1 not finite \(.*bias\)"),
    ],
    ids=["deeper sibling", "shallower", "no buffer", "no bias", "shape", "NaN", "infinite buffer", "infinite bias"],
)  # fmt: skip
def test_weights_that_are_not_the_network_s_are_listed(file, state, change, message):
    with pytest.raises(WeightsError, match=f"expected weights of test_resnet in .*found tensors .*{message}"):
        TimmTrunk("test_resnet", pretrained=file(change(state)))


def test_one_message_lists_all_that_does_not_fit(file, state):
    other = {n: t for n, t in sibling().items() if "layer3" not in n}
    other = changed(other, first(other, "conv1.weight"), lambda t: t * torch.nan)
    with pytest.raises(WeightsError, match=r"missing \(.*left over \(.*not finite \("):
        TimmTrunk("test_resnet", pretrained=file(other))


def test_a_head_may_be_there_or_not(file, state):
    without = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    other = state | {"fc.weight": torch.zeros(5, state["fc.weight"].shape[1]), "fc.bias": torch.zeros(5)}
    for given in (state, without, other):
        loaded = TimmTrunk("test_resnet", pretrained=file(given)).model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext", "test_byobnet", "test_mambaout"])
def test_models_of_other_families_load_their_own_weights(file, name):
    torch.manual_seed(1)
    own = timm.create_model(name, pretrained=False).state_dict()
    loaded = TimmTrunk(name, pretrained=file(own)).model.state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in loaded.items())


def test_weights_of_a_file_shift_no_stream_of_random_numbers(file, state):
    path = file(state)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    TimmTrunk("test_resnet", pretrained=path)
    assert torch.equal(torch.rand(2), expected)


def test_what_fits_is_taken_on_purpose(file, caplog):
    other = {n: t for n, t in sibling().items() if "layer3.0.conv1" not in n}
    trunk = TimmTrunk("test_resnet", pretrained=file(other), strict=False)
    name = first(other, "layer2.0.conv1")
    assert torch.equal(trunk.model.state_dict()[name], other[name])
    assert "weights of test_resnet loaded in part, the rest is random. Tensors 1 missing (layer3.0.conv1" in caplog.text
    with pytest.raises(WeightsError, match="not finite"):
        TimmTrunk("test_resnet", file(changed(other, first(other, "bias"), lambda t: t * torch.nan)), strict=False)


def test_bn_inception_refuses_values_that_are_not_finite(file):
    state = BNInception(pretrained=False).state_dict()
    name = "inception_4a_1x1_bn.running_var"
    with pytest.raises(WeightsError, match=f"1 not finite .{name}."):
        BNInception(file(changed(state, name, lambda t: t * torch.nan)))
    with pytest.raises(WeightsError, match="1 left over .inception_5c_1x1.weight."):
        BNInception(file(state | {"inception_5c_1x1.weight": torch.zeros(3)}))
    assert BNInception(file(state | {"inception_5c_1x1.weight": torch.zeros(3)}), strict=False)


def test_strict_is_part_of_the_identity_only_where_it_is_false(compose_config, settings):
    words = ["dataset=image_folder", "trunk.name=resnet18", "trunk.pretrained=x.pth"]
    usual, explicit, loose = (
        compose_config(*words, *more) for more in ([], ["trunk.strict=true"], ["trunk.strict=false"])
    )
    assert usual.protocol == explicit.protocol != loose.protocol
    assert usual.run_set == explicit.run_set != loose.run_set
    assert settings("trunk=timm", "trunk.name=x", "trunk.strict=false").trunk.model["strict"] is False
