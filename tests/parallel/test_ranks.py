"""A whole trial on several gloo ranks: equal to one process, and ended as a whole when one of them is."""

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

from mlrc_lightning.errors import ConfigError, NonFiniteError, RankError
from mlrc_lightning.files import as_json, write_json
from mlrc_lightning.parallel.ranks import RankFailure, _first_failure, failure_file, rank_environment, rank_threads
from mlrc_lightning.parallel.signals import STOPPED
from mlrc_lightning.protocol.build import TrialData, build_datamodule, build_trainer
from mlrc_lightning.protocol.evaluation import evaluate_on_test_classes, load_module
from mlrc_lightning.protocol.rank import device_of
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.settings.identity import identity

ROOT = Path(__file__).parents[2]
QUICK = ["fold=0", "schedule.iterations_per_epoch=2", "evaluation.baselines=false", "trunk.model.width=8"]
CPU_RANKS = ["trainer=ddp", "trainer.accelerator=cpu"]


def ranks_of(folder):
    """The processes that have a trial's folder on their command line, by id."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words and b"mlrc_lightning.protocol.rank" in words:
            found.append(int(path.parent.name))
    return found


def gone(folder, seconds):
    deadline = time.monotonic() + seconds
    while ranks_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not ranks_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "block", "loss"), [(2, 4, "margin"), (3, 128, "multi_similarity_miner")])
def test_a_trial_on_ranks_is_that_of_one_process(settings, tmp_path, num_ranks, block, loss):
    # validation: 18 images in 5 blocks on 2 ranks, and in one block on 3; 32 images of a batch on 3 ranks: 11, 11, 10
    common = [*QUICK, f"loss={loss}", f"evaluation.batch_size={block}", "schedule.save_interval=1"]
    alone, folder = settings(*common), tmp_path / "ranks"
    record = run_trial(settings(*common, *CPU_RANKS, f"trainer.devices={num_ranks}"), folder)
    assert (record.status, record.settings["trainer"]["devices"]) == ("complete", num_ranks)
    assert read_json(folder / "record.json", TrialRecord) == record
    assert not (folder / ".ranks").exists()
    (fold,) = record.folds
    expected = run_trial(alone, tmp_path / "alone").folds[0]
    assert fold.epochs[0].val == expected.epochs[0].val, "the same weights, the same figures, to the last bit"
    for epoch, reference in zip(fold.epochs[1:], expected.epochs[1:], strict=True):
        assert epoch.train_loss == pytest.approx(reference.train_loss, rel=1e-4)
    # what the ranks found for their weights, one process finds for them
    data = TrialData(alone)
    test = evaluate_on_test_classes(alone, data, record.folds, folder)
    assert (test.separated, test.num_queries) == (record.test.separated, record.test.num_queries)
    module = load_module(alone, fold, folder)
    datamodule = build_datamodule(alone, data, data.splits[0])
    build_trainer(alone, tmp_path, enable_checkpointing=False).validate(module, datamodule, verbose=False)
    assert module.val_accuracies == fold.val


@pytest.mark.slow
@pytest.mark.parametrize(("how", "reason"), [
    ("kill", "Rank 1 of 2 ended without a word: killed by SIGKILL"),
    ("exit", "Rank 1 of 2 ended without a word: exit 3"),
    ("raise", "Rank 1 of 2 raised ValueError: the third call"),
])  # fmt: skip
def test_a_rank_that_fails_ends_all_and_the_trial_with_its_reason(settings, tmp_path, monkeypatch, how, reason):
    s = settings(*QUICK, *CPU_RANKS, "schedule.max_epochs=200")
    function = {"_target_": "tests.noisy.Failing", "how": how}
    s = dataclasses.replace(s, loss=dataclasses.replace(s.loss, function=function))
    monkeypatch.setenv("FAILS_AT", str(tmp_path / "fails"))
    with pytest.raises(RankError, match=reason):
        run_trial(s, tmp_path / "run")
    assert time.time() - (tmp_path / "fails").stat().st_mtime < 60, "the others wait for it"
    assert not ranks_of(tmp_path / "run")
    record = read_json(tmp_path / "run" / "record.json", TrialRecord)
    assert (record.status, record.folds) == ("failed", ())
    assert record.failure.startswith(f"RankError: {reason}")


def started(folder, data, *arguments):
    """The command line of a trial on ranks, once it has trained; and the trial's folder."""
    command = [
        sys.executable, str(ROOT / "train.py"), "experiment=smoke", *QUICK, *CPU_RANKS, "schedule.max_epochs=300",
        "schedule.patience=null", "trainer.checkpoint_every_n_iterations=1", f"output_root={folder}",
        f"data_root={data}", *arguments,
    ]  # fmt: skip
    began = time.time()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    states, deadline = [], time.monotonic() + 300
    while not states and time.monotonic() < deadline:
        assert running.poll() is None, f"it ended with {running.returncode}"
        states = [path for path in folder.rglob("latest.pt") if path.stat().st_mtime > began]
        time.sleep(0.05)
    return running, states[0].parents[1], command


