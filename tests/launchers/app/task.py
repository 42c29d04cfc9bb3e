"""A cheap app for the launchers' tests; `behaviour` says what a job does."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

OmegaConf.register_new_resolver("twice", lambda value: 2 * value, replace=True)


class AwkwardError(Exception):
    """Cannot be unpickled: its constructor wants more than `args` holds."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} at {where}")


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("waited in vain")
        time.sleep(0.02)


def stop(folder: Path, number: int) -> None:
    (folder / "stopped.txt").write_text(signal.Signals(number).name)
    sys.exit(os.EX_TEMPFAIL)


@hydra.main(version_base=None, config_path="conf", config_name="config")
def run(cfg: DictConfig) -> object:
    folder = Path(HydraConfig.get().runtime.output_dir)
    # one line each time that the job begins
    with (folder / "runs.txt").open("a") as file:
        file.write(f"{os.getpid()} {os.environ.get('SLURM_JOB_ID')} {os.environ.get('SLURM_RESTART_COUNT', 0)}\n")
    num_runs = len((folder / "runs.txt").read_text().splitlines())
    sys.stdout.write(f"job {HydraConfig.get().job.num} prints\n")
    sys.stderr.write("and complains\n")
    was_warm = "colorsys" in sys.modules
    import colorsys  # noqa: F401 - it stands for torch

    began = time.time()
    behaviour = cfg.behaviour
    if behaviour == "sleep":
        time.sleep(cfg.seconds)
    elif behaviour == "sleep_once" and not (folder / "resumed.txt").exists():
        (folder / "resumed.txt").write_text("")
        time.sleep(cfg.seconds)
    elif behaviour == "meet":  # lasts until a second job has begun
        (folder / "here.txt").touch()
        wait_until(lambda: len(list(folder.parent.glob("*/here.txt"))) > 1)
    elif behaviour == "until_told":
        wait_until((folder.parent / "told.txt").exists)
    elif behaviour == "raise":
        raise ValueError("no luck")
    elif behaviour == "awkward":
        raise AwkwardError("this", "there")
    elif behaviour == "exit":
        sys.exit(3)
    elif behaviour == "kill" or (behaviour == "kill_first" and HydraConfig.get().job.num == 0 and num_runs == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "stoppable" and not (folder / "stopped.txt").exists():
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda number, frame: stop(folder, number))
        (folder / "listens.txt").write_text("")
        time.sleep(cfg.seconds)
    elif behaviour == "segfault":
        ctypes.string_at(0)
    elif behaviour == "unpicklable":
        return (value for value in (1, 2))
    elif behaviour == "interrupted":
        try:
            (folder / "listens.txt").write_text("")
            time.sleep(cfg.seconds)
        finally:
            (folder / "cleaned.txt").write_text("")
    if HydraConfig.get().runtime.choices["hydra/sweeper"] == "mlrc_ax":
        return float(cfg.doubled)
    return {
        "pid": os.getpid(),
        "began": began,
        "ended": time.time(),
        "was_warm": was_warm,
        "argument": Path(sys.argv[0]).name,
        "doubled": cfg.doubled,
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "id": HydraConfig.get().job.id,
    }


if __name__ == "__main__":
    run()
