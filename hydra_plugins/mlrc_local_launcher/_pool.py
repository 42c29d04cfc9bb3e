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
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from pathlib import Path
from types import FrameType
from typing import Any

import cloudpickle
from hydra.core.utils import JobReturn, filter_overrides
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from ._devices import Slot, divide
from ._errors import JobStopped, WorkerDiedError
from ._hydra_job import STDERR_FILE, STDOUT_FILE, HydraJob, failed

log = logging.getLogger(__name__)

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[3])
from hydra_plugins.mlrc_local_launcher._worker import main
main(int(sys.argv[1]), int(sys.argv[2]))
"""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What SLURM sends before it kills a job."""
_INTERRUPT_SECONDS = 10.0
_MOMENT_SECONDS = 0.2
_STARTS = 2


def launch(
    settings: Mapping[str, Any],
    config: DictConfig,
    hydra_context: HydraContext,
    task_function: TaskFunction,
    job_overrides: Sequence[Sequence[str]],
    initial_job_idx: int,
) -> Sequence[JobReturn]:
    """Runs jobs in the pool of these settings. See `MLRCLocalLauncher.launch`."""
    pool = pool_of(divide(**settings))
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    jobs = []
    for number, overrides in enumerate(job_overrides, start=initial_job_idx):
        log.info("\t#%d : %s", number, " ".join(filter_overrides(overrides)))
        jobs.append(HydraJob.pack(number, overrides, config, hydra_context, task_function))
    with pool.passing_on_signals():
        returned = [pool.run(jobs[0])] if len(jobs) == 1 else _run_all(pool, jobs)
        for job in returned:
            if isinstance(job._return_value, JobStopped):
                raise job._return_value
        return returned


def _run_all(pool: "Pool", jobs: Sequence[HydraJob]) -> list[JobReturn]:
    has_stopped = False

    def run(job: HydraJob) -> JobReturn:
        nonlocal has_stopped
        if has_stopped:
            return failed(job.overrides, JobStopped("another job was stopped before this one began"))
        returned = pool.run(job)
        has_stopped = has_stopped or isinstance(returned._return_value, JobStopped)
        return returned

    with ThreadPoolExecutor(len(pool.slots), thread_name_prefix="mlrc_local") as threads:
        try:
            return list(threads.map(run, jobs))
        except BaseException:
            # an interrupt: end the workers, or leaving this block would wait for jobs of hours
            threads.shutdown(wait=False, cancel_futures=True)
            pool.close()
            raise


_pools: dict[tuple[Slot, ...], "Pool"] = {}
_pools_lock = threading.Lock()


def pool_of(slots: tuple[Slot, ...]) -> "Pool":
    """The pool of these slots: one for all sweeps of this process, so that a second search finds warm workers."""
    with _pools_lock:
        if slots not in _pools or _pools[slots].is_closed:
            _pools[slots] = Pool(slots)
            atexit.register(_pools[slots].close)
        return _pools[slots]


