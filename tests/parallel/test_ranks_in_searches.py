"""Trials of several ranks inside searches and reproductions, as the command line starts them."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mlrc_lightning.cli.reproduce import reproduce
from mlrc_lightning.protocol.build import TrialData
from mlrc_lightning.protocol.evaluation import evaluate_again
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.settings.recorded import recorded_settings
from tests.launchers.test_shared_cache import memory_of
from tests.parallel.test_ranks import ranks_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ON_RANKS = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
MAPR = "mean_average_precision_at_r"


def command(folder, *overrides):
    return [
        sys.executable, str(ROOT / "train.py"), "-m", "experiment=smoke", "loss=triplet", "trunk.model.width=8",
        "schedule.iterations_per_epoch=2", "keep_models=true", f"output_root={folder}",
        f"data_root={folder.parent / 'data'}", *overrides,
    ]  # fmt: skip


def run(folder, *overrides):
    done = subprocess.run(command(folder, *overrides), capture_output=True, text=True, cwd=ROOT, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def of_type(folder, kind):
    (path,) = folder.glob("*/glyphs/triplet/**/ledger.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [record["payload"] for record in records if record["type"] == kind]


def records(folder):
    paths = sorted(folder.glob("*/glyphs/triplet/**/record.json"))
    return {int(path.parent.name): (path.parent, read_json(path, TrialRecord)) for path in paths}


def evaluated(folder, record, split, data_root):
    """What this one process finds for the weights that the ranks left, with as many threads."""
    settings, before = recorded_settings(record, overrides=[data_root]), torch.get_num_threads()
    torch.set_num_threads(record.environment["num_threads"])
    try:
        return evaluate_again(settings, TrialData(settings), record.folds, folder, split)
    finally:
        torch.set_num_threads(before)


def test_a_search_on_ranks_is_that_of_one_process(tmp_path, monkeypatch):
    budget = ("fold=0", "max_trials=2", "hydra.sweeper.report=false")
    done = run(tmp_path / "ranks", *ON_RANKS, *budget)
    assert (done.stdout + done.stderr).count("Starting 2 ranks") == 2, "the second trial as cleanly as the first"
    assert [c["trial"] for c in of_type(tmp_path / "ranks", "completed")] == [0, 1]
    on_ranks, data_root = records(tmp_path / "ranks"), f"data_root={tmp_path / 'data'}"
    assert sorted(on_ranks) == [0, 1]
    for number, (folder, record) in on_ranks.items():
        assert (record.status, record.stage, record.settings["trainer"]["devices"]) == ("complete", "search", 2)
        margin = of_type(tmp_path / "ranks", "proposed")[number]["parameters"]["loss.function.margin"]
        assert record.settings["loss"]["function"]["margin"] == margin
        settings = recorded_settings(record, overrides=[data_root])
        settings = dataclasses.replace(settings, trainer=dataclasses.replace(settings.trainer, devices=1))
        assert settings.trainer.num_ranks == 1
        (fold,), (reference,) = record.folds, run_trial(settings, tmp_path / str(number)).folds
        assert fold.epochs[0].val == reference.epochs[0].val, "the same weights, the same figures, to the last bit"
        losses = [epoch.train_loss for epoch in fold.epochs[1:]]
        assert losses == pytest.approx([epoch.train_loss for epoch in reference.epochs[1:]], rel=1e-4)
        assert fold.val == pytest.approx(reference.val, abs=0.02)
        assert evaluated(folder, record, "val", data_root).separated == record.val
        result = next(r for r in of_type(tmp_path / "ranks", "result") if r["job"] == number)
        assert result["metrics"][MAPR]["replicates"] == [record.val[MAPR]]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which it sets for its ranks, and nobody after it shall find
    assert "and every weight" in reproduce(on_ranks[0][0], exact=True, overrides=[data_root])


def test_reproductions_on_ranks_have_the_figures_of_their_weights(tmp_path):
    run(tmp_path / "out", *ON_RANKS, "stage=reproduce", "hyperparameters=default", "num_runs=2", "fold=[0,1]")
    runs = records(tmp_path / "out")
    assert sorted(runs) == [0, 1]
    for number, (folder, record) in runs.items():
        assert (record.status, record.stage, record.run) == ("complete", "reproduce", number)
        again = evaluated(folder, record, "test", f"data_root={tmp_path / 'data'}")
        assert (again.separated, again.separated_folds) == (record.test.separated, record.test.separated_folds)
    assert runs[0][1].seed != runs[1][1].seed
    assert runs[0][1].folds[0].weight_digests != runs[1][1].folds[0].weight_digests


def parent_and_environment(pid):
    words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return parent, dict(word.partition("=")[::2] for word in words)


@pytest.mark.fault
def test_ranks_in_local_workers_share_what_their_worker_has_and_end_with_it(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    overrides = [
        *ON_RANKS, "fold=0", "max_trials=2", "schedule.max_epochs=40", "schedule.patience=null",
        "hydra.sweeper.report=false", "hydra/launcher=mlrc_local", "hydra.sweeper.n_parallel=2",
        "hydra.launcher.threads=4", "hydra.launcher.devices=[0,1,2,3]", "hydra.launcher.devices_per_worker=2",
    ]  # fmt: skip
    out = tmp_path / "out"
    with (tmp_path / "messages.txt").open("w") as file:
        search = subprocess.Popen(command(out, *overrides), stdout=file, stderr=file, cwd=ROOT)
    deadline = time.monotonic() + 400
    jobs = {}
    while len(jobs) < 2:
        assert search.poll() is None, (tmp_path / "messages.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        jobs = {path.parents[1].name: path.parents[1] for path in out.rglob("latest.pt")}
        time.sleep(0.05)
    ranks = {name: ranks_of(folder) for name, folder in jobs.items()}
    assert [len(found) for found in ranks.values()] == [2, 2], "two trials side by side, of two ranks each"
    found = {name: [parent_and_environment(pid) for pid in pids] for name, pids in ranks.items()}
    assert {environment["OMP_NUM_THREADS"] for of_job in found.values() for _, environment in of_job} == {"2"}
    devices = {name: {environment["CUDA_VISIBLE_DEVICES"] for _, environment in found[name]} for name in found}
    assert sorted(map(sorted, devices.values())) == [["0,1"], ["2,3"]]
    for pid in (pid for pids in ranks.values() for pid in pids):
        decoded = memory_of(".uint8", pid)
        assert decoded["Shared_Clean"] + decoded["Shared_Dirty"] > 0, "the images in memory once, for all four"
        assert decoded["Anonymous"] == 0, "a copy of its own"
    workers = {name: {parent for parent, _ in found[name]} for name in found}
    (dead,), (alive,) = workers["0"], workers["1"]
    os.kill(dead, signal.SIGKILL)
    killed = time.monotonic()
    while ranks_of(jobs["0"]):
        assert time.monotonic() - killed < 120
        time.sleep(0.05)
    assert alive != dead
    assert search.wait(timeout=400) == 0, (tmp_path / "messages.txt").read_text()[-3000:]
    (failed,) = of_type(out, "job_failed")
    assert failed["job"] == 0
    assert failed["reason"].startswith("WorkerDiedError: the worker was killed by SIGKILL")
    assert [p["attempt"] for p in of_type(out, "started") if p["job"] == 0] == [0, 1], "the retry, in the same folder"
    assert "fold 0 goes on after epoch" in (jobs["0"] / "train.log").read_text()
    assert [c["trial"] for c in sorted(of_type(out, "completed"), key=lambda c: c["trial"])] == [0, 1]
    assert {number: record.status for number, (_, record) in records(out).items()} == {0: "complete", 1: "complete"}
    assert {record.environment["num_threads"] for _, record in records(out).values()} == {2}
