"""Makes a dataset ready: gets and extracts it, decodes every image once, and lists them with their digests."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import get_class

from mlrc_lightning.data.cache import CachedImages
from mlrc_lightning.errors import ConfigError
from mlrc_lightning.files import config_folder
from mlrc_lightning.protocol.build import TrialData, build
from mlrc_lightning.settings.compose import trial_settings
from mlrc_lightning.settings.resolvers import register_resolvers

log = logging.getLogger(__name__)


def prepare(overrides: Sequence[str], config_dir: Path | None = None, verify: bool = False) -> str:
    """Prepares the dataset of a configuration, both halves of it.

    Args:
        overrides: As for train.py: `dataset=cub200 dataset.download=true`.
        config_dir: A folder of the user's own YAML files, as train.py's `--config-dir`.
        verify: Whether every image that was decoded before is compared with its digest.

    Returns:
        What is there now, in a sentence.

    Raises:
        MlrcError: The dataset is missing, incomplete or broken, or there is no such `config_dir`.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: expected a folder of YAML files, found none.")
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        # preparing needs no trunk, and must not ask for the name of one
        own = [] if config_dir is None else [f"hydra.searchpath=[file://{config_dir.resolve()}]"]
        cfg = compose("train", [*own, "trunk=small_cnn", *overrides])
    settings = trial_settings(cfg, is_sweep_job=False)
    target = settings.dataset.images
    if hasattr(get_class(target["_target_"]), "prepare"):
        build({**target, "_target_": f"{target['_target_']}.prepare"}, "dataset.images")
    data = TrialData(dataclasses.replace(settings, stage="train"), needs_cache=True, checks_all=verify)
    index, digest = _write_index(data)
    return (
        f"{settings.dataset.name}: {len(data.images.labels):,} images of {data.num_classes:,} classes, all decoded;"
        f" {len(data.trainval.cache.indices):,} to train and validate on, {len(data.test.cache.indices):,} to test on"
        f"{_copies(data)} Listed in {index} (sha256 {digest[:12]})"
    )


def _copies(data: TrialData) -> str:
    copies = data.description.get("copies", {})
    counts = ", ".join(f"{number:,} {where}" for where, number in copies.items())
    return f". With the pixels of an earlier image: {counts}." if counts else "."


def _write_index(data: TrialData) -> tuple[Path, str]:
    """Lists every image with the digest of its decoded, resized pixels. Returns the file and its own digest.

    Two machines with the same list train and test on the same pixels, whatever their JPEG decoders.
    """
    rows: list[tuple[int, str, str, str, int, int, str]] = []
    for half, cache in (("trainval", data.trainval.cache), ("test", data.test.cache)):
        assert isinstance(cache, CachedImages)  # it was needed
        for index, shape, digest in zip(cache.indices.tolist(), cache.shapes.tolist(), cache.digests, strict=True):
            label = data.images.class_names[data.images.labels[index]]
            rows.append((index, half, label, data.images.describe(index), shape[0], shape[1], digest))
    assert isinstance(data.trainval.cache, CachedImages)
    path = data.trainval.cache.file.parent / "index.csv"
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["image", "half", "class", "name", "height", "width", "sha256"])
            writer.writerows(sorted(rows))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()
