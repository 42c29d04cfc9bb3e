"""A training stopped or killed at any step goes on as if nothing had been, to the last bit."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mlrc_lightning.errors import RecordError
from mlrc_lightning.parallel.signals import (
    STOP_SIGNALS,
    STOPPED,
    StopSignals,
    TrialStopped,
    end_on_stop_signals,
    exit_text,
)
from mlrc_lightning.protocol import baselines, evaluation
from mlrc_lightning.protocol import embed as embedding
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.training.checkpoint import FoldCheckpoint
from tests.protocol.test_trial import without_times

ROOT = Path(__file__).parents[2]
ITERATIONS, EPOCHS, FOLDS = 5, 4, (0, 2)
NUM_STEPS = ITERATIONS * EPOCHS * len(FOLDS)
STOPS = sorted(random.Random(0).sample(range(NUM_STEPS), 30))
# in an epoch, at the end of one that is validated and of one that is not, at the end of a fold and of the trial
FAST_STOPS, SLOW_STOPS = (6, 23, 39), (2, 10, 19, 25, 31)
# before the first checkpoint of either fold, and at the places of the stops
KILLS = (2, 5, 8, 19, 22, 39)
OVERRIDES = [
    f"schedule.iterations_per_epoch={ITERATIONS}", f"schedule.max_epochs={EPOCHS}", "schedule.save_interval=2",
    f"fold={list(FOLDS)}", "evaluation.baselines=false", "trunk.model.width=8", "scheduler=warmup", "batch_size=8",
    "gradient_clip.model=1.0", "embedder.embedding_size=8",
]  # fmt: skip


def noisy(settings, *overrides):
    """A trial whose loss draws random numbers, with a schedule by iteration, validated every second epoch."""
    s = settings(*OVERRIDES, *overrides)
    return dataclasses.replace(s, loss=dataclasses.replace(s.loss, function={"_target_": "tests.noisy.Noisy"}))


def seed_all(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.fixture
def at_step(monkeypatch):
    """Does something before iteration `step` of a trial, counted over its folds, once."""

    def do(step, action):
        original, steps = FoldCheckpoint.before_iteration, []

        def counted(self, trainer, module, number):
            fold = FOLDS.index(int(self.folder.name.removeprefix("fold_")))
            done = number + (self.first_batch if trainer.current_epoch == self.first_epoch else 0)
            here = (fold * EPOCHS + trainer.current_epoch) * ITERATIONS + done
            if here == step and not steps:
                steps.append(here)
                action()
            original(self, trainer, module, number)

        monkeypatch.setattr(FoldCheckpoint, "before_iteration", counted)

    return do


def stopped_and_resumed(settings, tmp_path, at_step, step, *overrides):
    """A trial that SIGTERM, SIGUSR1 or SIGUSR2 stops at a step, then run again; the weights, and the record."""
    s, folder = noisy(settings, *overrides), tmp_path / f"stopped_{step}"
    number = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)[step % 3]
    at_step(step, lambda: os.kill(os.getpid(), number))
    with pytest.raises(TrialStopped, match=signal.Signals(number).name) as stopped:
        run_trial(s, folder)
    assert stopped.value.code == STOPPED
    record = read_json(folder / "record.json", TrialRecord)
    assert record.status == "failed"
    assert record.failure.startswith("TrialStopped: ")
    assert [fold.fold for fold in record.folds] == list(FOLDS[: step // (ITERATIONS * EPOCHS)])
    seed_all(99)
    return without_times(run_trial(s, folder)), files_of(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The trial that nothing stops; made by the first test that asks."""
    return {}


def uninterrupted(whole, settings, tmp_path):
    if not whole:
        folder = tmp_path / "whole"
        whole["record"] = without_times(run_trial(noisy(settings), folder))
        whole["files"] = files_of(folder)
        assert len(whole["files"]) == 2 * len(FOLDS)
    return whole["record"], whole["files"]


