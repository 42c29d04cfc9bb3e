"""Folds of a trial at once: the figures of one after the other, and the same stops, failures and resumes."""

import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses

from mlrc_lightning import data, models
from mlrc_lightning.errors import ConfigError, FoldError, NonFiniteError
from mlrc_lightning.parallel import folds as fold_processes
from mlrc_lightning.parallel.folds import _error, _last_word, _modules_of_targets, _Outcome, _Running
from mlrc_lightning.parallel.signals import STOPPED, TrialStopped
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.results.records import TrialRecord, read_json
from tests.launchers.test_local import wait_for
from tests.protocol.test_resume import files_of, noisy
from tests.protocol.test_trial import without_times

ROOT = Path(__file__).parents[2]
AT_ONCE = "trainer.parallel_folds=2"


class Ended:
    """A process that ended."""

    def __init__(self, exitcode):
        self.exitcode = exitcode

    def join(self):
        pass


def test_what_a_process_says_last_becomes_the_trials_error():
    error = _error(2, None, _Outcome("NonFiniteError", "Training diverged.", "…"))
    assert isinstance(error, NonFiniteError)
    assert str(error) == "Training diverged. (fold 2)"
    error = _error(1, None, _Outcome("ValueError", "of something", "…"))
    assert isinstance(error, FoldError)
    assert str(error) == "Fold 1 raised ValueError: of something"
    error = _error(0, _Running(Ended(-9), None), None)
    assert str(error) == "The process of fold 0 ended without a word: killed by SIGKILL."
    assert not FoldError.is_usage_error


def test_a_process_that_said_nothing_has_no_last_word():
    ours, theirs = Pipe()
    theirs.close()
    assert _last_word(_Running(Ended(1), ours)) is None


@pytest.mark.slow
def test_folds_at_once_and_ranks_do_not_go_together(settings):
    with pytest.raises(ConfigError, match=r"trainer\.parallel_folds=2: expected 1 with several ranks"):
        settings("trainer=ddp", AT_ONCE)
    with pytest.raises(ConfigError, match=r"trainer\.parallel_folds=0: expected >= 1"):
        settings("trainer.parallel_folds=0")


def test_the_server_imports_what_folds_will_need_and_no_module_of_your_own(settings):
    found = _modules_of_targets(settings("loss=multi_similarity_miner", "split.splitter._target_=your.own.Splitter"))
    needed = (data.Glyphs, data.MPerClassBatches, models.SmallCNN, losses.MultiSimilarityLoss)
    assert {"faiss", *(of_a_fold.__module__ for of_a_fold in needed)} <= set(found)
    assert not [name for name in found if name.startswith(("your", "torch"))]
    for name in found:
        importlib.import_module(name)


@pytest.mark.slow
def test_folds_at_once_are_the_same_trial(compose_config):
    def folder(*overrides):
        return compose_config(*overrides, return_hydra_config=True).hydra.run.dir

    assert folder(AT_ONCE) == folder()


@pytest.fixture(scope="module")
def serial():
    """The trial whose folds are trained one after the other; made by the first test that asks."""
    return {}


def one_after_the_other(serial, settings, tmp_path):
    if not serial:
        torch.set_num_threads(1)
        serial["record"] = without_times(run_trial(noisy(settings), tmp_path / "serial"))
        serial["files"] = files_of(tmp_path / "serial")
    return serial["record"], serial["files"]


def same_but_for_the_option(record):
    record = without_times(record)
    record["settings"]["trainer"]["parallel_folds"] = 1
    return record


@pytest.mark.slow
def test_two_folds_at_once_have_the_figures_of_one_after_the_other(settings, tmp_path, serial):
    expected, files = one_after_the_other(serial, settings, tmp_path)
    assert same_but_for_the_option(run_trial(noisy(settings, AT_ONCE), tmp_path / "at_once")) == expected
    assert files_of(tmp_path / "at_once") == files


@pytest.mark.slow
def test_a_signal_stops_both_and_they_go_on_to_the_same_end(settings, tmp_path, serial):
    expected, files = one_after_the_other(serial, settings, tmp_path)
    s, folder = noisy(settings, AT_ONCE, "trainer.checkpoint_every_n_iterations=1"), tmp_path / "stopped"

    def stop():
        while not list(folder.glob("fold_*/latest.pt")):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    with pytest.raises(TrialStopped):
        run_trial(s, folder)
    record = read_json(folder / "record.json", TrialRecord)
    assert record.failure.startswith("TrialStopped: SIGTERM")
    assert len(record.folds) < 2
    resumed = same_but_for_the_option(run_trial(s, folder))
    resumed["settings"]["trainer"]["checkpoint_every_n_iterations"] = None
    assert resumed == expected
    assert files_of(folder) == files


