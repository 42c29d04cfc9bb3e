"""Overrides may stand anywhere on a command line."""

import os
import subprocess
import sys

import pytest

from mlrc_lightning import __main__
from mlrc_lightning.__main__ import main
from mlrc_lightning.cli import words
from mlrc_lightning.cli.words import split_overrides


@pytest.mark.parametrize(
    ("line", "others", "overrides"),
    [
        ("table cub200 --protocol X num_runs=2", "table cub200 --protocol X", "num_runs=2"),
        ("table num_runs=2 cub200 --protocol X", "table cub200 --protocol X", "num_runs=2"),
        ("study glyphs --losses a b num_runs=2 --plan x=1", "study glyphs --losses a b --plan", "num_runs=2 x=1"),
        ("experiment=X -m loss=Y", "-m", "experiment=X loss=Y"),
        ("-m --config-dir a=b loss=Y ~seed", "-m --config-dir a=b", "loss=Y ~seed"),
        ("--config-dir=conf +x=1 --cfg job", "--config-dir=conf --cfg job", "+x=1"),
        ("evaluate outputs/run --split val data_root=d", "evaluate outputs/run --split val", "data_root=d"),
    ],
)
def test_overrides_are_found_in_any_order(line, others, overrides):
    assert split_overrides(line.split()) == (others.split(), overrides.split())


def test_a_file_is_no_override(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert split_overrides(["show", "a=b", "c=d"]) == (["show", "a=b"], ["c=d"])


@pytest.mark.parametrize(
    "line", [["glyphs", "--outputs", "OUT", "num_runs=2"], ["num_runs=2", "glyphs", "--outputs", "OUT"]]
)
def test_a_table_takes_them_in_any_order(tmp_path, capsys, line):
    main(["table", *(str(tmp_path) if word == "OUT" else word for word in line)])
    assert "glyphs (mlrc-small_cnn-" in capsys.readouterr().out


def test_a_study_takes_them_behind_its_losses(tmp_path, capsys):
    main(["study", "glyphs", "--outputs", str(tmp_path), "--plan", "--losses", "arcface", "num_runs=2", "max_trials=3"])
    assert "20 models left" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["evaluate", "reproduce", "prepare"])
def test_what_is_lacking_is_a_usage_error(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command])
    assert ended.value.code == 2
    assert f"{command}: expected" in capsys.readouterr().err


def test_a_reader_that_has_enough_ends_no_command_badly():
    read, write = os.pipe()
    os.close(read)
    code = "from mlrc_lightning.cli.errors import run; run(lambda: print('x' * 10))"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_flags_and_lists_are_those_of_the_commands():
    (commands,) = [action for action in __main__._parser()._actions if isinstance(action.choices, dict)]
    options = [
        (option, action.nargs)
        for name in __main__._WITH_OVERRIDES
        for action in commands.choices[name]._actions
        for option in action.option_strings
    ]
    assert {option for option, nargs in options if nargs == 0} <= words._FLAGS
    assert {option for option, nargs in options if nargs == "*"} == words._LISTS
