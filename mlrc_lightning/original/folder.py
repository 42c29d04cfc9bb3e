"""Reads the configuration of an experiment folder of the original program."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mlrc_lightning.errors import ConfigError, RecordError
from mlrc_lightning.files import read_bytes
from mlrc_lightning.reading import shortened

NUM_FOLDS = 4
"""Folds of the original's experiments (§1.6). Ours are `split.num_folds`."""
CATEGORIES = (
    "config_dataset",
    "config_eval",
    "config_factories",
    "config_general",
    "config_loss_and_miners",
    "config_models",
    "config_optimizers",
    "config_transforms",
)
"""Files of a folder, in the order in which the original reads them: the last one that has a key counts."""
_CONFIG_FOLDERS = ("configs", "original_configs")  # of an experiment; of a whole Bayesian search
_PARAMETER_FILES = ("bayes_opt_parameters.yaml", "best_parameters.yaml")  # of a trial; of a whole search
_CONFIG_DIFFS = "resume_training_config_diffs_"
_KEYWORD = re.compile(r"^(?P<key>.*?)~(?P<word>[A-Z_]+)~(?P<depth>\d{0,3})$")
_KEYWORDS = ("OVERRIDE", "APPLY", "SWAP", "DELETE")
_SEARCHES = ("BAYESIAN", "LOG_BAYESIAN", "INT_BAYESIAN")
_MISSING = object()


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_WHOLE_NUMBERS = (
    *("num_bins", "centers_per_class", "m", "batch_size", "iterations_per_epoch"),
    *("num_epochs_train", "save_interval", "patience", "size", "layer_sizes"),
)


@dataclass(frozen=True)
class Unmapped:
    """One entry of a folder without a counterpart.

    Attributes:
        key: Its place in the original's words, levels separated by slashes.
        value: As the folder has it.
        instead: What is done instead.
    """

    key: str
    value: object
    instead: str

    def __str__(self) -> str:
        return f"{self.key}: {self.instead}" if self.value is None else f"{self.key}: {self.value!r}: {self.instead}"


class _Mapping:
    """The translation under way: what of the folder is still to be read, and what came out so far."""

    def __init__(self, folder: Path, given: Sequence[str]) -> None:
        self.folder = folder
        self.config: dict[str, Any] = {}
        self.overrides: dict[str, str] = {}
        self.unmapped: list[Unmapped] = []
        self._given = {override.lstrip("+~").split("=", 1)[0] for override in given}

    def is_given(self, key: str) -> bool:
        """Returns whether the user gives a key, or one above it."""
        return any(key == given or key.startswith(f"{given}.") for given in self._given)

    def set(self, key: str, value: object, prefix: str = "") -> None:
        """Adds an override, unless the user gives its key."""
        if not self.is_given(key):
            self.overrides[key] = f"{prefix}{key}={_in_hydra_syntax(value)}"

    def remove(self, key: str) -> None:
        """Adds an override that removes a key."""
        if not self.is_given(key):
            self.overrides[key] = f"~{key}"

    def drop(self, key: str, value: object, instead: str) -> None:
        """Notes an entry without a counterpart."""
        self.unmapped.append(Unmapped(key, value, instead))

    def require(self, holds: bool, key: str, value: object, expected: str, cure: str) -> bool:
        """Returns whether an entry that decides the results has a counterpart.

        Args:
            holds: Whether it has.
            key: Of the entry.
            value: Of the entry.
            expected: What would have one.
            cure: Key of the override that takes its place.

        Raises:
            ConfigError: It has none, and the user gives none.
        """
        if holds:
            return True
        if not self.is_given(cure):
            raise ConfigError(
                f"{self.folder}: {key}: {value!r} has no counterpart here: expected {expected}."
                f" Give what shall be taken instead: {cure}=…"
            )
        self.drop(key, value, f"{cure} as given")
        return False

    def number(self, key: str, value: object, ours: str, prefix: str = "") -> None:
        """Adds the override of a number. A search space has none, and is an error."""
        if isinstance(value, _Bounds):
            expected = f"a number, or one for it in {' or '.join(_PARAMETER_FILES)} beside configs/"
            self.require(False, f"{key}~{value.keyword}~", value.bounds, expected, ours)
            return
        found = _number(value)
        if self.require(found is not None, key, value, "a number", ours):
            assert found is not None
            self.set(ours, int(found) if key.rsplit("/", 1)[-1] in _WHOLE_NUMBERS else float(found), prefix)

    def neutral(self, node: dict[str, Any], path: str, key: str, allowed: tuple[Any, ...], instead: str) -> None:
        """Takes out an entry that says what holds here anyway. It notes it where it says something else."""
        value = node.pop(key, _MISSING)
        if value is not _MISSING and value not in allowed:
            self.drop(f"{path}/{key}" if path else key, value, instead)

    def single(self, node: Any, path: str, expected: str, cure: str) -> tuple[str, dict[str, Any]] | None:
        """Reads the original's notation of an object, {Class: {arguments}}. It is None where the user gives another."""
        is_one = isinstance(node, dict) and len(node) == 1 and isinstance(next(iter(node.values())), dict | None)
        if not self.require(is_one, path, node, expected, cure):
            return None
        name, arguments = next(iter(node.items()))
        return str(name), dict(arguments or {})

    def rest(self, arguments: Mapping[str, Any], path: str) -> None:
        """Notes what is left of an object's arguments."""
        for key, value in arguments.items():
            self.drop(f"{path}/{key}", _plain(value), "not known here, left out")

    def fill_search_parameters(self) -> None:
        """Puts the values of a search's trial in the place of the bounds that they were drawn from."""
        for name in _PARAMETER_FILES:
            path = self.folder / name
            if not path.is_file():
                continue
            content = _read_yaml(path)
            for place, value in content.get("best_parameters", content).items():
                node: Any = self.config
                *above, last = str(place).split("/")
                for key in above:
                    node = node.get(key) if isinstance(node, dict) else None
                found = node.get(last, _MISSING) if isinstance(node, dict) else _MISSING
                if isinstance(found, _Bounds):
                    assert isinstance(node, dict)
                    node[last] = value
                elif found is _MISSING:
                    self.drop(f"{name}: {place}", value, "no such entry in configs/, left out")
                elif found != value:
                    self.drop(f"{name}: {place}", value, f"configs/ has {found!r}, which is taken")
            return


