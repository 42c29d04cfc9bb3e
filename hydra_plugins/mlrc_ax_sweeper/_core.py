"""One search: proposes trials, runs their jobs in slots, and writes each step down before the next."""

import contextlib
import logging
import math
import platform
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mlrc_sweeper.state import Trial

from ._errors import SpaceExhaustedError, SweepError
from ._jobs import Job, JobResult, is_usage_error, reason_of, run_job
from ._ledger import Ledger, SearchLock
from ._problem import Problem, check_resume, new_header
from ._racing import cannot_win
from ._results import write_results
from ._stopping import EarlyStopper
from ._suggest import suggest

log = logging.getLogger(__name__)

_BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
_UPSTREAM_BATCH = 5


def run_search(problem: Problem, config: DictConfig, hydra_context: HydraContext, task_function: TaskFunction) -> None:
    """Run one search, or continue it where its ledger ends.

    Raises:
        SweepError: The search cannot start or go on.
        Exception: The first job's own error where it would befall every trial.
    """
    directory = Path(config.hydra.sweep.dir)
    directory.mkdir(parents=True, exist_ok=True)
    log.info("AxSweeper is optimizing the following parameters: %s", problem.space.describe())
    with SearchLock(directory):
        ledger = Ledger(directory)
        try:
            search = Search(problem, directory, ledger)
            if not search.open():
                launcher = Plugins.instance().instantiate_launcher(
                    config=config, hydra_context=hydra_context, task_function=task_function
                )
                OmegaConf.save(config, directory / "multirun.yaml")
                search.run(launcher, num_slots(problem, config, launcher))
            search.report()
        finally:
            ledger.close()


def num_slots(problem: Problem, config: DictConfig, launcher: Launcher) -> int:
    """Jobs that run at a time. A launcher may know by itself how many it has room for (`num_slots`)."""
    settings = problem.settings
    is_basic = config.hydra.launcher._target_ == _BASIC_LAUNCHER
    if is_basic:
        if settings.n_parallel is not None and settings.n_parallel > 1:
            raise SweepError(
                f"`hydra.sweeper.n_parallel` is {settings.n_parallel}, and Hydra's basic launcher runs "
                "jobs in "
                "this process, one at a time. Choose a launcher with processes of its own, e.g. "
                "`hydra/launcher=mlrc_local` or `mlrc_slurm`, or leave n_parallel at 1."
            )
        return 1
    room = getattr(launcher, "num_slots", None)
    slots: int = settings.n_parallel or room or settings.max_batch_size or _UPSTREAM_BATCH
    return min(slots, settings.max_batch_size or slots)


@dataclass(frozen=True)
class _Submission:
    """A launcher has given a job an id. Its thread waits until that is in the ledger."""

    payload: dict[str, Any]
    is_noted: Event


