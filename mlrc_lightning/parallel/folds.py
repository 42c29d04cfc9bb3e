"""Several folds of a trial at once, each in a process of its own, as it would be trained alone.

A fold has its own seeds and its own folder, so that its figures do not depend on what else is trained. The processes
are forked from a server that has imported everything and computed nothing (`multiprocessing`'s forkserver): a fork of
this process could inherit threads in the midst of their work, or a GPU.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import mlrc_lightning._torchvision  # noqa: F401

import torch
from hydra.utils import get_class

from mlrc_lightning import errors
from mlrc_lightning.errors import FoldError, MlrcError
from mlrc_lightning.files import as_json
from mlrc_lightning.parallel.signals import STOP_SIGNALS, StopSignals, TrialStopped, exit_text
from mlrc_lightning.reading import leaves
from mlrc_lightning.settings.resolvers import register_resolvers
from mlrc_lightning.settings.types import TrialSettings

log = logging.getLogger(__name__)

TrainFold = Callable[[TrialSettings, int, Path, StopSignals], None]
"""Trains one fold of a trial in its folder; a function at the top of a module, which the process imports."""

_POLL_SECONDS = 0.1
_PRELOADED = ("mlrc_lightning", "pytorch_metric_learning")
"""Packages whose modules the server of the processes imports."""
_LONGEST = 10_000
"""Characters that are told of a failure's text, and of its traceback."""


@dataclass(frozen=True)
class _Outcome:
    """What a process says last: of a failure the class of the exception, its text, and the lines of its traceback."""

    kind: str
    message: str = ""
    traceback: str = ""


_FINISHED, _STOPPED = _Outcome("finished"), _Outcome("stopped")


@dataclass
class _Running:
    process: ForkServerProcess
    ours: Connection


def train_at_once(
    train_fold: TrainFold, settings: TrialSettings, folds: Sequence[int], folder: Path, stop: StopSignals
) -> None:
    """Trains folds, `trainer.parallel_folds` of them at any time. What they found is in their folders.

    The threads of this process are divided among them. When it ends, however it does, so do they.

    Args:
        train_fold: Trains one.
        settings: Of the trial.
        folds: To be trained.
        folder: Of the trial.
        stop: A signal that arrives there is passed on to all of them.

    Raises:
        MlrcError: What the first failing fold raised, with its number. The others are stopped between two steps, and
            go on from there.
        FoldError: Its process died, or raised anything else.
        TrialStopped: A signal stopped them.
    """
    at_once = min(settings.trainer.parallel_folds, len(folds))
    # not by how many are left: a fold that is trained again has as many as it had
    num_threads = max(1, torch.get_num_threads() // min(settings.trainer.parallel_folds, len(settings.folds)))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([train_fold.__module__, *_modules_of_targets(settings)])
    handlers = [h.baseFilename for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
    waiting, running = list(folds), dict[int, _Running]()
    error: MlrcError | None = None
    was_stopped, is_told = False, False
    log.info("Training %d of %d folds at once, each with %d threads", at_once, len(folds), num_threads)
    try:
        while running or (waiting and error is None and not stop.received):
            while waiting and len(running) < at_once and error is None and not stop.received:
                fold = waiting.pop(0)
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_train,
                    args=(train_fold, settings, fold, folder, theirs, num_threads, handlers),
                    name=f"fold {fold}",
                )
                # the server that forks them hears no stop signal, or one to the whole group would end it, and what it
                # forked with it; a fold unblocks its own once it listens
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
                try:
                    process.start()
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                theirs.close()
                running[fold] = _Running(process, ours)
            wait([child.process.sentinel for child in running.values()], _POLL_SECONDS)
            for fold in [fold for fold, child in running.items() if not child.process.is_alive()]:
                child = running.pop(fold)
                outcome = _last_word(child)
                # one that is told to stop before it can listen is killed, and has nothing to save
                if outcome == _STOPPED or (outcome is None and is_told):
                    was_stopped = True
                elif outcome != _FINISHED:
                    error = error or _error(fold, child, outcome)
            signum = stop.received or (signal.SIGTERM if error is not None else 0)
            if signum and not is_told:
                is_told = True
                for child in running.values():
                    assert child.process.pid is not None
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child.process.pid, signum)
    finally:
        for child in running.values():
            child.process.kill()
            child.process.join()
    if error is not None:
        raise error
    if was_stopped or waiting:
        raise TrialStopped(stop.received or signal.SIGTERM, "the folds' last checkpoints")


def _modules_of_targets(settings: TrialSettings) -> list[str]:
    """Modules that a fold would import when it is built or validated. The server passes over one that is missing."""
    classes = {str(value) for path, value in leaves(as_json(settings)) if path.endswith("._target_")}
    # your own module may raise what it likes: to a fold it is a failure, to the server the end
    ours = {_module_of(name) for name in classes if name.partition(".")[0] in _PRELOADED}
    return sorted({"faiss"} | ours)


def _module_of(name: str) -> str:
    try:
        return str(get_class(name).__module__)
    except Exception:  # a misspelt class is reported by the fold that builds it
        return name.rpartition(".")[0]


def _last_word(child: _Running) -> _Outcome | None:
    # not by the exit status, which is lost where a signal to the whole group has ended the server as well
    child.process.join()
    outcome: _Outcome | None = None
    with contextlib.suppress(EOFError, OSError):
        if child.ours.poll():
            outcome = child.ours.recv()
    child.ours.close()
    return outcome


def _error(fold: int, child: _Running, outcome: _Outcome | None) -> MlrcError:
    if outcome is None:
        return FoldError(f"The process of fold {fold} ended without a word: {exit_text(child.process.exitcode or 0)}.")
    log.error("Fold %d failed:\n%s", fold, outcome.traceback)
    known = errors.named(outcome.kind)
    if known is not None:
        return known(f"{outcome.message} (fold {fold})")
    return FoldError(f"Fold {fold} raised {outcome.kind}: {outcome.message}")


def _train(
    train_fold: TrainFold,
    settings: TrialSettings,
    fold: int,
    folder: Path,
    parent: Connection,
    num_threads: int,
    log_files: Sequence[str],
) -> None:
    """What a process does."""
    gc.freeze()  # what was imported stays: to look through it for garbage would copy it out of the server's memory
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the whole group; the parent ends what it started
    stop = StopSignals()
    stop.listen()  # to the end: a signal that comes too late is the parent's matter
    threading.Thread(target=_end_with_the_parent, args=(parent,), daemon=True).start()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr), *(logging.FileHandler(f) for f in log_files)]
    form = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, handlers=handlers)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # which build it finds, once a process
    torch.set_num_threads(num_threads)
    try:
        register_resolvers()
        train_fold(settings, fold, folder, stop)
        outcome = _FINISHED
    except TrialStopped:
        outcome = _STOPPED
    except BaseException as error:
        lines = "".join(traceback.format_exception(error))
        # short enough for the pipe to hold: it is read once this process has ended
        outcome = _Outcome(type(error).__name__, str(error)[:_LONGEST], lines[-_LONGEST:])
    parent.send(outcome)


def _end_with_the_parent(parent: Connection) -> None:
    """Ends this process when the parent's end of the connection is closed, as it is when that process ends."""
    with contextlib.suppress(EOFError, OSError):
        parent.recv()
    os._exit(1)