@pytest.mark.slow
def test_a_signal_to_the_whole_group_costs_no_step(tmp_path):
    """As SLURM, a shell or a service manager sends it: to the folds, and to the server that forked them as well."""
    epoch, steps = 40, tmp_path / "steps"
    command = [
        sys.executable, "train.py", "experiment=smoke", "trainer=cpu", AT_ONCE, "fold=[0,1]", "loss=triplet",
        "loss.function._target_=tests.noisy.Slow", "~loss.function.margin", f"+loss.function.log={steps}",
        f"+loss.function.epoch={epoch}", "evaluation.baselines=false", "schedule.max_epochs=1000",
        "schedule.patience=null", f"schedule.iterations_per_epoch={epoch}",
        f"output_root={tmp_path / 'out'}", f"data_root={tmp_path / 'data'}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    log = tmp_path / "log"
    with log.open("w") as file:
        training = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )

    def is_in_an_epoch():
        assert training.poll() is None, log.read_text()
        has_saved = len(list(tmp_path.rglob("latest.pt"))) == 2
        return (
            has_saved
            and steps.exists()
            and any(3 < n % epoch < 30 for n in Counter(steps.read_text().split()).values())
        )

    wait_for(is_in_an_epoch, 400)
    os.killpg(training.pid, signal.SIGUSR1)
    assert training.wait(timeout=300) == STOPPED, log.read_text()
    positions = [torch.load(path, weights_only=True)["position"] for path in tmp_path.rglob("latest.pt")]
    assert len(positions) == 2
    assert any(batch > 0 for _, batch in positions), positions


@pytest.mark.slow
def test_a_fold_that_is_trained_again_has_the_threads_that_it_had(settings, tmp_path):
    s = noisy(settings, AT_ONCE)
    torch.set_num_threads(2)
    try:
        run_trial(s, tmp_path)
        files = files_of(tmp_path)
        shutil.rmtree(tmp_path / "fold_2")
        (tmp_path / "record.json").unlink()
        asked = []
        original = fold_processes.multiprocessing.get_context("forkserver").Process
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                fold_processes.multiprocessing.get_context("forkserver"), "Process",
                lambda **how: asked.append(how["args"][5]) or original(**how), raising=False,
            )  # fmt: skip
            run_trial(s, tmp_path)
        assert asked == [1]
        assert files_of(tmp_path) == files
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
def test_a_fold_that_fails_fails_the_trial_with_its_reason(settings, tmp_path):
    s = settings("loss=triplet", "fold=[0,1]", AT_ONCE, "evaluation.baselines=false")
    broken = dataclasses.replace(s, loss=dataclasses.replace(s.loss, function={"_target_": "tests.noisy.OfFoldOne"}))
    with pytest.raises(FoldError, match="Fold 1 raised ValueError: fold 1"):
        run_trial(broken, tmp_path / "run")
    record = read_json(tmp_path / "run" / "record.json", TrialRecord)
    assert record.status == "failed"
    assert record.failure.startswith("FoldError: Fold 1 raised ValueError: fold 1!!!")
    assert len(record.failure) < 20_000
    assert 1 not in [fold.fold for fold in record.folds]


def processes_with(variable):
    """Ids of the processes in whose environment a variable is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if variable.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_processes_end_with_a_killed_command_and_the_next_goes_on(tmp_path):
    command = [
        sys.executable, str(ROOT / "train.py"), "experiment=smoke", "trainer=cpu", "fold=[0,1]", "loss=triplet",
        "evaluation.baselines=false", "schedule.max_epochs=40", AT_ONCE,
        f"output_root={tmp_path / 'out'}", f"data_root={tmp_path / 'data'}",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OF_TEST": str(tmp_path)}
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment)

    def both_have_saved():
        assert running.poll() is None
        return len(list(tmp_path.rglob("latest.pt"))) == 2

    wait_for(both_have_saved, 400)
    assert len(processes_with(f"OF_TEST={tmp_path}")) > 2
    running.kill()
    running.wait()
    wait_for(lambda: not processes_with(f"OF_TEST={tmp_path}"))
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "goes on after epoch" in done.stdout + done.stderr
    (record,) = tmp_path.rglob("record.json")
    assert json.loads(record.read_text())["status"] == "complete"
