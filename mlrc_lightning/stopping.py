"""How a training is asked to stop: signals set a flag, and the training stops where it can go on from."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""SLURM sends SIGTERM before it kills a job, and on request (`sbatch --signal`) SIGUSR1 or SIGUSR2 before its limit."""
STOPPED = 75
"""Exit code of a process that was stopped and goes on when it is started again: EX_TEMPFAIL of sysexits.h."""


class TrialStopped(SystemExit):
    """A signal stopped the trial at a step boundary, its checkpoint written; the same command goes on from there.

    Not an Exception: what counts failures must not count it. Left alone, it ends the process with `STOPPED`.

    Args:
        signum: Number of the signal.
        where: Of the training, as in "fold 2, epoch 3, iteration 17".
    """

    def __init__(self, signum: int, where: str) -> None:
        super().__init__(STOPPED)
        self.signum = signum
        self._where = where

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"{name} stopped it at {self._where}. The same command goes on from there."


class StopSignals:
    """While entered, `STOP_SIGNALS` only leave their number in `received`.

    Whoever trains looks there between two steps, and raises TrialStopped once the state is safe. On the way out that
    exception meets the handler that was there before, if it was one in Python: submitit's requeues the job.

    Signals reach the main thread alone: in any other nothing is received, and nothing changed.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.listen()
        return self

    def listen(self) -> None:
        """Takes the signals; on its own, for the life of the process."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a rank starts with them blocked

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if isinstance(error, TrialStopped) and callable(self._previous.get(error.signum)):
            self._previous[error.signum](error.signum, None)

    def raise_if_late(self) -> None:
        """Raises TrialStopped for a signal that came too late to stop this trial: it must not be lost on the next.

        Not where the handler before was one in Python, which may start the finished trial again.
        """
        previous = self._previous.get(self.received)
        if self.received and not callable(previous) and previous != signal.SIG_IGN:
            raise TrialStopped(self.received, "the end of a trial")

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum


def exit_text(code: int) -> str:
    """Returns what ended a process, of its exit status as `subprocess` gives it: "killed by SIGKILL" or "exit 3"."""
    if code >= 0:
        return f"exit {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