def marks(step, fast, slow):
    """None for a step of the fast set; of the others, slow or nightly."""
    return () if step in fast else pytest.mark.slow if step in slow else pytest.mark.nightly


@pytest.mark.parametrize("step", [pytest.param(s, marks=marks(s, FAST_STOPS, SLOW_STOPS)) for s in STOPS])
@pytest.mark.slow
def test_a_trial_stopped_at_any_step_ends_as_the_whole_one(settings, tmp_path, at_step, whole, step):
    expected, files = uninterrupted(whole, settings, tmp_path)
    record, found = stopped_and_resumed(settings, tmp_path, at_step, step)
    assert record == expected
    assert found == files


@pytest.mark.slow
def test_a_stop_loses_no_step(settings, tmp_path, at_step, monkeypatch):
    steps = []
    step = torch.optim.RMSprop.step
    monkeypatch.setattr(torch.optim.RMSprop, "step", lambda self, *a, **k: (steps.append(1), step(self, *a, **k))[1])
    stopped_and_resumed(settings, tmp_path, at_step, 13)
    # one more: the optimizer is tried out before the images are decoded
    assert len(steps) == NUM_STEPS + 1


@pytest.mark.slow
def test_other_random_numbers_would_be_seen(settings, tmp_path, at_step, whole, monkeypatch):
    expected, _ = uninterrupted(whole, settings, tmp_path)
    monkeypatch.setattr("mlrc_lightning.training.checkpoint._set_random_states", lambda states: None)
    assert stopped_and_resumed(settings, tmp_path, at_step, 13)[0] != expected


@pytest.mark.parametrize("step", [pytest.param(s, marks=marks(s, (), KILLS)) for s in STOPS])
def test_a_trial_killed_between_two_checkpoints_ends_as_the_whole_one(settings, tmp_path, whole, step):
    expected, files = uninterrupted(whole, settings, tmp_path)
    s, folder = noisy(settings, "trainer.checkpoint_every_n_iterations=3"), tmp_path / "killed"
    child = os.fork()
    if child == 0:  # a process of its own that kills itself, as the kernel would
        calls = []
        original = FoldCheckpoint.before_iteration

        def counted(self, *arguments):
            calls.append(1)
            if len(calls) == step + 1:
                os.kill(os.getpid(), signal.SIGKILL)
            original(self, *arguments)

        FoldCheckpoint.before_iteration = counted
        try:
            run_trial(s, folder)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    states = list(folder.glob("fold_*/latest.pt"))
    within = step % (ITERATIONS * EPOCHS)
    assert len(states) == (within > 3), "there was no checkpoint in the midst of an epoch"
    if states:
        epoch, batch = torch.load(states[0], weights_only=True)["position"]
        assert 0 <= within - (epoch * ITERATIONS + batch) <= 3
    seed_all(99)
    record = without_times(run_trial(s, folder))
    record["settings"]["trainer"]["checkpoint_every_n_iterations"] = None
    assert record == expected
    assert files_of(folder) == files


def test_the_handler_that_was_there_before_is_called_once_all_is_saved(settings, tmp_path, at_step):
    seen = []

    def requeue(signum, frame):
        seen.append((signum, (tmp_path / "run" / "fold_0" / "latest.pt").exists(), (tmp_path / "run/.lock").exists()))
        sys.exit(-1)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        at_step(4, lambda: os.kill(os.getpid(), signal.SIGUSR2))
        with pytest.raises(SystemExit) as ended:
            run_trial(noisy(settings), tmp_path / "run")
        assert ended.value.code == -1, "submitit's own way to end a job that it requeued"
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == [(signal.SIGUSR2, True, False)]


@pytest.fixture
def at_embedding(monkeypatch):
    """Does something once, as the n-th set of images of a trial is embedded for its test or a baseline."""

    def do(number, action):
        embed, calls = embedding._embed, []

        def counted(*arguments):
            calls.append(1)
            if len(calls) == number:
                action()
            return embed(*arguments)

        for module in (baselines, embedding, evaluation):  # each calls it by its own name
            monkeypatch.setattr(module, "_embed", counted)
        return calls

    return do


