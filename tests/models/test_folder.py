"""The code in a model folder's README, run in a process of its own without this package, embeds as we do."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import mlrc_lightning._torchvision  # noqa: F401  # isort: skip
import numpy as np
import pytest
import torch
from PIL import Image

from mlrc_lightning.data.augment import center_crop
from mlrc_lightning.data.cache import resize_shorter_side
from mlrc_lightning.models.folder import save_weights, write_model_folder
from mlrc_lightning.protocol.build import build_module

# where torch is of another build than torchvision, `import torchvision` needs the two operators that it declares itself
TORCHVISION = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
try:
    import torchvision
except RuntimeError:
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
AFTER = """
assert not [name for name in sys.modules if name.startswith("mlrc_lightning")]
assert embedding.shape[0] == 1
print(json.dumps(embedding[0].tolist()))
"""


def code_of(folder):
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code


def embed_by_readme(folder, before="import sys\n"):
    """Runs the README's code in the folder, as someone would who got nothing but the folder."""
    done = subprocess.run(
        [sys.executable, "-c", before + code_of(folder) + AFTER],
        capture_output=True, text=True, cwd=folder, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.tensor(json.loads(done.stdout))


def photo(size=(71, 60)):
    """A smooth picture, which JPEG keeps; not square."""
    x, y = np.meshgrid(np.linspace(0, 3, size[0]), np.linspace(0, 5, size[1]))
    waves = [np.sin(x * k) * np.cos(y + k) for k in (1, 2, 3)]
    return Image.fromarray((np.stack(waves, axis=-1) * 100 + 128).astype(np.uint8))


def embed_by_us(module, s, path):
    pixels = np.asarray(resize_shorter_side(Image.open(path).convert("RGB"), s.transform.resize))
    batch = torch.tensor(center_crop(pixels, s.transform.crop)).permute(2, 0, 1)[None]
    with torch.no_grad():
        return module.eval()(batch)[0]


def model_folder(s, folder):
    """Writes the folder of an untrained module, whose BatchNorm statistics and biases are not those of a new one."""
    module = build_module(s, fold=0, num_train_classes=None)
    torch.manual_seed(3)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_mean") or name.endswith("bias"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
    folder.mkdir()
    weights = {part: folder / f"{part}_epoch4.safetensors" for part in ("trunk", "embedder")}
    for part, path in weights.items():
        save_weights(path, getattr(module, part))
    write_model_folder(folder, weights, module.trunk, s, fold=0, epoch=4)
    photo((90, 70) if s.transform.resize < 100 else (300, 260)).save(folder / "image.jpg")
    return module


@pytest.mark.slow
def test_small_cnn_needs_torch_alone(settings, tmp_path):
    s = settings("transform.resize=40")
    module = model_folder(s, tmp_path / "model")
    found = embed_by_readme(tmp_path / "model")
    torch.testing.assert_close(found, embed_by_us(module, s, tmp_path / "model" / "image.jpg"), rtol=1e-5, atol=1e-6)
    assert len(code_of(tmp_path / "model").strip().splitlines()) < 40


@pytest.mark.slow
def test_timm_trunks_need_timm(settings, tmp_path):
    s = settings(
        "trunk=timm", "trunk.name=test_resnet", "trunk.pretrained=false", "transform.resize=64", "transform.crop=60"
    )
    module = model_folder(s, tmp_path / "model")
    assert "mlrc_lightning" not in code_of(tmp_path / "model")
    found = embed_by_readme(tmp_path / "model", TORCHVISION)
    torch.testing.assert_close(found, embed_by_us(module, s, tmp_path / "model" / "image.jpg"), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_bn_inception_needs_pretrainedmodels_and_takes_blue_first(settings, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        pytest.importorskip("six")
        pytest.importorskip("pretrainedmodels", reason="pretrainedmodels, the original BN-Inception, is not installed")
    s = settings("trunk=bn_inception", "trunk.pretrained=false", "transform=photos")
    module = model_folder(s, tmp_path / "model")
    transform = json.loads((tmp_path / "model" / "transform.json").read_text())
    assert transform == {
        "channels": "BGR", "resize": 256, "interpolation": "bilinear", "crop": 227, "value_range": 255.0,
        "mean": [104.0, 117.0, 128.0], "std": [1.0, 1.0, 1.0], "embedding_size": 128,
    }  # fmt: skip
    found = embed_by_readme(tmp_path / "model", TORCHVISION)
    ours = embed_by_us(module, s, tmp_path / "model" / "image.jpg")
    torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-6)
    assert found.std() > 0.01


@pytest.mark.slow
def test_the_code_reads_the_transform_and_does_not_repeat_it(settings, tmp_path):
    s = settings()
    module = model_folder(s, tmp_path / "model")
    path = tmp_path / "model" / "transform.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean": [0.2, 0.5, 0.7], "crop": 28}))
    found = embed_by_readme(tmp_path / "model")
    assert (found - embed_by_us(module, s, tmp_path / "model" / "image.jpg")).abs().max() > 1e-3


def test_a_trunk_of_ones_own_is_named_with_its_package(settings, tmp_path, monkeypatch):
    from mlrc_lightning.models import small_cnn

    class OwnTrunk(small_cnn.SmallCNN):
        def features(self, images):
            return super().features(images)

    monkeypatch.setattr(small_cnn, "OwnTrunk", OwnTrunk, raising=False)
    monkeypatch.setattr("mlrc_lightning.models.folder.SmallCNN", type("Other", (), {}))
    s = settings("trunk.model._target_=mlrc_lightning.models.small_cnn.OwnTrunk")
    model_folder(s, tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    assert "Needs the package that has `mlrc_lightning.models.small_cnn.OwnTrunk`" in text
    assert "from mlrc_lightning.models.small_cnn import OwnTrunk" in text
    assert "OwnTrunk(**{'width': 24})" in text


@pytest.mark.slow
def test_every_fold_of_a_finished_run_is_such_a_folder(trained, tmp_path):
    record = trained(tmp_path / "run", "stage=reproduce", "hyperparameters=default", "run=0", "loss=triplet")
    for fold in record.folds:
        folder = tmp_path / "run" / f"fold_{fold.fold}"
        kept = sorted(path.name for path in folder.iterdir())
        assert kept == ["README.md", "embedder.safetensors", "fold.json", "transform.json", "trunk.safetensors"]
        assert fold.weights == {part: f"fold_{fold.fold}/{part}.safetensors" for part in ("trunk", "embedder")}
        title = (folder / "README.md").read_text().splitlines()[0]
        assert title == f"# triplet on glyphs, fold {fold.fold}"
        assert f"after epoch {fold.selected_epoch}, the best" in (folder / "README.md").read_text()


@pytest.mark.slow
def test_without_kept_models_there_is_no_folder_but_their_digests_are_known(trained, tmp_path):
    overrides = ("loss=triplet", "fold=0", "schedule.iterations_per_epoch=2")
    kept, thrown = trained(tmp_path / "kept", *overrides), trained(tmp_path / "s", *overrides, "stage=search")
    assert [path.name for path in (tmp_path / "s" / "fold_0").iterdir()] == ["fold.json"]
    assert thrown.folds[0].weights == {}
    assert thrown.folds[0].weight_digests == kept.folds[0].weight_digests
    import hashlib

    for part, file in kept.folds[0].weights.items():
        assert hashlib.sha256((tmp_path / "kept" / file).read_bytes()).hexdigest() == kept.folds[0].weight_digests[part]
    assert Path(tmp_path / "kept" / "fold_0" / "trunk.safetensors").exists()
