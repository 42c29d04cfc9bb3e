"""The paper's trunk: BN-Inception, with the parameter names of its published ImageNet weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, max_pool2d, relu

from mlrc_lightning.data.download import RemoteFile, download
from mlrc_lightning.errors import ConfigError, DownloadError, WeightsError
from mlrc_lightning.models.trunk import Normalization, Trunk
from mlrc_lightning.models.weights import fitting_weights

WEIGHTS = (
    RemoteFile(
        name="bn_inception-52deb4733.pth",
        urls=("http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth",),
        sha256="52deb473314542a5c2f87e9e6f26f4ca42fe863d15f986414dbae8c2dfdd2353",
    ),
    RemoteFile(
        name="bn_inception-9f5701afb96c8044.pth",
        urls=(
            "http://yjxiong.me/others/bn_inception-9f5701afb96c8044.pth",
            "https://yjxiong.blob.core.windows.net/models/bn_inception-9f5701afb96c8044.pth",
        ),
        sha256="9f5701afb96c8044",
    ),
)
"""The paper's file, then an earlier one of the same weights; their names hold the start of their digests."""


class _Block(NamedTuple):
    """Channels of one inception block. It is 0 for a branch that a block does not have.

    The two blocks without `conv1` halve the height and width: in both convolution branches, and by pooling.
    """

    name: str
    inputs: int
    conv1: int
    conv3_reduce: int
    conv3: int
    double_reduce: int
    double: int
    projection: int
    pool: str

    @property
    def outputs(self) -> int:
        return self.conv1 + self.conv3 + self.double + (self.projection or self.inputs)

    @property
    def stride(self) -> int:
        return 1 if self.conv1 else 2


_BLOCKS = (
    _Block("inception_3a", 192, 64, 64, 64, 64, 96, 32, "average"),
    _Block("inception_3b", 256, 64, 64, 96, 64, 96, 64, "average"),
    _Block("inception_3c", 320, 0, 128, 160, 64, 96, 0, "max"),
    _Block("inception_4a", 576, 224, 64, 96, 96, 128, 128, "average"),
    _Block("inception_4b", 576, 192, 96, 128, 96, 128, 128, "average"),
    _Block("inception_4c", 576, 160, 128, 160, 128, 160, 128, "average"),
    _Block("inception_4d", 608, 96, 128, 192, 160, 192, 128, "average"),
    _Block("inception_4e", 608, 0, 128, 192, 192, 256, 0, "max"),
    _Block("inception_5a", 1056, 352, 192, 320, 160, 224, 128, "average"),
    _Block("inception_5b", 1024, 352, 192, 320, 192, 224, 128, "max"),
)


