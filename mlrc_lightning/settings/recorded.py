"""From the record of a run back to settings that can be built. A record says what, the user says where."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.files import config_folder
from mlrc_lightning.reading import leaves, read, require_name, suggestion
from mlrc_lightning.results.records import TrialRecord
from mlrc_lightning.settings.types import TrialSettings

CONFIG_FOLDERS = "MLRC_CONFIG_DIR"
"""Names configuration folders of the user, as PATH names folders, beside those of --config-dir."""
_TARGET = "_target_"
_NODES = (
    "dataset.images", "split.splitter", "trunk.model", "loss.function", "loss.miner", "optimizer", "scheduler.model",
    "scheduler.loss", "sampler",
)  # fmt: skip
"""Keys of the classes that are built, with arguments that no type describes."""
_IMAGES = "dataset.images"
_PLACES = ("root", "csv")
_ORIGINS = ("archive", "mirrors", "download")
"""Arguments of images that say how the files come to be there."""
_SPEED = {"num_workers": 0, "checkpoint_every_n_iterations": None, "parallel_folds": 1}
"""Settings of the trainer that decide no figure."""
_NEWER = {"channels_last": False, "compile": False}
"""Settings of the trainer that some records lack."""
_LARGEST = 2**64


def recorded_settings(
    record: TrialRecord,
    config_folders: Iterable[Path] = (),
    overrides: Iterable[str] = (),
    *,
    needs_weights: bool = True,
) -> TrialSettings:
    """Returns the settings of a run: what decides figures from the record, where files lie from the user.

    A record is a file that may come from anywhere, and building its settings calls what it names. Only classes that
    our own configuration or the user's names are called. Data roots, tables, weights and loggers are those of that
    configuration, or of the overrides. No setting starts a download.

    Args:
        record: The record of the run.
        config_folders: The user's folders, as given to train.py by --config-dir, beside those in `MLRC_CONFIG_DIR`.
        overrides: `KEY=VALUE` of places and of the hardware: data_root, dataset.images.root, trunk.pretrained,
            trainer.accelerator, and the like.
        needs_weights: Whether the pretrained weights of a trunk that trains are needed.

    Raises:
        ConfigError: The record names another class, has a value of another type or range, or needs a place that
            is not given; the message prints the override.
    """
    ours, theirs = _contents([config_folder()]), _contents(_named_folders(config_folders))
    values = _copied(record.settings)
    _check(values, _targets([*ours, *theirs]))
    # newer than some records
    values = {"run": record.run, "root_seed": record.root_seed or record.seed, **values}
    for key in ("dataset", "trunk", "trainer"):
        if not isinstance(values.get(key), dict):
            raise ConfigError(f"{key}: expected a mapping in the record, found {values.get(key)!r}.")
    given = _Given(overrides)
    values["data_root"] = given.take("data_root", str(OmegaConf.load(config_folder() / "train.yaml").data_root))
    values["trainer"] = {**_NEWER, **values["trainer"], **_SPEED, **given.take_all("trainer.")}
    if str(values["trainer"].get("devices")).strip(",").isdigit() and isinstance(values["trainer"]["devices"], str):
        values["trainer"]["devices"] = 1  # the number of a GPU there
    _place_weights(values["trunk"], given, needs_weights)
    context = {"data_root": values["data_root"], "dataset": {"download": False}, "trunk": {}}
    for key in ("dataset", "trunk"):
        require_name(f"{key}.name", values[key].get("name"))
        context[key]["name"] = values[key]["name"]
    context["trunk"]["pretrained"] = values["trunk"]["pretrained"]
    for path in _NODES:
        group, _, key = path.partition(".")
        parent: Any = values.get(group) if key else values
        if isinstance(parent, dict) and isinstance(node := parent.get(key or group), dict):
            name = parent.get("name") if key else None
            parent[key or group] = _placed(node, path, _configured(ours, theirs, path, node, name, context), given)
    if isinstance(logger := values.get("logger"), dict):
        values["logger"] = _configured(ours, theirs, "logger", logger, None, context) or None
    else:
        values["logger"] = None
    given.refuse_others()
    return read(TrialSettings, values)


def trusted_targets(folders: Iterable[Path]) -> dict[str, set[str]]:
    """Returns every `_target_` in the YAML files of some folders, by the group that may have it.

    Raises:
        ConfigError: A folder is not there, or a file in it is no YAML.
    """
    return _targets(_contents(folders))


def _targets(contents: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for content in contents:
        for key, value in leaves(content):
            if key.rpartition(".")[2] == _TARGET and isinstance(value, str):
                found.setdefault(key.partition(".")[0], set()).add(value)
    return found


def _named_folders(given: Iterable[Path]) -> list[Path]:
    named = [Path(name) for name in os.environ.get(CONFIG_FOLDERS, "").split(os.pathsep) if name]
    return [*named, *given]


def _contents(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Returns each file's content below the key where Hydra puts it: its group's, or what its header says."""
    contents = []
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {folder}: expected a folder of YAML files, found none.")
        for path in sorted(folder.rglob("*.yaml")):
            try:
                text = path.read_text(encoding="utf-8")
                content = yaml.safe_load(text)
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path}: expected YAML, found something else ({error}).") from None
            header = re.search(r"^# @package (\S+)", text, re.MULTILINE)
            parts = path.relative_to(folder).parts
            package = header[1] if header else (parts[0] if len(parts) > 1 else "_global_")
            contents.append((content or {}) if package == "_global_" else {package: content})
    return contents


