"""One trial, or with -m the Bayesian search of one loss: python train.py --help."""

from __future__ import annotations

from mlrc_lightning.names import RECORD_FILE
from mlrc_lightning.parallel.signals import end_on_stop_signals

if __name__ == "__main__":
    end_on_stop_signals()  # the imports below take most of a second

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mlrc_lightning.cli.check import remove_refused
from mlrc_lightning.cli.errors import USAGE_ERROR, exit_if_usage_error, run, wants_traceback
from mlrc_lightning.cli.words import split_overrides
from mlrc_lightning.files import config_folder
from mlrc_lightning.protocol.finished import finished_trial, objective_values
from mlrc_lightning.settings.compose import check_choices, prepare_hydra, trial_settings

prepare_hydra()


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")
def train(cfg: DictConfig) -> dict[str, list[float]]:
    """Runs the trial of one composed configuration. Returns validation MAP@R of each fold, for the sweeper."""
    job = HydraConfig.get()
    os.chdir(job.runtime.cwd)  # with hydra.job.chdir=true, caches and relative paths stay those of the command
    is_sweep_job = job.mode == RunMode.MULTIRUN
    folder = Path(job.runtime.output_dir)
    try:
        check_choices(cfg, job.overrides.task)
        runs: list[int | None] = [cfg.run]
        folders = [folder]
        if cfg.stage == "untrained" and not is_sweep_job:
            # without a number all of them: they need no training
            runs = list(range(cfg.num_runs)) if cfg.run is None else [cfg.run]
            folders = [folder / str(run) for run in runs]
        settings = [trial_settings(cfg, is_sweep_job=is_sweep_job, run=run) for run in runs]
        found = [finished_trial(*of_run) for of_run in zip(settings, folders, strict=True)]
        records = [record for record in found if record is not None]
        if len(records) < len(found):
            # torch and Lightning are imported once the configuration is known to be good, and something is to be done
            from mlrc_lightning.protocol.trial import run_trial

            records = [run_trial(*of_run) for of_run in zip(settings, folders, strict=True)]
    except Exception as error:
        if not is_sweep_job and not wants_traceback():
            exit_if_usage_error(error)
        raise
    if not is_sweep_job:
        from mlrc_lightning.reporting.tables.trial import render_trial

        for record, of_run in zip(records, folders, strict=True):
            sys.stdout.write(f"\n{render_trial(record)}\n\nRecord: {of_run / RECORD_FILE}\n")
    return objective_values(records[0])


def main() -> Any:
    """Runs the command line: an error that the user can cure is one message and exit code 2."""
    words, overrides = split_overrides(sys.argv[1:])
    sys.argv[1:] = [*words, *overrides]  # Hydra reads no override behind an option
    try:
        return run(train)
    except SystemExit as ended:
        if ended.code == USAGE_ERROR:
            remove_refused()
        raise


if __name__ == "__main__":
    main()
