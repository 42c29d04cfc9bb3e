"""A finished fold's model as a folder that needs nothing of this package: weights, transform, and how to use them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlrc_lightning._torchvision  # noqa: F401

import safetensors.torch
from torch import nn

from mlrc_lightning.files import write_bytes, write_json
from mlrc_lightning.models.bn_inception import BNInception
from mlrc_lightning.models.small_cnn import SmallCNN
from mlrc_lightning.models.timm_trunk import TimmTrunk
from mlrc_lightning.models.trunk import Trunk
from mlrc_lightning.settings.types import TrialSettings

TRANSFORM_FILE = "transform.json"
README_FILE = "README.md"

_CODE = """\
import json, numpy, torch
from PIL import Image
from safetensors.torch import load_file
{trunk}
trunk.load_state_dict({state})
embedder = torch.nn.Linear({num_features}, {embedding_size})
embedder.load_state_dict(load_file("embedder.safetensors"))

t = json.load(open("transform.json"))
image = Image.open("image.jpg").convert("RGB")
size, crop, short = t["resize"], t["crop"], min(image.size)
image = image.resize([size if side == short else int(size * side / short) for side in image.size], Image.BILINEAR)
left, top = (round((side - crop) / 2) for side in image.size)
x = torch.from_numpy(numpy.array(image.crop((left, top, left + crop, top + crop)))).permute(2, 0, 1)[None].float()
mean, std = (torch.tensor(t[name]).view(3, 1, 1) for name in ("mean", "std"))
x = ({pixels} / 255 * t["value_range"] - mean) / std
with torch.no_grad():
    embedding = torch.nn.functional.normalize(embedder(trunk.eval(){features}(x)))
"""

_README = """\
# {loss} on {setting}, fold {fold}

Trunk and embedder after epoch {epoch}, the best of its training by MAP@R on the validation classes. An image becomes an
embedding of {embedding_size} numbers and length 1; similar images have a small distance. {needs}

```python
{code}```

`transform.json` is the whole evaluation transform: the shorter side to `resize` pixels ({interpolation}), the centre
`crop` pixels, {channels} channels from 0 to `value_range`, minus `mean`, divided by `std`.
"""


def write_model_folder(
    folder: Path, weights: Mapping[str, Path], trunk: Trunk, settings: TrialSettings, fold: int, epoch: int
) -> dict[str, Path]:
    """Makes a fold's folder self-contained. What is there already is written again, the same.

    Args:
        folder: Of the fold.
        weights: The selected weights of trunk and embedder; they stay where they are.
        trunk: Any of the same class and arguments, for its normalisation.
        settings: Of the trial.
        fold: Number of the fold.
        epoch: That was selected.

    Returns:
        The weights in the folder.
    """
    placed = model_files(folder)
    for part, path in weights.items():
        _place(path, placed[part])
    transform = evaluation_transform(trunk, settings)
    write_json(folder / TRANSFORM_FILE, transform)
    readme = _README.format(
        loss=settings.loss.name,
        setting=settings.setting,
        fold=fold,
        epoch=epoch,
        needs=_NEEDS.get(type(trunk), f"Needs the package that has `{settings.trunk.model['_target_']}`."),
        code=loading_code(trunk, settings),
        **transform,
    )
    write_bytes(folder / README_FILE, readme.encode())
    return placed


def _place(source: Path, target: Path) -> None:
    """Puts weights into a folder, as a second name of the file where the disk allows it: a frozen trunk is in many."""
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
        os.replace(partial, target)
        partial.unlink(missing_ok=True)  # nothing is replaced where both are the same file already
    except OSError:
        write_bytes(target, source.read_bytes())


def model_files(folder: Path) -> dict[str, Path]:
    """Returns the weights in a model folder, by part."""
    return {part: folder / f"{part}.safetensors" for part in ("trunk", "embedder")}


def save_weights(path: Path, module: nn.Module) -> None:
    """Writes a module's weights as safetensors, atomically."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    write_bytes(path, safetensors.torch.save(state))


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def evaluation_transform(trunk: Trunk, settings: TrialSettings) -> dict[str, Any]:
    """Returns how an image becomes the trunk's input in evaluation.

    Source: docs/protocol.md, §1.5.
    """
    normalization = trunk.normalization
    return {
        "channels": "BGR" if normalization.is_bgr else "RGB",
        "resize": settings.transform.resize,
        "interpolation": "bilinear",
        "crop": settings.transform.crop,
        "value_range": normalization.value_range,
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "embedding_size": settings.embedder.embedding_size,
    }


def loading_code(trunk: Trunk, settings: TrialSettings) -> str:
    """Returns Python that loads a model folder and embeds one image, without this package for the trunks it has."""
    state, features = 'load_file("trunk.safetensors")', ""
    if isinstance(trunk, BNInception):
        made = "import pretrainedmodels\n\ntrunk = pretrainedmodels.bninception(pretrained=None)\n"
        made += "trunk.last_linear = torch.nn.Identity()"
    elif isinstance(trunk, TimmTrunk):
        made = f'import timm\n\ntrunk = timm.create_model("{settings.trunk.name}", num_classes=0)'
        state = '{name.removeprefix("model."): tensor for name, tensor in load_file("trunk.safetensors").items()}'
    elif isinstance(trunk, SmallCNN):
        made = _SMALL_CNN.format(width=settings.trunk.model["width"])
    else:
        target = settings.trunk.model["_target_"]
        arguments = {name: value for name, value in settings.trunk.model.items() if name != "_target_"}
        module, _, name = target.rpartition(".")
        made = f"from {module} import {name}\n\ntrunk = {name}(**{arguments!r})"
        features = ".features"
    return _CODE.format(
        trunk=made,
        state=state,
        num_features=trunk.num_features,
        embedding_size=settings.embedder.embedding_size,
        pixels="x.flip(1)" if trunk.normalization.is_bgr else "x",
        features=features,
    )


_SMALL_CNN = """\
from collections import OrderedDict
from torch import nn

widths = [3, *({width} * 2**i for i in range(4))]
blocks = nn.Sequential(*(
    nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.GroupNorm(8, o), nn.ReLU())
    for i, o in zip(widths, widths[1:])
))
trunk = nn.Sequential(OrderedDict(
    blocks=blocks, pool=nn.AdaptiveAvgPool2d(2), flatten=nn.Flatten(), norm=nn.LayerNorm(4 * widths[-1])
))"""

_NEEDS: dict[type[Trunk], str] = {
    BNInception: "Needs torch, safetensors, Pillow and, for the\ntrunk, `pretrainedmodels` 0.7.4.",
    TimmTrunk: "Needs torch, safetensors, Pillow and timm.",
    SmallCNN: "Needs torch, safetensors and Pillow.",
}
