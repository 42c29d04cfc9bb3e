"""A search on images in files: no job of it opens a test image, or the cache of test images.

An audit hook in each process of the search writes down the files that it opens.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.files import config_folder
from mlrc_lightning.protocol.build import TrialData
from mlrc_lightning.protocol.evaluation import evaluate_on_test_classes
from mlrc_lightning.settings.compose import trial_settings

REPOSITORY = Path(__file__).parents[2]
NUM_CLASSES, NUM_IMAGES = 16, 8
# imported by every Python process that has its folder on PYTHONPATH, before anything else
HOOK = """
import os, sys
_log = os.open(os.environ["OPENED_FILES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def _note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        os.write(_log, os.fsencode(os.path.abspath(os.fsdecode(arguments[0]))) + b"\\n")
sys.addaudithook(_note)
"""
# what a leak would be: training steps that look into the cache of test images, and at a test image
LEAKS = """
import pathlib
from mlrc_lightning.training.module import EmbeddingModule

step = EmbeddingModule.batch_loss

def leaking_step(self, batch):
    for pattern in ("data/cache/*/*/test-*.uint8", "photos/class_15/0.png"):
        for path in pathlib.Path().glob(pattern):
            path.read_bytes()
    return step(self, batch)

EmbeddingModule.batch_loss = leaking_step
"""

# what keeps the images from being decoded beforehand
FULL_DISK = """
import shutil
shutil.disk_usage = lambda path: type("Usage", (), {"free": 0})
"""


@pytest.fixture
def photos(tmp_path):
    """Writes root/class/image.png, all of one size; returns the folder above."""
    for label in range(NUM_CLASSES):
        folder = tmp_path / "photos" / f"class_{label:02d}"
        folder.mkdir(parents=True)
        for number in range(NUM_IMAGES):
            pixels = np.random.default_rng([label, number]).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


def overrides(photos):
    return [
        "dataset=image_folder", f"dataset.images.root={photos / 'photos'}", f"data_root={photos / 'data'}",
        f"output_root={photos / 'outputs'}", "trunk=small_cnn", "transform.resize=20", "transform.crop=16",
        "trainer=cpu", "schedule.max_epochs=1", "schedule.save_interval=1", "schedule.iterations_per_epoch=1",
        "evaluation.baselines=false", "loss=triplet", "fold=0",
    ]  # fmt: skip


def search(photos, *more, code=""):
    """Runs a search of two trials in the folder; returns the files below it that any process of the search opened."""
    site, log = photos / "site", photos / "opened"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HOOK)
    (site / "changes.py").write_text(code)
    train = str(REPOSITORY / "train.py")
    arguments = [train, "-m", *overrides(photos), "max_trials=2", *more]
    # with the changes there before train.py runs, every job of the search has them
    run = f"import runpy, sys, changes; sys.argv = {arguments!r}; runpy.run_path({train!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", run], capture_output=True, text=True, check=False, cwd=photos,
        env={
            **os.environ, "OPENED_FILES": str(log), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(site), str(REPOSITORY)]),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    records = [
        json.loads(path.read_text()) for path in photos.glob("outputs/*/image_folder/triplet/search/*/record.json")
    ]
    assert [(r["status"], r["stage"], r["test"]) for r in records] == [("complete", "search", None)] * 2
    opened = [Path(line) for line in log.read_text().splitlines()]
    return {path.relative_to(photos).as_posix() for path in opened if path.is_relative_to(photos)}


def trial_data(photos, *more, is_sweep_job=False):
    """Decodes the images in this process, as `prepare` does; returns them."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", [*overrides(photos), *more])
    return TrialData(trial_settings(cfg, is_sweep_job=is_sweep_job))


def images(opened):
    """Returns the images among some files."""
    return {path for path in opened if path.startswith("photos/")}


def caches(opened, part):
    """Returns the caches of trainval or test images among some files."""
    return {path for path in opened if "/cache/" in path and path.rsplit("/", 1)[1].startswith(part)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "split", [["split=mlrc"], ["split=closed_set", "split.num_folds=2"]], ids=["mlrc", "closed_set"]
)
def test_a_search_that_decodes_the_images_itself_opens_no_test_image(photos, split):
    opened = search(photos, *split)
    assert not list(photos.glob("data/cache/*/*/test*"))
    assert caches(opened, "trainval")
    assert not caches(opened, "test")
    data = trial_data(photos, *split)
    names = [path.relative_to(photos).as_posix() for path in data.images.paths]
    assert images(opened) == {names[index] for index in data.trainval.cache.indices}
    assert images(opened).isdisjoint(names[index] for index in data.test.cache.indices)
    assert len(data.test.cache.indices) == NUM_CLASSES * NUM_IMAGES // 2


@pytest.mark.slow
def test_a_search_on_decoded_images_opens_no_image_and_no_test_cache(photos):
    trial_data(photos)
    assert list(photos.glob("data/cache/*/*/test-*.uint8"))
    opened = search(photos)
    assert caches(opened, "trainval")
    assert not caches(opened, "test")
    assert not images(opened)


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", ["pil", "device"])
def test_a_search_without_room_for_decoded_images_opens_no_test_image(photos, augmentation):
    opened = search(photos, f"trainer.augmentation={augmentation}", code=FULL_DISK)
    assert not list(photos.glob("data/cache/*/*/*.uint8"))
    data = trial_data(photos)
    names = [path.relative_to(photos).as_posix() for path in data.images.paths]
    assert images(opened) == {names[index] for index in data.trainval.cache.indices}


@pytest.mark.slow
def test_the_check_above_sees_planted_leaks(photos):
    trial_data(photos)
    opened = search(photos, code=LEAKS)
    (cache,) = caches(opened, "test")
    assert cache.endswith(".uint8")
    assert images(opened) == {"photos/class_15/0.png"}


def test_a_search_has_no_test_images_to_ask_for(photos, compose_config, tmp_path):
    cfg = compose_config(*overrides(photos))
    settings = trial_settings(cfg, is_sweep_job=True)
    assert settings.stage == "search"
    data = TrialData(settings)
    for asks in (lambda: data.test, lambda: evaluate_on_test_classes(settings, data, [], tmp_path)):
        with pytest.raises(ConfigError, match="stage=search: expected no use of the test images, found one"):
            asks()
    with pytest.raises(ConfigError, match="stage=test: unknown"):
        dataclasses.replace(settings, stage="test")
