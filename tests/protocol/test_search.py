"""The search of one loss from the command line: every trial in the ledger, killed at any time, continued exactly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mlrc_lightning.results.records import TrialRecord, read_json

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
NUM_TRIALS = 8


def command(folder, *arguments):
    return [
        sys.executable, str(ROOT / "train.py"), "-m", "experiment=smoke", "loss=triplet", "trainer=cpu",
        "schedule.iterations_per_epoch=1", f"output_root={folder}", f"data_root={folder.parent / 'data'}",
        f"hydra.sweeper.ax_config.max_trials={NUM_TRIALS}", *arguments,
    ]  # fmt: skip


def start(folder, *arguments):
    return subprocess.Popen(command(folder, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)


def finish(folder, *arguments):
    return subprocess.run(command(folder, *arguments), capture_output=True, text=True, cwd=ROOT, timeout=500)


def search_folder(folder):
    (found,) = folder.glob("*/glyphs/triplet/smoke")
    return found


def ledger(folder):
    lines = (search_folder(folder) / "ledger.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def of_type(folder, kind):
    return [record["payload"] for record in ledger(folder) if record["type"] == kind]


def wait_for(folder, kind, count, process):
    """Waits until the ledger holds so many records of a kind."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode()[-3000:]
        paths = list(folder.glob("*/glyphs/triplet/smoke/ledger.jsonl"))
        if paths and paths[0].read_text().count(f'"type":"{kind}"') >= count:
            return
        time.sleep(0.02)
    pytest.fail(f"no {count} {kind} records in 300 s")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted search."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    done = finish(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_trial_is_in_the_ledger_before_the_next_begins(whole):
    order = [(r["type"], r["payload"]["trial"]) for r in ledger(whole) if r["type"] in ("proposed", "completed")]
    assert order == [(kind, trial) for trial in range(NUM_TRIALS) for kind in ("proposed", "completed")]


def test_the_objective_is_the_mean_of_the_folds_validation_map_at_r(whole):
    for result, completed in zip(of_type(whole, "result"), of_type(whole, "completed"), strict=True):
        record = read_json(search_folder(whole) / str(result["job"]) / "record.json", TrialRecord)
        name = "mean_average_precision_at_r"
        assert record.stage == "search"
        assert record.test is None
        assert result["metrics"][name]["replicates"] == [fold.val[name] for fold in record.folds]
        assert completed["values"][name] == pytest.approx(record.val[name])


def test_trials_after_the_start_are_chosen_by_a_model(whole):
    generators = [proposed["generator"] for proposed in of_type(whole, "proposed")]
    assert generators[:5] == ["Sobol"] * 5
    assert not any("Sobol" in generator for generator in generators[5:]), generators


def test_the_results_file_names_the_best_setting(whole):
    results = yaml.safe_load((search_folder(whole) / "optimization_results.yaml").read_text())
    best = max(of_type(whole, "completed"), key=lambda c: c["values"]["mean_average_precision_at_r"])
    parameters = of_type(whole, "proposed")[best["trial"]]["parameters"]
    assert list(results)[:2] == ["optimizer", "ax"]
    assert results["ax"]["loss.function.margin"] == parameters["loss.function.margin"]
    low, high = -0.2, 2.0  # docs/protocol.md, §2.1
    assert all(low <= p["parameters"]["loss.function.margin"] <= high for p in of_type(whole, "proposed"))


def test_a_finished_search_returns_at_once_and_changes_nothing(whole):
    before = (search_folder(whole) / "ledger.jsonl").read_bytes()
    began = time.monotonic()
    done = finish(whole)
    assert done.returncode == 0, done.stderr[-2000:]
    assert time.monotonic() - began < 20
    assert (search_folder(whole) / "ledger.jsonl").read_bytes() == before


@pytest.mark.fault
def test_a_search_killed_in_the_middle_ends_as_the_uninterrupted_one(whole, tmp_path):
    folder = tmp_path / "out"
    for kind, count in (("started", 2), ("completed", 4), ("proposed", 7)):
        process = start(folder)
        wait_for(folder, kind, count, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()
    done = finish(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [p["parameters"] for p in of_type(folder, "proposed")] == [
        p["parameters"] for p in of_type(whole, "proposed")
    ]
    assert [c["values"] for c in of_type(folder, "completed")] == [c["values"] for c in of_type(whole, "completed")]
    assert not list(folder.rglob("*lock*"))
    assert not list(folder.rglob("*partial*"))


def test_another_seed_in_the_same_folder_is_refused_with_the_difference(whole):
    done = finish(whole, "hydra.sweeper.ax_config.client.random_seed=7")
    assert done.returncode == 2
    assert "seed" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_reads_a_search_from_another_process(whole):
    done = subprocess.run(
        [sys.executable, "-m", "mlrc_lightning", "status", str(whole)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert f"{NUM_TRIALS} of {NUM_TRIALS} trials done, 0 failed" in done.stdout
    nothing = subprocess.run(
        [sys.executable, "-m", "mlrc_lightning", "status", str(whole / "none")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert nothing.returncode == 2
    assert "Expected a ledger.jsonl" in nothing.stderr


def test_a_search_may_be_prolonged_and_moved_to_other_hardware(tmp_path):
    folder = tmp_path / "out"
    short = [argument for argument in command(folder) if "max_trials" not in argument and argument != "trainer=cpu"]
    for arguments in (["max_trials=2", "trainer=auto"], ["max_trials=3", "trainer=cpu"]):
        done = subprocess.run([*short, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    assert [proposed["trial"] for proposed in of_type(folder, "proposed")] == [0, 1, 2]
    assert len(of_type(folder, "completed")) == 3
