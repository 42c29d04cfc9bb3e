"""The launcher class that Hydra finds. The work is in `_pool.py`, `_worker.py` and `_hydra_job.py`.

Hydra imports this module at every start of every app, so nothing heavy may be imported here.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class MLRCLocalLauncher(Launcher):
    """Runs jobs in worker processes on this machine. `launch` may be called from several threads."""

    def __init__(self, **settings: Any) -> None:
        """Take the settings of `config.py`. They are checked when jobs are launched."""
        self.settings = settings
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.task_function: TaskFunction | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    @property
    def num_slots(self) -> int:
        """Jobs that run at a time."""
        from ._devices import divide

        return len(divide(**self.settings))

    def passing_on_signals(self) -> AbstractContextManager[None]:
        """For a sweeper whose own threads call `launch`: see `Pool.passing_on_signals`."""
        from ._devices import divide
        from ._pool import pool_of

        return pool_of(divide(**self.settings)).passing_on_signals()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and wait for them.

        Args:
            job_overrides: The overrides of each job.
            initial_job_idx: Number of the first one.

        Returns:
            What each job returned, in the order given. A job that raised, or whose worker died, is a failed one.

        Raises:
            LocalLauncherError: The settings do not fit the machine.
            JobStopped: A job was asked to stop. It, and those that had not begun, are to be launched again; the others
                have ended.
        """
        from ._pool import launch

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.task_function is not None
        return launch(
            self.settings, self.config, self.hydra_context, self.task_function, job_overrides, initial_job_idx
        )
