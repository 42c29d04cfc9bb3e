"""Which commands a study still needs, and how it runs them."""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlrc_lightning.cli import study as module
from mlrc_lightning.cli.study import ALL_LOSSES, Study, plan, render_plan, run
from mlrc_lightning.errors import ConfigError
from mlrc_lightning.parallel.signals import STOPPED
from tests.reporting.tables import fakes

ROOT = Path(__file__).parents[2]
MARGIN = {"loss.function.margin": 20.0}


def study(outputs, **changes):
    values = {"name": "cub200", "overrides": (), "losses": ("arcface", "triplet"), "hyperparameters": "search",
              "num_runs": 3, "max_trials": 2, "launcher": None, "outputs": outputs}  # fmt: skip
    return Study(**{**values, **changes})


@pytest.fixture
def protocol(tmp_path):
    return study(tmp_path).composition().protocol


def left(steps):
    return {step.title: step.num_models for step in steps if not step.is_finished}


def write_runs(outputs, protocol, loss, count, **more):
    for number in range(count):
        fakes.write_run(
            outputs,
            loss,
            number,
            fakes.accuracies(0.5, 0.4, 0.3),
            protocol=protocol,
            parameters={"margin": 20.0},
            **more,
        )


def test_from_nothing_everything_is_left(tmp_path):
    steps = plan(study(tmp_path))
    assert left(steps) == {"untrained": 0, "search arcface": 8, "reproduce arcface": 12, "search triplet": 8,
                           "reproduce triplet": 12}  # fmt: skip
    assert [step.shown() for step in steps[:3]] == [
        f"python train.py stage=untrained experiment=mlrc/cub200 output_root={tmp_path} num_runs=3",
        f"python train.py -m experiment=mlrc/cub200 output_root={tmp_path} loss=arcface max_trials=2",
        f"python train.py -m stage=reproduce experiment=mlrc/cub200 output_root={tmp_path} loss=arcface num_runs=3",
    ]


@pytest.mark.slow
def test_the_paper_s_budget_is_50_trials_and_10_runs_and_fastap_tries_31_numbers_of_bins(tmp_path):
    steps = plan(study(tmp_path, losses=("arcface", "fastap"), num_runs=None, max_trials=None))
    assert left(steps)["search arcface"] == 200
    assert left(steps)["reproduce arcface"] == 40
    assert left(steps)["search fastap"] == 31 * 4
    at_256 = plan(study(tmp_path, name="cub200_batch256", losses=("fastap",), num_runs=None, max_trials=None))
    assert left(at_256)["search fastap"] == 200


def test_the_published_setting_needs_no_search(tmp_path):
    steps = plan(study(tmp_path, hyperparameters="paper", launcher="slurm"))
    assert list(left(steps)) == ["untrained", "reproduce arcface", "reproduce triplet"]
    assert steps[1].arguments[-2:] == ("hyperparameters=paper", "hydra/launcher=mlrc_slurm")
    assert steps[0].arguments[0] == "-m"


def test_options_of_the_launcher_reach_every_command_and_change_no_protocol(tmp_path, protocol):
    options = ("hydra.launcher.partition=gpu", "+hydra.launcher.additional_parameters.reservation=spring")
    wanted = study(tmp_path, launcher="slurm", overrides=options)
    assert wanted.composition().protocol == protocol
    for step in plan(wanted):
        assert set(options) < set(step.arguments)
        assert step.arguments[-1] == "hydra/launcher=mlrc_slurm"


def test_what_is_done_is_not_done_again(tmp_path, protocol):
    fakes.write_search(tmp_path, "arcface", 2, [(MARGIN, (0.4,)), ({"x": 1}, (0.1,))], "max_trials", protocol=protocol)
    write_runs(tmp_path, protocol, "arcface", 3)
    write_runs(tmp_path, protocol, "untrained", 3, source="given", baselines={"x": None})
    fakes.write_search(tmp_path, "triplet", 2, [(MARGIN, (0.4,))], protocol=protocol)
    steps = plan(study(tmp_path))
    assert left(steps) == {"search triplet": 4, "reproduce triplet": 12}
    # 80 seconds a trial of four folds, and 10 a fold of a run
    assert {step.title: step.seconds for step in steps if step.seconds} == {
        "search arcface": 20, "reproduce arcface": 10, "search triplet": 20, "reproduce triplet": 20,
    }  # fmt: skip