@dataclass(frozen=True)
class _Bounds:
    """The bounds of a searched parameter, and by which keyword it was searched."""

    bounds: Any
    keyword: str


# reading and merging


def _configs(folder: Path) -> Path | None:
    for name in _CONFIG_FOLDERS:
        if any((folder / name).glob("*.yaml")):
            return folder / name
    return None


def _merged(configs: Path, mapping: _Mapping) -> dict[str, Any]:
    """Reads all files of a folder into one mapping, their keywords carried out on the original's defaults.

    As `--reproduce_results` does: a plain key replaces the default as a whole.
    """
    merged: dict[str, Any] = {}
    for category in CATEGORIES:
        path = configs / f"{category}.yaml"
        if not path.is_file():
            mapping.drop(f"{configs.name}/{path.name}", None, "no such file, the original's defaults are taken")
            continue
        for key, value in _read_yaml(path).items():
            found = _KEYWORD.match(str(key))
            if found is None and not _has_keyword(value):
                merged |= _changed({}, {key: value}, path)
                continue
            name = str(key) if found is None else found["key"]
            if name not in merged and name in _defaults()[category]:
                merged[name] = copy.deepcopy(_defaults()[category][name])
            merged = _changed(merged, {key: value}, path)
            if found is not None and found["word"] == "DELETE":
                merged[name] = None  # and no default in its place
    for other in sorted(configs.glob("*.yaml")):
        if other.stem not in (*CATEGORIES, "config_foldernames"):
            mapping.drop(f"{configs.name}/{other.name}", None, "not a file of the original, left out")
    for diffs in sorted(configs.glob(f"{_CONFIG_DIFFS}*")):
        epochs = diffs.name.removeprefix(_CONFIG_DIFFS).replace("_", ", ")
        changed = {str(k): v for p in sorted(diffs.glob("*.yaml")) for k, v in _read_yaml(p).items()}
        mapping.drop(
            f"{configs.name}/{diffs.name}",
            changed,
            f"training went on with these from epoch {epochs} of its folds; here the first settings hold to the end",
        )
    return merged