# two folds are trained, each with its untrained trunk on its validation images; then on the test images the two models,
# the two untrained ones and the two untrained trunks
@pytest.mark.parametrize(
    ("number", "where"),
    [
        (1, "fold_2, before its training"),
        (2, "the test of fold 0"),
        (3, "the test of fold 2"),
        (4, "the test of the untrained model of fold 0"),
        (6, "the test of the untrained trunk of fold 0"),
        (7, "the test of the untrained trunk of fold 2"),
    ],
)
@pytest.mark.slow
def test_a_signal_while_images_are_embedded_stops_before_the_next_and_what_goes_on_ends_as_the_whole_one(
    settings, tmp_path, at_embedding, number, where
):
    s, folder = noisy(settings, "evaluation.baselines=true"), tmp_path / "stopped"
    expected = without_times(run_trial(s, tmp_path / "whole"))
    calls = at_embedding(number, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    with pytest.raises(TrialStopped, match=f"SIGUSR2 stopped it at {where}"):
        run_trial(s, folder)
    assert len(calls) == number
    failed = read_json(folder / "record.json", TrialRecord)
    assert failed.failure.startswith("TrialStopped: SIGUSR2")
    assert [fold.fold for fold in failed.folds] == list(FOLDS[:number])
    seed_all(99)
    assert without_times(run_trial(s, folder)) == expected
    assert files_of(folder) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("baselines", ["true", "false"])
@pytest.mark.slow
def test_a_signal_while_a_fold_is_validated_for_the_last_time_loses_no_step(
    settings, tmp_path, monkeypatch, at_embedding, baselines
):
    s, folder = noisy(settings, f"evaluation.baselines={baselines}"), tmp_path / "stopped"
    expected = without_times(run_trial(s, tmp_path / "whole"))
    steps, embedded = [], at_embedding(0, None)
    step, validated = torch.optim.RMSprop.step, FoldCheckpoint.on_train_epoch_end
    monkeypatch.setattr(torch.optim.RMSprop, "step", lambda self, *a, **k: (steps.append(1), step(self, *a, **k))[1])

    def last(self, trainer, module):
        if self.folder == folder / "fold_0" and trainer.current_epoch == EPOCHS - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        validated(self, trainer, module)

    monkeypatch.setattr(FoldCheckpoint, "on_train_epoch_end", last)
    # the untrained trunk on the validation images is what would keep it from ending
    where = "fold_0, after its training" if baselines == "true" else "fold_2, before its training"
    with pytest.raises(TrialStopped, match=where):
        run_trial(s, folder)
    assert embedded == []
    assert without_times(run_trial(s, folder)) == expected
    assert files_of(folder) == files_of(tmp_path / "whole")
    assert len(steps) == NUM_STEPS


@pytest.mark.slow
def test_a_search_s_trial_whose_last_fold_is_trained_is_finished_before_the_process_ends(
    settings, tmp_path, monkeypatch
):
    validated = FoldCheckpoint.on_train_epoch_end

    def last(self, trainer, module):
        if self.folder.name == f"fold_{FOLDS[-1]}" and trainer.current_epoch == EPOCHS - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        validated(self, trainer, module)

    monkeypatch.setattr(FoldCheckpoint, "on_train_epoch_end", last)
    with pytest.raises(TrialStopped, match="the end of a trial"):
        run_trial(dataclasses.replace(noisy(settings), stage="search", keep_models=False), tmp_path / "run")
    assert read_json(tmp_path / "run" / "record.json", TrialRecord).status == "complete"


@pytest.mark.slow
def test_a_run_without_training_stops_between_two_embeddings_too(settings, tmp_path, at_embedding):
    s = settings("stage=untrained", "run=0", "num_runs=1")
    expected = without_times(run_trial(s, tmp_path / "whole"))
    calls = at_embedding(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrialStopped, match="the test of fold 2"):
        run_trial(s, tmp_path / "stopped")
    assert len(calls) == 2
    assert without_times(run_trial(s, tmp_path / "stopped")) == expected


@pytest.mark.slow
def test_the_handler_that_was_there_before_requeues_a_test_as_well(settings, tmp_path, at_embedding):
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda *_: seen.append((tmp_path / "run/.lock").exists()))
    try:
        calls = at_embedding(1, lambda: os.kill(os.getpid(), signal.SIGUSR2))
        with pytest.raises(TrialStopped, match="the test of fold 2"):
            run_trial(noisy(settings), tmp_path / "run")
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == [False]
    assert len(calls) == 1


