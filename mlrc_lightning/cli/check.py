"""Refuses a command before Hydra makes its folder, and removes the folder of one that is refused later."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from mlrc_lightning.cli.errors import USAGE_ERROR, exit_if_usage_error, is_usage_error, wants_traceback
from mlrc_lightning.errors import ConfigError, RecordError
from mlrc_lightning.files import only_writer
from mlrc_lightning.names import UNTRAINED
from mlrc_lightning.reading import require_name
from mlrc_lightning.settings.compose import trial_settings

_RESULTS = (".json", ".pt", ".safetensors")
_new_folders: dict[Path, list[Path]] = {}
"""The folder of this command where it was not there, with those above it that were not there either, from below."""


class CheckFirst(Callback):
    """Checks the configuration of a command before anything is made. Hydra calls it."""

    def on_run_start(self, config: Any, **_: Any) -> None:
        """Checks a single trial."""
        _or_exit(config, is_sweep=False)

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Checks a search, or a set of runs, as far as nothing is swept."""
        _or_exit(config, is_sweep=True)


def remove_refused() -> None:
    """Removes the folder that a refused command has made, where it holds no result and nobody works in it."""
    for folder, above in _new_folders.items():
        if not folder.is_dir() or folder.is_symlink() or any(folder.rglob("search.lock")):
            continue
        if any(path.suffix in _RESULTS for path in folder.rglob("fold_*/**/*")):
            continue
        try:
            with only_writer(folder):
                shutil.rmtree(folder, ignore_errors=True)
        except (RecordError, OSError):
            continue
        for parent in above:
            with contextlib.suppress(OSError):  # it is not empty
                parent.rmdir()


def _or_exit(config: Any, *, is_sweep: bool) -> None:
    # Hydra turns an exception of a callback into a warning, but not the end of the program
    try:
        _check(config, is_sweep=is_sweep)
    except Exception as error:
        if not is_usage_error(error):
            raise
        if not wants_traceback():
            exit_if_usage_error(error)
        traceback.print_exc()
        sys.exit(USAGE_ERROR)


def _check(config: Any, *, is_sweep: bool) -> None:
    for key in ("output_root", "data_root"):
        if not isinstance(config.get(key), str) or not config[key].strip():
            raise ConfigError(f"{key}={config.get(key)!r}: expected a folder. For the current one give {key}=.")
    for key in ("num_runs", "max_trials"):
        if not isinstance(config.get(key), int) or isinstance(config[key], bool) or config[key] < 1:
            raise ConfigError(f"{key}={config.get(key)!r}: expected 1 or more.")
    require_name("sweep_name", config.get("sweep_name"))
    swept = [text for text in config.hydra.overrides.task if _is_sweep(text)] if is_sweep else []
    if not swept:
        # of numbered runs any one, since the others differ in their seed alone
        run = 0 if config.run is None and (is_sweep or config.stage == UNTRAINED) else config.run
        trial_settings(config, is_sweep_job=is_sweep, run=run if config.stage in ("reproduce", UNTRAINED) else None)
    key = "sweep" if is_sweep else "run"
    try:
        folder = Path(config.hydra[key].dir)
    except Exception as error:
        if not (swept and is_usage_error(error)):
            raise
        return  # it depends on what is swept, and the sweeper composes that for each search
    _require_room(folder, f"hydra.{key}.dir")
    if not os.path.lexists(folder):
        _new_folders[folder.absolute()] = [path for path in folder.absolute().parents if not os.path.lexists(path)]


def _is_sweep(override: str) -> bool:
    value = override.partition("=")[2]
    return "," in value or "(" in value


def _require_room(folder: Path, key: str) -> None:
    there = next((path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path)), folder)
    if not there.is_dir():
        raise ConfigError(f"{key}={folder}: expected a folder, and {there} is none.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}={folder}: expected a folder that can be written, and {there} cannot be.")
