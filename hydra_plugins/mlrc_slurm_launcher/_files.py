"""The files of a job: who it is, before it is submitted, that it began, its result and exit status.

    <folder>/<number>/job.json               the current submission: token, overrides, SLURM job id
    <folder>/<number>/<token>/               that submission's own: script, log, started.json, exit_code, result

A job file is written before sbatch is called and names its submission by a token. A job begins only where the file
has its token, so that a submission which the launcher lost sight of, and replaced, never runs beside its successor.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

JOB_FILE = "job.json"
STARTED_FILE = "started.json"
EXIT_FILE = "exit_code"


@dataclass(frozen=True)
class JobFile:
    """One submission of a job."""

    number: int
    token: str
    # of overrides and configuration: another one is another job
    identity: str
    overrides: list[str]
    submitted: str
    # None until sbatch has answered
    job_id: str | None = None
    # what it returned has been handed to whoever launched it
    told: bool = False


@dataclass(frozen=True)
class Result:
    """What the job itself left behind: its return, or the traceback of one that could not be made."""

    returned: JobReturn | None
    text: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether the task returned."""
        return self.returned is not None and self.returned.status == JobStatus.COMPLETED


class JobFolder:
    """The files of the job of one number."""

    def __init__(self, root: Path, number: int) -> None:
        """Touch nothing yet."""
        self.number = number
        self.folder = root / str(number)

    def read(self) -> JobFile | None:
        """The job file, where there is one."""
        try:
            return JobFile(**json.loads((self.folder / JOB_FILE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def write(self, job: JobFile) -> JobFile:
        """Replaces the job file in one step. When this returns, it survives a crash of the machine."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / JOB_FILE, dataclasses.asdict(job))
        return job

    def attempt(self, job: JobFile) -> Path:
        """The folder of a submission."""
        return self.folder / job.token

    def submission_id(self, job: JobFile) -> str | None:
        """The SLURM job id that the submission's own files tell, where the launcher had no time to write it down."""
        started = read_json(self.attempt(job) / STARTED_FILE)
        if started is not None:
            return str(started["job_id"])
        for path in self.attempt(job).glob("*_submission.sh"):
            return path.name.partition("_")[0]
        return None

    def complete_submission(self, job: JobFile, job_id: str) -> None:
        """Does what submitit does after sbatch: gives the pickled task the name under which the job looks for it."""
        attempt = self.attempt(job)
        for path in attempt.glob("*.pkl"):
            if re.fullmatch(r"[0-9a-f]{32}", path.stem):
                path.rename(attempt / f"{job_id}_submitted.pkl")

    def result(self, job: JobFile) -> Result | None:
        """The result of the job's first task, as submitit pickled it. It is None where there is none yet."""
        assert job.job_id is not None
        attempt = self.attempt(job)
        with contextlib.suppress(OSError):
            os.utime(attempt)  # lets a client of NFS look again
        try:
            outcome, content = pickle.loads((attempt / f"{job.job_id}_0_result.pkl").read_bytes())  # noqa: S301 - ours
        except (FileNotFoundError, EOFError):
            return None
        return Result(content) if outcome == "success" else Result(None, str(content))

    def exit_status(self, job: JobFile) -> int | None:
        """Exit status of the batch script. Above 128 it is a signal's number and 128."""
        try:
            return int((self.attempt(job) / EXIT_FILE).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def log(self, job: JobFile) -> Path:
        """What the job wrote to stderr, and SLURM about it."""
        return self.attempt(job) / f"{job.job_id}_0_log.err"


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, or None where there is no whole one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes beside, syncs, replaces."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
