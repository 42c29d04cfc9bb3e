"""Who gets which GPUs and how many CPU threads: one environment for each worker."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ._errors import LocalLauncherError

# each library reads its own; whichever the task imports finds the same number
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# the worker's share as well, for a task that divides it further between processes of its own
SHARE_VARIABLE = "MLRC_LOCAL_THREADS"
_CORES_PER_WORKER = 4


@dataclass(frozen=True)
class Slot:
    """The place of one worker: its number, and what its environment has beside the launcher's own."""

    number: int
    environment: tuple[tuple[str, str], ...]


def divide(
    *,
    workers: int | None,
    devices: Sequence[Any] | None,
    devices_per_worker: int,
    workers_per_device: int,
    threads: int | None,
) -> tuple[Slot, ...]:
    """Divides the machine. The arguments are the settings of `config.py`.

    Devices go round: worker i gets the i-th group, and where there are more workers than groups they share.

    Raises:
        LocalLauncherError: A number is below one, or there are fewer devices than one worker needs.
    """
    numbers = {
        "workers": workers,
        "devices_per_worker": devices_per_worker,
        "workers_per_device": workers_per_device,
        "threads": threads,
    }
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise LocalLauncherError(f"`hydra.launcher.{name}`: expected at least 1, found {value}.")
    visible = visible_devices(os.environ) if devices is None else [str(device) for device in devices]
    if visible and len(visible) < devices_per_worker:
        raise LocalLauncherError(
            f"`hydra.launcher.devices_per_worker` is {devices_per_worker}, and the launcher has the devices "
            f"{', '.join(visible)}. Lower it, or name more devices in `hydra.launcher.devices`."
        )
    groups = [
        ",".join(visible[first : first + devices_per_worker])
        for first in range(0, len(visible) - devices_per_worker + 1, devices_per_worker)
    ]
    cores = num_cores()
    if workers is None:
        workers = len(groups) * workers_per_device if groups else max(1, cores // _CORES_PER_WORKER)
    threads = threads or max(1, cores // workers)
    shared = tuple((name, str(threads)) for name in THREAD_VARIABLES if name not in os.environ)
    if "OMP_NUM_THREADS" not in os.environ:
        shared += ((SHARE_VARIABLE, str(threads)),)
    slots = []
    for number in range(workers):
        own: tuple[tuple[str, str], ...] = ()
        if groups:
            own = (("CUDA_VISIBLE_DEVICES", groups[number % len(groups)]),)
        elif devices is not None:
            own = (("CUDA_VISIBLE_DEVICES", ""),)
        slots.append(Slot(number, shared + own))
    return tuple(slots)


def visible_devices(environment: Mapping[str, str]) -> list[str]:
    """GPUs that this process may use: numbers or UUIDs, without importing torch."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def num_cores() -> int:
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # a cluster that binds no job to its processors lets each see all of the node's
    return min(cores, int(os.environ.get("SLURM_CPUS_PER_TASK", cores)))
