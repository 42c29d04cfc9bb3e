"""Submits jobs, finds those of an earlier process, and waits until it is certain what became of each."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shlex
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from hydra.core.utils import JobReturn, filter_overrides
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.mlrc_local_launcher._devices import SHARE_VARIABLE, THREAD_VARIABLES
from hydra_plugins.mlrc_local_launcher._hydra_job import HydraJob, failed

from ._cluster import GONE, Cluster, JobState, UnreachableError, find_submission
from ._errors import SlurmJobError, SlurmLauncherError
from ._files import EXIT_FILE, JobFile, JobFolder, Result
from ._task import SlurmTask
from .config import MLRCSlurmLauncherConf

log = logging.getLogger(__name__)

# sbatch says these where the same call may succeed later
_PASSING = re.compile(
    "unable to contact|socket timed out|timed out|temporar|try again|communication|connection refused"
    "|MaxSubmitJob|job submit limit|slurmctld is (re)?starting",
    re.IGNORECASE,
)
_SUBMIT_PAUSE_SECONDS = 5.0
# between two looks at a job's result: at first, and at the longest
_LOOK_SECONDS = (0.2, 2.0)
_TIMED_OUT = "Job not requeued because: timed-out"
_MEANING = {
    "BOOT_FAIL": "had a node that did not boot",
    "CANCELLED": "was cancelled",
    "COMPLETED": "ended without a result",
    "DEADLINE": "missed its deadline",
    "FAILED": "failed",
    "LAUNCH_FAILED": "could not be started",
    "NODE_FAIL": "lost its node",
    "OUT_OF_MEMORY": "ran out of memory",
    "PREEMPTED": "was preempted, and not requeued",
    "REVOKED": "was revoked by its federation",
    "TIMEOUT": "reached its time limit",
    GONE: "is known to neither squeue, scontrol nor sacct any more, and left no result",
}


_ADVICE = {
    "OUT_OF_MEMORY": "Ask for more by `hydra.launcher.mem_gb`. ",
    "TIMEOUT": "Raise `hydra.launcher.timeout_min`, or let jobs be requeued by `hydra.launcher.max_num_timeout` "
    "where the app can go on in its folder. ",
}


@dataclass(frozen=True)
class Submitted:
    """A job with its files."""

    files: JobFolder
    job: JobFile


class Submitter:
    """The jobs of one launcher."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        config: DictConfig,
        hydra_context: HydraContext,
        task_function: TaskFunction,
    ) -> None:
        """Read the settings."""
        plain = {key: _plain(value) for key, value in settings.items()}
        typed = OmegaConf.merge(OmegaConf.structured(MLRCSlurmLauncherConf), plain)
        self.settings = cast(MLRCSlurmLauncherConf, OmegaConf.to_object(typed))
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.root = Path(self.settings.folder).absolute()
        self.cluster = Cluster(self.settings.poll_seconds)

    # before the wait

    def submit_or_find(self, number: int, overrides: list[str]) -> Submitted:
        """The job, submitted now, or by an earlier process."""
        identity = self._identity(overrides)
        files = JobFolder(self.root, number)
        there = self._with_id(files)
        # one whose failure was told may have been requeued since: never two in one folder
        if there is not None and (not there.told or self._goes_on(files, there)):
            if there.identity == identity:
                log.info("\t#%d : SLURM job %s of %s", number, there.job_id, there.submitted)
                return Submitted(files, there)
            if self._goes_on(files, there):
                raise SlurmLauncherError(
                    f"SLURM job {there.job_id} is under way as job {number} of {self.root} with other settings: "
                    f"{' '.join(there.overrides)}. Let it end, cancel it (scancel {there.job_id}), or choose another "
                    "`hydra.sweep.dir`."
                )
        return Submitted(files, self._submit(files, number, overrides, identity))

    def find(self, number: int) -> Submitted | None:
        """The job of this number from an earlier process, unless it failed and that is known."""
        files = JobFolder(self.root, number)
        there = self._with_id(files)
        if there is None:
            return None
        result = files.result(there)
        if there.told and not (result is not None and result.succeeded):
            return None
        log.info("\t#%d : SLURM job %s of %s", number, there.job_id, there.submitted)
        return Submitted(files, there)

    def _identity(self, overrides: Sequence[str]) -> str:
        of_the_app = OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key != "hydra"])
        text = json.dumps([list(overrides), OmegaConf.to_yaml(of_the_app)])
        return hashlib.sha256(text.encode()).hexdigest()

    def _with_id(self, files: JobFolder) -> JobFile | None:
        """The job file. Its id is found out where its process was killed between sbatch and the answer."""
        job = files.read()
        if job is None or job.job_id is not None:
            return job
        job_id = files.submission_id(job) or self._in_queue(files.attempt(job))
        if job_id is None:
            log.info("Job %d was about to be submitted, and was not", job.number)
            return None
        files.complete_submission(job, job_id)
        return files.write(dataclasses.replace(job, job_id=job_id))

    def _in_queue(self, attempt: Path) -> str | None:
        end = time.monotonic() + 60 * self.settings.give_up_after_min
        while True:
            try:
                return find_submission(str(attempt))
            except UnreachableError as error:
                if time.monotonic() > end:
                    raise SlurmLauncherError(f"SLURM's controller does not answer: {error}") from error
                log.warning("%s; trying again", error)
                time.sleep(self.settings.poll_seconds)

    def _goes_on(self, files: JobFolder, job: JobFile) -> bool:
        assert job.job_id is not None
        result = files.result(job)
        if result is not None and result.succeeded:
            return False
        try:
            return not self.cluster.state(job.job_id).is_over
        except UnreachableError:
            return True
        finally:
            self.cluster.forget(job.job_id)

    def _submit(self, files: JobFolder, number: int, overrides: list[str], identity: str) -> JobFile:
        packed = HydraJob.pack(number, overrides, self.config, self.hydra_context, self.task_function)
        end = time.monotonic() + 60 * self.settings.give_up_after_min
        while True:
            job = files.write(
                JobFile(number, uuid.uuid4().hex[:12], identity, overrides, datetime.now(UTC).isoformat("T", "seconds"))
            )
            try:
                job_id = self._sbatch(files.attempt(job), SlurmTask(packed, files.folder, job.token))
            except _SubmissionError as error:
                if not error.passes or time.monotonic() > end:
                    raise SlurmLauncherError(f"sbatch refused the job: {error}") from error
                log.warning("sbatch: %s; trying again", error)
                time.sleep(_SUBMIT_PAUSE_SECONDS)
                # an answer that got lost is no refusal
                found = self._in_queue(files.attempt(job))
                if found is None:
                    continue  # under another token, so that a job which turns up after all does not run
                job_id = found
                files.complete_submission(job, job_id)
            log.info("\t#%d : SLURM job %s : %s", number, job_id, " ".join(filter_overrides(overrides)))
            return files.write(dataclasses.replace(job, job_id=job_id))

    def _sbatch(self, attempt: Path, task: SlurmTask) -> str:
        try:
            import submitit
        except ImportError as error:
            raise SlurmLauncherError(
                "`hydra/launcher=mlrc_slurm` needs submitit: install the extra `slurm`, or submitit itself."
            ) from error
        settings = self.settings
        options: dict[str, Any] = {
            "name": settings.name,
            "timeout_min": settings.timeout_min,
            "nodes": settings.nodes,
            "tasks_per_node": settings.tasks_per_node,
            "slurm_signal_delay_s": settings.signal_delay_s,
            # the trap leaves the script's own exit status as it is
            "slurm_setup": [
                f"trap 'echo $? > {shlex.quote(str(attempt / EXIT_FILE))}' EXIT",
                *_share_of_the_cores(settings.cpus_per_task),
                *settings.setup,
            ],
            "slurm_additional_parameters": {"requeue": True, **(settings.additional_parameters or {})},
        }
        named = {
            "slurm_partition": settings.partition,
            "slurm_account": settings.account,
            "slurm_qos": settings.qos,
            "slurm_constraint": settings.constraint,
            "slurm_exclude": settings.exclude,
            "cpus_per_task": settings.cpus_per_task,
            "gpus_per_node": settings.gpus_per_node,
            "mem_gb": settings.mem_gb,
        }
        options.update({key: value for key, value in named.items() if value is not None})
        srun = list(settings.srun_args)
        if settings.cpus_per_task is not None:
            # since 22.05 srun does not take the number over from sbatch
            srun.append(f"--cpus-per-task={settings.cpus_per_task}")
        if srun:
            options["slurm_srun_args"] = srun
        try:
            python = {} if settings.python is None else {"slurm_python": settings.python}
            executor = submitit.AutoExecutor(
                folder=attempt, cluster="slurm", slurm_max_num_timeout=settings.max_num_timeout, **python
            )
            executor.update_parameters(**options)
        except RuntimeError as error:
            raise SlurmLauncherError(
                f"This is no machine from which SLURM jobs can be submitted: {error} "
                "Use `hydra/launcher=mlrc_local` on a single machine."
            ) from error
        with _outside_of_a_job():
            try:
                return str(executor.submit(task).job_id)
            except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
                raise _SubmissionError(str(error)) from error

    # the wait

    def wait(self, submitted: Submitted, tell: Callable[[int, str, Path], None]) -> JobReturn:
        """Waits for a job, as long as it is waiting, running, or being requeued.

        A success counts as soon as it is there. A failure counts once SLURM has no more to do with the job: what the
        end of a job that is requeued does to its task is no result.
        """
        files, job = submitted.files, submitted.job
        assert job.job_id is not None
        tell(job.number, job.job_id, files.attempt(job))
        error = self._failure(files, job)
        self.cluster.forget(job.job_id)
        result = files.result(job)
        # a success may have come while the last question was being asked
        if error is None or (result is not None and result.succeeded):
            assert result is not None
            assert result.returned is not None
            return result.returned
        return failed(job.overrides, error)

    def note_told(self, submitted: Submitted) -> None:
        """Writes down that the job's return has been handed over."""
        submitted.files.write(dataclasses.replace(submitted.job, told=True))

    def _failure(self, files: JobFolder, job: JobFile) -> SlurmJobError | None:
        """Why the job has no usable result. It is None where its result is whole, whether success or failure."""
        assert job.job_id is not None
        pause, longest = _LOOK_SECONDS
        over_since: float | None = None
        silent_since: float | None = None
        shown = ""
        while True:
            result = files.result(job)
            if result is not None and result.succeeded:
                return None
            now = time.monotonic()
            try:
                state = self.cluster.state(job.job_id)
                silent_since = None
            except UnreachableError as error:
                silent_since = now if silent_since is None else silent_since
                if shown != str(error):
                    shown = str(error)
                    log.warning("Job %d: %s; waiting on", job.number, error)
                if now - silent_since > 60 * self.settings.give_up_after_min:
                    return SlurmJobError(
                        "UNREACHABLE", job.job_id, f"may still run: the controller has not answered for long: {error}"
                    )
            else:
                if state.is_over:
                    over_since = now if over_since is None else over_since
                    if self._is_certain(state, result, now - over_since):
                        return self._conclusion(files, job, state, result)
                else:
                    over_since = None
                    shown = _show(job, state, shown)
            time.sleep(pause)
            pause = min(longest, 1.5 * pause)

    def _is_certain(self, state: JobState, result: Result | None, seconds: float) -> bool:
        """Whether an end is the end: the result may be late on a shared disk, and the job about to be requeued."""
        if result is not None and state.name in ("COMPLETED", "FAILED"):
            return True
        # the answers of a poll are kept until the next: two polls apart, they are two
        return seconds >= max(self.settings.settle_seconds, 2 * self.settings.poll_seconds)

    def _conclusion(
        self, files: JobFolder, job: JobFile, state: JobState, result: Result | None
    ) -> SlurmJobError | None:
        assert job.job_id is not None
        own = "" if result is None else _text_of(result)
        if _TIMED_OUT in own:
            state, result = JobState("TIMEOUT"), None
        if result is not None and state.name in ("COMPLETED", "FAILED", GONE):
            if result.returned is not None:
                return None
            return SlurmJobError("FAILED", job.job_id, f"raised {_last_line(result.text)}")
        parts = [_MEANING.get(state.name, "ended")]
        if state.reason:
            parts.append(f"({state.reason})")
        how = _exit_text(files.exit_status(job), state)
        if how and state.name in ("FAILED", "COMPLETED", GONE):
            parts.append(f"by {how}")
        advice = _ADVICE.get(state.name, "")
        return SlurmJobError(state.name, job.job_id, f"{' '.join(parts)}. {advice}Its log is {files.log(job)}")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _show(job: JobFile, state: JobState, shown: str) -> str:
    """Logs a job's state where it is another than before: a held job, or an impossible request, waits for ever."""
    text = f"{state.name} {state.reason}".strip()
    if text != shown:
        is_held = "held" in state.reason.lower() or state.name in ("REQUEUE_HOLD", "SPECIAL_EXIT")
        log.log(
            logging.WARNING if is_held else logging.INFO,
            "Job %d, SLURM job %s: %s%s",
            job.number,
            job.job_id,
            text,
            f"; it waits until somebody releases it (scontrol release {job.job_id})" if is_held else "",
        )
    return text