@pytest.mark.slow
def test_larger_budgets_go_on(tmp_path, protocol):
    fakes.write_search(tmp_path, "arcface", 2, [(MARGIN, (0.4,)), ({"x": 1}, (0.1,))], "max_trials", protocol=protocol)
    write_runs(tmp_path, protocol, "arcface", 3)
    steps = plan(study(tmp_path, losses=("arcface",), num_runs=5))
    assert left(steps) == {"untrained": 0, "reproduce arcface": 8}
    # a search that goes on may come to another setting, whose runs are others
    steps = plan(study(tmp_path, losses=("arcface",), max_trials=6))
    assert left(steps) == {"untrained": 0, "search arcface": 16, "reproduce arcface": 12}


@pytest.mark.slow
def test_runs_of_another_setting_are_not_those_of_the_best(tmp_path, protocol):
    fakes.write_search(
        tmp_path, "arcface", 1, [({"loss.function.margin": 5.0}, (0.4,))], "max_trials", protocol=protocol
    )
    write_runs(tmp_path, protocol, "arcface", 3)
    assert left(plan(study(tmp_path, losses=("arcface",), max_trials=1)))["reproduce arcface"] == 12


def test_a_failed_run_keeps_its_finished_folds(tmp_path, protocol):
    fakes.write_search(tmp_path, "arcface", 1, [(MARGIN, (0.4,))], "max_trials", protocol=protocol)
    write_runs(tmp_path, protocol, "arcface", 2)
    failed = fakes.write_run(tmp_path, "arcface", 2, failure="killed", protocol=protocol)
    (failed / "fold_3" / "fold.json").unlink()
    assert left(plan(study(tmp_path, losses=("arcface",), max_trials=1)))["reproduce arcface"] == 1


def test_the_plan_tells_models_time_and_estimate(tmp_path, protocol):
    fakes.write_search(tmp_path, "arcface", 2, [(MARGIN, (0.4,))], protocol=protocol)
    wanted = study(tmp_path)
    text = render_plan(wanted, plan(wanted), jobs=2)
    assert "search arcface                                  4      4     20.0      80 s" in text
    assert "36 models left, 4 done." in text
    # 36 models of 20 s, two at a time
    assert "Estimate: 6 min with 2 side by side; 20.0 s a model" in text
    assert "No training of this protocol has been measured yet" in render_plan(
        study(tmp_path / "new"), plan(study(tmp_path / "new")), jobs=1
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ("arcfase",)}, "LOSSES: arcfase is none. Did you mean arcface"),
        ({"hyperparameters": "best"}, "HYPERPARAMETERS=best: expected one of search, paper"),
        ({"num_runs": 0}, "RUNS=0: expected 1 or more"),
    ],
)
def test_what_cannot_be_is_refused_at_once(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, **changes)


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"cub20: expected the name of an experiment.*Did you mean cub200"):
        study(tmp_path, name="cub20").arguments()


# running


FAKE_TRAIN = """
import json, os, sys, time, pathlib
loss = next((a[5:] for a in sys.argv if a.startswith("loss=")), "untrained")
with open({log!r}, "a") as file:
    file.write(json.dumps([loss, "stage=reproduce" in sys.argv, os.environ.get("OMP_NUM_THREADS")]) + "\\n")
sys.exit(3 if loss == "arcface" else 0)
"""


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.slow
def test_a_loss_that_fails_keeps_no_other_from_running(tmp_path, monkeypatch, capfd, caplog, jobs):
    log, script = tmp_path / "calls", tmp_path / "fake_train.py"
    script.write_text(FAKE_TRAIN.format(log=str(log)))
    monkeypatch.setattr(module, "_train_script", lambda: script)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with caplog.at_level("INFO"):
        assert run(study(tmp_path / "out"), jobs) == 1
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    threads = None if jobs == 1 else "1"
    # the search of arcface fails, so that its runs are not tried
    assert sorted(calls) == sorted(
        [["untrained", False, threads], ["arcface", False, threads], ["triplet", False, threads],
         ["triplet", True, threads]]
    )  # fmt: skip
    assert "search arcface failed with exit code 3" in caplog.text
    assert "1 of 5 commands failed" in caplog.text
    if jobs == 2:
        assert (tmp_path / "out" / "study" / "cub200" / "search_arcface.log").exists()


