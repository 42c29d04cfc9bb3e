"""The sweeper class that Hydra finds. The work is in `_searches.py` and `_core.py`.

Hydra imports this module at every start of every app, so nothing heavy may be imported here.
"""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class MLRCAxSweeper(Sweeper):
    """Bayesian search with Ax, whose state is a ledger in the sweep directory."""

    def __init__(self, **settings: Any) -> None:
        """Take the settings as Hydra passes them. They are read, typed, from the config in `sweep`.

        Each search of a sweep has its own composed config, and with it its own search space,
        so the settings of the master config are not enough.
        """
        self.settings = settings
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.task_function: TaskFunction | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def sweep(self, arguments: list[str]) -> None:
        """Run, or continue, the searches that the command line asks for."""
        from ._searches import run_searches

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.task_function is not None
        run_searches(self.config, self.hydra_context, self.task_function, arguments)
