"""The one reader of ledgers: what it refuses, every consumer refuses in the same words."""

import json
import os

import pytest

from hydra_plugins.mlrc_ax_sweeper.__main__ import main
from hydra_plugins.mlrc_ax_sweeper._ledger import Ledger
from mlrc_lightning.errors import RecordError
from mlrc_lightning.results.runs import run_sets
from mlrc_lightning.results.searches import damaged_searches, searches
from mlrc_lightning.settings.best_of_search import search_optimum
from mlrc_sweeper import DamagedLedgerError, read
from tests.reporting.tables import fakes

MARGIN = "loss.function.margin"
TRIALS = [({MARGIN: 1.0}, (0.4, 0.5)), ({MARGIN: 2.0}, (0.2, 0.3)), ({MARGIN: 3.0}, "out of memory")]


def altered(lines):
    return [line.replace(b"[0.2,0.3]", b"[0.8,0.9]") for line in lines]


def duplicated(lines):
    return [*lines[:4], lines[3], *lines[4:]]


def dropped(lines):
    return [*lines[:4], *lines[5:]]


def swapped(lines):
    return [*lines[:4], lines[5], lines[4], *lines[6:]]


def spaced(lines):
    return [lines[0].replace(b'"seq":0', b'"seq": 0'), *lines[1:]]


def rewritten(change):
    """Changes the steps, and gives every line a number and a checksum as the sweeper does."""

    def damage(lines):
        steps = [[json.loads(line)["type"], json.loads(line)["payload"]] for line in lines]
        change(steps)
        return fakes.ledger_of(*steps).splitlines(keepends=True)

    return damage


def edited(index, **changes):
    def change(steps):
        steps[index][1].update(changes)

    return rewritten(change)


DAMAGES = {
    "altered score": (altered, 8, "does not match its checksum"),
    "added space": (spaced, 1, "does not match its checksum"),
    "duplicated line": (duplicated, 5, "has the number 3 where 4 is due"),
    "dropped line": (dropped, 5, "has the number 5 where 4 is due"),
    "swapped lines": (swapped, 5, "has the number 5 where 4 is due"),
    "result of an unknown trial": (edited(3, trial=7), 4, "is about trial 7, which was not proposed"),
    "negative trial": (edited(3, trial=-1), 4, "is about trial -1, which was not proposed"),
    "trial proposed twice": (edited(5, trial=0), 6, "proposes trial 0 where 1 is due"),
    "payload is a list": (rewritten(lambda steps: steps[4].__setitem__(1, [1])), 5, "has a payload that is no object"),
    "no signature": (rewritten(lambda steps: steps[0][1].pop("signature")), 1, "without a valid `signature`"),
    "signature is empty": (edited(0, signature={}), 1, "has a signature without a valid `search space`"),
    "no objective": (edited(0, signature={**fakes.signature({}), "objective": {}}), 1, "a valid `objective`"),
    "no type of a parameter": (edited(0, signature=fakes.signature({"x": 3})), 1, "parameter `x` that is no object"),
    "no header": (rewritten(lambda steps: steps.pop(0)), 1, "stands before the header of the search"),
    "two headers": (rewritten(lambda steps: steps.insert(1, steps[0])), 2, "is a second header"),
    "score is a text": (edited(3, metrics={fakes.METRICS[2]: {"mean": "0.9"}}), 4, "without a valid `mean`"),
    "replicate is a text": (
        edited(3, metrics={fakes.METRICS[2]: {"mean": 0.9, "replicates": ["0.9"]}}), 4, "without valid `replicates`"
    ),
    "no score": (edited(3, metrics={"loss": {"mean": 0.9}}), 5, "concludes trial 0, which has no"),
    "max_trials is huge": (edited(0, max_trials=10**12), 1, "a valid `max_trials`"),
    "created is no time": (edited(0, created="then"), 1, "a valid `created`"),
    "seconds are negative": (edited(3, seconds=-1.0), 4, "a valid `seconds`"),
    "score of 4,000 digits": (edited(3, metrics={fakes.METRICS[2]: {"mean": 10**4000}}), 4, "out of range"),
    "value is a list": (edited(1, parameters={"x": [1]}), 2, "a value of `x` that is neither number nor text"),
    "choice of nothing": (
        edited(0, signature=fakes.signature({"x": {"type": "choice", "values": []}})), 1, "without a valid `values`"
    ),
    "type is a list": (rewritten(lambda steps: steps[4].__setitem__(0, ["x"])), 5, "has a type that is no text"),
}  # fmt: skip


def raised(kind, function, *arguments):
    with pytest.raises(kind) as error:
        function(*arguments)
    return str(error.value)


def status(folder, capsys):
    assert main(["status", str(folder)]) == 0
    return capsys.readouterr().out


def report(folder, capsys):
    assert main(["report", str(folder)]) == 2
    return capsys.readouterr().err


def listed_as_damaged(outputs):
    assert searches(outputs) == []
    (reason,) = damaged_searches(outputs).values()
    return reason


