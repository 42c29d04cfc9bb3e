"""What runs in a worker process: one job after the other, until the launcher closes the line or dies."""

import contextlib
import faulthandler
import gc
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import cloudpickle
from hydra.core.utils import JobReturn

from ._hydra_job import HydraJob, failed, portable, streams_to

_PARENT_CHECK_MS = 1000


def main(descriptor: int, parent: int) -> None:
    """Serves jobs on a line.

    Args:
        descriptor: Of our end of the line.
        parent: Process id of the launcher.
    """
    line: Connection = Connection(descriptor)
    threading.Thread(target=_end_with, args=(descriptor, parent), daemon=True).start()
    faulthandler.enable()
    # what a job prints must not be lost with a process that is killed
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    is_first = True
    while True:
        try:
            job: HydraJob = cloudpickle.loads(line.recv_bytes())
        except EOFError:
            return
        message, goes_on = _run(job, line)
        line.send_bytes(cloudpickle.dumps(message))
        if not goes_on:
            return
        _tidy(is_first)
        is_first = False


def _run(job: HydraJob, line: Connection) -> tuple[tuple[str, JobReturn | str], bool]:
    """What is to be said of the job, and whether this process is to go on."""

    @contextlib.contextmanager
    def inside(folder: Path) -> Iterator[None]:
        line.send_bytes(cloudpickle.dumps(("began", folder)))
        with streams_to(folder):
            yield

    try:
        return ("returned", job.run(str(job.number), inside)), True
    except BaseException as error:  # sys.exit in a task ends the job, not the worker
        # by which a task that was asked to stop says that it goes on when it is started again
        if isinstance(error, SystemExit) and error.code == os.EX_TEMPFAIL:
            return ("stopped", f"{type(error).__name__}: {error}"), True
        return ("returned", portable(failed(job.overrides, error))), not isinstance(error, KeyboardInterrupt)


def _tidy(is_first: bool) -> None:
    """Gives back what the job left, and the GPU memory that torch keeps: other workers may share the device.

    What is there after the first job, imports for the most part, is not looked through again: with torch and Lightning
    that would take 0.1 to 0.2 s after every job.
    """
    gc.collect()
    if is_first:
        gc.freeze()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _end_with(descriptor: int, parent: int) -> None:
    """Ends this process and its children, the worker's group, as soon as the launcher is gone.

    Not by PR_SET_PDEATHSIG: that follows the thread that started us, and a sweeper's threads come and go.
    """
    poller = select.poll()
    poller.register(descriptor, 0)  # only a hang-up, which poll always reports
    while not poller.poll(_PARENT_CHECK_MS) and os.getppid() == parent:
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)
