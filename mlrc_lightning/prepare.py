"""Makes a dataset ready: extracts it, checks every image, and decodes all of them once."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.utils import get_class

from mlrc_lightning.assembly import TrialData
from mlrc_lightning.config import config_folder, register_resolvers, trial_settings

log = logging.getLogger(__name__)


def prepare(overrides: Sequence[str]) -> str:
    """Prepares the dataset of a configuration, both halves of it.

    Args:
        overrides: As for train.py: `dataset=omniglot dataset.images.archive=images_background.zip`.

    Returns:
        What is there now, in a sentence.

    Raises:
        MlrcError: The dataset is missing, incomplete or broken.
    """
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        # preparing needs no trunk, and must not ask for the name of one
        cfg = compose("train", ["trunk=small_cnn", *overrides])
    settings = trial_settings(cfg, is_sweep_job=False)
    target = dict(settings.dataset.images)
    extract = getattr(get_class(target.pop("_target_")), "prepare", None)
    if extract is not None:
        extract(**target)
    data = TrialData(dataclasses.replace(settings, stage="train"))
    assert data.test is not None
    return (
        f"{settings.dataset.name}: {len(data.images.labels):,} images of {data.num_classes:,} classes, all decoded;"
        f" {len(data.trainval.cache.indices):,} to train and validate on, {len(data.test.cache.indices):,} to test on,"
        f" in {data.trainval.cache.file.parent}"
    )
