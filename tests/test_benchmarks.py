"""The page of benchmark results, from small figures; and what it is collected by."""

import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import render

ROOT = Path(__file__).parents[1]


def result(*rows, reason=None):
    return {
        "rows": list(rows),
        "reason": reason,
        "date": "2026-01-02",
        "seconds": 90,
        "arguments": ["--threads 2"],
        "load": [0.25, 1.0],
        "machine": {"processor": "A CPU", "cores": 2, "memory, GB": 24, "gpus": []},
        "python": "3.11.7",
        "packages": {"torch": "2.13.0", "unshown": "1"},
        "code": {"commit": "0123456789abcdef", "has_changes": True},
    }


def test_every_row_stands_beside_its_peer_with_the_machine_it_was_measured_on():
    rows = [
        {"samples": 6000, "side": "pml", "times as fast as pml": 1.0, "difference": None},
        {"samples": 6000, "side": "ours", "times as fast as pml": 1.2345678, "difference": 0.0000012},
    ]
    page = render.render({"metrics": result(*rows)}, {"metrics": "Time."})
    assert (
        "## Retrieval metrics\n\n`benchmarks/metrics.py`: Time.\n\n"
        "| samples | side | times as fast as pml | difference |\n"
        "|--:|---|--:|--:|\n"
        "| 6,000 | pml | 1 |  |\n"
        "| 6,000 | ours | 1.235 | 1.2e-06 |\n\n"
        "2026-01-02, 1.5 minutes; `--threads 2`; 2 cores of A CPU, 24 GB, no GPU; load 0.2 to 1.0 (a process at work"
        " adds 1); Python 3.11.7, torch 2.13.0; code 0123456789, changed.\n"
    ) in page
    assert "## Goals" not in page


def test_a_benchmark_that_did_not_run_says_so_with_its_reason():
    page = render.render({"end_to_end": result(reason="no photos in ../shared")}, {})
    assert page.count("Not run yet.") == len(render.BENCHMARKS) - 1
    assert "Not run: no photos in ../shared" in page


def test_goals_are_listed_first_met_and_not_met():
    rows = [
        {"part": "a", "samples": 6000, "seconds": 2, "side": "ours", "goals": {"≥ 2": True, "≤ 1 | MB": False}},
        {"part": "b", "side": "ours", "ok": True, "goals": {"≥ 3": True}},
    ]
    page = render.render({"search": result(*rows)}, {})
    assert page.index("## Goals") < page.index("## Retrieval metrics")
    assert "2 of 3 are met." in page
    assert "| search | a, 6,000 samples, ours | ≥ 2 | met |" in page
    assert "| search | a, 6,000 samples, ours | ≤ 1 \\| MB | **not met** |" in page
    # each part has a table of its own, without the columns of the others
    assert "### A\n\n| samples | seconds | side |\n|--:|--:|---|\n| 6,000 | 2 | ours |\n" in page
    assert "### B\n\n| side | ok |\n" in page
    assert "| ours | yes |" in page


def test_rows_with_other_columns_are_another_table():
    rows = [{"side": "ours", "ms": 1}, {"side": "bare", "ms": 2, "goals": {"x": True}}, {"loss": "triplet", "reads": 0}]
    page = render.render({"step": result(*rows)}, {})
    assert (
        "| side | ms |\n|---|--:|\n| ours | 1 |\n| bare | 2 |\n\n| loss | reads |\n|---|--:|\n| triplet | 0 |\n" in page
    )


def bench(tmp_path, *names, **scripts):
    """Runs bench.py on scripts of our own; returns what came of it, the page, and the folder of figures."""
    folder = tmp_path / "scripts"
    folder.mkdir(exist_ok=True)
    for name, code in scripts.items():
        (folder / f"{name}.py").write_text(code)
    results, page = tmp_path / "results", tmp_path / "RESULTS.md"
    command = [sys.executable, ROOT / "benchmarks" / "bench.py", *names]
    command += ["--scripts", folder, "--results", results, "--page", page]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
    return done, page.read_text(), results


WRITES = '"""It times.\n\nMore."""\nimport json, sys\nopen(sys.argv[-1], "w").write(json.dumps([{{"side": "{}"}}]))\n'


@pytest.mark.slow
def test_one_that_fails_or_lacks_its_data_keeps_none_of_the_others_from_the_page(tmp_path):
    scripts = {
        "data": WRITES.format("first"),
        "step": 'print("skipped: no photos")',
        "search": 'raise SystemExit("no Ax")',
        "startup": WRITES.format("last"),
    }
    done, page, results = bench(tmp_path, "data", "step", "search", "startup", **scripts)
    assert done.returncode == 1
    assert "failed: search" in done.stdout
    assert "| first |" in page
    assert "| last |" in page
    assert "`benchmarks/data.py`: It times." in page
    assert "Not run: skipped: no photos" in page
    assert "Not run: no Ax" in page
    assert json.loads((results / "data.json").read_text())["rows"] == [{"side": "first"}]
    done, page, _ = bench(tmp_path, "data", data='print("skipped: gone")')
    assert done.returncode == 0
    assert "the figures of an earlier run stay" in done.stdout
    assert "| first |" in page
    assert "| last |" in page


def test_metrics_run_on_one_thread_and_on_two(tmp_path):
    code = 'import json, sys\nopen(sys.argv[-1], "w").write(json.dumps([{"threads": int(sys.argv[2])}]))\n'
    done, _, results = bench(tmp_path, "metrics", metrics=code)
    assert done.returncode == 0, done.stderr
    assert json.loads((results / "metrics.json").read_text())["rows"] == [{"threads": 1}, {"threads": 2}]


def test_an_unknown_benchmark_is_refused(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "bench.py"), "metrix"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "metrix: expected one of metrics, data" in done.stderr


@pytest.mark.slow
def test_twenty_trials_come_within_a_per_cent_of_fifty_in_the_median_published_search():
    found = {}
    with (ROOT / "mlrc_lightning" / "reference" / "original_searches.csv").open() as file:
        for row in csv.DictReader(file):
            best = found.setdefault((row["setting"], row["loss"]), {})
            best[int(row["trial_index"])] = float(row["best_so_far_val_map_at_r"])
    shares = {n: [100 * best[n - 1] / best[49] for best in found.values()] for n in (5, 20)}
    code = "import json, search; print(json.dumps(search.budgets()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "benchmarks")
    rows = {row["trials"]: row for row in json.loads(done.stdout.splitlines()[-1])}
    name = "best so far in % of the best of 50: median"
    for trials, values in shares.items():
        assert rows[trials]["searches"] == len(values) == 53
        assert rows[trials][name] == pytest.approx(statistics.median(values), abs=0.006)
        assert rows[trials]["worst"] == pytest.approx(min(values), abs=0.006)
        assert rows[trials]["searches below 98 %"] == sum(value < 98 for value in values)
        page = (ROOT / "docs" / "sweeper.md").read_text()
        assert f"| {trials} | {rows[trials][name]} | {rows[trials]['25th percentile']} |" in page
    assert round(statistics.median(shares[20]), 1) == 99.4
