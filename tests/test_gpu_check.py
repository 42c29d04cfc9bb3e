"""The check of a GPU machine: all its parts on a CPU, what one bad part does to the others, and its wheels."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gpu_check
import gpu_wheels
import pytest
import render

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"
BLOCKED = ("ax", "botorch", "gpytorch")
BLOCKER = """
from pathlib import Path
Path(__file__).with_suffix(".imported").touch()
raise ImportError("blocked")
"""
FAKE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

CHECK = os.getpid()

def initialize(*_):
    if os.getpid() == CHECK:
        Path(os.environ["CHILD"]).with_name("initialized").touch()
    return 1

cuda = SimpleNamespace(is_available=initialize, device_count=initialize, get_device_name=initialize)
sys.modules["torch"] = SimpleNamespace(cuda=cuda, get_num_threads=lambda: 1)

def uses(device):
    return device == "cpu"

def run_part(part, device, is_tiny, folder, rows):
    with rows.open("a") as file:
        file.write(json.dumps({"of": part, "value": 1}) + "\\n" + '{"of": "a piece')
    if part == "trial":
        child = subprocess.Popen(["sleep", "600"])
        Path(os.environ["CHILD"]).write_text(str(child.pid))
        while True:
            time.sleep(60)
    if part == "synthetic":
        os.kill(os.getpid(), signal.SIGSEGV)
    if part == "losses":
        raise ValueError("no such loss")
    if part == "crops":
        rows.write_text('{"skipped": "no camera"}\\n')
    return 0
"""
PARTS = ("trial", "synthetic", "losses", "crops", "folds")


def run(out, *arguments, code=None, **environment):
    command = [sys.executable, *(["-c", code] if code else [str(SCRIPT)]), "--out", str(out), *arguments]
    env = os.environ | {"PYTHONPATH": "", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=out.parent)


def written(out):
    return json.loads((out / "gpu_check.json").read_text()), (out / "gpu_check.md").read_text().splitlines()


def has_ended(pid):
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        )  # nobody has waited for it yet
    except FileNotFoundError:
        return True


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_part_runs_on_a_cpu_without_ax(tmp_path):
    blocked, out = tmp_path / "blocked", tmp_path / "out"
    blocked.mkdir()
    for name in BLOCKED:
        (blocked / f"{name}.py").write_text(BLOCKER)
    # an hour: on a busy machine no part may be cut off
    done = run(out, "--device", "cpu", "--tiny", "--minutes", "60", PYTHONPATH=str(blocked))
    assert done.returncode == 0, done.stdout + (out / "gpu_check.log").read_text()
    assert not list(blocked.glob("*.imported"))
    result, table = written(out)
    assert [part["part"] for part in result["parts"]] == list(gpu_check.LIMITS)
    for part in result["parts"]:
        assert part["status"] == "ok" or (part["status"] == "skipped" and part["reason"]), part
        assert part["seconds"] <= part["limit_seconds"]
    rows = {(row["part"], row["of"]): row for row in result["rows"]}
    assert {part for part, _ in rows} == set(gpu_check.TITLES.values())
    assert not [row for row in rows.values() if "failed" in row]
    assert sum(part == "losses in 16 bits" for part, _ in rows) == 2 * 14
    for of in ("sent to the device", "resident cache"):
        assert rows["augmentation=device", of]["bytes that differ from Pillow's"] == 0
    for part, of in (("stop and resume", "stopped and resumed"), ("DDP", "one rank")):
        assert rows[part, of]["largest difference of a weight"] == 0.0
    assert rows["options", "channels_last"]["distance of the gradient, of its length"] < 1e-4
    assert table[0] == "| part | of | figures | goals |"
    assert len(table) == 2 + len(result["parts"]) + len(rows)
    assert all(line.count(" | ") == 3 for line in table if not line.startswith("|---"))
    page = render.render({"gpu_check": result}, {})
    assert all(f"### {title.capitalize()}" in page for title in gpu_check.TITLES.values())


@pytest.fixture
def fake(tmp_path):
    """Runs the check on parts of our own: one hangs, one crashes, one raises, one is skipped, one is fine."""
    (tmp_path / "fake.py").write_text(FAKE)

    def check(*arguments, limits=None):
        limits = limits or dict.fromkeys(PARTS, 60)
        code = f"import sys, gpu_check; gpu_check.LIMITS = {limits}; sys.exit(gpu_check.main())"
        path = os.pathsep.join([str(ROOT / "benchmarks"), str(tmp_path)])
        out, child = tmp_path / "out", str(tmp_path / "child")
        return run(out, "--module", "fake", *arguments, code=code, PYTHONPATH=path, CHILD=child), out

    return check


