"""One damaged result stops no table, figure or report: it is listed with its reason, and the exit code is 1."""

import json
import os

import pytest

from mlrc_lightning.__main__ import main
from mlrc_lightning.results.damaged import damaged_results
from mlrc_lightning.results.runs import run_sets
from tests.reporting.tables import fakes


def edited(change):
    def damage(path):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "accuracy of 17": edited(lambda c: c["test"]["separated"].update(precision_at_1=17.0)),
    "text for a number": edited(lambda c: c["test"]["separated"].update(r_precision="0.5")),
    "no settings": edited(lambda c: c.update(settings={})),
    "folds are a number": edited(lambda c: c.update(folds=3)),
    "weights lead out": edited(lambda c: c["folds"][0].update(weights={"trunk": "../../x"})),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:99]),
    "deep": lambda path: path.write_text("[" * 9_999),
    "pipe": as_pipe,
    "folder": as_folder,
}


@pytest.fixture
def outputs(tmp_path):
    for number in range(3):
        fakes.write_run(tmp_path, "arcface", number, fakes.accuracies(0.5, 0.5, 0.5))
    fakes.write_search(tmp_path, "arcface", 1, [({"x": 1}, (0.4,))], "max_trials")
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_run_is_listed_and_the_others_count(outputs, damage):
    (run_set,) = run_sets(outputs)
    DAMAGES[damage](run_set.folder / "1" / "record.json")
    (run_set,) = run_sets(outputs)
    assert [run.state for run in run_set.runs] == ["complete", "could not be read", "complete"]
    ((folder, reason),) = damaged_results(outputs, [run_set]).items()
    assert outputs / folder == run_set.folder / "1"
    assert str(run_set.folder / "1" / "record.json") in reason


@pytest.mark.slow
def test_commands_go_on_and_exit_with_1(outputs, capsys):
    (run_set,) = run_sets(outputs)
    DAMAGES["accuracy of 17"](run_set.folder / "1" / "record.json")
    search = next(outputs.glob("*/*/*/search/ledger.jsonl"))
    search.write_bytes(search.read_bytes().replace(b"0.4", b"0.5"))
    for command in (["table", "cub200"], ["figure", "figure_2a", "--format", "svg"], ["report"], ["report"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--outputs", str(outputs), *(["--protocol", fakes.PROTOCOL] if "table" in command else [])])
        assert ended.value.code == 1, command
        error = capsys.readouterr().err
        assert "reproduce/search-11111111/1: could not be read: " in error
        assert "test.separated.precision_at_1=17.0: expected an accuracy from 0 to 1" in error
        assert "/search: could not be read: " in error
    assert "17.0: expected an accuracy" in (outputs / "report" / "index.html").read_text()
    assert "ArcFace, run 1 could not be read" in (outputs / "tables" / "cub200.md").read_text()
