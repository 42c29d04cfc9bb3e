"""What runs on the node: checks that it is the submission that counts, then runs the Hydra job."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from hydra_plugins.mlrc_local_launcher._hydra_job import HydraJob

from ._files import JOB_FILE, STARTED_FILE, read_json, write_json

_PATIENCE_SECONDS = 30.0


class SupersededError(Exception):
    """Another submission has taken this one's place. Nothing was run."""


@dataclass(frozen=True)
class SlurmTask:
    """The callable that submitit pickles. It can be requeued."""

    job: HydraJob
    folder: Path
    token: str

    def __call__(self) -> JobReturn:
        """Runs the job once. A requeued job comes here again."""
        import submitit

        job_id = str(submitit.JobEnvironment().job_id)
        self._claim(job_id)
        return self.job.run(job_id)

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues a preempted or timed-out job: the same task, in the same folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _claim(self, job_id: str) -> None:
        end = time.monotonic() + _PATIENCE_SECONDS  # of a shared disk
        while (there := read_json(self.folder / JOB_FILE)) is None and time.monotonic() < end:
            time.sleep(1.0)
        if there is None or there["token"] != self.token:
            raise SupersededError(f"{self.folder / JOB_FILE} names another submission; {job_id} is not run")
        if os.environ.get("SLURM_PROCID", "0") == "0":
            restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
            where = {"job_id": job_id, "host": os.uname().nodename, "restarts": restarts}
            write_json(self.folder / self.token / STARTED_FILE, where)
