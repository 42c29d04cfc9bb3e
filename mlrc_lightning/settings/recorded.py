"""From the record of a run back to settings that can be built: nothing that a record names is trusted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.files import config_folder
from mlrc_lightning.reading import leaves, read
from mlrc_lightning.results.records import TrialRecord
from mlrc_lightning.settings.types import TrialSettings

_TARGET = "_target_"


def recorded_settings(
    record: TrialRecord, config_folders: Iterable[Path] = (), data_root: str | None = None
) -> TrialSettings:
    """Returns the settings of a run, with classes alone that our own configuration names, or the user's.

    A record is a file that may come from anywhere, and building its settings calls what it names.

    Args:
        record: Of the run.
        config_folders: Of the user, as given to train.py by --config-dir; the classes in them are trusted too.
        data_root: Where the datasets are here; None: where the record says.

    Raises:
        ConfigError: The record names another class, has an interpolation, or settings of another version.
    """
    trusted = trusted_targets([config_folder(), *config_folders])
    for path, value in leaves(record.settings):
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{path}={value}: expected a plain value in a record, found an interpolation.")
        if _TARGET in path and not (path.rpartition(".")[2] == _TARGET and value in trusted):
            raise ConfigError(
                f"{path}={value}: the record names a class that no file of {config_folder()} names, and it is not"
                " called. If you know it, give the folder of your own configuration that names it: --config-dir FOLDER."
            )
    # newer than some records
    values = {"run": record.run, "root_seed": record.root_seed or record.seed, **record.settings}
    newer = {"channels_last": False, "compile": False, "checkpoint_every_n_iterations": None, "parallel_folds": 1}
    values["trainer"] = {**newer, **values["trainer"]}
    if data_root is not None:
        values["data_root"] = data_root
    return read(TrialSettings, values)


def trusted_targets(folders: Iterable[Path]) -> set[str]:
    """Returns every `_target_` in the YAML files of some folders.

    Raises:
        ConfigError: A folder is not there.
    """
    found: set[str] = set()

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get(_TARGET), str):
                found.add(node[_TARGET])
            for child in node.values():
                collect(child)
        elif isinstance(node, list):
            for child in node:
                collect(child)

    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {folder}: expected a folder of YAML files, found none.")
        for path in sorted(folder.rglob("*.yaml")):
            collect(yaml.safe_load(path.read_text(encoding="utf-8")))
    return found
