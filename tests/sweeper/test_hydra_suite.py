"""What hydra-core's LauncherTestSuite and BatchedSweeperTestSuite ask of a sweep, as far as it applies.

Those suites read what jobs returned, in the order of a grid; like upstream, this sweeper hands out no returns.
"""

from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException
from hydra.test_utils.test_utils import TSweepRunner
from omegaconf import DictConfig, OmegaConf

SETTINGS = ["hydra/sweeper=mlrc_ax", "hydra.sweeper.generation.method=grid", "hydra.sweeper.report=false"]


def task(cfg: DictConfig) -> Any:
    return cfg.foo + cfg.bar


def run(runner: TSweepRunner, directory: Path, overrides: list[str]) -> Any:
    return runner(
        calling_file=None,
        calling_module="hydra.test_utils.a_module",
        task_function=task,
        config_path="configs",
        config_name="compose.yaml",
        overrides=[*SETTINGS, "hydra/launcher=basic", "hydra.job.chdir=false", *overrides],
        temp_dir=directory,
    )


@pytest.mark.slow
def test_every_combination_runs_in_a_directory_of_its_own(hydra_sweep_runner: TSweepRunner, tmp_path: Path) -> None:
    job_overrides = ["group1=file1,file2", "bar=100,200,300"]
    with run(hydra_sweep_runner, tmp_path, job_overrides):
        assert OmegaConf.load(tmp_path / "multirun.yaml").hydra.overrides.task == job_overrides
        seen = {}
        for number in range(6):
            hydra_directory = tmp_path / str(number) / ".hydra"
            overrides = tuple(OmegaConf.load(hydra_directory / "overrides.yaml"))
            seen[overrides] = OmegaConf.to_container(OmegaConf.load(hydra_directory / "config.yaml"))
        assert seen == {
            (f"group1=file{f}", f"bar={bar}"): {"foo": 10 * f, "bar": bar} for f in (1, 2) for bar in (100, 200, 300)
        }
        assert not (tmp_path / "6").exists()
        results = OmegaConf.load(tmp_path / "optimization_results.yaml")
        assert results.ax == {"group1": "file1", "bar": 100}


def test_a_sweep_over_nothing_runs_one_job(hydra_sweep_runner: TSweepRunner, tmp_path: Path) -> None:
    with run(hydra_sweep_runner, tmp_path, []):
        assert OmegaConf.load(tmp_path / "0/.hydra/config.yaml") == {"foo": 10, "bar": 100}
        assert not (tmp_path / "1").exists()


@pytest.mark.slow
def test_overrides_of_hydra_are_no_dimensions(hydra_sweep_runner: TSweepRunner, tmp_path: Path) -> None:
    with run(hydra_sweep_runner, tmp_path, ["hydra.verbose=true", "+a=0,1"]):
        for number, value in ((0, {0, 1}), (1, {0, 1})):
            job = OmegaConf.load(tmp_path / str(number) / ".hydra/hydra.yaml")
            assert job.hydra.verbose is True
            assert [o.partition("=")[0] for o in job.hydra.overrides.task] == ["+a"]
            assert int(job.hydra.overrides.task[0].partition("=")[2]) in value
            assert job.hydra.job.name == "a_module"
            assert job.hydra.job.num == number


@pytest.mark.slow
def test_a_key_that_the_app_does_not_have_is_refused(hydra_sweep_runner: TSweepRunner, tmp_path: Path) -> None:
    with pytest.raises(ConfigCompositionException, match="boo"), run(hydra_sweep_runner, tmp_path, ["boo=1,2"]):
        pass
