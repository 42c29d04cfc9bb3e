"""A refused command is one message, and leaves nothing behind."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlrc_lightning.__main__ import main
from mlrc_lightning.cli import check
from mlrc_lightning.cli.check import CheckFirst, remove_refused
from mlrc_lightning.cli.errors import is_usage_error, message, run
from mlrc_lightning.files import only_writer, write_json

ROOT = Path(__file__).parents[2]
NAME = "expected a name of at most 128 bytes"
REFUSED = {
    "output_root=": "output_root='': expected a folder",
    "output_root=null": "output_root=None: expected a folder",
    "output_root=3": "output_root=3: expected a folder",
    "data_root=": "data_root='': expected a folder",
    "loss.name=../../evil": NAME,
    "loss.name=": NAME,
    "loss.name=null": "loss.name=None: expected str",
    "dataset.name=a/b": NAME,
    "dataset.name=.hidden": NAME,
    f"dataset.name={'x' * 300}": NAME,
    "protocol=../x": NAME,
    "setting=/etc": NAME,
    "setting=..": NAME,
    "split.name=a/b": NAME,
    "sweep_name=../x": NAME,
    "num_runs=0": "num_runs=0: expected 1 or more",
    "num_runs=true": "num_runs=True: expected 1 or more",
    "max_trials=-1": "max_trials=-1: expected 1 or more",
    "stage=untrained num_runs=0": "num_runs=0: expected 1 or more",
    "stage=untrained seed=-1": "seed=-1: expected >= 0",
    "stage=untrained seed=x": "seed='x': expected >= 0",
    "sampler.length_before_new_list=0": "expected a whole number >= 1",
    "sampler.length_before_new_list=1.5": "expected a whole number >= 1",
    "scheduler=step scheduler.model.step_size=0": "expected a whole number >= 1",
    "scheduler=step scheduler.loss.step_size=-1": "expected a whole number >= 1",
    "scheduler=cosine scheduler.model.T_max=0": "expected a whole number >= 1",
    "scheduler=step scheduler.model.gamma=true": "expected a number >= 0",
    "dataset.images.seed=-1": "dataset.images.seed=-1: expected a whole number >= 0",
    "dataset.images.num_classes=0": "expected a whole number >= 1",
    "split=closed_set split.splitter.seed=-1": "split.splitter.seed=-1: expected a whole number >= 0",
    "trainer.accelerator=tpu": "trainer.accelerator=tpu: unknown",
    "optimizer.lr=true": "optimizer.lr=True: expected a number > 0",
    "loss.optimizer.lr=yes": "loss.optimizer.lr='yes': expected a number > 0",
    "optimizer.lr=nan": "expected a finite number",
    "hydra.run.dir=/etc/passwd": "hydra.run.dir=/etc/passwd: expected a folder, and /etc/passwd is none",
    "hydra.run.dir=/etc/passwd/below": "expected a folder, and /etc/passwd is none",
    "~seed": "seed: expected a value, found none",
    "~run": "run",
    "~stage": "stage",
    "~dataset": "dataset",
    "stage=null": "override must be a string",
}


def composed_or_refused(compose_config, *overrides):
    """The configuration, or the message of Hydra's own refusal."""
    try:
        return compose_config(*overrides, return_hydra_config=True)
    except Exception as error:
        if not is_usage_error(error):
            raise
        return message(error)


def ended(composed, *, is_sweep=False, capsys=None):
    call = CheckFirst().on_multirun_start if is_sweep else CheckFirst().on_run_start
    with pytest.raises(SystemExit) as error:
        call(composed)
    assert error.value.code == 2
    return capsys.readouterr().err


def test_a_bad_folder_of_several_searches_is_refused_first(compose_config, capsys):
    words = ["hydra.sweep.dir=/etc/passwd", "loss=triplet"]
    composed = compose_config("experiment=smoke", *words, return_hydra_config=True)
    composed.hydra.overrides.task = ["loss=triplet,contrastive"]
    assert "hydra.sweep.dir=/etc/passwd: expected a folder" in ended(composed, is_sweep=True, capsys=capsys)


@pytest.mark.parametrize("overrides", REFUSED)
def test_a_bad_override_is_one_message(compose_config, capsys, tmp_path, monkeypatch, overrides):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLRC_FULL_ERROR", "0")
    composed = composed_or_refused(compose_config, "experiment=smoke", "trainer=cpu", *overrides.split())
    shown = composed if isinstance(composed, str) else ended(composed, capsys=capsys)
    assert "Traceback" not in shown
    assert REFUSED[overrides] in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overrides", ["=1", "=", "loss=[1]", "+x", "a=b=", "loss=nope", "~nothing", "++loss=3"])
