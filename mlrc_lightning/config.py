"""From a composed Hydra configuration to `TrialSettings`: where OmegaConf ends. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlrc_lightning.environment import config_folder as config_folder
from mlrc_lightning.errors import ConfigError, MlrcError
from mlrc_lightning.optima import Optimum, published_optimum
from mlrc_lightning.schema import FROZEN_PROXY, RUN_STAGES, TrialSettings, read
from mlrc_lightning.search_optimum import search_optimum
from mlrc_lightning.search_spaces import search_space

PROTOCOL = "mlrc"
_PROTOCOL_KEYS = ("trunk", "transform", "embedder", "optimizer", "schedule")
_OPTIONS = ("scheduler", "gradient_clip", "sampler", "evaluation")
"""Their defaults are left out of every digest: what they are off, or the protocol's, a run is what it was without."""
_NOT_OF_THE_TRIAL = (
    "stage", "fold", "logger", "trainer", "keep_models", "data_root", "hyperparameters", "run", "root_seed",
)  # fmt: skip
_NUMERIC_OPTIONS_OF_THE_TRAINER = {
    "channels_last": (False,),
    "compile": (False,),
    "augmentation": ("pil", "device"),  # the same pixels
}
"""What of the hardware changes figures, if only in their last digits, with the values that do not; beside precision."""
_EVALUATION_OPTIONS = {"check_untrained_accuracy": None, "clustering": False}
"""What changes the figures of `evaluation`, with the value that leaves them as they are."""
_PLACES = ("root", "csv", "archive", "download", "sources")
"""Where a dataset lies, or comes from, does not change what it is."""
_UNNAMED_BATCH_SIZE = 32
"""The batch size of the paper's three benchmarks that carry the dataset's name alone."""
_NOT_SETTINGS = ("study", "max_trials", "num_runs", "run_set", "output_root", "search_space", "hydra")


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
    values["hyperparameters"].pop("allow_unfinished", None)
    values["root_seed"] = values["seed"]
    values["run"] = values["run"] if run is None else run
    if values["stage"] in RUN_STAGES and isinstance(values["run"], int) and values["run"] >= 0:
        _check_run_set(cfg)
        values["seed"] = seed_of_run(values["seed"], values["run"])
    settings = read(TrialSettings, values)
    rate, papers_rate = settings.trunk.learning_rate, _papers_rate()
    if settings.trunk.frozen and rate <= papers_rate:
        raise ConfigError(
            f"trunk.learning_rate={rate!r}: expected more than the paper's {papers_rate} with trunk.frozen=true, which"
            " moves no embedder alone; say 1e-4."
        )
    return settings


@cache
def _papers_rate() -> float:
    """Returns the learning rate of trunk and embedder, section 1.2."""
    return float(OmegaConf.load(config_folder() / "trunk" / "bn_inception.yaml").learning_rate)


