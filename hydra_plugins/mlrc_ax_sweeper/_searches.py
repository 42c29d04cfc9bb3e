"""Splits a sweep into searches: one per combination of the overrides that `search_per` names."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from ._core import run_search
from ._errors import SweepError
from ._problem import build_problem, read_settings
from ._search_space import to_override_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """One search of a sweep."""

    # the combination, e.g. "loss=arcface,dataset=cub200"; empty where the sweep is one search
    name: str
    config: DictConfig
    overrides: tuple[Override, ...]


def run_searches(
    config: DictConfig, hydra_context: HydraContext, task_function: TaskFunction, arguments: Sequence[str]
) -> None:
    """Run every search of the sweep. One that fails does not keep the others from running.

    Raises:
        SweepError: Which searches failed and why; a single search raises its own exception.
    """
    searches = split_searches(config, hydra_context, arguments)
    failed: list[tuple[Search, Exception]] = []
    for number, search in enumerate(searches, start=1):
        if len(searches) > 1:
            log.info("Search %d of %d: %s", number, len(searches), search.name)
        try:
            with _as_hydra_config(search.config):
                problem = build_problem(search.config, search.overrides)
                run_search(problem, search.config, hydra_context, task_function)
        except Exception as error:
            if len(searches) == 1:
                raise
            log.error("The search %s failed: %s: %s", search.name, type(error).__name__, error)
            failed.append((search, error))
    if failed:
        texts = "\n".join(f"  {search.name}: {error}" for search, error in failed)
        raise SweepError(f"{len(failed)} of {len(searches)} searches failed:\n{texts}") from failed[0][1]


def split_searches(config: DictConfig, hydra_context: HydraContext, arguments: Sequence[str]) -> list[Search]:
    """The searches of a command line, each with a config of its own composition."""
    parser = OverridesParser.create(config_loader=hydra_context.config_loader)
    overrides = parser.parse_overrides(list(arguments))
    settings = read_settings(config)
    for override in overrides:
        message = settings.refused_dimensions.get(override.key_or_group)
        if message is not None and override.is_sweep_override():
            raise SweepError(f"`{override.input_line}`: `{override.key_or_group}` may not be searched over: {message}")
    split = [o for o in overrides if o.is_sweep_override() and o.key_or_group in settings.search_per]
    for override in split:
        if not override.is_discrete_sweep():
            raise SweepError(
                f"`{override.input_line}`: `hydra.sweeper.search_per` makes one search per value of "
                f"`{override.key_or_group}`, so it takes a list of values, not an interval."
            )
    if not split:
        return [Search("", config, tuple(overrides))]

    choices = [[f"{o.get_key_element()}={text}" for text in o.sweep_string_iterator()] for o in split]
    searches = []
    for combination in itertools.product(*choices):
        chosen = dict(zip((o.input_line for o in split), combination, strict=True))
        lines = [chosen.get(o.input_line, o.input_line) or "" for o in overrides]
        own = _compose(config, hydra_context, lines)
        searches.append(Search(",".join(combination), own, tuple(parser.parse_overrides(lines))))
    return _with_own_directories(searches, config, hydra_context)


def _compose(
    master: DictConfig, hydra_context: HydraContext, lines: Sequence[str], hydra_lines: Sequence[str] = ()
) -> DictConfig:
    """The config that the command line without the sweep would have had."""
    # not resolved: an override may be an interpolation, e.g. hydra.sweeper.ax_config.params=${space}
    of_hydra = cast(list[str], OmegaConf.to_container(master.hydra.overrides.hydra))
    config = hydra_context.config_loader.load_configuration(
        config_name=master.hydra.job.config_name,
        overrides=[*of_hydra, *hydra_lines, *lines],
        run_mode=RunMode.MULTIRUN,
    )
    with open_dict(config.hydra):
        config.hydra.mode = RunMode.MULTIRUN
        config.hydra.job.name = master.hydra.job.name
    # so that ${now:...} is the same moment everywhere
    OmegaConf.copy_cache(from_config=master, to_config=config)
    return config


def _with_own_directories(searches: list[Search], master: DictConfig, hydra_context: HydraContext) -> list[Search]:
    """A directory a search: the app's own where it tells them apart, else one named by the combination."""
    directories = []
    for search in searches:
        with _as_hydra_config(search.config):
            directories.append(Path(search.config.hydra.sweep.dir).absolute())
    if len(set(directories)) == len(directories):
        return searches
    log.info("hydra.sweep.dir is the same for several searches; each gets a directory below it")
    moved = []
    for search, directory in zip(searches, directories, strict=True):
        own = to_override_text(str(directory / search.name.replace("/", "_")))
        lines = [o.input_line or "" for o in search.overrides]
        config = _compose(master, hydra_context, lines, [f"hydra.sweep.dir={own}"])
        moved.append(Search(search.name, config, search.overrides))
    return moved


@contextmanager
def _as_hydra_config(config: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` in the search's settings refer to the search."""
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(config)
    try:
        yield
    finally:
        instance.cfg = before