@pytest.mark.slow
def test_a_signal_after_the_last_embedding_ends_the_process_after_the_trial(settings, tmp_path, at_embedding):
    at_embedding(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrialStopped, match="the end of a trial"):
        run_trial(noisy(settings), tmp_path / "run")
    assert read_json(tmp_path / "run" / "record.json", TrialRecord).status == "complete"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("is_ignored", [False, True], ids=["terminal", "nohup"])
def test_a_closed_terminal_is_a_stop_signal_but_not_under_nohup(is_ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        with StopSignals() as stop:
            if is_ignored:
                assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received == (0 if is_ignored else signal.SIGHUP)
            assert is_ignored or str(TrialStopped(stop.received, "x")).startswith("SIGHUP stopped it at x")
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def ending():
    """Signals end this process, as they do train.py from its start."""
    free = [number for number in STOP_SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    taken = end_on_stop_signals()
    assert taken == free
    assert signal.SIGTERM in taken
    yield
    for number in taken:
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.usefixtures("ending")
def test_a_signal_outside_a_training_ends_the_process_with_the_same_exit_code():
    with pytest.raises(TrialStopped, match="SIGUSR1 stopped it at a point outside any training") as stopped:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stopped.value.code == STOPPED
    with pytest.raises(TrialStopped):
        end_on_stop_signals()  # where somebody has swallowed it
    assert end_on_stop_signals() == []


@pytest.mark.usefixtures("ending")
def test_a_trial_takes_the_signals_of_its_process_and_gives_them_back(settings, tmp_path, at_step):
    at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrialStopped, match="fold_0, epoch 1, after 4 of 5 iterations"):
        run_trial(noisy(settings), tmp_path / "run")
    with pytest.raises(TrialStopped, match="outside any training"):
        os.kill(os.getpid(), signal.SIGTERM)
    # a signal that importlib has swallowed stops the next trial before it has begun
    with pytest.raises(TrialStopped, match="fold_0, before its training"):
        run_trial(noisy(settings), tmp_path / "run")


@pytest.mark.usefixtures("ending")
@pytest.mark.slow
def test_a_signal_too_late_for_a_trial_is_the_process_s(settings, tmp_path, at_embedding):
    at_embedding(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrialStopped, match="the end of a trial"):
        run_trial(noisy(settings), tmp_path / "run")


def test_handlers_of_a_caller_and_ignored_signals_are_left_alone():
    callers = signal.signal(signal.SIGUSR2, lambda *_: None), signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    handler = signal.getsignal(signal.SIGUSR2)
    try:
        assert end_on_stop_signals() == [signal.SIGTERM, signal.SIGHUP]
        assert signal.getsignal(signal.SIGUSR2) is handler
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, callers[0])
        signal.signal(signal.SIGUSR1, callers[1])
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_signals_are_left_alone_outside_the_main_thread():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter():
        with StopSignals() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.received))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(before, 0)]


def test_a_state_without_its_parts_is_refused(settings, tmp_path, at_step):
    at_step(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrialStopped):
        run_trial(noisy(settings), tmp_path / "run")
    path = tmp_path / "run" / "fold_0" / "latest.pt"
    state = torch.load(path, weights_only=True)
    del state["random"]
    torch.save(state, path)
    with pytest.raises(RecordError, match=r"expected the state of this fold \('random'\)"):
        run_trial(noisy(settings), tmp_path / "run")