def seed_of_run(root_seed: int, run: int) -> int:
    """Returns the seed of a run: that of child `run` of numpy's SeedSequence(root_seed)."""
    import numpy as np

    return int(np.random.SeedSequence(root_seed, spawn_key=(run,)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a trial's settings that decides its figures; two runs with the same one are the same run.

    Places of files, hardware, the choice of folds and the stage are left out; precision and its like are not. So is
    where hyperparameters come from: their values count, and are among the loss's. Without training the loss does not.
    """
    values = {key: value for key, value in settings.items() if key not in (*_NOT_OF_THE_TRIAL, *_OPTIONS)}
    if settings["stage"] == "untrained":
        del values["loss"]
    dataset = {key: value for key, value in values["dataset"].items() if key not in _PLACES}
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


def is_the_papers_split(split: Mapping[str, Any]) -> bool:
    """Returns whether the settings of a split are those of `conf/split/mlrc.yaml`."""
    return bool(_as_floats(dict(split)) == _as_floats(_papers_split()))


@cache
def _papers_split() -> dict[str, Any]:
    shipped = OmegaConf.create({"split": OmegaConf.load(config_folder() / "split" / f"{PROTOCOL}.yaml")})
    split: dict[str, Any] = OmegaConf.to_container(shipped, resolve=True)["split"]  # type: ignore[index, call-overload, assignment]
    return split


def prepare_hydra() -> None:
    """Makes the interpolations of `conf/train.yaml` available, and Hydra quick; call before `hydra.main` runs.

    Each time that Hydra lists a config group it deep-copies its one ConfigStore with all that plugins stored there:
    0.5 s of `--help`. What the store hands out is a copy anyway.

    Source: hydra-core 1.3.8, `CachingConfigRepository.__init__` and `ConfigStore.load`.
    """
    register_resolvers()
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]


def register_resolvers() -> None:
    """Makes the interpolations of `conf/train.yaml` available; call before Hydra composes."""
    resolvers: dict[str, Callable[..., Any]] = {
        "mlrc.benchmark": _benchmark,
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


def error_of_a_resolver(error: BaseException | None) -> MlrcError | None:
    """Returns what one of our resolvers raised: OmegaConf wraps it, once for each interpolation around it."""
    while error is not None and not isinstance(error, MlrcError):
        error = error.__cause__ or error.__context__
    return error


def _benchmark(*, _root_: DictConfig) -> str:
    name, batch_size = _root_.dataset.name, _root_.batch_size
    return name if batch_size == _UNNAMED_BATCH_SIZE else f"{name}_batch{batch_size}"


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
    values = {**values, **deviations, "schedule": schedule, "trunk": _trunk(values["trunk"])}
    names = [PROTOCOL, *([FROZEN_PROXY] if "frozen" in values["trunk"] else []), values["trunk"]["name"]]
    split = _resolved(_root_, ["split"])["split"]
    if not is_the_papers_split(split):
        values["split"] = split
        names.append(split["name"])
    return "-".join([*names, _digest(values)])


def _trial_id(*, _root_: DictConfig) -> str:
    return _digest(_identity_of(_root_))


def _identity_of(cfg: DictConfig) -> dict[str, Any]:
    keys = [str(key) for key in cfg if key not in (*_NOT_SETTINGS, "protocol")]
    values: dict[str, Any] = _as_floats(identity(_resolved(cfg, keys)))
    return values


def _run_set(*, _root_: DictConfig) -> str:
    """Names the runs of one setting: where its hyperparameters come from, and a hash of all but the seed."""
    hyperparameters = _root_.hyperparameters
    is_as_found = hyperparameters.name in ("paper", "search") and not hyperparameters.replaced
    source = hyperparameters.name if is_as_found and _root_.stage != "untrained" else "given"
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
    """Returns whether the command line makes several sweeps, of losses say; this is the configuration before them."""
    overrides = OverridesParser.create().parse_overrides(list(cfg.hydra.overrides.task))
    return any(o.is_sweep_override() and o.key_or_group in cfg.hydra.sweeper.search_per for o in overrides)


def _check_run_set(cfg: DictConfig) -> None:
    """Refuses a job that is not of the set whose folder it would write to."""
    found = _run_set(_root_=cfg)
    if cfg.run_set != found:
        raise ConfigError(
            f"run_set={cfg.run_set}: expected {found}. The runs of one set differ in their number alone: sweep over"
            " nothing but loss, dataset, batch_size and hyperparameters. Where a search has gone on since and found"
            " another best setting, repeat the command, which begins a set of its own."
        )


def _search_space(*, _root_: DictConfig) -> Any:
    loss = _root_.loss
    space = search_space(loss.paper_name, _root_.dataset.paper_setting, _root_.batch_size, loss.parameter_names)
    return OmegaConf.create(space or OmegaConf.to_container(loss.search_space or OmegaConf.create({}), resolve=True))


def _search_method(*, _root_: DictConfig) -> str:
    """Bayesian; or each point once, where the space is a list that the budget exhausts (FastAP at batch 32)."""
    num_points = _num_points(_root_)
    return "fast" if num_points is None or num_points > _root_.max_trials else "grid"


def _max_trials(budget: int, *, _root_: DictConfig) -> int:
    num_points = _num_points(_root_)
    return budget if num_points is None else min(budget, num_points)


def _num_points(cfg: DictConfig) -> int | None:
    """Returns how many settings a search space of choices alone has; None for any other space."""
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
        folder = Path(cfg.output_root) / cfg.protocol / cfg.benchmark / loss.name / cfg.study
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


def _resolved(cfg: DictConfig, keys: Iterable[str]) -> dict[str, Any]:
    keys = list(keys)
    try:
        missing = _first_missing(cfg, keys)
        if missing is not None:
            raise ConfigError(f"{missing}: expected a value, found none. Give one on the command line: {missing}=…")
        values = {key: cfg[key] for key in keys}
        return {
            key: OmegaConf.to_container(value, resolve=True) if isinstance(value, Container) else value
            for key, value in values.items()
        }
    except OmegaConfBaseException as error:
        own = error_of_a_resolver(error)
        if own is None:
            raise
        raise own from None


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


def _trunk(trunk: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the trunk's settings with a weight file named without its folder; not frozen, no word of views."""
    if not trunk.get("frozen", False):
        trunk = {key: value for key, value in trunk.items() if key not in ("frozen", "views")}

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
