"""The paper's trunk against pretrainedmodels, and its weights from files, good and bad."""

import hashlib
import pickletools
import warnings

import mlrc_lightning._torchvision  # noqa: F401  # isort: skip
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torchvision import transforms

from mlrc_lightning.data import download
from mlrc_lightning.data.augment import center_crop
from mlrc_lightning.data.cache import resize_shorter_side
from mlrc_lightning.data.download import RemoteFile
from mlrc_lightning.errors import ConfigError, WeightsError
from mlrc_lightning.models import bn_inception
from mlrc_lightning.models.bn_inception import WEIGHTS, BNInception
from mlrc_lightning.models.trunk import freeze_batchnorm

CLASSIFIER = {"last_linear.weight": torch.zeros(1000, 1024), "last_linear.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def original():
    """The original network, with random weights and statistics that keep activations of one size."""
    reason = "pretrainedmodels and six, the original BN-Inception, are not installed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # its other models, written for Python 2
        pytest.importorskip("six", reason=reason)
        package = pytest.importorskip("pretrainedmodels.models.bninception", reason=reason)
    torch.manual_seed(0)
    model = package.bninception(pretrained=None)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith(("running_var", "_bn.weight")):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith("_bn.bias"):
            tensor.normal_(0, 0.2)
    return model


@pytest.fixture(scope="module")
def trunk(original):
    """Ours, with the weights of the original."""
    ours = BNInception(pretrained=False)
    state = {name: tensor for name, tensor in original.state_dict().items() if not name.startswith("last_linear.")}
    ours.load_state_dict(state, strict=True)
    return ours


def without_classifier(state):
    return {name: tensor for name, tensor in state.items() if name not in CLASSIFIER}


def images(count=2):
    return torch.randint(0, 256, (count, 3, 227, 227), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def original_features(model, pixels):
    """The paper's pipeline in the original's words: BGR, times 255, minus the means, last_linear left out."""
    x = pixels.flip(1).float() - torch.tensor([104.0, 117.0, 128.0]).view(1, 3, 1, 1)
    return model.global_pool(model.features(x)).flatten(1)


@pytest.mark.slow
def test_state_dicts_exchange_strictly_both_ways(original, trunk):
    names = list(without_classifier(original.state_dict()))
    assert list(trunk.state_dict()) == names
    package = __import__("pretrainedmodels.models.bninception", fromlist=["BNInception"])
    package.BNInception().load_state_dict({**trunk.state_dict(), **CLASSIFIER}, strict=True)
    for name, tensor in without_classifier(original.state_dict()).items():
        assert torch.equal(trunk.state_dict()[name], tensor), name


def test_outputs_are_the_originals_at_the_papers_size(original, trunk):
    with torch.no_grad():
        expected = original_features(original.eval(), images())
        found = trunk.eval()(images())
    assert found.shape == (2, trunk.num_features) == (2, 1024)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradients_are_the_originals_with_frozen_batchnorm(original, trunk):
    statistics = {name: t.clone() for name, t in trunk.state_dict().items() if "running" in name}
    weight = torch.randn(1024, generator=torch.Generator().manual_seed(2))
    outputs = []
    for model, embed in ((original, lambda x: original_features(original, x)), (trunk, trunk)):
        model.train()
        freeze_batchnorm(model)
        model.zero_grad()
        outputs.append(embed(images()))
        (outputs[-1] @ weight).mean().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    parameters = dict(original.named_parameters())
    for name, parameter in trunk.named_parameters():
        expected = parameters[name].grad
        scale = expected.abs().max().clamp(min=1e-6)
        assert (parameter.grad - expected).abs().max() <= 1e-5 * scale, name
    assert any(p.grad.abs().max() > 0 for n, p in trunk.named_parameters() if n.endswith("_bn.weight"))
    for name, before in statistics.items():
        assert torch.equal(trunk.state_dict()[name], before), f"{name} moved"


@pytest.mark.parametrize("size", [(300, 256), (640, 480), (256, 256), (333, 500), (120, 90)])
def test_the_papers_evaluation_transform_is_bit_equal_to_ours(size):
    width, height = size
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))

    def convert_to_bgr(image):
        red, green, blue = image.split()
        return Image.merge("RGB", (blue, green, red))

    theirs = transforms.Compose(
        [
            transforms.Lambda(convert_to_bgr),
            transforms.Resize(256),
            transforms.CenterCrop(227),
            transforms.ToTensor(),
            transforms.Lambda(lambda pixels: pixels * 255),
            transforms.Normalize(mean=[104, 117, 128], std=[1, 1, 1]),
        ]
    )(photo)
    cropped = center_crop(np.asarray(resize_shorter_side(photo, 256)), 227)
    ours = BNInception(pretrained=False).normalize(torch.from_numpy(cropped.copy()).permute(2, 0, 1)[None])
    assert torch.equal(ours[0], theirs)