class Pool:
    """One worker a slot, started when a job first needs it."""

    def __init__(self, slots: tuple[Slot, ...]) -> None:
        """Start nothing yet."""
        self.slots = slots
        self.is_closed = False
        self._workers: dict[int, Worker] = {}
        # the signal that asked to stop, until `passing_on_signals` is left
        self._signum = 0
        self._passes_on = False
        # last in, first out: the worker that is warm already comes before one yet to be started
        self._free: queue.LifoQueue[Slot] = queue.LifoQueue()
        for slot in reversed(slots):
            self._free.put(slot)

    def run(self, job: HydraJob) -> JobReturn:
        """Runs a job in the next free worker. It is called by as many threads as there are jobs at a time."""
        slot = self._free.get()
        try:
            returned = self._run_in(slot, job)
        finally:
            self._free.put(slot)
        if isinstance(returned._return_value, JobStopped):
            log.info("Job %d: %s", job.number, returned._return_value)
        return returned

    def _run_in(self, slot: Slot, job: HydraJob) -> JobReturn:
        death = None
        # a worker may have died while it was idle, which is no fault of the job
        for _ in range(_STARTS):
            if (refusal := self._refusal()) is not None:
                return failed(job.overrides, refusal)
            worker = self._workers.get(slot.number)
            if worker is None or not worker.is_alive:
                worker = self._workers[slot.number] = Worker(slot)
                log.debug("Worker %d: process %d", slot.number, worker.process.pid)
            worker.is_busy = True
            # once more: who closed or stopped the pool before this worker was busy has passed it by
            if (refusal := self._refusal()) is not None:
                worker.is_busy = False
                return failed(job.overrides, refusal)
            try:
                return worker.run(job)
            except _DiedError as died:
                time.sleep(_MOMENT_SECONDS)  # a signal to all processes at once may reach this one last
                if self._signum:  # for which the job did not listen, or not yet
                    return failed(job.overrides, JobStopped(str(died)))
                death = died
                if died.folder is not None:
                    break
        assert death is not None
        log.error("Job %d: %s", job.number, death)
        return failed(job.overrides, WorkerDiedError(str(death)))

    def _refusal(self) -> BaseException | None:
        """Why no further job may begin."""
        if self.is_closed:
            return WorkerDiedError("the launcher had ended its workers before the job began")
        if self._signum:
            return JobStopped(f"{signal.Signals(self._signum).name} came before it began")
        return None

    @contextlib.contextmanager
    def passing_on_signals(self) -> Iterator[None]:
        """While entered, STOP_SIGNALS go to the jobs under way, which may save what they have, and no other job begins.

        Once it is left, the handler that was there before, if it was one in Python, gets the signal as well. Signals
        reach the main thread alone: in any other, and inside itself, this changes nothing.

        Raises:
            JobStopped: On the way out; a signal came.
        """
        if self._passes_on or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._pass_on) for number in STOP_SIGNALS}
        self._passes_on = True
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            self._passes_on = False
            signum, self._signum = self._signum, 0
            if signum and callable(handler := before[signal.Signals(signum)]):
                handler(signum, None)
        if signum:
            raise JobStopped(f"{signal.Signals(signum).name} came")

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        # nothing is logged here: the signal may have come in the middle of a line
        self._signum = signum
        for worker in list(self._workers.values()):
            worker.pass_on(signum)

    def close(self) -> None:
        """Ends the workers. A job under way is interrupted, and killed where it does not heed that."""
        self.is_closed = True  # first: an interrupted worker is not to be replaced
        workers = list(self._workers.values())
        for worker in workers:
            worker.interrupt()
        for worker in workers:
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
        self.is_busy = False

    @property
    def is_alive(self) -> bool:
        """Whether the process is there."""
        return self.process.poll() is None

    def run(self, job: HydraJob) -> JobReturn:
        """Runs one job. One that was asked to stop is a failed one, with JobStopped.

        Raises:
            _DiedError: The process ended; `folder` is None where it had not begun the job.
        """
        folder: Path | None = None
        try:
            self._line.send_bytes(cloudpickle.dumps(job))
            while True:
                kind, content = cloudpickle.loads(self._line.recv_bytes())
                if kind == "began":
                    folder = content
                    continue
                self.is_busy = False
                returned: JobReturn = failed(job.overrides, JobStopped(content)) if kind == "stopped" else content
                return returned
        except (EOFError, OSError):
            self._end_children()
            raise _DiedError(_how_it_ended(self.process.wait(), folder), folder) from None

    def pass_on(self, signum: int) -> None:
        """Sends a signal to a job under way: to its process alone, which knows what it has started."""
        if self.is_busy:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signum)

    def interrupt(self) -> None:
        """Asks a job under way to stop, as an interrupt from the keyboard would."""
        if self.is_busy and self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> None:
        """Ends the process and all that it started."""
        if self.is_busy:
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