def _changed(base: Mapping[str, Any], changes: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Carries out a mapping with keywords on another, at any depth and in their order.

    Source: powerful-benchmarker docs/cl_syntax.md.
    """
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        found = _KEYWORD.match(str(key))
        if found is None:
            old = result.get(key)
            if isinstance(value, dict):
                result[key] = _changed(old if isinstance(old, dict) else {}, value, path)
            else:
                result[key] = copy.deepcopy(value)
            continue
        name, word, depth = found["key"], found["word"], int(found["depth"] or 1)
        if word in _SEARCHES:
            result[name] = _Bounds(value, word)
        elif word == "OVERRIDE":
            result[name] = _changed({}, value, path) if isinstance(value, dict) else value
        elif word == "DELETE":
            result.pop(name, None)
        elif word in ("APPLY", "SWAP"):
            targets = _at_depth(result.get(name), depth)
            if not targets or not isinstance(value, dict):
                raise ConfigError(f"{path}: {key}: expected mappings at depth {depth} of {name!r}, found none.")
            for target in targets:
                after = _changed(target, value, path) if word == "APPLY" else _swapped(target, value, f"{path}: {key}")
                target.clear()
                target.update(after)
        else:
            known = ", ".join(f"~{word}~" for word in (*_KEYWORDS, *_SEARCHES))
            raise ConfigError(f"{path}: {key}: expected one of the original's keywords, {known}, found ~{word}~.")
    return result


def _swapped(target: Mapping[str, Any], names: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Renames the only key, {New: …}, or the one named, {Old: New}. Its value stays."""
    pairs = {old: new for old, new in names.items() if isinstance(new, str)}
    if not pairs:
        if len(target) != 1 or len(names) != 1:
            raise ConfigError(f"{where}: expected one key to rename, found {', '.join(target)}. Write {{Old: New}}.")
        pairs = {next(iter(target)): next(iter(names))}
    if not pairs.keys() <= target.keys():
        raise ConfigError(f"{where}: expected keys among {', '.join(target)}, found {', '.join(pairs)}.")
    return {pairs.get(key, key): value for key, value in target.items()}


def _at_depth(node: Any, depth: int) -> list[dict[str, Any]]:
    """Returns all mappings at a depth. The value of a key is at depth 1."""
    if not isinstance(node, dict):
        return []
    return [node] if depth <= 1 else [found for child in node.values() for found in _at_depth(child, depth - 1)]


def _has_keyword(node: Any) -> bool:
    """Returns whether nested mappings change something. The bounds of a search change nothing."""
    if not isinstance(node, dict):
        return False
    words = [found["word"] for key in node if (found := _KEYWORD.match(str(key)))]
    return any(word not in _SEARCHES for word in words) or any(map(_has_keyword, node.values()))


_LARGEST_FILE, _DEEPEST, _MOST_ALIASES = 10**6, 32, 20


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = read_bytes(path, _LARGEST_FILE).decode()
        _check_events(text)
        content = yaml.safe_load(text)
    except RecordError as error:
        raise ConfigError(str(error)) from None
    except (yaml.YAMLError, ValueError) as error:  # numbers of thousands of digits are ValueErrors
        raise ConfigError(f"{path}: expected plain YAML, found something else ({error}).") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping, found {shortened(content)}.")
    return content or {}


def _check_events(text: str) -> None:
    """Refuses what takes more time or memory than the file is long, before anything is made of it.

    Raises:
        ValueError: It is nested too deeply, has too many aliases, or one of a node inside of itself.
    """
    open_anchors: list[str | None] = []
    num_aliases = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append(event.anchor)
            if len(open_anchors) > _DEEPEST:
                raise ValueError(f"more than {_DEEPEST} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            open_anchors.pop()
        elif isinstance(event, yaml.AliasEvent):
            num_aliases += 1
            if num_aliases > _MOST_ALIASES or event.anchor in open_anchors:
                raise ValueError(f"more than {_MOST_ALIASES} aliases, or one of a node inside of itself")


@cache
def _defaults() -> dict[str, Any]:
    text = resources.files("mlrc_lightning.reference").joinpath("original_defaults.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def _fill_in_defaults(mapping: _Mapping, files: Sequence[str]) -> None:
    for category in CATEGORIES:
        for key, value in _defaults()[category].items():
            if key in mapping.config:
                continue
            mapping.config[key] = copy.deepcopy(value)
            if category in files and value:
                mapping.drop(key, None, f"not in {category}.yaml, the original's default is taken: {value}")


def _to_new_keys(config: dict[str, Any]) -> None:
    """Writes the keys of the paper's time as those of 0.9.33: trainer, tester, split manager in one level each."""

    def moved(names: Mapping[str, str]) -> dict[str, Any]:
        return {new: config.pop(old) for old, new in names.items() if old in config}

    trainer = "training_method"
    arguments = ("iterations_per_epoch", "batch_size", "freeze_trunk_batchnorm", "dataloader_num_workers")
    if trainer in config or any(key in config for key in (*arguments, "freeze_batchnorm")):
        name = config.pop(trainer, "MetricLossOnly")
        values = moved({**_same(*arguments, "loss_weights"), "freeze_batchnorm": "freeze_trunk_batchnorm"})
        config.setdefault("trainer", {name: {}})
        for of_class in config["trainer"].values():
            of_class |= values
    tests = ("reference_set", "normalize_embeddings", "use_trunk_output", "batch_size", "dataloader_num_workers")
    values = moved({f"eval_{key}": key for key in (*tests, "pca", "size_of_tsne", "accuracy_calculator")})
    if values or "testing_method" in config:
        config["tester"] = {config.pop("testing_method", "GlobalEmbeddingSpaceTester"): values}
    if "meta_testing_method" in config:
        config["ensemble"] = {config.pop("meta_testing_method"): {}}
    if "eval_primary_metric" in config:
        config["hook_container"] = {"HookContainer": {"primary_metric": config.pop("eval_primary_metric")}}
    splits = _same("test_size", "test_start_idx", "num_training_partitions", "num_training_sets")
    values = moved(splits)
    if values:
        config["split_manager"] = {"MLRCSplitManager": values}  # the arithmetic of that time, §1.6


# values


def _number(value: object) -> float | int | None:
    """Returns a number, or None for anything else. YAML 1.1 reads 1e-6, without a point, as text."""
    if isinstance(value, str):
        try:
            return float(value) if not value.strip().lstrip("+-").isdigit() else int(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _in_hydra_syntax(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_in_hydra_syntax(item) for item in value)}]"
    return str(value)


def _plain(node: Any) -> Any:
    """Returns nested values with bounds as the folder has them, for messages."""
    if isinstance(node, dict):
        return {
            f"{key}~{value.keyword}~" if isinstance(value, _Bounds) else key: _plain(value)
            for key, value in node.items()
        }
    if isinstance(node, _Bounds):
        return node.bounds
    return None if node is _MISSING else node