def test_what_is_no_override_is_a_usage_error(compose_config, overrides):
    composed = composed_or_refused(compose_config, overrides)
    if not isinstance(composed, str):
        with pytest.raises(SystemExit):
            CheckFirst().on_run_start(composed)


@pytest.mark.parametrize(
    "overrides", ["output_root=", "sweep_name=a/b", "batch_size=7", "optimizer.lr=0", "num_runs=0"]
)
def test_a_search_is_checked_before_its_first_trial(compose_config, capsys, overrides, monkeypatch):
    monkeypatch.setenv("MLRC_FULL_ERROR", "0")
    composed = compose_config("experiment=smoke", "loss=triplet", *overrides.split(), return_hydra_config=True)
    assert ended(composed, is_sweep=True, capsys=capsys)


def test_good_commands_are_let_through(compose_config):
    for overrides in (
        [],
        ["stage=untrained"],
        ["stage=reproduce", "run=1", "hyperparameters=default"],
        ["trunk=bn_inception"],
    ):
        CheckFirst().on_run_start(compose_config(*overrides, return_hydra_config=True))
    for overrides in ([], ["stage=reproduce", "hyperparameters=default"], ["stage=untrained"]):
        CheckFirst().on_multirun_start(compose_config(*overrides, return_hydra_config=True))


def test_a_folder_that_cannot_be_written_is_refused(compose_config, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("MLRC_FULL_ERROR", "0")
    composed = compose_config(f"output_root={tmp_path / 'out'}", return_hydra_config=True)
    assert f"expected a folder that can be written, and {tmp_path} cannot be" in ended(composed, capsys=capsys)


@pytest.fixture
def new(tmp_path, monkeypatch):
    folder = tmp_path / "out" / "protocol" / "run"
    folder.mkdir(parents=True)
    monkeypatch.setattr(check, "_new_folders", {folder: [folder.parent, folder.parents[1]]})
    (folder / "train.log").write_text("")
    return folder


def test_a_refused_commands_folder_goes_with_those_made_for_it(new, tmp_path):
    remove_refused()
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.is_dir()


@pytest.mark.parametrize("kept", ["result", "neighbour", "at work"])
def test_nothing_else_is_removed(new, kept):
    if kept == "result":
        (new / "fold_0").mkdir()
        (new / "fold_0" / "fold.json").write_text("{}")
        remove_refused()
    elif kept == "neighbour":
        (new.parent / "other").mkdir()
        remove_refused()
        assert not new.exists()
        assert (new.parent / "other").is_dir()
        return
    else:
        script = "import sys; from pathlib import Path; from mlrc_lightning.cli import check; "
        script += "check._new_folders[Path(sys.argv[1])] = []; check.remove_refused()"
        with only_writer(new):
            subprocess.run([sys.executable, "-c", script, str(new)], check=True, cwd=ROOT)
    assert (new / "train.log").exists()


@pytest.mark.parametrize("overrides", [["loss.function.margin=abc"], ["-m", "loss.function.margin=abc"]], ids=str)
@pytest.mark.slow
def test_what_only_training_refuses_leaves_nothing(tmp_path, overrides):
    command = [sys.executable, str(ROOT / "train.py"), *overrides, "experiment=smoke", "trainer=cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "loss.function: cannot build" in done.stderr
    assert list(tmp_path.iterdir()) == []


# the disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES], ids=errno.errorcode.get)
def test_a_disk_that_takes_nothing_is_one_message(number, capsys, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setenv("MLRC_FULL_ERROR", "0")
    monkeypatch.setattr(os, "fsync", full)
    for command in (
        lambda: write_json(tmp_path / "record.json", {}),
        lambda: main(["table", "toy", "--outputs", str(tmp_path), "--format", "md"]),
    ):
        with pytest.raises(SystemExit) as error:
            run(command)
        assert error.value.code == 2
        shown = capsys.readouterr().err
        assert shown.startswith(f"Cannot write to {tmp_path}")
        assert os.strerror(number) in shown
        assert "Traceback" not in shown
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_other_errors_of_the_system_keep_their_traceback(monkeypatch):
    monkeypatch.setenv("MLRC_FULL_ERROR", "0")

    def refused():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    with pytest.raises(ConnectionRefusedError):
        run(refused)