class BNInception(Trunk):
    """Inception with BatchNorm after every convolution. It takes BGR from 0 to 255 and has 1024 features.

    Modules are named as in the published files, all of them directly on the trunk, so that these load strictly.

    Args:
        pretrained: True: the published ImageNet weights, downloaded once into torch's hub folder; False: random;
            a path: weights in a local .pth or .safetensors file.
        strict: Whether a file must have all weights and nothing else but a classifier.

    Raises:
        WeightsError: The weights cannot be had, or do not fit.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167; the package pretrainedmodels 0.7.4, whose outputs and
    gradients the tests compare with; docs/protocol.md, §1.1.
    """

    def __init__(self, pretrained: bool | str, strict: bool = True) -> None:
        super().__init__(Normalization(mean=(104.0, 117.0, 128.0), std=(1.0, 1.0, 1.0), value_range=255.0, is_bgr=True))
        self._add_unit("conv1_7x7_s2", 3, 64, kernel_size=7, stride=2)
        self._add_unit("conv2_3x3_reduce", 64, 64, kernel_size=1)
        self._add_unit("conv2_3x3", 64, 192, kernel_size=3)
        for block in _BLOCKS:
            name = block.name
            if block.conv1:
                self._add_unit(f"{name}_1x1", block.inputs, block.conv1, kernel_size=1)
            self._add_unit(f"{name}_3x3_reduce", block.inputs, block.conv3_reduce, kernel_size=1)
            self._add_unit(f"{name}_3x3", block.conv3_reduce, block.conv3, kernel_size=3, stride=block.stride)
            self._add_unit(f"{name}_double_3x3_reduce", block.inputs, block.double_reduce, kernel_size=1)
            self._add_unit(f"{name}_double_3x3_1", block.double_reduce, block.double, kernel_size=3)
            self._add_unit(f"{name}_double_3x3_2", block.double, block.double, kernel_size=3, stride=block.stride)
            if block.projection:
                self._add_unit(f"{name}_pool_proj", block.inputs, block.projection, kernel_size=1)
        self.num_features = _BLOCKS[-1].outputs
        if pretrained is not False:
            self._load_pretrained(pretrained, strict)

    def features(self, images: Tensor) -> Tensor:
        """Computes globally pooled features, (B, 3, H, W) → (B, 1024).

        Raises:
            ConfigError: Height or width are of those sizes whose halves do not meet again.
        """
        x = max_pool2d(self._unit("conv1_7x7_s2", images), 3, stride=2, ceil_mode=True)
        x = self._unit("conv2_3x3", self._unit("conv2_3x3_reduce", x))
        x = max_pool2d(x, 3, stride=2, ceil_mode=True)
        if x.shape[2] % 4 or x.shape[3] % 4:
            # convolutions round an odd size up to its half and pooling rounds it down, so that the branches differ
            raise ConfigError(
                f"transform.crop: BN-Inception cannot take images of {images.shape[2]} x {images.shape[3]} pixels."
                " It takes 32k - 1 to 32k + 6 for k = 1, 2, …: 223 to 230, and so the paper's 227."
            )
        for block in _BLOCKS:
            x = self._inception(block, x)
        return adaptive_avg_pool2d(x, 1).flatten(1)

    def _inception(self, block: _Block, x: Tensor) -> Tensor:
        """Concatenates the branches of one block."""
        name = block.name
        branches = [self._unit(f"{name}_1x1", x)] if block.conv1 else []
        branches.append(self._unit(f"{name}_3x3", self._unit(f"{name}_3x3_reduce", x)))
        double = self._unit(f"{name}_double_3x3_1", self._unit(f"{name}_double_3x3_reduce", x))
        branches.append(self._unit(f"{name}_double_3x3_2", double))
        if block.pool == "average":
            pooled = avg_pool2d(x, 3, stride=1, padding=1)
        elif block.stride == 1:
            pooled = max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = max_pool2d(x, 3, stride=2, ceil_mode=True)
        branches.append(self._unit(f"{name}_pool_proj", pooled) if block.projection else pooled)
        return torch.cat(branches, 1)

    def _add_unit(self, name: str, inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> None:
        padding = kernel_size // 2
        self.add_module(name, nn.Conv2d(inputs, outputs, kernel_size, stride=stride, padding=padding))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))

    def _unit(self, name: str, x: Tensor) -> Tensor:
        """Convolution, BatchNorm, ReLU."""
        return relu(self._modules[f"{name}_bn"](self._modules[name](x)), inplace=True)  # type: ignore[misc]

    def _load_pretrained(self, pretrained: bool | str, strict: bool) -> None:
        path = _published_weights() if pretrained is True else Path(str(pretrained))
        state = _as_vectors(_read(path))
        self.load_state_dict(fitting_weights(state, self.state_dict(), "BN-Inception", path, strict), strict=False)


def _published_weights() -> Path:
    """Returns the downloaded weights, from torch's hub folder where another program put them there already."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    failures = []
    for file in sorted(WEIGHTS, key=lambda file: not (folder / file.name).is_file()):  # what is there comes first
        try:
            return download(file, folder)
        except DownloadError as error:
            failures.append(str(error))
    raise WeightsError(
        f"trunk.pretrained: expected the ImageNet weights of BN-Inception, could not get them. {' '.join(failures)}"
        f" Get {WEIGHTS[0].name} in another way and put it into {folder}, or name it: trunk.pretrained=FILE."
        " Random weights: trunk.pretrained=false."
    )


def _read(path: Path) -> Mapping[str, Tensor]:
    """Reads a weight file without executing anything that is in it."""
    if not path.is_file():
        raise WeightsError(f"trunk.pretrained: expected a weight file at {path}, found none.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and safetensors errors have no common base
        raise WeightsError(
            f"trunk.pretrained: expected weights of BN-Inception in {path}, found a file that cannot be read ({error})."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"trunk.pretrained: expected a state dict of tensors in {path}, found something else.")
    return state


def _as_vectors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drops the leading axis of length 1 that BatchNorm vectors of old files have.

    Source: github.com/yjxiong/tsn-pytorch, issues 62, 74 and 104.
    """
    return {
        name: tensor.squeeze(0) if tensor.ndim == 2 and tensor.shape[0] == 1 else tensor
        for name, tensor in state.items()
    }