def _copied(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _copied(value) for key, value in node.items()}
    return [_copied(value) for value in node] if isinstance(node, list | tuple) else node


def _check(settings: Mapping[str, Any], trusted: Mapping[str, set[str]]) -> None:
    for path, value in leaves(settings):
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{path}={value}: expected a plain value in a record, found an interpolation.")
        if isinstance(value, str) and not value.isprintable():
            raise ConfigError(f"{path}={value!r}: expected printable text in a record.")
        if isinstance(value, int) and not -_LARGEST < value < _LARGEST:
            raise ConfigError(f"{path}: expected a number below 2^64, found one of {value.bit_length()} bits.")
        is_known = path.rpartition(".")[2] == _TARGET and value in trusted.get(path.partition(".")[0], ())
        if _TARGET in path and not is_known:
            raise ConfigError(
                f"{path}={value}: the record names a class that no file of {config_folder()} names there, and it is"
                " not called. If you know it, give the folder of your own configuration that names it:"
                " --config-dir FOLDER."
            )


class _Given:
    """What the user gave, each taken once.

    Args:
        overrides: `KEY=VALUE`.
    """

    def __init__(self, overrides: Iterable[str]) -> None:
        self._values = dict(override.split("=", 1) for override in overrides)
        self._asked = {"data_root", "trunk.pretrained", "trainer.accelerator"}

    def take(self, key: str, otherwise: Any) -> Any:
        """Returns the text that was given for a key."""
        self._asked.add(key)
        return self._values.pop(key, otherwise)

    def has(self, key: str) -> bool:
        return key in self._values

    def take_all(self, prefix: str) -> dict[str, Any]:
        """Returns all values below a key, read as YAML."""
        keys = [key for key in self._values if key.startswith(prefix)]
        return {key.removeprefix(prefix): yaml.safe_load(self._values.pop(key)) for key in keys}

    def refuse_others(self) -> None:
        for key in self._values:
            raise ConfigError(
                f"{key}: expected a place or a key of the trainer, because a run's record says all else."
                f"{suggestion(key, self._asked)}"
            )


