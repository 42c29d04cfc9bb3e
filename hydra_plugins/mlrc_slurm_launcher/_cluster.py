"""Asks SLURM how jobs are: squeue for all at once, then scontrol and, where there is accounting, sacct."""

import getpass
import logging
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

_COMMAND_SECONDS = 60.0
# SLURM's words for a job that will not come back; any other word means that it is waiting, running or on its way
_ENDED_BY_ITSELF = ("COMPLETED", "FAILED")
_ENDED_BY_SLURM = ("CANCELLED", "DEADLINE", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT")
_NODE_FAILED = ("BOOT_FAIL", "LAUNCH_FAILED", "NODE_FAIL")
OVER = frozenset((*_ENDED_BY_ITSELF, *_ENDED_BY_SLURM, *_NODE_FAILED))
GONE = "GONE"
_UNKNOWN_JOB = "invalid job id"


class UnreachableError(Exception):
    """A command of SLURM is not there, or could not reach the controller."""


@dataclass(frozen=True)
class JobState:
    """How a job is, as far as SLURM knows."""

    name: str
    # SLURM's own reason, e.g. NodeDown, Resources; empty where it gives none
    reason: str = ""
    # of the batch script, and the signal that ended it
    exit_status: int | None = None
    signal: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, unless it is requeued at this moment."""
        return self.name in OVER or self.name == GONE


class Cluster:
    """The controller, asked at most every so many seconds for all watched jobs together."""

    def __init__(self, poll_seconds: float) -> None:
        """Ask nothing yet."""
        self.poll_seconds = poll_seconds
        self._watched: set[str] = set()
        self._states: dict[str, JobState] = {}
        self._asked = float("-inf")
        self._error: UnreachableError | None = None
        self._lock = threading.Lock()

    def state(self, job_id: str) -> JobState:
        """The job's state, no older than `poll_seconds`.

        Raises:
            UnreachableError: The controller could not be asked.
        """
        with self._lock:
            if job_id not in self._watched or time.monotonic() - self._asked >= self.poll_seconds:
                self._watched.add(job_id)
                self._ask()
            if self._error is not None:
                raise self._error
            return self._states[job_id]

    def forget(self, job_id: str) -> None:
        """Asks for this job no longer."""
        with self._lock:
            self._watched.discard(job_id)

    def _ask(self) -> None:
        try:
            queued = _squeue(sorted(self._watched))
            self._states = {job_id: _whole_state(job_id, queued.get(job_id)) for job_id in self._watched}
            self._error = None
        except UnreachableError as error:
            self._error = error
        self._asked = time.monotonic()


def _whole_state(job_id: str, queued: JobState | None) -> JobState:
    """What squeue says of a job that goes on, else what scontrol or sacct know of its end."""
    if queued is not None and not queued.is_over:
        return queued
    return _scontrol(job_id) or _sacct(job_id) or queued or JobState(GONE)


def _squeue(job_ids: Sequence[str]) -> dict[str, JobState]:
    arguments = ["squeue", "--noheader", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(job_ids)}"]
    done = _run(arguments)
    if done.returncode != 0 and _UNKNOWN_JOB not in done.stderr.lower():
        raise UnreachableError(f"squeue: {done.stderr.strip()}")
    states = {}
    for line in done.stdout.splitlines():
        job_id, _, rest = line.strip().partition("|")
        name, _, reason = rest.partition("|")
        if name:
            states[job_id] = JobState(name, "" if reason in ("None", "") else reason)
    return states


def _scontrol(job_id: str) -> JobState | None:
    """From the controller's memory, which keeps ended jobs for some minutes (MinJobAge)."""
    try:
        done = _run(["scontrol", "--oneliner", "show", "job", job_id])
    except UnreachableError:
        return None
    fields = dict(re.findall(r"(\w+)=(\S+)", done.stdout))
    if done.returncode != 0 or "JobState" not in fields:
        return None
    reason = "" if fields.get("Reason", "None") == "None" else fields["Reason"]
    return JobState(fields["JobState"], reason, *_exit_code(fields.get("ExitCode")))


def _sacct(job_id: str) -> JobState | None:
    """From the accounting, where the cluster has one. What it believes to go on, but squeue does not know, is stale."""
    try:
        done = _run(
            ["sacct", "--allocations", "--noheader", "--parsable2", "--format=State,ExitCode", f"--jobs={job_id}"]
        )
    except UnreachableError:
        return None
    if done.returncode != 0 or not done.stdout.strip():
        return None
    name, _, code = done.stdout.strip().splitlines()[-1].partition("|")
    # "CANCELLED by 1000"
    word, _, by = name.partition(" ")
    state = JobState(word, by, *_exit_code(code))
    return state if state.is_over else None


def _exit_code(text: str | None) -> tuple[int | None, int | None]:
    """Status and signal in SLURM's `status:signal`."""
    found = re.fullmatch(r"(\d+):(\d+)", text or "")
    return (None, None) if found is None else (int(found[1]), int(found[2]) or None)


def find_submission(folder: str) -> str | None:
    """The id of this user's job whose script is in a folder, where sbatch was called and its answer got lost.

    Raises:
        UnreachableError: The controller could not be asked.
    """
    done = _run(["squeue", "--noheader", "--format=%i|%o", f"--user={getpass.getuser()}"])
    if done.returncode != 0:
        raise UnreachableError(f"squeue: {done.stderr.strip()}")
    for line in done.stdout.splitlines():
        job_id, _, command = line.strip().partition("|")
        if command.startswith(f"{folder}/"):
            return job_id
    return None


def cancel(job_id: str) -> None:
    """Ends a job. One that has ended is no error."""
    done = _run(["scancel", job_id])
    if done.returncode != 0 and _UNKNOWN_JOB not in done.stderr.lower():
        raise UnreachableError(f"scancel: {done.stderr.strip()}")


def _run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(arguments, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnreachableError(f"{arguments[0]}: {error}") from error