@pytest.mark.slow
def test_a_bad_part_stops_no_other(fake, tmp_path):
    # of 480 s the hanging part may take 5, which it uses up
    done, out = fake("--device", "cpu", limits={**dict.fromkeys(PARTS, 120), "trial": 5})
    assert done.returncode == 1, done.stderr
    result, table = written(out)
    ends = {part["part"]: (part["status"], part["reason"]) for part in result["parts"]}
    assert ends == {
        "trial": ("timed out", "its limit of 5 s was over"),
        "synthetic": ("failed", "it was killed by SIGSEGV"),
        "losses": ("failed", "ValueError: no such loss"),
        "crops": ("skipped", "no camera"),
        "folds": ("ok", None),
    }
    measured = [(row["part"], row["value"]) for row in result["rows"]]
    assert measured == [(gpu_check.TITLES[part], 1) for part in PARTS if part != "crops"]
    assert "trial timed out (its limit of 5 s was over); synthetic failed" in result["reason"]
    assert any(re.match(r"\| glyphs trial \|  \| \*\*timed out in 5 of 5 s\*\*: its limit", line) for line in table)
    assert has_ended(int((tmp_path / "child").read_text()))


def test_the_process_that_is_forked_asks_no_gpu(fake, tmp_path):
    done, out = fake("--device", "cpu", "--parts", "folds")
    assert done.returncode == 0, done.stderr
    assert written(out)[0]["start of a part"] == "fork"
    assert not (tmp_path / "initialized").exists()


def test_no_part_starts_after_the_last_minute(fake):
    done, out = fake("--device", "cpu", "--minutes", "0")
    assert done.returncode == 0, done.stderr
    result, _ = written(out)
    assert {(part["status"], part["reason"]) for part in result["parts"]} == {("skipped", "the 0 minutes were over")}


def test_a_machine_without_a_gpu_is_told(fake):
    done, out = fake("--device", "cuda")
    assert done.returncode == 2
    assert "Without a GPU: --device cpu --tiny." in done.stderr
    assert not out.exists()


def test_all_parts_fit_into_the_time():
    assert sum(gpu_check.LIMITS.values()) <= 60 * gpu_check.MINUTES <= 8 * 60
    assert gpu_check.LIMITS.keys() == gpu_check.TITLES.keys()


def test_the_table_shows_figures_and_goals():
    row = {"of": "resident", "rate": 12345.678, "loss": 0.00001, "bf16": True, "goals": {"≥ 0.9": True, "≤ 1": False}}
    outcome = gpu_check.Outcome("data_paths", "ok", None, 12.3, 60.0, [row])
    assert gpu_check.as_markdown([outcome]).splitlines()[2:] == [
        "| data paths |  | **ok in 12 of 60 s** |  |",
        "|  | resident | rate 12,346; loss 1.0e-05; bf16 yes | ≥ 0.9: met; ≤ 1: **not met** |",
    ]


def test_only_missing_packages_are_collected():
    needed = set(gpu_wheels.needed())
    assert {"hydra-core", "omegaconf", "antlr4-python3-runtime", "pytorch-metric-learning"} <= needed
    assert not needed & {
        "ax-platform",
        "botorch",
        "torch",
        "numpy",
        "scipy",
        "pillow",
        "tqdm",
        "pyyaml",
        "mlrc-lightning",
    }


@pytest.mark.parametrize("name", ["numpy-2.0-cp311-cp311-manylinux_2_28_x86_64", "numpy-2.0-cp312-cp312-win_amd64"])
def test_a_wheel_for_another_machine_is_refused(tmp_path, name):
    (tmp_path / f"{name}.whl").touch()
    (tmp_path / "omegaconf-2.3.1-py3-none-any.whl").touch()
    assert gpu_wheels.problem(sorted(tmp_path.iterdir())).startswith(f"{name}.whl: expected a wheel for Python 3.12")


def test_too_many_bytes_of_wheels_are_refused(tmp_path):
    file = tmp_path / "faiss-1.0-cp312-abi3-manylinux_2_28_x86_64.whl"
    for size, reason in ((49_000_000, None), (50_000_000, "expected less than 50 MB of wheels, found 50 MB")):
        with file.open("wb") as opened:
            opened.truncate(size)
        assert gpu_wheels.problem([file]) == reason
