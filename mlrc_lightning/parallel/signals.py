"""How a command is asked to stop: a training goes on to where it can be taken up again, anything else ends at once."""

from __future__ import annotations

import _thread
import atexit
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""SLURM sends SIGTERM before it kills a job, and on request (`sbatch --signal`) SIGUSR1 or SIGUSR2 before its limit. A
terminal that is closed sends SIGHUP."""
STOPPED = 75
"""Exit code of a process that was stopped and goes on when it is started again: EX_TEMPFAIL of sysexits.h."""
_OUTSIDE = "a point outside any training"
_AGAIN_SECONDS = 0.1


class TrialStopped(SystemExit):
    """A signal stopped the command, all that it has done saved. The same command goes on from there.

    Not an Exception: what counts failures must not count it. Left alone, it ends the process with `STOPPED`.

    Args:
        signum: Number of the signal.
        where: It was, as in "fold 2, epoch 3, iteration 17".
    """

    def __init__(self, signum: int, where: str) -> None:
        super().__init__(STOPPED)
        self.signum = signum
        self._where = where

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"{name} stopped it at {self._where}. The same command goes on from there."


class _Ending:
    """The handler of a process outside its trials: ends it from wherever its main thread is.

    Attributes:
        received: A signal that has not ended it yet: Python swallows exceptions in what it calls by itself, as a
            `__del__`.
    """

    def __init__(self) -> None:
        self.received = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if _is_in_the_midst(frame):
            _thread.start_new_thread(_send_again, (signum, threading.get_ident()))
            return
        self.received = signum
        raise TrialStopped(signum, _OUTSIDE)

    def take(self) -> int:
        """Returns the signal, once. It is 0 where there was none."""
        received, self.received = self.received, 0
        return received


def _is_in_the_midst(frame: FrameType | None) -> bool:
    """Returns whether an exception would leave half a module or configuration behind, and become another on its way."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib.") or "/omegaconf/" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def _send_again(signum: int, thread: int) -> None:
    time.sleep(_AGAIN_SECONDS)
    signal.pthread_kill(thread, signum)


_ending = _Ending()


def end_on_stop_signals() -> list[signal.Signals]:
    """Has `STOP_SIGNALS` raise TrialStopped in the main thread from now on, where no trial takes them.

    Those that have a handler keep it, as submitit's in a job, and those that are ignored are ignored further.

    Returns:
        Those that it has taken.

    Raises:
        TrialStopped: One that came before is not heeded yet.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    if signum := _ending.take():
        raise TrialStopped(signum, _OUTSIDE)
    taken = [number for number in STOP_SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _ending)
    if taken:
        atexit.register(_ignore)  # the first that is registered is the last that is called
    return taken


def _ignore() -> None:
    """Keeps the exit code: the interpreter's own end, a second with torch, gives handled signals back to the system."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is _ending:
            signal.signal(number, signal.SIG_IGN)


class StopSignals:
    """While entered, signals only leave their number in `received`.

    Whoever trains looks there between two steps, and raises TrialStopped once the state is safe. On the way out that
    exception meets the handler of a caller that was there before, if it was one in Python: submitit's requeues the job.

    Signals reach the main thread alone: in any other nothing is received, and nothing changed.

    Args:
        signals: Which.
    """

    def __init__(self, signals: Sequence[signal.Signals] = STOP_SIGNALS) -> None:
        self.received = 0
        self._signals = signals
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.listen()
        return self

    def listen(self) -> None:
        """Takes the signals for the life of the process, on its own."""
        if threading.current_thread() is threading.main_thread():
            # nohup has SIGHUP ignored
            heeded = [n for n in self._signals if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._receive) for number in heeded}
            self.received = self.received or _ending.take()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)  # a rank starts with them blocked

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if isinstance(error, TrialStopped) and (handler := self._callers(error.signum)) is not None:
            handler(error.signum, None)

    def raise_if_late(self) -> None:
        """Raises TrialStopped for a signal that came too late to stop this trial: it must not be lost on the next.

        Not where the handler before was a caller's in Python, which may start the finished trial again.
        """
        is_ignored = self._previous.get(self.received) == signal.SIG_IGN
        if self.received and self._callers(self.received) is None and not is_ignored:
            raise TrialStopped(self.received, "the end of a trial")

    def _callers(self, signum: int) -> Callable[[int, FrameType | None], Any] | None:
        previous = self._previous.get(signum)
        return previous if callable(previous) and previous is not _ending else None

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
