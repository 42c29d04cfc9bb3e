"""Which settings decide a trial's figures, and the digests of those."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from mlrc_lightning.files import config_folder
from mlrc_lightning.names import UNTRAINED
from mlrc_lightning.settings.plain import _resolved

PROTOCOL = "mlrc"
_OPTIONS = ("scheduler", "gradient_clip", "sampler", "evaluation")
"""Their defaults are left out of every digest: what they are off, or the protocol's, a run is what it was without."""
_NOT_OF_THE_TRIAL = (
    "stage", "fold", "logger", "trainer", "keep_models", "data_root", "hyperparameters", "run", "root_seed",
    "setting",
)  # fmt: skip
_NUMERIC_OPTIONS_OF_THE_TRAINER = {
    "channels_last": (False,),
    "compile": (False,),
    "augmentation": ("pil", "device"),  # the same pixels
}
"""What of the hardware changes figures, if only in their last digits, with the values that do not; beside precision."""
_EVALUATION_OPTIONS = {"check_untrained_accuracy": None, "clustering": False}
"""What changes the figures of `evaluation`, with the value that leaves them as they are."""
_PLACES = ("root", "csv", "archive", "download", "mirrors")
"""Where a dataset lies, or comes from, does not change what it is."""
_DATASET_OPTIONS = {"exif": "ignore"}
"""What changes the pixels of a dataset, with the value that leaves them as they are."""
_NOT_SETTINGS = ("sweep_name", "max_trials", "num_runs", "run_set", "output_root", "search_space", "hydra")


def seed_of_run(root_seed: int, run: int) -> int:
    """Returns the seed of a run: that of child `run` of numpy's SeedSequence(root_seed)."""
    import numpy as np

    return int(np.random.SeedSequence(root_seed, spawn_key=(run,)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a trial's settings that decides its figures. Two runs with the same one are the same run.

    Places of files, hardware, the choice of folds and the stage are left out; precision and its like are not. So is
    where hyperparameters come from: their values count, and are among the loss's. Without training the loss does not.
    """
    values = {key: value for key, value in settings.items() if key not in (*_NOT_OF_THE_TRIAL, *_OPTIONS)}
    if settings["stage"] == UNTRAINED:
        del values["loss"]
    dataset = {key: value for key, value in values["dataset"].items() if key not in (*_PLACES, "copies")}
    dataset = {key: value for key, value in dataset.items() if value != _DATASET_OPTIONS.get(key, ...)}
    dataset["images"] = {key: value for key, value in dataset["images"].items() if key not in _PLACES}
    if is_the_papers_split(values["split"]):
        del values["split"]
    return {
        **values,
        **_deviations(settings),
        "dataset": dataset,
        "trunk": _trunk(values["trunk"]),
        "precision": settings["trainer"]["precision"],
        # off, they are left out, and a trial is what it was before they were options
        **{
            name: settings["trainer"][name]
            for name, neutral in _NUMERIC_OPTIONS_OF_THE_TRAINER.items()
            if settings["trainer"].get(name, neutral[0]) not in neutral
        },
    }


def dataset_deviations(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a dataset that change its pixels, by key, where they are not as the protocol has them."""
    return {key: dataset[key] for key, usual in _DATASET_OPTIONS.items() if dataset.get(key, usual) != usual}


def is_the_papers_split(split: Mapping[str, Any]) -> bool:
    """Returns whether the settings of a split are those of `conf/split/mlrc.yaml`."""
    return bool(_as_floats(dict(split)) == _as_floats(_papers_split()))


@cache
def _papers_split() -> dict[str, Any]:
    shipped = OmegaConf.create({"split": OmegaConf.load(config_folder() / "split" / f"{PROTOCOL}.yaml")})
    split: dict[str, Any] = OmegaConf.to_container(shipped, resolve=True)["split"]  # type: ignore[index, call-overload, assignment]
    return split


def _identity_of(cfg: DictConfig) -> dict[str, Any]:
    keys = [str(key) for key in cfg if key not in (*_NOT_SETTINGS, "protocol")]
    values: dict[str, Any] = _as_floats(identity(_resolved(cfg, keys)))
    return values


def _deviations(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that are not as the protocol has them, by key."""
    evaluation = {name: settings["evaluation"][name] for name in _EVALUATION_OPTIONS}
    options = {
        "scheduler": _without_nulls(settings["scheduler"]),
        "gradient_clip": _without_nulls(settings["gradient_clip"]),
        "sampler": {} if settings["sampler"] == _protocols_sampler() else settings["sampler"],
        "evaluation": {name: value for name, value in evaluation.items() if value is not _EVALUATION_OPTIONS[name]},
    }
    return {key: value for key, value in options.items() if value}


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _protocols_sampler() -> Any:
    return yaml.safe_load((config_folder() / "sampler" / "m_per_class.yaml").read_text(encoding="utf-8"))


def _trunk(trunk: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the trunk's settings with a weight file named without its folder. What is as usual is left out."""
    if not trunk.get("frozen", False):
        trunk = {key: value for key, value in trunk.items() if key not in ("frozen", "views")}

    if trunk.get("strict", True):
        trunk = {key: value for key, value in trunk.items() if key != "strict"}
        trunk["model"] = {key: value for key, value in trunk["model"].items() if key != "strict"}

    def short(value: Any) -> Any:
        return Path(value).name if isinstance(value, str) and "/" in value else value

    return {
        key: {k: short(v) for k, v in value.items()} if isinstance(value, dict) else short(value)
        for key, value in trunk.items()
    }


def _as_floats(node: Any) -> Any:
    """Returns nested values with every number a float, so that scale=100 and scale=100.0 are the same trial."""
    if isinstance(node, dict):
        return {key: _as_floats(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_as_floats(value) for value in node]
    return float(node) if isinstance(node, int) and not isinstance(node, bool) else node


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]
