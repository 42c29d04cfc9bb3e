"""The interpolations of `conf/train.yaml`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.names import UNTRAINED, setting_name
from mlrc_lightning.settings.best_of_search import search_optimum
from mlrc_lightning.settings.identity import (
    _NOT_OF_THE_TRIAL,
    _NOT_SETTINGS,
    _OPTIONS,
    PROTOCOL,
    _deviations,
    _digest,
    _identity_of,
    _trunk,
    dataset_deviations,
    is_the_papers_split,
)
from mlrc_lightning.settings.paper import Optimum, published_optimum, search_space
from mlrc_lightning.settings.plain import _resolved
from mlrc_lightning.settings.types import FROZEN_PROXY

_PROTOCOL_KEYS = ("trunk", "transform", "embedder", "optimizer", "schedule")


def register_resolvers() -> None:
    """Makes the interpolations of `conf/train.yaml` available. Call before Hydra composes."""
    resolvers: dict[str, Callable[..., Any]] = {
        "mlrc.setting": _setting,
        "mlrc.protocol_id": _protocol_id,
        "mlrc.trial_id": _trial_id,
        "mlrc.run_set": _run_set,
        "mlrc.run_space": _run_space,
        "mlrc.search_space": _search_space,
        "mlrc.search_method": _search_method,
        "mlrc.max_trials": _max_trials,
        "mlrc.paper_or": _paper_or,
        "mlrc.optimum": _optimum_as_config,
        "mlrc.on": _on,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _setting(*, _root_: DictConfig) -> str:
    return setting_name(_root_.dataset.name, _root_.batch_size)


def _protocol_id(*, _root_: DictConfig) -> str:
    """Names trunk, transform, embedder, optimizer, schedule, and the options and the split that are not the protocol's.

    The dataset's own schedule counts as no deviation.
    """
    values = _resolved(_root_, (*_PROTOCOL_KEYS, *_OPTIONS))
    deviations = _deviations({key: values.pop(key) for key in _OPTIONS})
    # of what is evaluated beside, only a patience that begins later changes the training
    if deviations.pop("evaluation", {}).get("check_untrained_accuracy") is False:
        deviations["check_untrained_accuracy"] = False
    dataset = _root_.dataset
    schedule = {k: "dataset" if k in dataset and dataset[k] == v else v for k, v in values["schedule"].items()}
    values = {
        **values,
        **deviations,
        **dataset_deviations(dataset),
        "schedule": schedule,
        "trunk": _trunk(values["trunk"]),
    }
    names = [PROTOCOL, *([FROZEN_PROXY] if "frozen" in values["trunk"] else []), values["trunk"]["name"]]
    split = _resolved(_root_, ["split"])["split"]
    if not is_the_papers_split(split):
        values["split"] = split
        names.append(split["name"])
    return "-".join([*names, _digest(values)])


def _trial_id(*, _root_: DictConfig) -> str:
    return _digest(_identity_of(_root_))


def _run_set(*, _root_: DictConfig) -> str:
    """Names the runs of one setting: where its hyperparameters come from, and a hash of all but the seed."""
    hyperparameters = _root_.hyperparameters
    is_as_found = hyperparameters.name in ("paper", "search") and not hyperparameters.replaced
    source = hyperparameters.name if is_as_found and _root_.stage != UNTRAINED else "given"
    values = _identity_of(_root_)
    del values["seed"]
    return f"{source}-{_digest(values)}"


def _run_space(*, _root_: DictConfig) -> Any:
    """Returns the grid of runs, and their set, which each job compares with its own."""
    if _is_of_several_sets(_root_):
        return OmegaConf.create({})  # each set gets a configuration of its own, with its own loss
    if _root_.run is not None:
        raise ConfigError(
            f"run={_root_.run} with -m: expected null, because -m does all runs from 0 to num_runs-1, those that are"
            " finished excepted. For this run alone, leave -m out."
        )
    if not isinstance(_root_.num_runs, int) or _root_.num_runs < 1:
        raise ConfigError(f"num_runs={_root_.num_runs}: expected 1 or more.")
    return OmegaConf.create(
        {
            "run": {"type": "choice", "values": list(range(_root_.num_runs))},
            "run_set": {"type": "fixed", "value": _root_.run_set},
        }
    )


def _is_of_several_sets(cfg: DictConfig) -> bool:
    """Returns whether the command line makes several sweeps, of losses say.

    This one is the configuration before them.
    """
    overrides = OverridesParser.create().parse_overrides(list(cfg.hydra.overrides.task))
    return any(o.is_sweep_override() and o.key_or_group in cfg.hydra.sweeper.search_per for o in overrides)


def _search_space(*, _root_: DictConfig) -> Any:
    loss = _root_.loss
    space = search_space(loss.paper_name, _root_.dataset.paper_setting, _root_.batch_size, loss.parameter_names)
    return OmegaConf.create(space or OmegaConf.to_container(loss.search_space or OmegaConf.create({}), resolve=True))


def _search_method(*, _root_: DictConfig) -> str:
    """Returns Bayesian, or each point once where the budget exhausts a list (FastAP at batch 32)."""
    num_points = _num_points(_root_)
    return "fast" if num_points is None or num_points > _root_.max_trials else "grid"


def _max_trials(budget: int, *, _root_: DictConfig) -> int:
    num_points = _num_points(_root_)
    return budget if num_points is None else min(budget, num_points)


def _num_points(cfg: DictConfig) -> int | None:
    """Returns how many settings a search space of choices alone has. It is None for any other space."""
    space = cfg.search_space
    if not space or any(entry["type"] != "choice" for entry in space.values()):
        return None
    return math.prod(len(entry["values"]) for entry in space.values())


def _paper_or(parameter: str, default: Any, *, _root_: DictConfig) -> Any:
    """Returns the paper's or the search's value of a hyperparameter where these are chosen, otherwise the default.

    It stands in the loss's YAML in the place of the value, so that whatever replaces that value (the command line, an
    experiment, a sweeper) replaces the paper's as well. The value takes the type of the default. A parameter is named
    as the reference data does, or by its configuration key.
    """
    if _root_.hyperparameters.name not in ("paper", "search"):
        return default
    key = (_root_.loss.parameter_names or {}).get(parameter, parameter)
    value = _optimum(_root_).values.get(key)
    return default if value is None else type(default)(value)


def _optimum_as_config(field: str, *, _root_: DictConfig) -> Any:
    """Returns a field of the `hyperparameters` block: source, published, or replaced."""
    optimum = _optimum(_root_)
    if field == "source":
        return optimum.source
    if field == "published":
        return OmegaConf.create(optimum.values)
    assert field == "replaced"
    found = {key: OmegaConf.select(_root_, key, default=None) for key in optimum.values}
    replaced = [key for key, value in optimum.values.items() if found[key] != value]
    if replaced and _root_.hyperparameters.name == "search":
        key = replaced[0]
        raise ConfigError(
            f"hyperparameters=search: the search has {key}={optimum.values[key]}, the configuration {found[key]}. For"
            " values of your own choose hyperparameters=default, and give them all. In the YAML of a loss of your own,"
            f" write ${{mlrc.paper_or:{key},DEFAULT}} in the place of the default, which takes the search's value."
        )
    return OmegaConf.create(replaced)


def _optimum(cfg: DictConfig) -> Optimum:
    loss = cfg.loss
    if cfg.hyperparameters.name == "search":
        folder = Path(cfg.output_root) / cfg.protocol / cfg.setting / loss.name / cfg.sweep_name
        found = search_optimum(folder, cfg.hyperparameters.allow_unfinished, _search_command(cfg))
        return Optimum(found.source, {k: v for k, v in found.values.items() if _decides_figures(k, v)})
    return published_optimum(loss.paper_name, cfg.dataset.paper_setting, cfg.batch_size, loss.parameter_names)


def _decides_figures(key: str, value: Any) -> bool:
    """Returns whether an override of a search must hold for its reproductions too: the loss's, and other numbers."""
    group, _, rest = key.partition(".")
    if not rest or group in (*_NOT_OF_THE_TRIAL, *_NOT_SETTINGS, "evaluation"):
        return False
    return group == "loss" or isinstance(value, int | float)


def _search_command(cfg: DictConfig) -> str:
    """Returns the command of the search whose results this command wants."""
    if "hydra" in cfg:
        overrides = cfg.hydra.overrides.task
    else:
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else [f"loss={cfg.loss.name}"]
    other = ("stage", "hyperparameters", "hyperparameters.allow_unfinished", "run", "num_runs", "run_set")
    kept = [text for text in overrides if text.lstrip("+~").partition("=")[0] not in other]
    return " ".join(["python train.py -m", *kept])


def _on(values: Mapping[str, Any], otherwise: Any, *, _root_: DictConfig) -> Any:
    """Returns the value of the dataset's paper setting where there is one, as in `${mlrc.on:{sop:1},10}`."""
    setting = _root_.dataset.paper_setting
    return values.get(setting, otherwise)
