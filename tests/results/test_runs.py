"""What is found under `outputs`: searches from their ledgers, runs from their records."""

import json
import re
import time

import pytest

from mlrc_lightning.results.runs import has_best_hyperparameters, run_sets
from mlrc_lightning.results.searches import damaged_searches, searches
from tests.reporting.tables import fakes


def test_a_search_is_read_from_its_ledger(tmp_path):
    trials = [({"loss.function.margin": 1.0}, (0.1, 0.3)), ({"loss.function.margin": 2.0}, (0.4, 0.4)),
              ({"loss.function.margin": 3.0}, "out of memory"), ({"loss.function.margin": 4.0}, None)]  # fmt: skip
    fakes.write_search(tmp_path, "arcface", 50, trials)
    (search,) = searches(tmp_path)
    assert (search.protocol, search.setting, search.loss, search.name) == (
        fakes.PROTOCOL, fakes.SETTING, "arcface", "search",
    )  # fmt: skip
    assert [trial.state for trial in search.trials] == ["completed", "completed", "failed", "open"]
    assert [trial.mean for trial in search.trials] == [pytest.approx(0.2), pytest.approx(0.4), None, None]
    assert search.trials[0].values == (0.1, 0.3)
    assert search.trials[2].reason == "out of memory"
    assert (search.best.index, search.num_done, search.num_failed, search.finished) == (1, 2, 1, None)


def test_the_first_of_equal_trials_is_the_best_one_as_for_the_sweeper(tmp_path):
    fakes.write_search(tmp_path, "arcface", 2, [({"x": 1}, (0.4,)), ({"x": 2}, (0.4,))], "max_trials")
    assert searches(tmp_path)[0].best.index == 0


@pytest.mark.parametrize(
    ("space", "budget", "wanted"),
    [
        ({"a": {"type": "range"}}, 50, 50),
        ({"a": {"type": "choice", "values": list(range(31))}, "loss": {"type": "fixed", "values": ["x"]}}, 50, 31),
        ({"a": {"type": "choice", "values": list(range(31))}}, 20, 20),
        ({"a": {"type": "choice", "values": [1, 2]}, "b": {"type": "range"}}, 50, 50),
    ],
)
def test_a_list_of_choices_bounds_the_trials(tmp_path, space, budget, wanted):
    fakes.write_search(tmp_path, "fastap", 50, [], space=space)
    assert searches(tmp_path)[0].trials_wanted(budget) == wanted


def test_a_torn_last_record_is_left_out_and_a_changed_one_is_named(tmp_path):
    folder = fakes.write_search(tmp_path, "arcface", 2, [({"x": 1}, (0.4,)), ({"x": 2}, (0.5,))], "max_trials")
    path = folder / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert searches(tmp_path)[0].finished is None
    path.write_bytes(whole.replace(b"0.5", b"0.6"))
    assert searches(tmp_path) == []
    (reason,) = damaged_searches(tmp_path).values()
    assert re.search(r"ledger.jsonl, line 8: the record does not match its checksum.*repair", reason)


def test_runs_are_told_apart_by_how_far_they_are(tmp_path):
    folder = fakes.write_run(tmp_path, "arcface", 0, fakes.accuracies(0.5, 0.5, 0.5)).parent
    fakes.write_run(tmp_path, "arcface", 1, failure="NonFiniteError: loss")
    (folder / "2" / "fold_0").mkdir(parents=True)
    (folder / "2" / "fold_0" / "fold.json").write_text("{}")
    ledger = fakes.write_ledger(tmp_path / "elsewhere", 5, []) / "ledger.jsonl"
    ledger.rename(folder / "ledger.jsonl")
    (run_set,) = run_sets(tmp_path)
    assert (run_set.source, run_set.digest, run_set.loss) == ("search", "11111111", "arcface")
    assert [run.state for run in run_set.runs] == ["complete", "failed", "unfinished", "absent", "absent"]
    assert [run.num_finished_folds for run in run_set.runs] == [4, 4, 1, 0, 0]
    assert run_set.runs[0].record.folds[0].epochs
    assert not run_set.runs[0].outcome.folds[0].epochs
    assert run_set.runs[0].outcome.test == run_set.runs[0].record.test


def test_a_run_in_a_folder_that_is_not_its_own_is_refused(tmp_path):
    fakes.write_run(tmp_path, "arcface", 0, fakes.accuracies(0.5, 0.5, 0.5))
    (tmp_path / fakes.PROTOCOL).rename(tmp_path / "mlrc-other-12345678")
    (run_set,) = run_sets(tmp_path)
    assert (run_set.complete, [run.state for run in run_set.runs]) == ((), ["could not be read"])
    assert re.search("expected a run of mlrc-other-12345678/.*found a record of mlrc-fake", run_set.runs[0].damage)


def test_runs_of_an_earlier_best_setting_are_recognised(tmp_path):
    trials = [({"loss.function.margin": 1.0}, (0.1,)), ({"loss.function.margin": 2.0}, (0.4,))]
    fakes.write_search(tmp_path, "arcface", 50, trials)
    results = fakes.accuracies(0.5, 0.5, 0.5)
    fakes.write_run(tmp_path, "arcface", 0, results, parameters={"margin": 1.0})
    fakes.write_run(tmp_path, "arcface", 0, results, parameters={"margin": 2.0}, digest="22222222")
    (search,) = searches(tmp_path)
    assert [has_best_hyperparameters(run_set, search) for run_set in run_sets(tmp_path)] == [False, True]


def test_reading_searches_costs_little_more_than_json(tmp_path):
    trials = [({"loss.function.margin": float(i), "loss.optimizer.lr": 0.1}, (0.1, 0.2, 0.3, 0.4)) for i in range(50)]
    for loss in range(14):
        for setting in range(4):
            fakes.write_search(tmp_path, f"loss{loss}", 50, trials, "max_trials", setting=f"b{setting}")
    began = time.process_time()
    found = searches(tmp_path)
    reading = time.process_time() - began
    ledgers = [path.read_bytes().splitlines() for path in tmp_path.rglob("ledger.jsonl")]
    began = time.process_time()
    for lines in ledgers:
        for line in lines:
            json.loads(line)
    # 3 to 5 times, with every check of every record
    assert reading < 12 * (time.process_time() - began)
    assert sum(search.num_done for search in found) == 56 * 50
