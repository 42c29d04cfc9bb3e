"""What the launcher raises, or hands back as a failed job's exception."""


class LocalLauncherError(Exception):
    """The settings do not fit the machine; the text says what was expected, what was found and what to do."""

    is_usage_error = True


class WorkerDiedError(Exception):
    """The worker of a job ended before the job did; the text says how, and where the job's output is."""


class JobFailedError(Exception):
    """A job failed, and its own exception, or its return value, cannot be sent between processes."""
