"""Runs one job through the launcher and says what came of it: measurements, or a reason."""

import math
import os
import time
import traceback
from dataclasses import dataclass

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import ConfigCompositionException, OverrideParseException
from hydra.plugins.launcher import Launcher
from omegaconf.errors import OmegaConfBaseException

from mlrc_sweeper.measurements import Measurements
from mlrc_sweeper.state import Trial

from ._errors import SweepError
from ._measurements import read_return_value
from ._problem import Problem

_TRACEBACK_LINES = 20
_REASON_CHARACTERS = 500
# what launchers call an end that is none of the task's own doing: SLURM's words, and mlrc_local's for a dead worker.
# UNREACHABLE is not among them: such a job may still be running in its folder
_CUT_OFF = frozenset(
    {
        "BOOT_FAIL", "CANCELLED", "DEADLINE", "GONE", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
        "REVOKED", "TIMEOUT", "WORKER_DIED",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One attempt at one replicate of a trial."""

    number: int
    trial: Trial
    replicate: int
    overrides: tuple[str, ...]
    # an earlier sweeper began it, and did not see its end
    is_resumed: bool = False


@dataclass(frozen=True)
class JobResult:
    """What a job came to: `metrics` when it succeeded, otherwise a reason."""

    seconds: float
    metrics: Measurements | None = None
    reason: str = ""
    traceback: str = ""
    exception: BaseException | None = None

    @property
    def state(self) -> str | None:
        """How the launcher's own system says that the job ended, e.g. TIMEOUT."""
        state = getattr(self.exception, "state", None)
        return state if isinstance(state, str) else None

    @property
    def is_final(self) -> bool:
        """Whether the job says that it would fail in the same way again."""
        return getattr(self.exception, "is_final", False) is True

    @property
    def was_cut_off(self) -> bool:
        """Whether the job ended by none of its task's doing. It may then go on where it was."""
        return self.state in _CUT_OFF


def run_job(launcher: Launcher, job: Job, problem: Problem) -> JobResult:
    """Launch a job and wait for it. It never raises for what the job does. An interrupt of the user passes.

    A launcher whose jobs outlive the sweeper may have `attach(number)`, which waits for the job that an earlier sweeper
    launched, and returns None where there is none.
    """
    begin = time.monotonic()
    attach = getattr(launcher, "attach", None)
    try:
        returned = attach(job.number) if job.is_resumed and attach is not None else None
        if returned is None:
            returned = launcher.launch([list(job.overrides)], initial_job_idx=job.number)[0]
        metrics = _read(returned, problem)
    # SystemExit: a task that calls sys.exit in this process ends its trial, not the search; unless with EX_TEMPFAIL,
    # by which a task that was asked to stop says that it goes on when it is started again
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == os.EX_TEMPFAIL:
            raise
        return _failure(error, time.monotonic() - begin)
    seconds = time.monotonic() - begin
    unusable = [name for name in problem.required_metrics if not metrics[name].is_finite]
    if unusable:
        shown = ", ".join(f"{name} is {metrics[name].mean}" for name in unusable)
        return JobResult(seconds, reason=f"not finite: {shown}")
    return JobResult(seconds, {name: m for name, m in metrics.items() if m.is_finite and math.isfinite(m.mean)})


def _read(returned: JobReturn, problem: Problem) -> Measurements:
    # the status first: `return_value` of a failed job raises what the job raised
    if returned.status == JobStatus.UNKNOWN:
        raise RuntimeError("the launcher returned no result for the job")
    metrics = read_return_value(returned.return_value, problem.objective)
    missing = [name for name in problem.required_metrics if name not in metrics]
    if missing:
        raise SweepError(
            f"The task returned {sorted(metrics)}, and the search needs {missing}: return it, or set "
            "`hydra.sweeper.ax_config.experiment.objective_name`."
        )
    return metrics


def reason_of(error: BaseException) -> str:
    """Type and text of an exception. The text is the exception's own code, which may fail."""
    try:
        text = str(error)
    except Exception as failed:
        text = f"(its text cannot be made: {type(failed).__name__})"
    return writable(f"{type(error).__name__}: {text}")


def writable(text: str) -> str:
    """The text with each byte that was no UTF-8 as an escape, since no file takes it as it is."""
    return text.encode("utf-8", "backslashreplace").decode()


def _failure(error: BaseException, seconds: float) -> JobResult:
    lines = writable("".join(traceback.format_exception(error))).splitlines()
    # the first line says it; the rest is in the traceback
    reason = reason_of(error).splitlines()[0][:_REASON_CHARACTERS]
    return JobResult(seconds, reason=reason, traceback="\n".join(lines[-_TRACEBACK_LINES:]), exception=error)


def is_usage_error(error: BaseException) -> bool:
    """Whether an error says that the command or the config is wrong, rather than this trial."""
    if getattr(error, "is_usage_error", False):
        return True
    return isinstance(error, ConfigCompositionException | OverrideParseException | OmegaConfBaseException)