FAKE_STOPPABLE = """
import pathlib, signal, sys, time
def stop(signum, frame):
    pathlib.Path({folder!r}, f"got_{{loss}}").write_text(signal.Signals(signum).name)
    sys.exit(75)
loss = next((a[5:] for a in sys.argv if a.startswith("loss=")), "untrained")
pathlib.Path({folder!r}).mkdir(exist_ok=True)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, stop)
pathlib.Path({folder!r}, f"begun_{{loss}}").touch()
time.sleep(0 if loss == "untrained" else 300)
"""


def stoppable(folder):
    """A program that studies three losses, by trainings which last until a signal comes; and what it runs."""
    script = folder / "fake_train.py"
    script.write_text(FAKE_STOPPABLE.format(folder=str(folder / "seen")))
    return (
        "import pathlib, sys; from mlrc_lightning.cli import study; from mlrc_lightning.__main__ import main;"
        f"study._train_script = lambda: pathlib.Path({str(script)!r}); main(sys.argv[1:])"
    )


def wait_for(path, running):
    deadline = time.monotonic() + 200
    while not path.exists() and time.monotonic() < deadline:
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "passed_on", "jobs"),
    [
        (signal.SIGTERM, "SIGTERM", 1),
        (signal.SIGUSR1, "SIGUSR1", 2),
        (signal.SIGUSR2, "SIGUSR2", 1),
        (signal.SIGHUP, "SIGTERM", 2),
    ],
)
@pytest.mark.slow
def test_a_signal_stops_the_commands_under_way_and_no_further_one_is_started(tmp_path, number, passed_on, jobs):
    study(tmp_path).composition()  # remembered
    arguments = ["study", "cub200", "--losses", "arcface", "triplet", "contrastive", "--jobs", str(jobs)]
    arguments += ["--hyperparameters", "paper", "--outputs", str(tmp_path / "out")]
    command = [sys.executable, "-c", stoppable(tmp_path), *arguments]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    losses = ["arcface", "triplet"][:jobs]
    for loss in losses:
        wait_for(tmp_path / "seen" / f"begun_{loss}", running)
    running.send_signal(number)
    _, messages = running.communicate(timeout=200)
    assert running.returncode == STOPPED, messages
    found = {path.name for path in (tmp_path / "seen").iterdir()}
    assert found == {"begun_untrained", *(f"{word}_{loss}" for word in ("begun", "got") for loss in losses)}
    assert {(tmp_path / "seen" / f"got_{loss}").read_text() for loss in losses} == {passed_on}
    assert "failed" not in messages
    assert messages.count("stopped after") == jobs
    assert f"{number.name} stopped it at reproduce" in messages
    assert "The same command goes on from there." in messages


@pytest.mark.slow
def test_a_hangup_that_nohup_has_ignored_stays_ignored(tmp_path):
    study(tmp_path).composition()
    arguments = ["study", "cub200", "--losses", "arcface", "--hyperparameters", "paper", "--outputs", str(tmp_path)]
    command = ["nohup", sys.executable, "-c", stoppable(tmp_path), *arguments]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "seen" / "begun_arcface", running)
    running.send_signal(signal.SIGHUP)
    time.sleep(1.0)
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    _, messages = running.communicate(timeout=200)
    assert (running.returncode, "SIGTERM stopped it at reproduce arcface" in messages) == (STOPPED, True)


