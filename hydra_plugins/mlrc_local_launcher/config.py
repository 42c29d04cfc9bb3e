"""The settings under `hydra.launcher` for `hydra/launcher=mlrc_local`."""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import II


@dataclass
class MLRCLocalLauncherConf:
    """A pool of worker processes on this machine."""

    _target_: str = "hydra_plugins.mlrc_local_launcher.mlrc_local_launcher.MLRCLocalLauncher"
    # processes, each with one job at a time. Unset: the sweeper's n_parallel where it has one, else workers_per_device
    # for each group of devices, else one per four cores
    workers: int | None = II("oc.select:hydra.sweeper.n_parallel,null")
    # GPUs to divide, e.g. [0, 1] or their UUIDs; null: those of CUDA_VISIBLE_DEVICES, else all; []: none
    devices: list[Any] | None = None
    # GPUs that one worker sees
    devices_per_worker: int = 1
    # workers that share a GPU, or a group of devices_per_worker
    workers_per_device: int = 1
    # CPU threads of each worker; null: the cores divided by the workers. An OMP_NUM_THREADS that is set stays
    threads: int | None = None


ConfigStore.instance().store(
    group="hydra/launcher", name="mlrc_local", node=MLRCLocalLauncherConf, provider="mlrc_local_launcher"
)
