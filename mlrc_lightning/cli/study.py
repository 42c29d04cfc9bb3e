"""All searches and reproductions of one setting: what is missing, in which order, with which command.

It reads results and starts `train.py`; nothing here imports torch or Ax, so that a finished study costs a second.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import IO

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.files import PACKAGE_FOLDER, config_folder
from mlrc_lightning.names import SEARCH, UNTRAINED, parts_of_setting
from mlrc_lightning.parallel.signals import STOPPED, StopSignals
from mlrc_lightning.reading import suggestion
from mlrc_lightning.reporting.tables.catalog import LOSSES
from mlrc_lightning.results.choice import furthest
from mlrc_lightning.results.runs import RunSet, has_best_hyperparameters, missing_folds, run_sets
from mlrc_lightning.results.searches import SearchResult, searches
from mlrc_lightning.settings.composition import Composition, compose, overrides_of

log = logging.getLogger(__name__)

LOGS = "study"
"""Below `outputs`: what the commands print where several run side by side."""
HYPERPARAMETERS = ("search", "paper")
_LAUNCHERS = {"slurm": "mlrc_slurm", "local": "mlrc_local"}
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Study:
    """What is wanted.

    Attributes:
        name: Of an experiment or a dataset.
        overrides: As for `train.py`, after those of the name.
        losses: Of `conf/loss`, in order.
        hyperparameters: search, or paper, which needs no search.
        num_runs: Of each loss; None for the configuration's.
        max_trials: Of each search; None for the configuration's.
        launcher: slurm, local, or any of Hydra's; None for one process.
        outputs: Where results go.
    """

    name: str
    overrides: tuple[str, ...]
    losses: tuple[str, ...]
    hyperparameters: str
    num_runs: int | None
    max_trials: int | None
    launcher: str | None
    outputs: Path

    def __post_init__(self) -> None:
        if self.hyperparameters not in HYPERPARAMETERS:
            raise ConfigError(f"HYPERPARAMETERS={self.hyperparameters}: expected one of {', '.join(HYPERPARAMETERS)}.")
        known = sorted(path.stem for path in (config_folder() / "loss").glob("*.yaml"))
        for loss in self.losses:
            if loss not in known:
                raise ConfigError(f"LOSSES: {loss} is none.{suggestion(loss, known)}")
        for value, name in ((self.num_runs, "RUNS"), (self.max_trials, "TRIALS")):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: expected 1 or more.")

    def arguments(self) -> list[str]:
        """Returns the overrides that all commands share."""
        arguments = [*overrides_of(self.name), *self.overrides]
        if self.outputs != Path("outputs"):
            arguments.append(f"output_root={self.outputs}")
        return arguments

    def composition(self) -> Composition:
        """Returns protocol, setting and budgets."""
        budgets = [] if self.num_runs is None else [f"num_runs={self.num_runs}"]
        budgets += [] if self.max_trials is None else [f"max_trials={self.max_trials}"]
        return compose([*overrides_of(self.name), *self.overrides, *budgets], self.outputs)


@dataclass(frozen=True)
class Step:
    """One command of a study.

    Attributes:
        loss: Of the command; "untrained" for the rows without training.
        stage: search, reproduce or untrained.
        arguments: Of `train.py`.
        num_models: Trainings that are left.
        num_done: Trainings that are there.
        seconds: Wall time of one training, measured; None where there is no measurement.
        is_finished: Whether it need not be run.
    """

    loss: str
    stage: str
    arguments: tuple[str, ...]
    num_models: int
    num_done: int
    seconds: float | None
    is_finished: bool

    @property
    def title(self) -> str:
        return f"{self.stage} {self.loss}" if self.stage != self.loss else self.stage

    def command(self) -> list[str]:
        """Returns the command line."""
        return [sys.executable, str(_train_script()), *self.arguments]

    def shown(self) -> str:
        """Returns the command as one would type it in the repository."""
        return shlex.join(["python", "train.py", *self.arguments])


def plan(study: Study) -> list[Step]:
    """Returns the steps of a study in order: the rows without training, then each loss's search and runs."""
    composition = study.composition()
    own_sets = [
        s for s in run_sets(study.outputs) if (s.protocol, s.setting) == (composition.protocol, composition.setting)
    ]
    own_searches = {
        s.loss: s
        for s in searches(study.outputs)
        if (s.protocol, s.setting, s.name) == (composition.protocol, composition.setting, SEARCH)
    }
    steps = [_untrained_step(study, composition, own_sets)]
    for loss in study.losses:
        search = own_searches.get(loss)
        if study.hyperparameters == "search":
            steps.append(_search_step(study, composition, loss, search))
        steps.append(_reproduce_step(study, composition, loss, search, own_sets, steps[-1]))
    return steps


