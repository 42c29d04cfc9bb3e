"""From a composed Hydra configuration to `TrialSettings`: where OmegaConf ends. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import Container, DictConfig, OmegaConf

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.schema import TrialSettings, read
from mlrc_lightning.search_spaces import search_space

PROTOCOL = "mlrc"
_PROTOCOL_KEYS = ("trunk", "transform", "embedder", "optimizer", "schedule")
_NOT_OF_THE_TRIAL = ("stage", "fold", "evaluation", "trainer", "keep_models", "data_root")
_PLACES = ("root", "csv", "archive")
"""Where a dataset lies does not change what it is."""
_UNNAMED_BATCH_SIZE = 32
"""The batch size of the paper's three benchmarks that carry the dataset's name alone."""
_NOT_SETTINGS = ("study", "output_root", "search_space", "hydra")


def trial_settings(cfg: DictConfig, *, is_sweep_job: bool) -> TrialSettings:
    """Reads and checks the configuration of one job.

    Args:
        cfg: As Hydra composed it.
        is_sweep_job: Whether a sweeper started the job: then `stage=train` is a search, which cannot reach the
            test classes.

    Raises:
        ConfigError: A key is missing, or a value out of range; the message names it.
    """
    values = _resolved(cfg, [str(key) for key in cfg if key not in _NOT_SETTINGS])
    if is_sweep_job and values.get("stage") == "train":
        values["stage"] = "search"
    return read(TrialSettings, values)


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a trial's settings that decides its figures; two runs with the same one are the same run.

    Places of files, hardware, the choice of folds and the stage are left out; precision is not.
    """
    values = {key: value for key, value in settings.items() if key not in _NOT_OF_THE_TRIAL}
    dataset = dict(values["dataset"])
    dataset["images"] = {key: value for key, value in dataset["images"].items() if key not in _PLACES}
    return {
        **values,
        "dataset": dataset,
        "trunk": _without_folders(values["trunk"]),
        "precision": settings["trainer"]["precision"],
    }


def register_resolvers() -> None:
    """Makes the interpolations of `conf/train.yaml` available; call before Hydra composes."""
    resolvers = {
        "mlrc.benchmark": _benchmark,
        "mlrc.protocol_id": _protocol_id,
        "mlrc.trial_id": _trial_id,
        "mlrc.search_space": _search_space,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def config_folder() -> Path:
    """Returns the folder of the YAML files: beside the package in a clone, inside it in an installed wheel."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def _benchmark(*, _root_: DictConfig) -> str:
    name, batch_size = _root_.dataset.name, _root_.batch_size
    return name if batch_size == _UNNAMED_BATCH_SIZE else f"{name}_batch{batch_size}"


def _protocol_id(*, _root_: DictConfig) -> str:
    """Names trunk, transform, embedder, optimizer and schedule; the dataset's own schedule counts as no deviation."""
    values = _resolved(_root_, _PROTOCOL_KEYS)
    dataset = _root_.dataset
    schedule = {k: "dataset" if k in dataset and dataset[k] == v else v for k, v in values["schedule"].items()}
    values = {**values, "schedule": schedule, "trunk": _without_folders(values["trunk"])}
    return f"{PROTOCOL}-{values['trunk']['name']}-{_digest(values)}"


def _trial_id(*, _root_: DictConfig) -> str:
    keys = [str(key) for key in _root_ if key not in (*_NOT_SETTINGS, "protocol")]
    return _digest(identity(_resolved(_root_, keys)))


def _search_space(*, _root_: DictConfig) -> Any:
    loss = OmegaConf.to_container(_root_.loss, resolve=True)
    assert isinstance(loss, dict)
    own = loss["search_space"]
    space = own or search_space(
        loss["paper_name"], _root_.dataset.paper_setting, _root_.batch_size, loss["parameter_names"]
    )
    return OmegaConf.create({key: dict(value) for key, value in space.items()})


def _resolved(cfg: DictConfig, keys: Iterable[str]) -> dict[str, Any]:
    missing = _first_missing(cfg, keys)
    if missing is not None:
        raise ConfigError(f"{missing}: expected a value, found none. Give one on the command line: {missing}=…")
    values = {key: cfg[key] for key in keys}
    return {
        key: OmegaConf.to_container(value, resolve=True) if isinstance(value, Container) else value
        for key, value in values.items()
    }


def _first_missing(node: Container, keys: Iterable[Any], path: str = "") -> str | None:
    """Returns the dotted key of a `???`, where there is one."""
    for key in keys:
        name = f"{path}.{key}" if path else str(key)
        if OmegaConf.is_missing(node, key):
            return name
        if not OmegaConf.is_interpolation(node, key) and isinstance(node[key], DictConfig):
            missing = _first_missing(node[key], list(node[key]), name)
            if missing is not None:
                return missing
    return None


def _without_folders(trunk: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the trunk's settings with a weight file named without its folder."""

    def short(value: Any) -> Any:
        return Path(value).name if isinstance(value, str) and "/" in value else value

    return {
        key: {k: short(v) for k, v in value.items()} if isinstance(value, dict) else short(value)
        for key, value in trunk.items()
    }


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]