@pytest.mark.parametrize("swallows", ["pass", "raise ValueError('half a configuration')"])
def test_a_signal_that_became_an_error_on_its_way_out_ends_the_command_line_all_the_same(swallows):
    program = f"""
import os, signal
from mlrc_lightning.cli.errors import run
def command():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except SystemExit:
        {swallows}
    raise ValueError("half a configuration")
run(command)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=90)
    assert done.returncode == STOPPED
    assert done.stderr == "\nSIGTERM stopped it at a point outside any training. The same command goes on from there.\n"


def importing(module, *command):
    """Starts Python, and returns once it has imported a module."""
    words = [sys.executable, "-X", "importtime", *map(str, command)]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    for line in running.stderr:
        if line.startswith("import time:") and line.rsplit("|", 1)[1].strip() == module:
            return running
    pytest.fail(f"{module} was not imported")


def test_a_signal_during_an_import_ends_the_process_after_it(tmp_path):
    module = (
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\nexcept BaseException:\n    print('torn')\n"
    )
    (tmp_path / "torn.py").write_text(f"{module}print('whole')\n")
    program = (
        "import time; from mlrc_lightning.parallel.signals import end_on_stop_signals; end_on_stop_signals();"
        "import torn;"
        "print('imported', flush=True); time.sleep(100)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=90)
    assert (done.returncode, done.stdout.split()) == (STOPPED, ["whole", "imported"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["omegaconf", "hydra.core.utils", "mlrc_lightning.settings.paper", "torch.nn", "ax.core"]
)
def test_a_signal_while_the_command_line_imports_and_composes_ends_it_with_the_same_exit_code(tmp_path, module):
    places = ["experiment=smoke", "trainer=cpu", f"output_root={tmp_path / 'out'}", f"data_root={tmp_path / 'data'}"]
    running = importing(module, "train.py", *(["-m"] if module == "ax.core" else []), *places)
    running.send_signal(signal.SIGUSR1)
    messages = running.communicate(timeout=200)[1]
    assert running.returncode == STOPPED, messages[-3000:]
    assert "Traceback" not in messages


# train.py whose second proposal takes minutes
SLOW_PROPOSAL = """
import pathlib, runpy, sys, time
from hydra_plugins.mlrc_ax_sweeper import _core
suggest = _core.suggest
def slowly(problem, seed, trials):
    if len(trials) == 1:
        pathlib.Path({path!r}).touch()
        time.sleep(300)
    return suggest(problem, seed, trials)
