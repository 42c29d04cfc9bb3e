"""What of a trial is finished already, and what a folder is tied to. It imports no torch, so that a repeat is quick."""

from __future__ import annotations

import logging
from pathlib import Path

from mlrc_lightning.errors import RecordError
from mlrc_lightning.files import as_json, only_writer, read_plain_json, remove_leftovers, write_json
from mlrc_lightning.names import MAP_AT_R, RECORD_FILE, UNTRAINED
from mlrc_lightning.reading import leaves
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.settings.identity import identity
from mlrc_lightning.settings.types import TrialSettings

log = logging.getLogger(__name__)

_IDENTITY_FILE = "identity.json"


def finished_trial(settings: TrialSettings, folder: Path) -> TrialRecord | None:
    """Returns the record of a trial that is finished in its folder. It is None where there is something left to do.

    Raises:
        RecordError: Another process writes there, or the folder holds a trial with other settings.
    """
    if not (folder / RECORD_FILE).exists():
        return None
    with only_writer(folder):
        return finished_in(folder, settings)


def finished_in(folder: Path, settings: TrialSettings) -> TrialRecord | None:
    """Claims a folder for a setting, and returns the record if the trial is finished. It is called by its only writer.

    Raises:
        RecordError: The folder holds a trial with other settings; the message names what differs.
    """
    remove_leftovers(folder)
    _claim(folder, settings)
    if not (folder / RECORD_FILE).exists():
        return None
    record = read_json(folder / RECORD_FILE, TrialRecord)
    covers = {fold.fold for fold in record.folds} == set(settings.folds) or settings.stage == UNTRAINED
    if record.status != "complete" or not covers or record.stage != settings.stage:
        return None
    log.info("%s is finished already.", folder)
    return record


def objective_values(record: TrialRecord) -> dict[str, list[float]]:
    """Returns what a search maximises: validation MAP@R, one value a fold. Without training it is that of the test."""
    if not record.folds:
        assert record.test is not None
        return {MAP_AT_R: [record.test.separated[MAP_AT_R]]}
    return {MAP_AT_R: [fold.val[MAP_AT_R] for fold in record.folds]}


def _claim(folder: Path, settings: TrialSettings) -> None:
    """Ties a folder to one setting: what is in it can only be continued by the same."""
    wanted = identity(as_json(settings))
    path = folder / _IDENTITY_FILE
    if not path.exists():
        write_json(path, wanted)
        return
    there, now_wanted = dict(leaves(read_plain_json(path))), dict(leaves(wanted))
    differing = sorted(key for key in there.keys() | now_wanted.keys() if there.get(key) != now_wanted.get(key))
    if differing:
        shown = "; ".join(f"{key}: {there.get(key)!r} there, {now_wanted.get(key)!r} now" for key in differing[:5])
        raise RecordError(
            f"{folder} holds a trial with other settings ({shown}). Run in another folder, or remove this one."
        )
