"""What the launcher raises, or hands back as a failed job's exception."""


class SlurmLauncherError(Exception):
    """Jobs cannot be submitted. The text says what was expected, what was found and what to do."""

    is_usage_error = True


class SlurmJobError(Exception):
    """A job ended, and not by what its task did.

    Attributes:
        state: SLURM's word, e.g. TIMEOUT, CANCELLED, NODE_FAIL; GONE where no part of SLURM knows the job any more,
            UNREACHABLE where the controller does not answer.
        job_id: Of SLURM.
    """

    def __init__(self, state: str, job_id: str, text: str) -> None:
        """Compose the message."""
        super().__init__(f"{state}: job {job_id} {text}")
        self.state = state
        self.job_id = job_id