@pytest.mark.slow
def test_a_command_that_was_stopped_has_not_failed_and_keeps_no_other_loss_from_running(tmp_path, monkeypatch, caplog):
    log, script = tmp_path / "calls", tmp_path / "fake_train.py"
    script.write_text(FAKE_TRAIN.format(log=str(log)).replace("sys.exit(3", f"sys.exit({STOPPED}"))
    monkeypatch.setattr(module, "_train_script", lambda: script)
    with caplog.at_level("INFO"):
        assert run(study(tmp_path / "out"), 1) == STOPPED
    assert [json.loads(line)[:2] for line in log.read_text().splitlines()] == [
        ["untrained", False], ["arcface", False], ["triplet", False], ["triplet", True],
    ]  # fmt: skip
    assert "search arcface: stopped after" in caplog.text
    assert "Stopped at search arcface. The same command goes on from there." in caplog.text
    assert "failed" not in caplog.text


@pytest.mark.slow
def test_a_finished_study_starts_nothing_and_imports_no_torch(tmp_path, protocol):
    for loss in ("arcface", "triplet"):
        fakes.write_search(tmp_path, loss, 1, [(MARGIN, (0.4,))], "max_trials", protocol=protocol)
        write_runs(tmp_path, protocol, loss, 2)
    write_runs(tmp_path, protocol, "untrained", 2, source="given", baselines={"x": None})
    arguments = ["study", "cub200", "--losses", "arcface", "triplet", "--trials", "1", "--runs", "2"]
    code = (
        f"import sys; from mlrc_lightning.__main__ import main; main({[*arguments, '--outputs', str(tmp_path)]!r});"
        "print([n for n in ('torch', 'ax', 'pytorch_lightning', 'numpy', 'scipy') if n in sys.modules])"
    )
    study(tmp_path, num_runs=2, max_trials=1).composition()  # remembered
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr.count("done already") == 5


def test_a_table_needs_no_torch_and_little_time(tmp_path):
    arguments = ["table", "cub200", "--outputs", str(tmp_path)]
    code = (
        "import sys, resource; from mlrc_lightning.__main__ import main\n"
        f"main({arguments!r})\n"
        "heavy = [n for n in ('torch', 'ax', 'pytorch_lightning', 'numpy', 'scipy', 'hydra') if n in sys.modules]\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(heavy, usage.ru_utime + usage.ru_stime)"
    )
    subprocess.run([sys.executable, "-m", "mlrc_lightning", *arguments], check=True, cwd=ROOT, capture_output=True)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    heavy, _, seconds = done.stdout.splitlines()[-1].rpartition(" ")
    assert heavy == "[]"
    assert float(seconds) < 0.6
    assert {path.name for path in (tmp_path / "tables").iterdir()} >= {
        "cub200.md", "cub200.tex", "cub200.csv", "cub200.html", "cub200.manifest.json",
    }  # fmt: skip


@pytest.mark.slow
def test_make_n_shows_the_commands_and_runs_none(tmp_path):
    # a make inside a make also says which folder it enters and leaves
    command = ["make", "-n", "--no-print-directory", "table-cub200", "LOSSES=arcface contrastive"]
    command += ["HYPERPARAMETERS=paper", "RUNS=3"]
    command += [f"VENV={tmp_path / 'venv'}", f"BIN={Path(sys.executable).parent}"]
    for mark in (".installed",):
        (tmp_path / "venv").mkdir()
        (tmp_path / "venv" / mark).touch()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    for loss in ("arcface", "contrastive"):
        expected = f"train.py -m stage=reproduce experiment=mlrc/cub200 loss={loss} num_runs=3 hyperparameters=paper"
        assert expected in done.stdout
    # and the last command, which renders, is one that there is
    rendering = [*shlex.split(done.stdout.splitlines()[-1]), "--outputs", str(tmp_path)]
    assert rendering[2:5] == ["mlrc_lightning", "table", "cub200"]
    rendered = subprocess.run(rendering, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert rendered.returncode == 0, rendered.stderr
    assert "the paper's hyperparameters" in rendered.stdout


def test_the_losses_of_a_study_are_the_paper_s_14():
    assert len(ALL_LOSSES) == 14
