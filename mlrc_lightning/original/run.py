"""Reproduces a folder of the original program as a run of ours."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir

from mlrc_lightning.files import config_folder, write_json
from mlrc_lightning.original.translate import OriginalExperiment
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.results.records import TrialRecord
from mlrc_lightning.settings.compose import trial_settings
from mlrc_lightning.settings.resolvers import register_resolvers

SOURCE_FILE = "original.json"
"""Beside the record of a reproduced experiment: the folder it came from, and what could not be translated."""


def reproduce(experiment: OriginalExperiment) -> tuple[TrialRecord, Path]:
    """Runs a translated experiment as `python train.py` with its overrides would, in the same folder.

    Returns:
        The record, and its folder.

    Raises:
        MlrcError: As `run_trial` does; a value of the experiment may be out of range.
    """
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", list(experiment.overrides), return_hydra_config=True)
    settings = trial_settings(cfg, is_sweep_job=False)
    folder = Path(cfg.hydra.run.dir)
    record = run_trial(settings, folder)
    source = {
        "folder": str(experiment.folder),
        "overrides": experiment.overrides,
        "unmapped": [{"key": u.key, "value": repr(u.value), "instead": u.instead} for u in experiment.unmapped],
    }
    write_json(folder / SOURCE_FILE, source)
    return record, folder