def render_plan(study: Study, steps: Sequence[Step], jobs: int) -> str:
    """Returns what is left to train, how long one training took, and what that comes to."""
    measured = [step.seconds for step in steps if step.seconds is not None]
    typical = fmean(measured) if measured else None
    lines = [
        f"{study.name} ({study.composition().protocol}): models that are done and left, seconds of wall time each",
        "",
        f"{'':42} {'done':>6} {'left':>6} {'s each':>8} {'left':>9}",
    ]
    total = 0.0
    for step in steps:
        if step.stage == UNTRAINED:
            state = "done" if step.is_finished else "to do"
            lines.append(f"{step.title:42} {state:>6}")
            continue
        each = step.seconds if step.seconds is not None else typical
        left = None if each is None else each * step.num_models
        total += left or 0.0
        shown_each = "–" if step.seconds is None else f"{step.seconds:.1f}"
        shown_left = "–" if left is None else _duration(left)
        lines.append(f"{step.title:42} {step.num_done:>6} {step.num_models:>6} {shown_each:>8} {shown_left:>9}")
    num_left = sum(step.num_models for step in steps)
    num_done = sum(step.num_done for step in steps)
    lines += ["", f"{num_left} models left, {num_done} done."]
    if num_left and typical is None:
        lines.append("No training of this protocol has been measured yet; the first trials will tell.")
    elif num_left and typical is not None:
        side_by_side = f" with {jobs} side by side" if jobs > 1 else ""
        lines.append(
            f"Estimate: {_duration(total / jobs)}{side_by_side}; {typical:.1f} s a model for a loss not measured."
        )
    return "\n".join(lines)