def test_sizes_whose_branches_do_not_meet_are_refused():
    trunk = BNInception(pretrained=False).eval()
    with torch.no_grad():
        for size in (31, 38, 63):
            assert trunk(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape == (1, 1024)
        for size in (30, 39, 48, 62):
            with pytest.raises(ConfigError, match=f"cannot take images of {size} x {size} pixels.*the paper's 227"):
                trunk(torch.zeros(1, 3, size, size, dtype=torch.uint8))


def published(old=False, classifier="last_linear."):
    """A state dict as the published files hold it: with a classifier, and without counts of batches."""
    torch.manual_seed(3)
    state = {n: t for n, t in BNInception(pretrained=False).state_dict().items() if "num_batches" not in n}
    if old:  # files made before torch 0.4
        state = {n: t[None] if "_bn." in n else t for n, t in state.items()}
    return {**state, **{n.replace("last_linear.", classifier): t for n, t in CLASSIFIER.items()}}


@pytest.mark.parametrize(("old", "classifier"), [(False, "last_linear."), (True, "last_linear."), (True, "fc.")])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_load_from_a_local_file_whatever_its_age(tmp_path, old, classifier, suffix):
    state, path = published(old, classifier), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file({n: t.contiguous() for n, t in state.items()}, path)
    trunk = BNInception(pretrained=str(path))
    for name, tensor in trunk.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(tensor, state[name].reshape(tensor.shape)), name


def test_its_own_checkpoint_loads_again(tmp_path):
    first = BNInception(pretrained=False)
    safetensors.torch.save_file(first.state_dict(), tmp_path / "trunk.safetensors")
    second = BNInception(pretrained=str(tmp_path / "trunk.safetensors")).state_dict()
    assert all(torch.equal(second[name], tensor) for name, tensor in first.state_dict().items())


class Hostile:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a weight file at .*weights.pth, found none"),
        ("html", "a file that cannot be read"),
        ("hostile", "a file that cannot be read"),
        ("list", "expected a state dict of tensors"),
        ("foreign", "expected weights of BN-Inception in .*found tensors .*; 1 left over .x."),
        ("incomplete", "expected weights of BN-Inception in .*found tensors 1 missing .inception_5b_1x1.weight."),
    ],
)
def test_files_that_are_no_such_weights_are_refused(tmp_path, content, message, capsys):
    path = tmp_path / "weights.pth"
    if content == "html":
        path.write_text("<html>")
    elif content is not None:
        state = published()
        del state["inception_5b_1x1.weight"]
        objects = {"hostile": Hostile(), "list": [1], "foreign": {"x": torch.zeros(2)}, "incomplete": state}
        torch.save(objects[content], path)
    with pytest.raises(WeightsError, match=message):
        BNInception(pretrained=str(path))
    assert not capsys.readouterr().out


def test_the_published_files_are_named_by_their_digests():
    assert [file.name for file in WEIGHTS] == ["bn_inception-52deb4733.pth", "bn_inception-9f5701afb96c8044.pth"]
    for file in WEIGHTS:
        digits = file.name.removeprefix("bn_inception-").removesuffix(".pth")
        assert file.sha256.startswith(digits), file.name


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch hub folder; returns the folder of checkpoints."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.0)
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.slow
def test_published_weights_are_downloaded_once_and_checked(hub, tmp_path, monkeypatch, local_server):
    state = published(old=True)
    torch.save(state, tmp_path / "good.pth")
    good = (tmp_path / "good.pth").read_bytes()
    local_server.files = {"/second.pth": good}
    files = (
        RemoteFile("bn_inception-00.pth", (f"{local_server.url}/first.pth",), sha256="00"),
        RemoteFile(
            "bn_inception-11.pth", (f"{local_server.url}/second.pth",), sha256=hashlib.sha256(good).hexdigest()[:8]
        ),
    )
    monkeypatch.setattr(bn_inception, "WEIGHTS", files)
    for _ in range(2):
        trunk = BNInception(pretrained=True)
        assert torch.equal(trunk.conv1_7x7_s2.weight, state["conv1_7x7_s2.weight"])
    assert local_server.paths == ["/first.pth", "/second.pth"], "what is there is not got again"
    assert [path.name for path in hub.iterdir()] == ["bn_inception-11.pth"]


def test_a_file_that_another_program_put_into_the_hub_folder_is_taken(hub, monkeypatch):
    hub.mkdir(parents=True)
    torch.save(published(), hub / "bn_inception-52deb4733.pth")
    digest = hashlib.sha256((hub / "bn_inception-52deb4733.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(bn_inception, "WEIGHTS", (RemoteFile(WEIGHTS[0].name, WEIGHTS[0].urls, sha256=digest[:9]),))
    BNInception(pretrained=True)


def test_dead_addresses_end_with_what_to_do(hub, monkeypatch, local_server):
    dead = [RemoteFile(file.name, (f"{local_server.url}/{file.name}",), sha256=file.sha256) for file in WEIGHTS]
    monkeypatch.setattr(bn_inception, "WEIGHTS", dead)
    with pytest.raises(WeightsError) as caught:
        BNInception(pretrained=True)
    message = str(caught.value)
    for part in ("52deb4733.pth: HTTP 404", "9f5701afb96c8044.pth: HTTP 404", str(hub), "trunk.pretrained=FILE"):
        assert part in message
    assert "trunk.pretrained=false" in message


def as_python_2_wrote_it(path):
    """Rewrites a file of torch's old format: text as Python 2's byte strings, as the published file has them."""
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    content, start = path.read_bytes(), 0
    rewritten = b""
    for _ in range(5):  # magic number, version, machine, state dict, keys of the storages behind them
        operations = list(pickletools.genops(content[start:]))
        positions = [position for *_, position in operations] + [operations[-1][2] + 1]
        for (operation, value, position), end in zip(operations, positions[1:], strict=True):
            if operation.name == "BINUNICODE":
                rewritten += b"U" + bytes([len(value)]) + value.encode()
            else:
                rewritten += content[start + position : start + end]
        start += positions[-1]
    path.write_bytes(rewritten + content[start:])


@pytest.mark.slow
def test_a_file_that_python_2_wrote_loads_without_trusting_it(tmp_path):
    state, path = published(old=True), tmp_path / "weights.pth"
    torch.save(state, path)
    as_python_2_wrote_it(path)
    assert b"X\x13\x00\x00\x00conv1_7x7_s2.weight" not in path.read_bytes()
    assert b"U\x13conv1_7x7_s2.weight" in path.read_bytes()
    assert torch.equal(BNInception(pretrained=str(path)).conv1_7x7_s2.weight, state["conv1_7x7_s2.weight"])
