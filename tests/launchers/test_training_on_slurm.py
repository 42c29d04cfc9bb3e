"""Training on a real SLURM with one node: a search on ranks to which things happen, and a table; see `.ci/slurm`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlrc_lightning.cli.reproduce import reproduce
from mlrc_lightning.cli.submit import submit
from mlrc_lightning.results.records import TrialRecord, read_json
from tests.parallel.test_ranks import ranks_of

from .conftest import ROOT
from .test_local import wait_for

pytest.importorskip("submitit")
pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm"), pytest.mark.timeout(1800)]

QUICK = ("hydra.launcher.poll_seconds=1", "hydra.launcher.settle_seconds=5", "hydra.sweeper.n_parallel=2")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def payloads(folder: Path, type_: str) -> list[dict[str, Any]]:
    lines = [line for path in folder.rglob("ledger.jsonl") for line in path.read_text().splitlines()]
    return [r["payload"] for r in map(json.loads, (line for line in lines if line.endswith("}"))) if r["type"] == type_]


def test_trials_on_ranks_are_preempted_go_on_and_fail_alone(tmp_path: Path) -> None:
    if "urgent" not in said("sinfo", "--noheader", "--format=%R"):
        pytest.skip("this SLURM has no partition `urgent` that preempts the others, as that of `.ci/slurm` has")
    out = tmp_path / "out"
    command = [
        sys.executable, str(ROOT / "train.py"), "-m", "experiment=smoke", "loss=triplet", "fold=0", "max_trials=2",
        "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.checkpoint_every_n_iterations=1",
        "trunk.model.width=8", "schedule.iterations_per_epoch=2", "schedule.max_epochs=150", "schedule.patience=null",
        "hydra/launcher=mlrc_slurm", "hydra.launcher.cpus_per_task=2", "hydra.launcher.timeout_min=60", *QUICK,
        "hydra.sweeper.report=false", f"output_root={out}", f"data_root={tmp_path / 'data'}",
    ]  # fmt: skip
    with (tmp_path / "driver.log").open("w") as file:
        driver = subprocess.Popen(command, stdout=file, stderr=file)
    wait_for(lambda: driver.poll() is not None or len(list(out.rglob("latest.pt"))) == 2, 400)
    assert driver.poll() is None, (tmp_path / "driver.log").read_text()[-3000:]
    jobs = {path.parents[1].name: path.parents[1] for path in out.rglob("latest.pt")}
    assert [len(ranks_of(folder)) for folder in jobs.values()] == [2, 2], "one job of SLURM is one trial of two ranks"
    # something more important wants the whole node; SLURM sends the two back to the queue
    urgent = said("sbatch", "--parsable", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    ids = {payload["job"]: payload["id"] for payload in payloads(out, "submitted")}
    assert sorted(ids) == [0, 1]

    def state_of(job_id: str) -> str:
        return said("squeue", "--noheader", "--format=%T", "--states=all", f"--jobs={job_id}").strip()

    wait_for(lambda: state_of(urgent.strip()) == "COMPLETED")
    assert not any(ranks_of(folder) for folder in jobs.values()), "ranks outlived their job"
    for job_id in ids.values():
        wait_for(lambda job_id=job_id: state_of(job_id) == "PENDING")
        said("scontrol", "update", f"JobId={job_id}", "StartTime=now")  # else SLURM waits for two minutes
    wait_for(lambda: all(len(ranks_of(folder)) == 2 for folder in jobs.values()), 300)
    before = time.time()
    wait_for(lambda: any(path.stat().st_mtime > before for path in jobs["1"].rglob("latest.pt")), 300)
    os.kill(max(ranks_of(jobs["1"])), signal.SIGKILL)
    assert driver.wait(timeout=900) == 0, (tmp_path / "driver.log").read_text()[-3000:]

    (failed,) = payloads(out, "job_failed")
    assert failed["job"] == 1
    assert failed["reason"].startswith("RankError: Rank ")
    assert "of 2 ended without a word: killed by SIGKILL" in failed["reason"]
    assert sorted(payload["trial"] for payload in payloads(out, "completed")) == [0, 1]
    assert len({payload["id"] for payload in payloads(out, "submitted")}) == 3, "two jobs, and the failed one's retry"
    folders = {number: jobs["0"].with_name(str(number)) for number in (0, 1, 2)}
    records = {number: read_json(folder / "record.json", TrialRecord) for number, folder in folders.items()}
    assert {number: record.status for number, record in records.items()} == {0: "complete", 1: "failed", 2: "complete"}
    assert [epoch.epoch for epoch in records[0].folds[0].epochs] == list(range(151))
    assert "fold 0 goes on after epoch" in (folders[0] / "train.log").read_text()
    (started,) = (folders[0].parent / ".slurm" / "0").glob("*/started.json")
    assert json.loads(started.read_text())["restarts"] == 1
    # trained once more, on ranks that nothing disturbs
    assert "The same in every figure and every weight" in reproduce(
        folders[0], exact=True, overrides=[f"data_root={tmp_path / 'data'}"]
    )


def test_a_table_submitted_as_a_job_has_its_training_done_in_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / ".installed").touch()
    monkeypatch.chdir(tmp_path)
    overrides = [
        "dataset=glyphs", "dataset.images.num_classes=24", "dataset.images.images_per_class=6", "trainer=cpu",
        "schedule.iterations_per_epoch=2", "schedule.max_epochs=1", "hydra.launcher.partition=debug", *QUICK,
        "data_root=data",
    ]  # fmt: skip
    submit(
        [
            "make", "-f", str(ROOT / "Makefile"), "table-cub200", "LAUNCHER=slurm", "TRIALS=2", "RUNS=2",
            "LOSSES=triplet", f"VENV={venv}", f"BIN={Path(sys.executable).parent}", f"OVERRIDES={' '.join(overrides)}",
        ],
        ["--time=30"], [], Path("outputs"),
    )  # fmt: skip
    table = tmp_path / "outputs/tables/cub200.md"
    log = next(iter((tmp_path / "outputs").glob("driver-*.log")), tmp_path / "none")
    try:
        wait_for(table.exists, 900)
    except AssertionError:
        raise AssertionError(log.read_text()[-3000:]) from None
    row = next(line for line in table.read_text().splitlines() if line.startswith("| Triplet"))
    assert row.count("±") == 3
    assert row.split("|")[-2].strip() == "2"
    # the untrained models, the search, and the runs of its best: each training was a job
    submitted = [payload["id"] for payload in payloads(tmp_path / "outputs", "submitted")]
    assert len(submitted) == len(set(submitted)) == 6
    wanted = ("JobName=train ", "Partition=debug ", "JobState=COMPLETED ")
    for job_id in submitted:  # a result counts before its job has ended

        def has_ended(job_id: str = job_id) -> bool:
            shown = said("scontrol", "--oneliner", "show", "job", job_id)
            return all(word in shown for word in wanted)

        wait_for(has_ended)
