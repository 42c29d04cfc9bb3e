"""The pool: starts workers, hands them jobs, replaces those that die, and ends them with this process."""

import atexit
import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.utils import JobReturn, filter_overrides
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from ._devices import Slot, divide
from ._errors import WorkerDiedError
from ._hydra_job import STDERR_FILE, STDOUT_FILE, HydraJob, failed

log = logging.getLogger(__name__)

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[3])
from hydra_plugins.mlrc_local_launcher._worker import main
main(int(sys.argv[1]), int(sys.argv[2]))
"""
_INTERRUPT_SECONDS = 10.0
_STARTS = 2


def launch(
    settings: Mapping[str, Any],
    config: DictConfig,
    hydra_context: HydraContext,
    task_function: TaskFunction,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
) -> Sequence[JobReturn]:
    """Runs jobs in the pool of these settings; see `MLRCLocalLauncher.launch`."""
    pool = _pool_of(divide(**settings))
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    jobs = []
    for number, overrides in enumerate(job_overrides, start=initial_job_idx):
        log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
        jobs.append(HydraJob.pack(number, overrides, config, hydra_context, task_function))
    if len(jobs) == 1:
        return [pool.run(jobs[0])]
    with ThreadPoolExecutor(len(pool.slots), thread_name_prefix="mlrc_local") as threads:
        try:
            return list(threads.map(pool.run, jobs))
        except BaseException:
            # an interrupt: end the workers, or leaving this block would wait for jobs of hours
            threads.shutdown(wait=False, cancel_futures=True)
            pool.close()
            raise


_pools: dict[tuple[Slot, ...], "Pool"] = {}
_pools_lock = threading.Lock()


def _pool_of(slots: tuple[Slot, ...]) -> "Pool":
    """The pool of these slots: one for all sweeps of this process, so that a second search finds warm workers."""
    with _pools_lock:
        if slots not in _pools:
            _pools[slots] = Pool(slots)
            atexit.register(_pools[slots].close)
        return _pools[slots]


class Pool:
    """One worker a slot, started when a job first needs it."""

    def __init__(self, slots: tuple[Slot, ...]) -> None:
        """Start nothing yet."""
        self.slots = slots
        self._workers: dict[int, Worker] = {}
        # last in, first out: the worker that is warm already comes before one yet to be started
        self._free: queue.LifoQueue[Slot] = queue.LifoQueue()
        for slot in reversed(slots):
            self._free.put(slot)

    def run(self, job: HydraJob) -> JobReturn:
        """Runs a job in the next free worker; called by as many threads as there are jobs at a time."""
        slot = self._free.get()
        try:
            return self._run_in(slot, job)
        finally:
            self._free.put(slot)

    def _run_in(self, slot: Slot, job: HydraJob) -> JobReturn:
        death = None
        # a worker may have died while it was idle, which is no fault of the job
        for _ in range(_STARTS):
            worker = self._workers.get(slot.number)
            if worker is None or not worker.is_alive:
                worker = self._workers[slot.number] = Worker(slot)
                log.debug("Worker %d: process %d", slot.number, worker.process.pid)
            try:
                return worker.run(job)
            except _DiedError as died:
                death = died
                if died.folder is not None:
                    break
        assert death is not None
        log.error("Job %d: %s", job.number, death)
        return failed(job.overrides, WorkerDiedError(str(death)))

    def close(self) -> None:
        """Ends the workers; a job under way is interrupted, and killed where it does not heed that."""
        for worker in self._workers.values():
            worker.interrupt()
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()


class _DiedError(Exception):
    def __init__(self, text: str, folder: Path | None) -> None:
        super().__init__(text)
        self.folder = folder


class Worker:
    """A worker process and our end of the line to it."""

    def __init__(self, slot: Slot) -> None:
        """Start the process: a fresh interpreter, never a fork, which would inherit locks of torch's threads."""
        ours, theirs = Pipe()
        here = os.getcwd()
        command = [sys.executable, "-c", _START, str(theirs.fileno()), str(os.getpid())]
        # a group of its own: an interrupt from the keyboard is the launcher's business, and its end takes all children
        self.process = subprocess.Popen(
            [*command, json.dumps([entry or here for entry in sys.path])],
            env={**os.environ, **dict(slot.environment)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._line = ours
        self._is_busy = False

    @property
    def is_alive(self) -> bool:
        """Whether the process is there."""
        return self.process.poll() is None

    def run(self, job: HydraJob) -> JobReturn:
        """Runs one job.

        Raises:
            _DiedError: The process ended; `folder` is None where it had not begun the job.
        """
        folder: Path | None = None
        self._is_busy = True
        try:
            self._line.send_bytes(cloudpickle.dumps(job))
            while True:
                kind, content = cloudpickle.loads(self._line.recv_bytes())
                if kind == "returned":
                    self._is_busy = False
                    returned: JobReturn = content
                    return returned
                folder = content
        except (EOFError, OSError):
            self._end_children()
            raise _DiedError(_how_it_ended(self.process.wait(), folder), folder) from None

    def interrupt(self) -> None:
        """Asks a job under way to stop, as an interrupt from the keyboard would."""
        if self._is_busy and self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> None:
        """Ends the process and all that it started."""
        if self._is_busy:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_INTERRUPT_SECONDS)
        self._end_children()
        self.process.wait()

    def _end_children(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _how_it_ended(status: int, folder: Path | None) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        how = f"was killed by {name}"
        if -status == signal.SIGKILL:
            how += " (by the kernel where memory ran out, else by somebody)"
    else:
        how = f"ended with exit status {status}"
    if folder is None:
        return f"the worker {how} before it began the job; its output is above"
    return f"the worker {how}; its output is in {folder / STDERR_FILE} and {STDOUT_FILE}"