@pytest.mark.slow
def test_ranks_end_with_a_parent_that_is_killed_and_stop_with_one_that_is_asked_to(tmp_path):
    running, folder, _ = started(tmp_path / "out", tmp_path / "data")
    assert len(ranks_of(folder)) == 2
    running.kill()
    running.wait()
    assert gone(folder, 120)
    running, folder, command = started(tmp_path / "out", tmp_path / "data")
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=300) == STOPPED
    assert gone(folder, 0)
    record = json.loads((folder / "record.json").read_text())
    assert record["failure"].startswith("TrialStopped: SIGTERM")
    epoch, _ = torch.load(folder / "fold_0" / "latest.pt", weights_only=True)["position"]
    # the rest with one process: as many epochs as are left to the one that was under way
    shorter = [word.replace("max_epochs=300", f"max_epochs={epoch + 2}") for word in command]
    target = tmp_path / "shorter"
    for path in folder.rglob("latest.pt"):
        (target / "fold_0").mkdir(parents=True)
        (target / "fold_0" / "latest.pt").write_bytes(path.read_bytes())
        for weights in path.parent.glob("*.safetensors"):
            (target / "fold_0" / weights.name).write_bytes(weights.read_bytes())
    done = subprocess.run(
        [*shorter, f"hydra.run.dir={target}", "trainer=cpu"], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    epochs = json.loads((target / "record.json").read_text())["folds"][0]["epochs"]
    assert [e["epoch"] for e in epochs] == list(range(epoch + 3))


@pytest.mark.slow
def test_a_sweep_on_ranks_starts_its_second_job_after_the_first(tmp_path):
    command = [
        sys.executable, str(ROOT / "train.py"), "-m", "hydra/sweeper=basic", "experiment=smoke", *QUICK, *CPU_RANKS,
        "loss=arcface,contrastive", f"output_root={tmp_path / 'out'}", f"data_root={tmp_path / 'data'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("record.json")]
    assert sorted(record["loss"] for record in records) == ["arcface", "contrastive"]
    assert all(record["status"] == "complete" and record["stage"] == "search" for record in records)
    assert done.stderr.count("Starting 2 ranks") + done.stdout.count("Starting 2 ranks") == 2


def test_the_first_failure_is_the_cause_and_a_death_comes_before_any(tmp_path):
    for number, (kind, moment) in enumerate([("RuntimeError", 5.0), ("NonFiniteError", 4.0)]):
        failure_file(tmp_path, number).parent.mkdir(exist_ok=True)
        write_json(failure_file(tmp_path, number), RankFailure(kind, f"text {number}", "lines", moment))
    error = _first_failure(tmp_path, [1, 1])
    assert type(error) is NonFiniteError
    assert str(error) == "text 1 (rank 1 of 2)"
    assert "Rank 2 of 3 ended without a word: killed by SIGSEGV" in str(_first_failure(tmp_path, [1, 1, -11]))
    # NCCL aborts the ranks whose peer failed; without any other reason it is the reason
    assert type(_first_failure(tmp_path, [1, 1, -6])) is NonFiniteError
    assert "Rank 1 of 2 ended without a word: killed by SIGABRT" in str(_first_failure(tmp_path / "none", [0, -6]))
    assert "did not end" in str(_first_failure(tmp_path / "none", [0, None]))


def test_a_rank_has_its_share_of_the_cores_unless_told_otherwise():
    cores = len(os.sched_getaffinity(0))
    environment = rank_environment({"HOME": "here", "RANK": "7"}, 1, 2, 1234)
    assert environment["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["MASTER_PORT"]) == ("1", "2", "1234")
    assert environment["HOME"] == "here"
    assert rank_environment({"OMP_NUM_THREADS": "5"}, 0, 2, 1)["OMP_NUM_THREADS"] == "5"
    # on a cluster that binds no job to its processors
    assert rank_environment({"SLURM_CPUS_PER_TASK": "1"}, 0, 1, 1)["OMP_NUM_THREADS"] == "1"


def test_the_ranks_of_a_local_worker_divide_its_share_and_no_number_of_the_users():
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "MLRC_LOCAL_THREADS")
    environment = rank_environment({**dict.fromkeys(names, "6"), "MKL_NUM_THREADS": "5"}, 0, 3, 1)
    assert [environment[name] for name in names] == ["2", "5", "2", "2", "6"]
    assert rank_environment(dict.fromkeys(names, "1"), 0, 2, 1)["OMP_NUM_THREADS"] == "1"
    assert rank_threads(dict.fromkeys(names, "6"), 3) == 2
    assert rank_threads({"OMP_NUM_THREADS": "5"}, 2) == 5
    assert rank_threads({"OMP_NUM_THREADS": "4,2"}, 2) is None


@pytest.mark.parametrize(("overrides", "message"), [
    (["trainer=ddp", "trunk.freeze_batchnorm=false"], "trunk.freeze_batchnorm=False: expected true with trainer.dev"),
    (["trainer=ddp", "trainer.devices=33"], "trainer.devices=33: expected at most batch_size=32"),
    (["trainer=ddp", "trainer.devices=auto"], "trainer.devices='auto': expected with trainer=ddp the number of ranks"),
    (["trainer.devices=2"], "trainer.devices=2: expected one.*for several take trainer=ddp"),
    (["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn: unknown. Did you mean ddp"),
    (["trainer.checkpoint_every_n_iterations=0"], "trainer.checkpoint_every_n_iterations=0: expected >= 1"),
])  # fmt: skip
def test_what_cannot_equal_one_process_is_refused(settings, overrides, message):
    with pytest.raises(ConfigError, match=message):
        settings(*overrides)


@pytest.mark.parametrize(("accelerator", "num_gpus", "expected"), [
    ("cpu", 4, "cpu"), ("auto", 0, "cpu"), ("auto", 2, "cuda:1"), ("gpu", 2, "cuda:1"),
    ("gpu", 0, None), ("gpu", 1, None), ("auto", 1, None),
])  # fmt: skip
def test_a_rank_has_a_gpu_of_its_own_or_none(settings, monkeypatch, accelerator, num_gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    s = settings("trainer=ddp", f"trainer.accelerator={accelerator}")
    if expected is None:
        found = rf"found {num_gpus} \(CUDA_VISIBLE_DEVICES=3\).*hydra.launcher.devices_per_worker"
        with pytest.raises(ConfigError, match=f"trainer.devices=2: expected as many GPUs, {found}"):
            device_of(s, 1)
    else:
        assert device_of(s, 1) == torch.device(expected)


def test_the_number_of_ranks_is_not_part_of_what_a_trial_is(settings):
    alone, ranks = as_json(settings()), as_json(settings("trainer=ddp", "trainer.devices=4"))
    assert identity(alone) == identity(ranks)
