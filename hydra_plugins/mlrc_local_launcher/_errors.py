"""What the launcher raises, or hands back as a failed job's exception."""

import os


class LocalLauncherError(Exception):
    """The settings do not fit the machine. The text says what was expected, what was found and what to do."""

    is_usage_error = True


class WorkerDiedError(Exception):
    """The worker of a job ended before the job did. The text says how, and where the job's output is.

    `state` is the launcher's word for it, as SLURM has words of its own: the job's end was none of the task's doing.
    """

    state = "WORKER_DIED"


class JobFailedError(Exception):
    """A job failed, and its own exception, or its return value, cannot be sent between processes."""


class JobStopped(SystemExit):
    """A job was asked to stop, and goes on when it is started again. Left alone, it ends the process with EX_TEMPFAIL.

    Not an Exception, and no failure of the job: what counts failures must not count it.
    """

    def __init__(self, text: str) -> None:
        """Say by what."""
        super().__init__(os.EX_TEMPFAIL)
        self._text = text

    def __str__(self) -> str:
        """The text."""
        return self._text
