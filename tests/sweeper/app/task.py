"""A cheap app for the sweeper's tests; `behaviour` says what a job does."""

import os
import signal
import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

OmegaConf.register_new_resolver("space", lambda name: {f"loss.{name}": {"type": "range", "bounds": [0.0, 2.0]}})


class UsageError(Exception):
    is_usage_error = True


@hydra.main(version_base=None, config_path="conf", config_name="config")
def run(cfg: DictConfig) -> object:
    number = HydraConfig.get().job.num
    if cfg.log is not None:
        with Path(cfg.log).open("a") as file:
            file.write(f"{number} {' '.join(HydraConfig.get().overrides.task)}\n")
    value = (float(cfg.loss.margin) - 0.3) ** 2 + 0.1 * float(cfg.x) ** 2 + 0.01 * int(cfg.n)
    value += (float(cfg.loss.get("scale", 1.0)) - 1.0) ** 2
    if "ax" in sys.modules and cfg.behaviour == "no_ax":
        raise RuntimeError("Ax is imported")
    if cfg.behaviour == "raise_always":
        raise ValueError(f"no luck with margin {cfg.loss.margin}")
    if cfg.behaviour == "raise_third" and number == 2:
        raise ValueError("only job 2")
    if cfg.behaviour == "final_third" and number == 2:
        error = ValueError("only job 2, always")
        error.is_final = True
        raise error
    if cfg.behaviour == "raise_above" and cfg.loss.margin > 0.5:
        raise ValueError("margin above 0.5")
    if cfg.behaviour == "nan_above" and cfg.loss.margin > 0.5:
        return float("nan")
    if cfg.behaviour == "slow":
        time.sleep(0.2)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.behaviour == "first_slow" and number == 0:  # lasts until three others have their results
        ledger, end = folder.parent / "ledger.jsonl", time.monotonic() + 300
        while ledger.read_text().count('"completed"') < 3:
            if time.monotonic() > end:
                raise TimeoutError("the others wait for this one")
            time.sleep(0.02)
    if cfg.behaviour == f"hang_at_{number}" and not (folder / "hung.txt").exists():  # in its first run
        (folder / "hung.txt").touch()
        time.sleep(600)
    if cfg.behaviour == "usage":
        raise UsageError("the dataset is not there")
    if cfg.behaviour == "none":
        return None
    if cfg.behaviour == "exit" and cfg.loss.margin > 0.5:
        sys.exit(3)
    if cfg.behaviour == "mixed":
        fate = number % 5
        if fate == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == 2:
            raise ValueError("one in five")
        if fate == 3:
            return float("nan")
    if cfg.behaviour == "dict":
        return {"objective": [value + 0.1 * fold for fold in range(4)], "cost": (2.0 * cfg.loss.margin, None)}
    if cfg.behaviour == "replicates":
        return value + 0.1 * cfg.fold
    return value


if __name__ == "__main__":
    run()
