"""One rank of a trial: python -m mlrc_lightning.protocol.rank SETTINGS FOLDER, as `ranks.run_ranks` starts it."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import mlrc_lightning._torchvision  # noqa: F401

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.files import read_plain_json, write_json
from mlrc_lightning.parallel.collectives import join, wait_for_all
from mlrc_lightning.parallel.ranks import LOG_FILES, STORE_DESCRIPTOR, TEST_FILE, RankFailure, failure_file
from mlrc_lightning.parallel.signals import STOPPED, StopSignals, TrialStopped
from mlrc_lightning.protocol.build import TrialData
from mlrc_lightning.protocol.trial import run_folds
from mlrc_lightning.reading import read
from mlrc_lightning.results.records import FoldResult
from mlrc_lightning.settings.resolvers import register_resolvers
from mlrc_lightning.settings.types import TrialSettings

_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for another that is alive, and neither trains nor ends."""


def main() -> None:
    """Runs one rank, whose place is in the environment. It leaves the reason of a failure where the parent looks."""
    settings_file, folder = Path(sys.argv[1]), Path(sys.argv[2])
    number, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    _set_up_logging(number)
    try:
        register_resolvers()
        settings = read(TrialSettings, read_plain_json(settings_file))
        join(_store(number, num_ranks), number, num_ranks, device_of(settings, number), _TIMEOUT)
        stop = StopSignals()
        stop.listen()  # to the end: a signal that comes too late is the parent's matter
        folds: list[FoldResult] = []
        test = run_folds(settings, TrialData(settings), folder, folds, stop)
        if number == 0 and test is not None:
            write_json(settings_file.parent / TEST_FILE, test)
        wait_for_all()
    except TrialStopped:
        _leave(STOPPED)
    except BaseException as error:
        lines = "".join(traceback.format_exception(error))
        write_json(failure_file(folder, number), RankFailure(type(error).__name__, str(error), lines, time.monotonic()))
        _leave(1)
    dist.destroy_process_group()


def _store(number: int, num_ranks: int) -> Store:
    """Returns where the ranks meet. Rank 0 serves it on the socket that the parent opened."""
    descriptor = os.environ.get(STORE_DESCRIPTOR) if number == 0 else None
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        num_ranks,
        is_master=number == 0,
        timeout=_TIMEOUT,
        master_listen_fd=None if descriptor is None else int(descriptor),
    )


def device_of(settings: TrialSettings, number: int) -> torch.device:
    """Returns where a rank trains.

    Raises:
        ConfigError: There are fewer GPUs than ranks.
    """
    trainer, num_gpus = settings.trainer, torch.cuda.device_count()
    if trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if num_gpus < trainer.num_ranks:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise ConfigError(
            f"trainer.devices={trainer.num_ranks}: expected as many GPUs, found {num_gpus}"
            f"{'' if visible is None else f' (CUDA_VISIBLE_DEVICES={visible})'}. Take fewer ranks, or"
            " trainer.accelerator=cpu; under a launcher, give each job as many GPUs: hydra.launcher.devices_per_worker"
            " (mlrc_local), hydra.launcher.gpus_per_node (mlrc_slurm)."
        )
    return torch.device("cuda", number)


def _end_with_the_parent() -> None:
    """Ends this process when its standard input does, which the parent holds open as long as it lives."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _leave(code: int) -> None:
    """Ends at once: the others may be gone, and what waits for them at a regular exit would wait for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _set_up_logging(number: int) -> None:
    """Lets rank 0 alone speak, where the parent does."""
    files = [file for file in os.environ.get(LOG_FILES, "").split(os.pathsep) if file]
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr), *(logging.FileHandler(f) for f in files)]
    level = logging.INFO if number == 0 else logging.ERROR
    logging.basicConfig(level=level, format="[%(asctime)s][%(name)s][%(levelname)s] - %(message)s", handlers=handlers)
    if number > 0:
        warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()