class Search:
    """A search with its ledger open and its folder locked."""

    def __init__(self, problem: Problem, directory: Path, ledger: Ledger) -> None:
        """Read where the search stands."""
        self.problem = problem
        self.directory = directory
        self.ledger = ledger
        self.state = ledger.state
        self.early_stopper = EarlyStopper(problem)
        self._begin = time.monotonic()
        self._done_before = self.state.num_completed
        self._launcher: Launcher | None = None
        # under way, by number; and what their threads have to say
        self._jobs: dict[int, Job] = {}
        self._results: queue.SimpleQueue[tuple[Job, JobResult | _Submission | SystemExit]] | None = None

    def open(self) -> bool:
        """Begin the ledger, or check that it is this search's.

        Returns:
            Whether the search is finished already.
        """
        if self.state.header is None:
            self._append("search", new_header(self.problem, _versions(), _now()))
            return False
        check_resume(self.problem, self.state.header, str(self.directory))
        begun_with = self.state.header["versions"]["ax-platform"]
        if begun_with != version("ax-platform"):
            log.warning("The search was begun with Ax %s; this is %s", begun_with, version("ax-platform"))
        wanted = self.problem.settings.ax_config.max_trials
        if wanted != self.state.max_trials:
            self._append("extended", {"max_trials": wanted, "from": self.state.max_trials, "time": _now()})
        for index in self.state.concluded:
            self.early_stopper.follow(self.state.trials[index])
        if self.problem.settings.retry_failed:
            for trial in self.state.with_status("failed"):
                self._append("reopened", {"trial": trial.index, "time": _now()})
        self._settle()
        if self._is_over():
            log.info("The search in %s is finished: %s", self.directory, self._counts())
            return True
        log.info("Continuing the search in %s: %s", self.directory, self._counts())
        return False

    def _settle(self) -> None:
        """Draw the conclusions that an interrupted sweeper had no time to write down."""
        for trial in self.state.with_status("open"):
            if len(trial.results) == len(self.problem.replicates):
                self._complete(trial)
            elif any(count > self.problem.settings.retries for count in trial.failures.values()):
                self._append("failed", {"trial": trial.index, "reason": trial.reason, "time": _now()})
            elif trial.results and self.problem.settings.racing.enabled:
                self._race(trial)

    def run(self, launcher: Launcher, slots: int) -> None:
        """Propose and run trials until the search is over."""
        self._launcher = launcher
        if hasattr(launcher, "on_submitted"):
            launcher.on_submitted = self._note_submission
        # a launcher with processes of its own may hand on to its jobs the signals that ask this process to stop
        with getattr(launcher, "passing_on_signals", contextlib.nullcontext)():
            if slots > 1:
                self._run_in_slots(slots)
                return
            while (job := self._next_job(running=[])) is not None:
                self._jobs = {job.number: job}
                self._finish_job(job, self._execute(job))

    def _run_in_slots(self, slots: int) -> None:
        """Steady state: a slot that is free gets the next job at once, however long the others take.

        The threads are daemons: an interrupt ends the process without waiting for jobs of hours. When the
        search has to stop, the jobs under way are still waited for, and their results kept.
        """
        results = self._results = queue.SimpleQueue()
        running: list[Job] = []
        stopped: BaseException | None = None

        def work(job: Job) -> None:
            result: JobResult | SystemExit
            try:
                result = self._execute(job)
            except SystemExit as stop:
                result = stop
            except BaseException as error:  # or the search would wait for this job for ever
                result = JobResult(0.0, reason=reason_of(error))
            results.put((job, result))

        while True:
            try:
                while stopped is None and len(running) < slots and (job := self._next_job(running)) is not None:
                    running.append(job)
                    self._jobs[job.number] = job
                    Thread(target=work, args=(job,), name=f"job {job.number}", daemon=True).start()
                if not running:
                    break
                job, result = results.get()
                if isinstance(result, _Submission):
                    try:
                        self._append("submitted", result.payload)
                    finally:
                        result.is_noted.set()
                    continue
                running.remove(job)
                del self._jobs[job.number]
                if isinstance(result, SystemExit):
                    # it was asked to stop: no failure; it stays open in the ledger, and goes on when the search does
                    stopped = stopped or result
                    continue
                self._finish_job(job, result)
            except Exception as error:
                stopped = stopped or error
        if stopped is not None:
            raise stopped

    def _note_submission(self, number: int, id_: str, folder: Path) -> None:
        """Has the ledger say by which id a launcher's job can be found, before that job is waited for."""
        job = self._jobs[number]
        if job.trial.ids.get(job.replicate) == id_:
            return
        where = {"trial": job.trial.index, "replicate": job.replicate, "job": number}
        payload = {**where, "id": id_, "folder": str(folder), "time": _now()}
        if self._results is None:
            self._append("submitted", payload)
            return
        # one thread alone writes; this is another
        submission = _Submission(payload, Event())
        self._results.put((job, submission))
        submission.is_noted.wait()

    def report(self) -> None:
        """Write the results and, once, that the search is finished."""
        best = self.problem.best(self.state.trials)
        if self._is_over() and self.state.finished is None:
            self._draw()
            index = None if best is None else best.index
            self._append("finished", {"cause": self._stop_cause(), "best": index, "time": _now()})
        parameters = write_results(self.problem, self.state, self.directory)
        log.info("Best parameters: %s", parameters)
        self._report_failures()

    def _report_failures(self) -> None:
        """Make trials that failed for good the command's own failure, where all of them are to be done."""
        failed = self.state.with_status("failed")
        if failed and self.problem.settings.retry_failed:
            reasons = "\n".join(f"  {trial.parameters}: {trial.reason}" for trial in failed)
            raise SweepError(
                f"{len(failed)} of {len(self.state.trials)} trials in {self.directory} failed, {self._counts()}:\n"
                f"{reasons}\nMend the cause and repeat the command, which tries them again."
            )

    def _draw(self) -> None:
        """Draw the plots. A search is finished with or without them."""
        if not self.problem.settings.report or not self.state.num_completed:
            return
        try:
            from ._report import write_report

            write_report(self.directory)
        except Exception:
            log.warning("The plots could not be drawn; `python -m hydra_plugins.mlrc_ax_sweeper report` tries again")
            log.debug("Plots", exc_info=True)

    # what comes next

    def _next_job(self, running: Sequence[Job]) -> Job | None:
        busy = {(job.trial.index, job.replicate) for job in running}
        for trial in self.state.with_status("open"):
            for replicate in range(len(self.problem.replicates)):
                if replicate in trial.results:
                    continue
                if (trial.index, replicate) not in busy:
                    return self._start(trial, replicate)
                if self.problem.settings.racing.enabled:
                    break  # one after the other, so that each result can spare the next
        under_way = len(self.state.with_status("open")) + self.state.num_completed
        if self._stop_cause() is not None or under_way >= self.state.max_trials:
            return None
        proposed = self._propose()
        return None if proposed is None else self._start(proposed, 0)

    def _propose(self) -> Trial | None:
        assert self.state.header is not None
        try:
            suggestion = suggest(self.problem, self.state.header["seed"], self.state.trials)
        except SpaceExhaustedError:
            log.info("Ax has exhausted the search space")
            self._append("exhausted", {"time": _now()})
            return None
        index = len(self.state.trials)
        self._append(
            "proposed",
            {
                "trial": index,
                "parameters": suggestion.parameters,
                "generator": suggestion.generator,
                "seconds": round(suggestion.seconds, 3),
                "time": _now(),
            },
        )
        return self.state.trials[index]

    def _start(self, trial: Trial, replicate: int) -> Job:
        # a job that was interrupted, or cut off, keeps its number, and with it its directory: the app can resume in it
        is_resumed = replicate in trial.open_jobs
        number = {**trial.kept_jobs, **trial.open_jobs}.get(replicate, self.state.next_job)
        overrides = (*self.problem.space.overrides(trial.parameters), *self.problem.replicates[replicate])
        job = Job(number, trial, replicate, overrides, is_resumed)
        self._append(
            "started",
            {
                "trial": trial.index,
                "replicate": replicate,
                "attempt": trial.failures.get(replicate, 0),
                "job": number,
                "resumed": is_resumed,
                "time": _now(),
            },
        )
        return job

    def _execute(self, job: Job) -> JobResult:
        assert self._launcher is not None
        log.info("AxSweeper is launching 1 jobs")
        return run_job(self._launcher, job, self.problem)

    # what came back

    def _finish_job(self, job: Job, result: JobResult) -> None:
        trial, replicate = job.trial, job.replicate
        where: dict[str, Any] = {"trial": trial.index, "replicate": replicate, "job": job.number}
        where["seconds"] = round(result.seconds, 3)
        if result.metrics is not None:
            metrics = {name: measured.to_json() for name, measured in result.metrics.items()}
            self._append("result", {**where, "metrics": metrics, "time": _now()})
            if trial.status == "open" and len(trial.results) == len(self.problem.replicates):
                self._complete(trial)
            elif trial.status == "open" and self.problem.settings.racing.enabled:
                self._race(trial)
            return
        self._stop_on_usage_error(job, result)
        log.error("Trial %d, job %d failed: %s\n%s", trial.index, job.number, result.reason, result.traceback)
        where["attempt"] = trial.failures.get(replicate, 0)
        why: dict[str, Any] = {"reason": result.reason, "traceback": result.traceback}
        if result.state is not None:
            why["state"] = result.state
        if result.was_cut_off:
            why["keeps_job"] = True
        self._append("job_failed", {**where, **why, "time": _now()})
        if trial.failures[replicate] <= self.problem.settings.retries and not result.is_final:
            log.info("Trial %d is tried again", trial.index)
            return
        if trial.status == "open":
            self._append("failed", {"trial": trial.index, "reason": result.reason, "time": _now()})
            self._stop_on_failures(trial)

    def _complete(self, trial: Trial) -> None:
        measured = trial.measurements
        self._append("completed", {"trial": trial.index, "values": self.problem.means(trial), "time": _now()})
        best = self.problem.best(self.state.trials)
        if best is not None and best is trial and not self.problem.is_multi_objective:
            value = measured[self.problem.objective].mean
            parameters = {**self.problem.space.shared, **trial.parameters}
            log.info("New best value: %s, best parameters: %s", value, parameters)
        self.early_stopper.follow(trial)
        log.info("%s", self._status_line(trial))

    def _race(self, trial: Trial) -> None:
        """Spare the trial its other replicates where it cannot become the best."""
        racing, best = self.problem.settings.racing, self.problem.best(self.state.trials)
        values = self.state.replicate_values(trial, self.problem.objective)
        table = self.state.replicate_table(self.problem.objective)
        if best is None or len(values) < racing.min_replicates or len(table) < racing.min_trials:
            return
        best_mean = best.measurements[self.problem.objective].mean
        minimize = self.problem.objectives[self.problem.objective]
        forecast = cannot_win(values, table, best_mean, racing.z, minimize)
        if forecast is None:
            return
        num_run, num_all = len(values), len(self.problem.replicates)
        reason = (
            f"after {num_run} of {num_all} replicates its mean is forecast as {forecast.mean:.6g} "
            f"+- {forecast.standard_error:.2g}, and trial {best.index} has {best_mean:.6g}"
        )
        fields = {"forecast": forecast.mean, "standard_error": forecast.standard_error, "reason": reason}
        self._append("raced_out", {"trial": trial.index, **fields, "time": _now()})
        log.info("Trial %d is out of the race: %s", trial.index, reason)
        self.early_stopper.follow(trial)

    def _stop_on_usage_error(self, job: Job, result: JobResult) -> None:
        """Raise an error that would befall every trial, before it burns more of them.

        A usage error while nothing has succeeded is of that kind. Once trials are completed, a trial that
        stops the search a second time is to blame itself, and fails like any other.
        """
        if result.exception is None or not is_usage_error(result.exception):
            return
        first = self.state.num_completed == self._done_before
        if first and not (self._done_before and self.state.usage_error_trial == job.trial.index):
            self._append(
                "stopped",
                {"cause": "usage error", "trial": job.trial.index, "reason": result.reason, "time": _now()},
            )
            raise result.exception

    def _stop_on_failures(self, trial: Trial) -> None:
        failed = self.state.num_failed - self.state.forgiven_failures
        allowed = self.problem.max_failures()
        if failed <= allowed:
            return
        self._append("stopped", {"cause": "failures", "reason": trial.reason, "time": _now()})
        write_results(self.problem, self.state, self.directory)
        raise SweepError(
            f"The search in {self.directory} stopped: {failed} trials failed, and "
            "`hydra.sweeper.max_failures` "
            f"allows {allowed}. The last reason: {trial.reason}. Mend the cause and repeat the command, "
            "which "
            f"continues the search ({self._counts()}), or raise max_failures."
        )

    # when it is over

    def _is_over(self) -> bool:
        return self._stop_cause() is not None and not self.state.with_status("open")

    def _stop_cause(self) -> str | None:
        """Why no further trial is proposed."""
        if self.state.num_completed >= self.state.max_trials:
            return "max_trials"
        if self.early_stopper.says_stop:
            return "early stop"
        return "exhausted" if self.state.exhausted else None

    def _counts(self) -> str:
        state = self.state
        return f"{state.num_completed} of {state.max_trials} trials done, {state.num_failed} failed"

    def _status_line(self, trial: Trial) -> str:
        best = self.problem.best(self.state.trials)
        shown = "none yet"
        if best is not None:
            shown = f"{best.measurements[self.problem.objective].mean:.6g} (trial {best.index})"
        done = self.state.num_completed
        left = self.state.max_trials - done
        pace = (time.monotonic() - self._begin) / max(1, done - self._done_before)
        value = trial.measurements[self.problem.objective].mean
        return (
            f"Trial {trial.index}: {value:.6g}; best {shown}; {done} of {self.state.max_trials} done, "
            f"{self.state.num_failed} failed; about {_duration(pace * left)} left"
        )

    def _append(self, type_: str, payload: dict[str, Any]) -> None:
        self.ledger.append(type_, payload)


def _duration(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    if seconds < 60:
        return f"{math.ceil(seconds)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _versions() -> dict[str, str]:
    packages = ("ax-platform", "botorch", "gpytorch", "torch", "hydra-core")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
