"""From a composed Hydra configuration to `TrialSettings`: where OmegaConf ends. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.files import config_folder
from mlrc_lightning.reading import read
from mlrc_lightning.settings.identity import _NOT_SETTINGS, seed_of_run
from mlrc_lightning.settings.plain import _resolved
from mlrc_lightning.settings.resolvers import _run_set, register_resolvers
from mlrc_lightning.settings.types import ALL_FOLDS, RUN_STAGES, TrialSettings


def trial_settings(cfg: DictConfig, *, is_sweep_job: bool, run: int | None = None) -> TrialSettings:
    """Reads and checks the configuration of one job.

    Args:
        cfg: As Hydra composed it.
        is_sweep_job: Whether a sweeper started the job: then `stage=train` is a search, which cannot reach the
            test classes.
        run: Number of the run, in the place of the configuration's.

    Raises:
        ConfigError: A key is missing, or a value out of range; the message names it.
    """
    values = _resolved(cfg, [str(key) for key in cfg if key not in _NOT_SETTINGS])
    if isinstance(values.get("dataset"), dict):
        values["dataset"].pop("download", None)  # what it says is in dataset.images.download
    if is_sweep_job and values.get("stage") == "train":
        values["stage"] = "search"
    for key in ("hyperparameters", "seed", "run", "stage", "dataset"):
        if key not in values or (values[key] is None and key != "run"):
            raise ConfigError(f"{key}: expected a value, found none.")
    if isinstance(values["hyperparameters"], dict):
        values["hyperparameters"].pop("allow_unfinished", None)
    values["root_seed"] = values["seed"]
    values["run"] = values["run"] if run is None else run
    if values["stage"] in RUN_STAGES and isinstance(values["run"], int) and values["run"] >= 0:
        _check_run_set(cfg)
        if not isinstance(values["seed"], int) or isinstance(values["seed"], bool) or values["seed"] < 0:
            raise ConfigError(f"seed={values['seed']!r}: expected >= 0.")
        values["seed"] = seed_of_run(values["seed"], values["run"])
    settings = read(TrialSettings, values)
    rate, papers_rate = settings.trunk.learning_rate, _papers_rate()
    if settings.trunk.frozen and rate <= papers_rate:
        raise ConfigError(
            f"trunk.learning_rate={rate!r}: expected more than the paper's {papers_rate} with trunk.frozen=true, which"
            " moves no embedder alone; say 1e-4."
        )
    return settings


_CHOICES = {"batch": ("batch_size", r"b(\d+)"), "folds": ("fold", r"f(\d+)")}


def check_choices(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuses an option of the groups `batch` and `folds` that the command line names and another value replaces.

    Args:
        cfg: As Hydra composed it.
        overrides: Of the command line, as Hydra tells them.

    Raises:
        ConfigError: The batch size or the folds are not those of the option.
    """
    for override in overrides:
        group, _, option = override.partition("=")
        if group in _CHOICES:
            key, form = _CHOICES[group]
            number = re.fullmatch(form, option)
            expected = int(number[1]) if number else option
            if (number or option == ALL_FOLDS) and cfg[key] != expected:
                raise ConfigError(
                    f"{override}: expected {key}={expected}, found {key}={cfg[key]} from another override or an"
                    f" experiment. Leave one of them out."
                )


@cache
def _papers_rate() -> float:
    """Returns the learning rate of trunk and embedder, §1.2."""
    return float(OmegaConf.load(config_folder() / "trunk" / "bn_inception.yaml").learning_rate)


def prepare_hydra() -> None:
    """Makes the interpolations of `conf/train.yaml` available, and Hydra quick. Call before `hydra.main` runs.

    Each time that Hydra lists a config group it deep-copies its one ConfigStore with all that plugins stored there:
    0.5 s of `--help`. What the store hands out is a copy anyway.

    Source: hydra-core 1.3.8, `CachingConfigRepository.__init__` and `ConfigStore.load`.
    """
    register_resolvers()
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]


def _check_run_set(cfg: DictConfig) -> None:
    """Refuses a job that is not of the set whose folder it would write to."""
    found = _run_set(_root_=cfg)
    if cfg.run_set != found:
        raise ConfigError(
            f"run_set={cfg.run_set}: expected {found}. The runs of one set differ in their number alone: sweep over"
            " nothing but loss, dataset, batch_size and hyperparameters. Where a search has gone on since and found"
            " another best setting, repeat the command, which begins a set of its own."
        )
