"""A study of one loss from nothing to a verified table, started as a user starts it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
TINY = [
    "dataset.images.num_classes=24", "dataset.images.images_per_class=6", "schedule.iterations_per_epoch=2",
    "schedule.max_epochs=1", "trainer=cpu",
]  # fmt: skip


def command(name, folder, *arguments):
    overrides = [*TINY, f"data_root={folder / 'data'}"]
    line = [
        sys.executable,
        "-m",
        "mlrc_lightning",
        name,
        "demo",
        *overrides,
        *arguments,
        "--outputs",
        str(folder / "out"),
    ]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def study(folder, *more):
    return command("study", folder, "--losses", "triplet", "--trials", "2", "--runs", "2", "--jobs", "2", *more)


def table(folder):
    return command("table", folder, "num_runs=2", "max_trials=2").stdout


def tables_of(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "out" / "tables").glob("demo.*"))}


def test_a_study_from_nothing_to_a_verified_table(tmp_path):
    assert "16 models left, 0 done." in study(tmp_path, "--plan").stdout
    assert "no search yet" in table(tmp_path)
    study(tmp_path)
    text = table(tmp_path)
    row = next(line for line in text.splitlines() if line.startswith("| Triplet"))
    assert row.count("±") == 3
    assert row.split("|")[-2].strip() == "2"
    assert "no search yet" in next(line for line in text.splitlines() if line.startswith("| ArcFace"))
    untrained = next(line for line in text.splitlines() if line.startswith("| Untrained embedder"))
    assert untrained.split("|")[-2].strip() == "2"

    # the same command has nothing to do, and says so in a second
    again = study(tmp_path)
    assert again.stderr.count("done already") == 3
    assert "0 models left, 16 done." in study(tmp_path, "--plan").stdout

    # what is derived comes again byte for byte, and every cell from what is stored
    first = tables_of(tmp_path)
    assert len(first) == 5
    shutil.rmtree(tmp_path / "out" / "tables")
    table(tmp_path)
    assert tables_of(tmp_path) == first
    verify = [sys.executable, "-m", "mlrc_lightning", "verify", "demo", "--outputs", str(tmp_path / "out")]
    done = subprocess.run(verify, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout

    manifest = json.loads(first["demo.manifest.json"])
    runs = [run for name, run in manifest["runs"].items() if "/triplet/" in name]
    assert len(runs) == 2
    assert len({run["seed"] for run in runs}) == 2
    assert all(any(name.endswith("queries_test.npz") for name in run["files"]) for run in runs)
    assert all(sum(name.endswith(".safetensors") for name in run["files"]) == 8 for run in runs)

    (record,) = (tmp_path / "out").glob("*/glyphs/triplet/reproduce/*/1/record.json")
    content = json.loads(record.read_text())
    content["test"]["concatenated"]["r_precision"] += 0.05
    record.write_text(json.dumps(content))
    done = subprocess.run(verify, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "record.json: was changed" in done.stdout
    assert "cell concatenated/triplet/r_precision" in done.stdout
    assert "queries_test.npz: concatenated r_precision" in done.stdout
