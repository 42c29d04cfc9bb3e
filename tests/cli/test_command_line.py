"""The real command line, in subprocesses: start-up, bad input, and the way from a command to a table."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.sweeper.conftest import Sweep

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run(*arguments, program="train.py", cwd=None, **environment):
    command = [
        sys.executable,
        *(["-m", program] if "." not in program else [str(ROOT / program)]),
        *map(str, arguments),
    ]
    env = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "MLRC_FULL_ERROR")} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or ROOT, env=env, timeout=400)


@pytest.fixture
def smoke(tmp_path):
    """Runs train.py on a trial of seconds, with its output in a temporary folder."""
    places = [f"output_root={tmp_path / 'out'}", f"data_root={tmp_path / 'data'}", "trainer=cpu"]

    def train(*arguments, **environment):
        return run("experiment=smoke", *places, *arguments, **environment)

    return train


HEAVY = {
    "torch",
    "ax",
    "timm",
    "pytorch_lightning",
    "lightning",
    "torchvision",
    "torchmetrics",
    "pandas",
    "sklearn",
}


def imported_by(*arguments, program="train.py"):
    """The top-level modules that a command imports."""
    command = [sys.executable, "-X", "importtime"]
    command += ["-m", program] if "." not in program else [str(ROOT / program)]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    names = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["--cfg", "job", "--resolve"]], ids=" ".join)
def test_help_and_config_import_nothing_heavy(arguments):
    assert imported_by(*arguments) & HEAVY == set()


def test_status_table_and_report_import_nothing_heavy_and_a_repeated_report_nothing_that_draws(tmp_path):
    grid = ("hydra.sweeper.generation.method=grid", "hydra.sweeper.ax_config.params=${grid_space}")
    Sweep(tmp_path)(*grid, "hydra.sweeper.ax_config.max_trials=2")
    outputs = tmp_path
    assert imported_by("status", outputs, program="mlrc_lightning") & HEAVY == set()
    assert imported_by("table", "cub200", "--outputs", outputs, program="mlrc_lightning") & HEAVY == set()
    first = imported_by("report", "--outputs", outputs, program="mlrc_lightning")
    assert first & HEAVY == set()
    assert "matplotlib" in first
    assert imported_by("report", "--outputs", outputs, program="mlrc_lightning") & {"matplotlib", "numpy"} == set()


def test_help_takes_little_more_processor_time_than_composing():
    def processor_seconds(*arguments):
        before = os.times()
        run(*arguments)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    times = {command: min(processor_seconds(*command.split()) for _ in range(3)) for command in ("--help", "--cfg job")}
    assert times["--help"] < 1.8 * times["--cfg job"]  # 2.2 where Hydra copies its store for each group


def test_help_shows_groups_and_values():
    done = run("--help")
    assert done.returncode == 0
    assert "loss: arcface, contrastive" in done.stdout
    assert re.search(r"dataset: .*glyphs, image_csv", done.stdout)


def test_a_trial_prints_its_table_and_where_it_lies(smoke):
    done = smoke("loss=triplet")
    assert done.returncode == 0, done.stderr[-3000:]
    record = Path(re.search(r"Record: (.*record.json)", done.stdout)[1])
    accuracies = json.loads(record.read_text())["test"]["concatenated"]
    assert f"{100 * accuracies['mean_average_precision_at_r']:.2f}" in done.stdout
    shown = run("show", record.parent, program="mlrc_lightning")
    assert shown.stdout.strip() in done.stdout
    again = smoke("loss=triplet")
    assert "is finished already" in again.stdout
    assert again.stdout.split("Record:")[1] == done.stdout.split("Record:")[1]
    places = [f"output_root={record.parents[5]}", f"data_root={record.parents[5].parent / 'data'}"]
    assert imported_by("experiment=smoke", "trainer=cpu", "loss=triplet", *places) & HEAVY == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss=tripplet"], r"loss=tripplet: unknown. Did you mean triplet\? Known: .*arcface"),
        (["dataset=cub"], "dataset=cub: unknown. .*Known: .*glyphs"),
        (["experiment=smok"], r"experiment=smok: unknown. Did you mean smoke\?"),
        (["los=triplet"], r"los: unknown key. Did you mean loss"),
        (["loss.function.margn=3"], r"loss.function.margn: unknown key. Did you mean loss.function.margin"),
        (["lr=nan"], "lr: unknown key. Did you mean .*optimizer.lr"),
        (["optimizer.lr=nan"], "optimizer.lr=nan: expected a finite number"),
        (["fold=7"], "fold=7: expected all, one of 0 to 3"),
        (["batch_size=30", "loss=triplet"], "batch_size=30: expected a multiple of loss.samples_per_class=4"),
        (["trunk=timm"], "trunk.name: expected a value, found none"),
        (["hydra/sweeper=axx"], r"hydra/sweeper=axx: unknown. Did you mean ax\? Known: ax, basic, mlrc, mlrc_ax"),
        (["-m", "fold=0,1"], "fold.*may not be searched over: A search over folds would pick the easiest"),
        (
            ["loss=arcface", "-m", "folds=f0,f1"],
            "folds.*may not be searched over: A search over folds would pick the easiest",
        ),
        (["-m", "seed=0,1"], "seed.*may not be searched over"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_command_is_one_message_within_three_seconds_of_processor_time(arguments, message):
    before = os.times()
    done = run(*arguments)
    after = os.times()
    assert done.returncode == 2
    assert re.search(message, done.stderr, re.DOTALL), done.stderr
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr
    assert done.stdout == ""
    assert after.children_user + after.children_system - before.children_user - before.children_system < 3


def test_a_traceback_comes_when_asked_for():
    done = run("fold=7", HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "fold=7: expected" in done.stderr


def photos(folder, num_classes=12, per_class=4):
    for label in range(num_classes):
        (folder / f"c{label:02d}").mkdir(parents=True)
        for number in range(per_class):
            Image.new("RGB", (40, 36), (20 * label, 60 * number, 90)).save(folder / f"c{label:02d}" / f"{number}.jpg")
    return folder


def damaged(folder, kind):
    victim = folder / "c03" / "1.jpg"
    if kind == "truncated":
        victim.write_bytes(victim.read_bytes()[:200])
    elif kind == "zero bytes":
        victim.write_bytes(b"")
    elif kind == "test image":
        (folder / "c11" / "0.jpg").write_bytes(b"")
    elif kind == "lonely":
        for number in (1, 2, 3):
            (folder / "c03" / f"{number}.jpg").unlink()
    elif kind == "few classes":
        for label in range(5, 12):
            shutil.rmtree(folder / f"c{label:02d}")
    elif kind == "missing":
        folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "c03/1.jpg: expected an image, found a file that does not decode"),
        ("zero bytes", "c03/1.jpg: expected an image, found a file of 0 bytes"),
        ("test image", "c11/0.jpg: expected an image, found a file of 0 bytes"),
        ("lonely", r"at least 2 images in every class, found fewer in 1: c03 \(1\)"),
        ("few classes", "at least 8 classes .*, found 5"),
        ("missing", "expected a folder at .*, found nothing there"),
    ],
)
def test_broken_data_is_one_message_before_training_and_damages_nothing(smoke, tmp_path, kind, message):
    folder = photos(tmp_path / "photos")
    damaged(folder, kind)
    arguments = ["dataset=image_folder", "trunk=small_cnn", f"dataset.images.root={folder}", "dataset.max_epochs=2"]
    arguments += ["~dataset.images.num_classes", "~dataset.images.images_per_class"]
    arguments += ["transform.resize=32", "transform.crop=32", "schedule.save_interval=1"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jpg")}
    done = smoke(*arguments)
    assert done.returncode == 2, done.stderr[-2000:]
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert "epoch" not in done.stdout
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jpg")} == before


def test_grey_and_cmyk_images_are_converted_and_trained_on(smoke, tmp_path):
    folder = photos(tmp_path / "photos")
    Image.new("L", (40, 36), 90).save(folder / "c00" / "grey.jpg")
    Image.new("CMYK", (40, 36), (1, 2, 3, 4)).save(folder / "c01" / "cmyk.jpg")
    done = smoke(
        "dataset=image_folder", "trunk=small_cnn", f"dataset.images.root={folder}", "dataset.max_epochs=2",
        "~dataset.images.num_classes", "~dataset.images.images_per_class", "transform.resize=32",
        "transform.crop=32", "schedule.save_interval=1", "fold=0", "evaluation.baselines=false",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "test, separated" in done.stdout


def test_hardware_that_is_not_there_is_one_message(smoke):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = smoke("trainer.accelerator=gpu", "fold=0")
    assert done.returncode == 2
    assert "trainer: this machine cannot run" in done.stderr
    assert "Traceback" not in done.stderr


def test_prepare_reports_what_is_there(tmp_path):
    folder = photos(tmp_path / "photos")
    arguments = ["dataset=image_folder", f"dataset.images.root={folder}", f"data_root={tmp_path / 'data'}"]
    done = run("prepare", *arguments, "transform.resize=32", "transform.crop=32", program="mlrc_lightning")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "48 images of 12 classes, all decoded; 24 to train and validate on, 24 to test on" in done.stdout
    damaged(folder, "test image")
    done = run("prepare", *arguments, program="mlrc_lightning")
    assert done.returncode == 2
    assert "c11/0.jpg" in done.stderr


def test_a_plain_sweep_compares_folds_without_testing(smoke, tmp_path):
    done = smoke("hydra/sweeper=basic", "sweep_name=folds", "fold=0,1", "schedule.iterations_per_epoch=1", "-m")
    assert done.returncode == 0, done.stderr[-2000:]
    records = [
        json.loads(path.read_text()) for path in sorted(tmp_path.glob("out/*/glyphs/arcface/folds/*/record.json"))
    ]
    assert [record["settings"]["fold"] for record in records] == [0, 1]
    assert all(record["stage"] == "search" and record["test"] is None for record in records)


@pytest.mark.parametrize("sweeper", ["mlrc", "ax"])
def test_both_names_of_the_sweeper_carry_the_projects_settings(sweeper):
    done = run(f"hydra/sweeper={sweeper}", "--cfg", "hydra")
    assert "objective_name: mean_average_precision_at_r" in done.stdout
    assert "MLRCAxSweeper" in done.stdout


def test_relative_paths_are_those_of_the_command_where_jobs_have_folders(tmp_path):
    for label in range(8):
        for number in range(3):
            path = tmp_path / "photos" / f"class_{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (30 * label, 80 * number, 0)).save(path)
    done = run(
        "dataset=image_folder", "dataset.images.root=photos", "trunk=small_cnn", "transform.resize=20",
        "transform.crop=16", "trainer=cpu", "schedule.max_epochs=1", "schedule.save_interval=1",
        "schedule.iterations_per_epoch=1", "evaluation.baselines=false", "loss=triplet", "fold=0", "batch_size=8",
        "hydra.job.chdir=true", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "data" / "cache").rglob("*.uint8"))) == 2
    (record,) = (tmp_path / "outputs").rglob("record.json")
    assert not (record.parent / "data").exists()
