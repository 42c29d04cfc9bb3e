"""Any timm model as a trunk."""

from __future__ import annotations

from pathlib import Path

import mlrc_lightning._torchvision  # noqa: F401

import timm
import torch
from torch import Tensor

from mlrc_lightning.errors import ConfigError, WeightsError
from mlrc_lightning.models.trunk import Normalization, Trunk
from mlrc_lightning.reading import suggestion


class TimmTrunk(Trunk):
    """A timm model without its classifier, normalised with its own mean and standard deviation.

    Args:
        name: timm's name of the model, with or without a pretrained tag.
        pretrained: True: timm's own weights, downloaded once; False: random; a path: weights in a local file.

    Raises:
        ConfigError: timm knows no such model.
        WeightsError: The weights cannot be had, or do not fit the model.
    """

    def __init__(self, name: str, pretrained: bool | str) -> None:
        if not timm.is_model(name):
            raise ConfigError(
                f"trunk.name={name}: timm {timm.__version__} has no such model."
                f"{suggestion(name, timm.list_models(f'*{name[:4]}*') or timm.list_models())[:400]}"
            )
        model = _create(name, pretrained)
        config = model.pretrained_cfg
        super().__init__(Normalization(mean=tuple(config["mean"]), std=tuple(config["std"])))
        self.model = model
        # not num_features: some models widen once more after it
        self.num_features = int(model.head_hidden_size)

    def features(self, images: Tensor) -> Tensor:
        """Computes pooled features; (B, 3, H, W) → (B, F)."""
        features: Tensor = self.model(images)
        return features


def _create(name: str, pretrained: bool | str):  # type: ignore[no-untyped-def]  # timm is untyped
    if not isinstance(pretrained, str):
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0)
        except Exception as error:  # the hub's many failures have no common base
            if not pretrained:
                raise
            raise WeightsError(
                f"{name}: expected timm's pretrained weights, could not get them ({error})."
                " Name a local file: trunk.pretrained=FILE.safetensors, or train from scratch: trunk.pretrained=false."
            ) from error
    path = Path(pretrained)
    if not path.is_file():
        raise WeightsError(f"trunk.pretrained: expected a weight file at {path}, found none.")
    overlay = {"file": str(path), "custom_load": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random = dict(timm.create_model(name, pretrained=False, num_classes=0).named_parameters())
        torch.manual_seed(0)
        try:
            model = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
        except Exception as error:  # safetensors, pickle and shape errors have no common base
            raise WeightsError(
                f"trunk.pretrained: expected weights of {name} in {path}, found a file that does not fit ({error})."
            ) from error
    # timm loads what it can and warns about the rest; a weight that kept its random start was not in the file
    missing = [key for key, weight in model.named_parameters() if weight.ndim > 1 and torch.equal(weight, random[key])]
    if missing:
        raise WeightsError(
            f"trunk.pretrained: expected weights of {name} in {path}, found none for {len(missing)} of its tensors"
            f" (first: {missing[0]}). Is it a file of another model?"
        )
    return model
