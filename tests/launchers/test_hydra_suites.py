"""Hydra's own tests of launchers, on both, and for `mlrc_slurm` on the SLURM of scripts and on a real one.

All of LauncherTestSuite and IntegrationTestSuite; on the real SLURM the former alone: the latter asks the same of the
launcher once more, in 12 jobs.
"""

from collections.abc import Iterator

import pytest
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite

from hydra_plugins.mlrc_local_launcher._pool import _pools

# the suite of Hydra 1.3 looks for a job's files in its working directory, as was the rule before 1.2
CHDIR = "hydra.job.chdir=true"
LOCAL = ["hydra.launcher.workers=1"]
SLURM = ["hydra.launcher.poll_seconds=0.3", "hydra.launcher.settle_seconds=2"]


@pytest.fixture(scope="module", autouse=True)
def _no_pool_stays() -> Iterator[None]:
    yield
    for pool in _pools.values():
        pool.close()
    _pools.clear()


@pytest.mark.slow
@pytest.mark.parametrize(("launcher_name", "overrides"), [("mlrc_local", [CHDIR, *LOCAL])])
class TestLocalLauncher(LauncherTestSuite):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=mlrc_local", *LOCAL])])
class TestLocalLauncherIntegration(IntegrationTestSuite):
    pass


@pytest.mark.slow
@pytest.mark.usefixtures("fake_slurm")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("mlrc_slurm", [CHDIR, *SLURM])])
class TestSlurmLauncher(LauncherTestSuite):
    pass


@pytest.mark.slow
@pytest.mark.usefixtures("fake_slurm")
@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=mlrc_slurm", *SLURM])])
class TestSlurmLauncherIntegration(IntegrationTestSuite):
    pass


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("mlrc_slurm", [CHDIR, *SLURM])])
class TestSlurmLauncherOnSlurm(LauncherTestSuite):
    pass