def _text_of(result: Result) -> str:
    return result.text if result.returned is None else str(result.returned._return_value)


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "an error without a text"


def _exit_text(of_the_script: int | None, state: JobState) -> str:
    status = state.exit_status if of_the_script is None else of_the_script
    number = state.signal
    if number is None and status is not None and status > 128:
        number = status - 128
    if number is not None:
        try:
            return f"signal {signal.Signals(number).name}"
        except ValueError:
            return f"signal {number}"
    return "" if not status else f"exit status {status}"


class _SubmissionError(Exception):
    """What sbatch said, and whether it may think otherwise later."""

    def __init__(self, text: str) -> None:
        said = [line.strip() for line in text.splitlines() if "sbatch: error" in line]
        super().__init__(" ".join(said) or text.strip())
        self.passes = _PASSING.search(text) is not None


def _share_of_the_cores(cpus_per_task: int | None) -> list[str]:
    """Lines of a script: a cluster that binds no job to its processors lets each use all of the node's."""
    if cpus_per_task is None:
        return []
    exports = " ".join(f"{name}={cpus_per_task}" for name in (*THREAD_VARIABLES, SHARE_VARIABLE))
    return [f'if [ -z "$OMP_NUM_THREADS" ]; then export {exports}; fi']


_environment_lock = threading.Lock()


@contextlib.contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Hides the variables of the SLURM job that this process may itself be in.

    The command sbatch would hand them on.
    """
    with _environment_lock:
        hidden = {
            name: os.environ.pop(name)
            for name in list(os.environ)
            if name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")) and name != "SLURM_CONF"
        }
        try:
            yield
        finally:
            os.environ.update(hidden)