def run(study: Study, jobs: int) -> int:
    """Runs what is missing. A loss that fails keeps no other from running.

    A stop signal, or the end of the terminal, is passed on to the commands that run; no further one is started.

    Args:
        study: What is wanted.
        jobs: Losses that run side by side, each with one thread where there is more than one.

    Returns:
        0; 1 where a command failed; `STOPPED` where one was stopped, or the study. Which ones, and where their output
        is, has been printed.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs {jobs}: expected 1 or more.")
    steps = plan(study)
    by_loss: dict[str, list[Step]] = {}
    for step in steps:
        if step.is_finished:
            log.info("%s: done already", step.title)
        by_loss.setdefault(step.loss, []).append(step)
    chains = [chain for chain in by_loss.values() if not all(step.is_finished for step in chain)]
    runner = _Runner(study, jobs, sum(not step.is_finished for chain in chains for step in chain))
    with StopSignals() as stop, ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(runner.run_chain, chain) for chain in chains}
        try:
            while futures:
                done, futures = wait(futures, _POLL_SECONDS)
                for future in done:
                    future.result()
                if stop.received:
                    # the terminal has sent SIGHUP to all that it has; a second one would end what is being saved
                    runner.stop(signal.SIGTERM if stop.received == signal.SIGHUP else stop.received)
        except KeyboardInterrupt:
            runner.stop(signal.SIGINT)
            raise
    for failure in runner.failures:
        log.error("%s", failure)
    if runner.failures:
        log.error("%d of %d commands failed. The same command tries them again.", len(runner.failures), runner.total)
    if stop.received or runner.stopped:
        cause = f"{signal.Signals(stop.received).name} stopped it" if stop.received else "Stopped"
        where = f" at {', '.join(runner.stopped)}" if runner.stopped else ""
        log.error("%s%s. The same command goes on from there.", cause, where)
        return STOPPED
    return 1 if runner.failures else 0


class _Runner:
    """Starts the commands of a study, and remembers which failed, and which were stopped."""

    def __init__(self, study: Study, jobs: int, total: int) -> None:
        self.study = study
        self.jobs = jobs
        self.total = total
        self.failures: list[str] = []
        self.stopped: list[str] = []
        self._begun = 0
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = False
        self._last_signal = 0

    def run_chain(self, chain: Sequence[Step]) -> None:
        """Runs the steps of one loss, up to the first that fails or is stopped."""
        for step in chain:
            if step.is_finished:
                continue
            with self._lock:
                if self._is_stopped:
                    return
                self._begun += 1
                number = self._begun
            log.info("[%d/%d] %s: %s", number, self.total, step.title, step.shown())
            began = time.monotonic()
            code, where = self._call(step)
            spent = _duration(time.monotonic() - began)
            if code == 0:
                log.info("[%d/%d] %s: done in %s", number, self.total, step.title, spent)
                continue
            # one that is told to stop before it can listen is killed
            if code == STOPPED or self._is_stopped:
                log.info("[%d/%d] %s: stopped after %s%s", number, self.total, step.title, spent, where)
                with self._lock:
                    self.stopped.append(step.title)
                return
            log.error(
                "[%d/%d] %s: failed with exit code %d after %s%s", number, self.total, step.title, code, spent, where
            )
            with self._lock:
                self.failures.append(f"{step.title} failed with exit code {code}{where}: {step.shown()}")
            return

    def stop(self, signum: int) -> None:
        """Passes a signal on to the commands, the first time. No further one is started."""
        with self._lock:
            is_new, self._last_signal = signum != self._last_signal, signum
            self._is_stopped = True
            for process in self._processes if is_new else ():
                process.send_signal(signum)

    def _call(self, step: Step) -> tuple[int, str]:
        environment = dict(os.environ)
        if self.jobs == 1:
            return self._run(step, environment, None), ""
        # two processes whose threads spin on the same cores take many times as long
        environment.setdefault("OMP_NUM_THREADS", "1")
        folder = self.study.outputs / LOGS / self.study.name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{step.title.replace(' ', '_')}.log"
        with path.open("ab") as file:
            return self._run(step, environment, file), f", see {path}"

    def _run(self, step: Step, environment: Mapping[str, str], output: IO[bytes] | None) -> int:
        with self._lock:  # none is started that is not told
            if self._is_stopped:
                return STOPPED
            stderr = None if output is None else subprocess.STDOUT
            process = subprocess.Popen(step.command(), env=environment, stdout=output, stderr=stderr)
            self._processes.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._processes.discard(process)


def _untrained_step(study: Study, composition: Composition, sets: Sequence[RunSet]) -> Step:
    done = max((len(s.complete) for s in sets if s.loss == UNTRAINED), default=0)
    arguments = ["stage=untrained", *study.arguments(), *_budget("num_runs", study.num_runs)]
    if study.launcher is not None:
        arguments = ["-m", *arguments, *_launcher(study)]
    return Step(UNTRAINED, UNTRAINED, tuple(arguments), 0, 0, None, done >= composition.num_runs)


def _search_step(study: Study, composition: Composition, loss: str, search: SearchResult | None) -> Step:
    arguments = ["-m", *study.arguments(), f"loss={loss}", *_budget("max_trials", study.max_trials), *_launcher(study)]
    num_folds = composition.num_folds
    if search is None:
        wanted = _trials_of_a_grid(study, loss, composition.max_trials)
        return Step(loss, "search", tuple(arguments), wanted * num_folds, 0, None, is_finished=False)
    wanted = search.trials_wanted(composition.max_trials)
    # finished with fewer: the search ended by itself, or had failures enough; only a larger budget goes on
    is_finished = search.finished is not None and search.max_trials >= wanted
    left = 0 if is_finished else max(0, wanted - search.num_done)
    timed = [trial.seconds / num_folds for trial in search.trials if trial.state == "completed"]
    seconds = fmean(timed) if timed else None
    return Step(loss, "search", tuple(arguments), left * num_folds, search.num_done * num_folds, seconds, is_finished)


def _reproduce_step(
    study: Study,
    composition: Composition,
    loss: str,
    search: SearchResult | None,
    sets: Sequence[RunSet],
    before: Step,
) -> Step:
    arguments = ["-m", "stage=reproduce", *study.arguments(), f"loss={loss}", *_budget("num_runs", study.num_runs)]
    if study.hyperparameters == "paper":
        arguments.append("hyperparameters=paper")
    arguments += _launcher(study)
    own = [s for s in sets if s.loss == loss and s.source == study.hyperparameters]
    if study.hyperparameters == "search":
        # a search that goes on may find another best setting, whose runs are others
        is_settled = before.is_finished and search is not None
        own = [s for s in own if is_settled and search is not None and has_best_hyperparameters(s, search)]
    chosen = furthest(own)
    wanted, num_folds = composition.num_runs, composition.num_folds
    runs = [] if chosen is None else list(chosen.runs[:wanted])
    left = sum(missing_folds(run, num_folds) for run in runs) + num_folds * (wanted - len(runs))
    num_complete = 0 if chosen is None else sum(missing_folds(run, num_folds) == 0 for run in runs)
    timed = [fold.seconds for run in runs if run.outcome is not None for fold in run.outcome.folds]
    seconds = fmean(timed) if timed else before.seconds if before.loss == loss else None
    done = num_folds * wanted - left
    is_finished = num_complete >= wanted
    return Step(loss, "reproduce", tuple(arguments), 0 if is_finished else left, done, seconds, is_finished)


def _trials_of_a_grid(study: Study, loss: str, budget: int) -> int:
    """Returns the trials of a search that has not begun: the budget, or the points of a list of choices."""
    import yaml

    from mlrc_lightning.settings.paper import search_space

    content = yaml.safe_load((config_folder() / "loss" / f"{loss}.yaml").read_text(encoding="utf-8"))
    dataset, batch_size = parts_of_setting(study.composition().setting)
    has_bounds = search_space(content["paper_name"], dataset, batch_size, content["parameter_names"] or {})
    own = content["search_space"] or {}
    if has_bounds or not own or any(entry["type"] != "choice" for entry in own.values()):
        return budget
    return min(budget, math.prod(len(entry["values"]) for entry in own.values()))


def _budget(key: str, value: int | None) -> list[str]:
    return [] if value is None else [f"{key}={value}"]


def _launcher(study: Study) -> list[str]:
    return [] if study.launcher is None else [f"hydra/launcher={_LAUNCHERS.get(study.launcher, study.launcher)}"]


def _train_script() -> Path:
    inside = PACKAGE_FOLDER / "train.py"
    return inside if inside.exists() else PACKAGE_FOLDER.parent / "train.py"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


ALL_LOSSES = tuple(loss.name for loss in LOSSES if loss.is_of_the_paper)
"""Those of the paper's tables, in their order."""