_core.suggest = slowly
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_signal_while_a_setting_is_proposed_ends_the_search_which_goes_on_with_that_proposal(tmp_path):
    def arguments(name):
        return [
            "-m", "max_trials=2", "experiment=smoke", "trainer=cpu", "fold=0", "loss=triplet", "seed=3",
            "hydra.sweeper.report=false", f"output_root={tmp_path / name}", f"data_root={tmp_path / 'data'}",
        ]  # fmt: skip

    def proposals(name):
        (ledger,) = (tmp_path / name).rglob("ledger.jsonl")
        records = [json.loads(line) for line in ledger.read_text().splitlines()]
        return [record["payload"]["parameters"] for record in records if record["type"] == "proposed"]

    program = SLOW_PROPOSAL.format(path=str(tmp_path / "proposing"))
    words = [sys.executable, "-c", program, *arguments("stopped")]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "proposing").exists() and time.monotonic() < deadline:
        assert running.poll() is None, running.communicate()[1][-3000:]
        time.sleep(0.05)
    running.send_signal(signal.SIGUSR2)
    messages = running.communicate(timeout=200)[1]
    assert running.returncode == STOPPED, messages[-3000:]
    assert "SIGUSR2 stopped it at a point outside any training" in messages
    assert len(proposals("stopped")) == 1
    for name in ("stopped", "whole"):
        command = [sys.executable, "train.py", *arguments(name)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    assert len(proposals("whole")) == 2
    assert proposals("stopped") == proposals("whole")


RECIPE = re.search(r"```bash\n(#SBATCH.*?)```", (ROOT / "docs" / "distributed.md").read_text(), re.DOTALL)[1]


@pytest.mark.parametrize(
    ("program", "requeued"),
    [
        # it stops in the project's own way; it dies of the signal; it ends by itself, well or badly
        ("trap 'sleep 0.5; exit 75' USR1; touch ready; while :; do sleep 0.05; done", True),
        ("touch ready; exec sleep 300", True),
        ("trap 'exit 0' USR1; touch ready; while :; do sleep 0.05; done", False),
        ("trap 'exit 2' USR1; touch ready; while :; do sleep 0.05; done", False),
    ],
    ids=["stops", "dies", "finishes", "fails"],
)
def test_the_recipe_for_slurm_ends_and_requeues_what_was_stopped(tmp_path, program, requeued):
    (tmp_path / "program.sh").write_text(program)
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "$@" >> requeued\n')
    (tmp_path / "scontrol").chmod(0o755)
    recipe = RECIPE.replace("python train.py …", "bash program.sh")
    assert recipe != RECIPE
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    running = subprocess.Popen(["bash", "-c", recipe], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 100
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGUSR1)
    try:
        code = running.wait(timeout=100)
    finally:
        running.kill()
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    else:
        assert code == (2 if "exit 2" in program else 0)


def test_an_exit_status_is_told_in_words():
    assert exit_text(3) == "exit 3"
    assert exit_text(-9) == "killed by SIGKILL"
    assert exit_text(-200) == "killed by signal 200"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("search", "number", "num_at_once"),
    [
        ([], signal.SIGTERM, 1),
        (["-m", "max_trials=2"], signal.SIGTERM, 1),
        (["-m", "max_trials=2", "hydra/launcher=mlrc_local", "hydra.sweeper.n_parallel=1"], signal.SIGUSR1, 1),
        (["-m", "max_trials=2", "hydra/launcher=mlrc_local", "hydra.sweeper.n_parallel=2"], signal.SIGTERM, 2),
    ],
    ids=["trial", "search", "search in a worker", "search in two workers"],
)
def test_the_command_line_ends_with_its_own_exit_code_and_goes_on(tmp_path, search, number, num_at_once):
    command = [
        sys.executable, str(ROOT / "train.py"), *search, "experiment=smoke",
        "trainer=cpu", "fold=0", "loss=triplet", "evaluation.baselines=false", "schedule.patience=null",
        f"schedule.max_epochs={20 if num_at_once == 1 else 200}",  # two begin one after the other, and stop at once
        f"output_root={tmp_path / 'out'}", f"data_root={tmp_path / 'data'}",
    ]  # fmt: skip
    messages = tmp_path / "messages.txt"
    with messages.open("w") as file:
        running = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT)
    deadline = time.monotonic() + 300
    while len(list(tmp_path.rglob("latest.pt"))) < num_at_once and time.monotonic() < deadline:
        assert running.poll() is None, messages.read_text()[-3000:]
        time.sleep(0.05)
    running.send_signal(number)
    assert running.wait(timeout=120) == STOPPED
    said = f"{number.name} stopped it at fold_0, epoch"
    assert len(re.findall(rf"{said}.*The same command goes on from there", messages.read_text())) >= num_at_once
    assert len(list(tmp_path.rglob("latest.pt"))) == num_at_once
    assert not any('"job_failed"' in path.read_text() for path in tmp_path.rglob("ledger.jsonl"))
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("record.json")]
    assert [record["status"] for record in records] == ["complete"] * (2 if search else 1)
    logs = [path.read_text() for path in tmp_path.rglob("train.log")]
    assert sum("fold 0 goes on after epoch" in text for text in logs) == num_at_once
