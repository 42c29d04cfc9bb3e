"""Any timm model as a trunk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlrc_lightning._torchvision  # noqa: F401

import timm
import torch
from torch import Tensor, nn

from mlrc_lightning.errors import ConfigError, WeightsError
from mlrc_lightning.models.trunk import Normalization, Trunk
from mlrc_lightning.models.weights import fitting_weights
from mlrc_lightning.reading import suggestion


class TimmTrunk(Trunk):
    """A timm model without its classifier, normalised with its own mean and standard deviation.

    Args:
        name: timm's name of the model, with or without a pretrained tag.
        pretrained: True: timm's own weights, downloaded once; False: random; a path: weights in a local file.
        strict: Whether a local file must have all weights of the model and nothing else but a head.

    Raises:
        ConfigError: timm knows no such model.
        WeightsError: The weights cannot be had, or do not fit the model.
    """

    def __init__(self, name: str, pretrained: bool | str, strict: bool = True) -> None:
        if not timm.is_model(name):
            raise ConfigError(
                f"trunk.name={name}: timm {timm.__version__} has no such model."
                f"{suggestion(name, timm.list_models(f'*{name[:4]}*') or timm.list_models())[:400]}"
            )
        model = _create(name, pretrained, strict)
        config = model.pretrained_cfg
        super().__init__(Normalization(mean=tuple(config["mean"]), std=tuple(config["std"])))
        self.model = model
        # not num_features: some models widen once more after it
        self.num_features = int(model.head_hidden_size)

    def features(self, images: Tensor) -> Tensor:
        """Computes pooled features, (B, 3, H, W) → (B, F)."""
        features: Tensor = self.model(images)
        return features


def _create(name: str, pretrained: bool | str, strict: bool):  # type: ignore[no-untyped-def]  # timm is untyped
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
    loaded: list[dict[str, Tensor]] = []

    def load(module: nn.Module, state: Mapping[str, Tensor], *_: Any, **__: Any) -> Any:
        config: Any = module.pretrained_cfg
        classifiers = config.get("classifier") or ()
        heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
        fitting = fitting_weights(state, module.state_dict(), name, path, strict, heads)
        loaded.append(fitting)
        return load_state_dict(module, fitting, strict=False)

    load_state_dict = nn.Module.load_state_dict
    try:
        # timm reads the file and renames its tensors by a filter of each model; then it loads what it can in silence
        # what a file replaces draws no numbers from the stream that the embedder's weights come from
        with torch.random.fork_rng(devices=[]), patch.object(nn.Module, "load_state_dict", load):
            torch.manual_seed(0)
            model = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    except WeightsError:
        raise
    except Exception as error:  # safetensors, pickle and shape errors have no common base
        raise WeightsError(
            f"trunk.pretrained: expected weights of {name} in {path}, found a file that does not fit ({error})."
        ) from error
    if not loaded:
        raise WeightsError(f"trunk.pretrained: expected weights of {name} in {path}, found none that timm loads.")
    return model
