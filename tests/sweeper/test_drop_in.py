"""What upstream's own tests ask of the Ax sweeper, and Hydra's of a sweep, asked of this one."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException
from hydra.test_utils.test_utils import TSweepRunner
from omegaconf import DictConfig, OmegaConf

pytestmark = pytest.mark.slow

CALLING_FILE = str(Path(__file__).parent / "app" / "task.py")


def quadratic(cfg: DictConfig) -> Any:
    return 100 * (cfg.quadratic.x**2) + 1 * cfg.quadratic.y


def polynomial(cfg: DictConfig) -> Any:
    c = cfg.coefficients
    return c[0] ** 2 + 10 * c[1] ** 2 + 100 * c[2] ** 2


def sum_of_dict(cfg: DictConfig) -> Any:
    return cfg.c.x + 10 * cfg.c.y


def run(runner: TSweepRunner, task: Any, directory: Path, *overrides: str) -> DictConfig:
    sweep = runner(
        calling_file=CALLING_FILE,
        calling_module=None,
        task_function=task,
        config_path="conf",
        config_name="quadratic",
        overrides=["hydra/launcher=basic", "hydra.job.chdir=false", *overrides],
        temp_dir=directory,
    )
    with sweep:
        assert sweep.returns is None
        results = OmegaConf.load(directory / "optimization_results.yaml")
        assert isinstance(results, DictConfig)
        assert list(results)[:2] == ["optimizer", "ax"]
        assert results.optimizer == "ax"
        results["directories"] = sorted(path.name for path in directory.iterdir() if path.is_dir())
        return results


def test_jobs_do_not_share_directories(hydra_sweep_runner: TSweepRunner, tmp_path: Path) -> None:
    batch = ["hydra.sweeper.ax_config.max_trials=6", "hydra.sweeper.max_batch_size=2"]
    results = run(hydra_sweep_runner, quadratic, tmp_path, *batch)
    assert results.directories == ["0", "1", "2", "3", "4", "5"]


def test_params_of_the_config_are_searched(hydra_sweep_runner: TSweepRunner, tmp_path: Path) -> None:
    best = run(hydra_sweep_runner, quadratic, tmp_path).ax
    assert math.isclose(best["quadratic.x"], 0.0, abs_tol=1e-3)
    assert best["quadratic.y"] == -1


def test_params_of_the_command_line_are_searched(hydra_sweep_runner: TSweepRunner, tmp_path: Path) -> None:
    overrides = ("quadratic.x=int(interval(-5, -2))", "quadratic.y=int(interval(-2, 2))")
    best = run(hydra_sweep_runner, quadratic, tmp_path, *overrides).ax
    assert dict(best) == {"quadratic.x": -2, "quadratic.y": -2}
    assert type(best["quadratic.x"]) is int


def test_command_line_and_config_are_merged(hydra_sweep_runner: TSweepRunner, tmp_path: Path) -> None:
    override = "quadratic.x=tag(log, interval(2, 5))"
    best = run(hydra_sweep_runner, quadratic, tmp_path, override).ax
    assert best["quadratic.x"] == pytest.approx(2.0, abs=0.05)
    assert best["quadratic.y"] == -1


def test_choices_between_lists(
    hydra_sweep_runner: TSweepRunner,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    overrides = ("coefficients=[-1, 0, 1],[2, 3, 4],[5, 6, 7]", "quadratic.x=1", "quadratic.y=1")
    caplog.set_level(logging.INFO)
    results = run(hydra_sweep_runner, polynomial, tmp_path, *overrides)
    assert results.ax.coefficients == "[-1,0,1]"
    # the first job configures Hydra's logging
    output = caplog.text + capsys.readouterr().out
    assert "coefficients: choice=['[-1,0,1]', '[2,3,4]', '[5,6,7]']" in output
    assert "New best value: 101.0" in output
    assert "'coefficients': '[-1,0,1]'" in output
    assert "exhausted the search space" in output


def test_choices_between_dicts_that_are_added(
    hydra_sweep_runner: TSweepRunner,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    overrides = ("+c=choice({x:8, y:12},{x:-1, y:-1},{x:-2, y:4})", "quadratic.x=1", "quadratic.y=1")
    caplog.set_level(logging.INFO)
    results = run(hydra_sweep_runner, sum_of_dict, tmp_path, *overrides)
    assert results.ax["+c"] == "{x:-1,y:-1}"
    # the first job configures Hydra's logging
    output = caplog.text + capsys.readouterr().out
    assert "+c: choice=['{x:8,y:12}', '{x:-1,y:-1}', '{x:-2,y:4}']" in output


@pytest.mark.parametrize(
    ("overrides", "points"),
    [
        (["quadratic.y=choice(-1, 0, 1)", "quadratic.x=range(2,4)"], 6),
        (["quadratic.y=1", "quadratic.x=range(2,4)"], 2),
        (["quadratic.y=1", "quadratic.x=2"], 1),
    ],
)
def test_an_exhausted_space_ends_the_search(
    hydra_sweep_runner: TSweepRunner, tmp_path: Path, overrides: list[str], points: int
) -> None:
    stop = "hydra.sweeper.ax_config.early_stop.max_epochs_without_improvement=null"
    results = run(hydra_sweep_runner, quadratic, tmp_path, stop, *overrides)
    assert results.search.num_completed == points
    assert results.search.finished == "exhausted"


@pytest.mark.parametrize("value", [(1.5, 0.1), (1.5, None), {"objective": (1.5, None)}, {"objective": 1.5, "more": 2}])
def test_every_return_value_of_upstream_is_understood(
    hydra_sweep_runner: TSweepRunner, tmp_path: Path, value: Any
) -> None:
    results = run(hydra_sweep_runner, lambda _: value, tmp_path, "hydra.sweeper.ax_config.max_trials=7")
    assert results.search.best_values.objective == 1.5


def test_early_stop_ends_a_search_that_does_not_improve(hydra_sweep_runner: TSweepRunner, tmp_path: Path) -> None:
    results = run(hydra_sweep_runner, lambda _: 1.0, tmp_path)
    assert results.search.num_completed == 5 + 3
    assert results.search.finished == "early stop"


def test_a_key_that_the_app_does_not_have_is_refused(hydra_sweep_runner: TSweepRunner, tmp_path: Path) -> None:
    with pytest.raises(ConfigCompositionException, match="boo"):
        run(hydra_sweep_runner, quadratic, tmp_path, "boo=interval(0,1)")
