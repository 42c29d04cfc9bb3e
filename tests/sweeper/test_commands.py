"""`python -m hydra_plugins.mlrc_ax_sweeper`: status, repair, report."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hydra_plugins.mlrc_ax_sweeper.__main__ import main

from .conftest import Sweep

GRID = ("hydra.sweeper.generation.method=grid", "hydra.sweeper.ax_config.params=${grid_space}")


@pytest.mark.slow
def test_status_tells_of_every_search_below_a_directory(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(
        *GRID,
        "hydra.sweeper.search_per=[loss]",
        "loss=a,c",
        "hydra.sweeper.ax_config.max_trials=4",
        "behaviour=raise_third",
    )
    assert main(["status", str(sweep.folder)]) == 0
    output = capsys.readouterr().out
    assert output.count("4 of 4 trials done, 0 failed, finished (max_trials)") == 2
    assert "best objective: " in output


@pytest.mark.slow
def test_status_can_be_read_while_the_search_runs_and_after_it_was_killed(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    process = sweep.start(*GRID, "hydra.sweeper.ax_config.max_trials=11", "behaviour=hang_at_2")
    sweep.wait_for("started", 3, process)
    main(["status", str(sweep.folder)])
    running = capsys.readouterr().out
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert f"pid {process.pid}, since" in running
    assert "running: trial 2" in running
    main(["status", str(sweep.folder)])
    assert "its sweeper was killed; repeat its command to go on" in capsys.readouterr().out


def test_status_where_there_is_no_search_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "found none" in capsys.readouterr().err


def test_a_damaged_ledger_is_refused_and_goes_on_after_repair(sweep: Sweep) -> None:
    arguments = (*GRID, "hydra.sweeper.ax_config.max_trials=4", "log=jobs.txt")
    sweep(*arguments)
    whole = sweep.proposals()
    ledger = sweep.folder / "out/d1/a/ledger.jsonl"
    data = bytearray(ledger.read_bytes())
    lines = data.splitlines(keepends=True)
    data[len(b"".join(lines[:9])) + 30] ^= 4
    ledger.write_bytes(data)
    output = sweep(*arguments, expect=1)
    assert "line 10: the record does not match its checksum" in output
    command = [sys.executable, "-m", "hydra_plugins.mlrc_ax_sweeper", "repair", "out/d1/a"]
    done = subprocess.run(command, cwd=sweep.folder, env=sweep.environment(), capture_output=True, text=True)
    assert done.returncode == 0
    assert "kept 9 records" in done.stdout
    sweep(*arguments)
    assert sweep.proposals() == whole
    # two trials were in the valid part
    assert len((sweep.folder / "jobs.txt").read_text().splitlines()) == 4 + 2


@pytest.mark.slow
def test_a_finished_search_is_drawn_as_html_without_network_and_as_png(sweep: Sweep) -> None:
    sweep(
        "loss=b",
        "kind=plain,fancy",
        "hydra.sweeper.ax_config.max_trials=7",
        "hydra.sweeper.report=true",
        "behaviour=raise_third",
    )
    folder = sweep.folder / "out/d1/b"
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page
    assert "<td>loss.scale</td>" in page
    for name in ("trace", "slices", "contour", "sensitivity", "cross_validation"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_the_model_learned_is_right_about_a_known_function() -> None:
    from hydra_plugins.mlrc_ax_sweeper._model_summary import summarize_model

    from .problems import make_problem, simulate

    problem = make_problem("x=interval(0, 1)", "idle=interval(0, 1)", "kind=a,b,c", generation={"method": "sobol"})
    trials = simulate(problem, lambda p: (p["x"] - 0.3) ** 2 + 0.5 * (p["kind"] == "b"), 20)
    best = problem.best(trials)
    assert best is not None
    summary = summarize_model(problem, trials, best)
    x, idle, kind = summary.slices
    assert x.values[x.means.index(min(x.means))] == pytest.approx(0.3, abs=0.1)
    assert max(idle.means) - min(idle.means) < 0.05
    assert kind.means[1] - kind.means[0] == pytest.approx(0.5, abs=0.15)
    assert summary.sensitivity["kind"] > summary.sensitivity["idle"]
    assert summary.sensitivity["x"] > summary.sensitivity["idle"]
    assert sorted(row[0] for row in summary.left_out) == list(range(20))