CONSUMERS = {
    "reader": lambda folder, capsys: raised(DamagedLedgerError, read, folder / "ledger.jsonl"),
    "sweeper": lambda folder, capsys: raised(DamagedLedgerError, Ledger, folder),
    "table": lambda folder, capsys: listed_as_damaged(folder.parents[3]),
    "optimum": lambda folder, capsys: raised(RecordError, search_optimum, folder, False, ""),
    "optimum so far": lambda folder, capsys: raised(RecordError, search_optimum, folder, True, ""),
    "status": status,
    "report": report,
}


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.slow
def test_damage_is_refused_by_every_consumer(tmp_path, capsys, damage, consumer):
    folder = fakes.write_search(tmp_path, "arcface", 3, TRIALS)
    path = folder / "ledger.jsonl"
    change, line, reason = DAMAGES[damage]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))
    message = CONSUMERS[consumer](folder, capsys)
    assert f"{path}, line {line}: the record " in message
    assert reason in message
    assert f"`python -m hydra_plugins.mlrc_ax_sweeper repair {folder}`" in message


@pytest.mark.parametrize("damage", DAMAGES)
def test_repair_makes_every_damage_readable(tmp_path, capsys, damage):
    folder = fakes.write_search(tmp_path, "arcface", 3, TRIALS)
    path = folder / "ledger.jsonl"
    change, line, _ = DAMAGES[damage]
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    assert main(["repair", str(folder)]) == 0
    assert f"kept {line - 1} records" in capsys.readouterr().out
    assert len(read(path).records) == line - 1


def test_a_reproductions_ledger_is_read_as_strictly(tmp_path):
    run = fakes.write_run(tmp_path, "arcface", 0, fakes.accuracies(0.5, 0.5, 0.5))
    path = fakes.write_ledger(run.parent, 5, TRIALS) / "ledger.jsonl"
    path.write_bytes(b"".join(duplicated(path.read_bytes().splitlines(keepends=True))))
    (run_set,) = run_sets(tmp_path)
    assert len(run_set.complete) == 1
    assert "line 5: the record has the number 3" in listed_as_damaged(tmp_path)


@pytest.mark.parametrize("cut", [1, 9, 60])
def test_a_torn_last_line_is_fine_for_every_consumer(tmp_path, capsys, cut):
    folder = fakes.write_search(tmp_path, "arcface", 3, [*TRIALS[:2], ({MARGIN: 3.0}, None)])
    path = folder / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    (search,) = searches(tmp_path)
    assert (search.num_done, search.best.parameters) == (2, {MARGIN: 1.0})
    assert search_optimum(folder, True, "").source == "search: trial 0, best of 2, unfinished"
    assert "2 of 3 trials done" in status(folder, capsys)
    ledger = Ledger(folder)
    ledger.close()
    assert path.read_bytes().endswith(b"\n")


def test_a_prolonged_search_is_not_finished(tmp_path):
    folder = fakes.write_search(tmp_path, "arcface", 3, TRIALS, "max_trials")
    ledger = Ledger(folder)
    assert ledger.state.finished == {"cause": "max_trials"}
    ledger.append("extended", {"max_trials": 9})
    ledger.close()
    state = read(folder / "ledger.jsonl").state
    assert (state.finished, state.max_trials) == (None, 9)


def test_an_override_that_deletes_is_no_parameter(tmp_path):
    space = {"x": {"type": "choice", "values": [1, 2]}, "(other overrides)": ["~y"]}
    fakes.write_search(tmp_path, "arcface", 3, [({"x": 1}, (0.5,))], space=space)
    assert searches(tmp_path)[0].trials_wanted(50) == 2


def test_replicates_are_in_their_own_order(tmp_path):
    folder = fakes.write_search(tmp_path, "arcface", 3, [({MARGIN: 1.0}, None)])
    ledger = Ledger(folder)
    for replicate, score in ((1, 0.5), (0, 0.25)):
        at = {"trial": 0, "replicate": replicate, "job": replicate, "seconds": 2.0}
        ledger.append("result", {**at, "metrics": {fakes.METRICS[2]: {"mean": score}}})
    ledger.append("completed", {"trial": 0, "values": {fakes.METRICS[2]: 0.375}})
    ledger.close()
    (trial,) = searches(tmp_path)[0].trials
    assert (trial.values, trial.mean, trial.seconds, trial.state) == ((0.25, 0.5), 0.375, 4.0, "completed")


def test_status_goes_on_where_a_constrained_metric_was_not_measured(tmp_path, capsys):
    folder = fakes.write_search(tmp_path, "arcface", 3, TRIALS)
    path = folder / "ledger.jsonl"
    constrained = {**fakes.signature({}), "outcome constraints": ["latency <= 3.0"]}
    path.write_bytes(b"".join(edited(0, signature=constrained)(path.read_bytes().splitlines(keepends=True))))
    assert "of 3 trials done" in status(tmp_path, capsys)


@pytest.mark.parametrize(
    "fields",
    [
        {"outcome constraints": [3]},
        {"outcome constraints": ["a ="]},
        {"generation": {"method": "none"}},
        {"noise": "x"},
    ],
    ids=str,
)
def test_status_lists_a_header_of_no_search_and_goes_on(tmp_path, capsys, fields):
    folder = fakes.write_search(tmp_path, "arcface", 3, TRIALS)
    fakes.write_search(tmp_path, "triplet", 3, TRIALS)
    path = folder / "ledger.jsonl"
    signature = {**fakes.signature({}), **fields}
    path.write_bytes(b"".join(edited(0, signature=signature)(path.read_bytes().splitlines(keepends=True))))
    shown = status(tmp_path, capsys)
    assert f"{folder}\n  damaged: " in shown
    assert "triplet" in shown
    assert "of 3 trials done" in shown


def test_a_pipe_in_the_place_of_a_ledger_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "ledger.jsonl")
    assert "expected a ledger, found a folder, a pipe or a device" in status(tmp_path, capsys)
