"""The launcher class that Hydra finds. The work is in `_core.py`.

Hydra imports this module at every start of every app, so neither submitit nor anything else heavy is imported here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class MLRCSlurmLauncher(Launcher):
    """Runs each job as a SLURM job. `launch` and `attach` may be called from several threads."""

    def __init__(self, **settings: Any) -> None:
        """Take the settings of `config.py`."""
        self.settings = settings
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.task_function: TaskFunction | None = None
        # called with a job's number, its SLURM job id and its folder, before that job is waited for
        self.on_submitted: Callable[[int, str, Path], None] = lambda number, job_id, folder: None
        self._submitter: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        from ._core import Submitter

        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config
        self._submitter = Submitter(self.settings, config, hydra_context, task_function)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs and wait for them.

        A job that an earlier process submitted under this number, with the same overrides and configuration, and did
        not live to see the end of, is not submitted again: it is waited for where it is under way, and its result
        taken where it has ended. Jobs whose results were returned before are run anew, as with any launcher.

        Args:
            job_overrides: The overrides of each job.
            initial_job_idx: Number of the first one.

        Returns:
            What each job returned, in the order given. The exception of a job that did not end by itself is a
            `SlurmJobError` with its state.

        Raises:
            SlurmLauncherError: The jobs cannot be submitted.
        """
        jobs = [
            self._submitter.submit_or_find(number, list(overrides))
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        returned = [self._submitter.wait(job, self.on_submitted) for job in jobs]
        for job in jobs:
            self._submitter.note_told(job)
        return returned

    def attach(self, number: int) -> JobReturn | None:
        """What became of the job of this number that an earlier process submitted. It waits where it is under way.

        Returns:
            None where there is no such job, or it failed and that was returned before.
        """
        job = self._submitter.find(number)
        if job is None:
            return None
        returned: JobReturn = self._submitter.wait(job, self.on_submitted)
        self._submitter.note_told(job)
        return returned