def _place_weights(trunk: dict[str, Any], given: _Given, needs_weights: bool) -> None:
    recorded = trunk.get("pretrained")
    pretrained: Any = False
    if given.has("trunk.pretrained"):
        text = given.take("trunk.pretrained", None)
        pretrained = {"true": True, "false": False}.get(text.lower(), text)
    elif recorded is not False and (needs_weights or trunk.get("frozen")):
        file = "FILE" if not isinstance(recorded, str) else shlex.quote(recorded)
        raise ConfigError(
            f"trunk.pretrained={recorded!r}: the run began with pretrained weights, and a record neither starts a"
            f" download nor names a file here. Give trunk.pretrained={file}, or trunk.pretrained=true for the"
            " published weights, which may be downloaded."
        )
    trunk["pretrained"] = pretrained
    if isinstance(trunk.get("model"), dict) and "pretrained" in trunk["model"]:
        trunk["model"]["pretrained"] = pretrained


def _configured(
    ours: Iterable[Mapping[str, Any]],
    theirs: Iterable[Mapping[str, Any]],
    path: str,
    node: Mapping[str, Any],
    name: object,
    context: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns what the configuration gives to the same class: any file of ours, and the user's files of that name."""
    group, _, key = path.partition(".")
    found: dict[str, Any] = {}
    for contents, is_ours in ((ours, True), (theirs, False)):
        for content in contents:
            part = content.get(group)
            there = part.get(key) if key and isinstance(part, dict) else part
            if not isinstance(there, dict) or not isinstance(part, dict):
                continue
            is_same = there.get(_TARGET) == node.get(_TARGET) and (is_ours or not key)
            if is_same or (bool(key) and part.get("name") == name):
                found |= _resolved({group: part}, path, context)
    return found


def _resolved(content: Mapping[str, Any], path: str, context: Mapping[str, Any]) -> dict[str, Any]:
    config = OmegaConf.merge(OmegaConf.create(dict(content)), OmegaConf.create(dict(context)))
    values: dict[str, Any] = {}
    node = OmegaConf.select(config, path)
    for key in node:
        try:
            value = node[key]
        except OmegaConfBaseException:
            continue  # of what only a whole configuration knows
        values[str(key)] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return values


def _placed(node: Mapping[str, Any], path: str, configured: Mapping[str, Any], given: _Given) -> dict[str, Any]:
    """Returns the arguments of a class with each place of the user's in the place of the record's."""
    placed: dict[str, Any] = {}
    for key, value in node.items():
        whole = f"{path}.{key}"
        if path == "trunk.model" and key == "pretrained":
            placed[key] = value  # it is the user's already
        elif path == _IMAGES and key in _ORIGINS:
            placed[key] = False if key == "download" else configured.get(key)
        elif given.has(whole) and (value is None or isinstance(value, str)):
            placed[key] = given.take(whole, None)
        elif (path == _IMAGES and key in _PLACES) or _is_place(value) or _is_place(configured.get(key)):
            placed[key] = _place(whole, value, configured.get(key))
        else:
            for inner, leaf in leaves(value, whole):
                is_image_place = path == _IMAGES and inner.rpartition(".")[2] in (*_PLACES, *_ORIGINS)
                if is_image_place or _is_place(leaf):
                    raise ConfigError(
                        f"{inner}={leaf!r}: a record says what, and not where. This place inside of {whole} has no"
                        " override. Name it in your own configuration, and run train.py with it."
                    )
            placed[key] = value
    return placed


def _place(key: str, recorded: object, configured: object) -> object:
    if recorded is None or (isinstance(configured, str) and Path(configured).exists()):
        return configured
    there = "" if configured is None else f" At {configured}, where the configuration looks, is nothing."
    quoted = shlex.quote(f"{key}={recorded}")
    ways = " or --data-root FOLDER" if isinstance(configured, str) else ""
    raise ConfigError(
        f"{key}: a record says what, and not where.{there} Give {quoted} if it is what the record says, or another"
        f" {key}=PATH{ways}."
    )


def _is_place(value: object) -> bool:
    """Returns whether text is a path or an address, and no name."""
    is_text = isinstance(value, str) and not (value.startswith("<") and value.endswith(">"))
    return is_text and (bool(re.search(r"[/\\:]", str(value))) or str(value).startswith(("~", "..")))
