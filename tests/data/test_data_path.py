"""How images come to the trunk: cached or not, cropped here or there, the same trial to the last bit."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mlrc_lightning.cli.prepare import prepare
from mlrc_lightning.data import cache as cache_module
from mlrc_lightning.data.cache import CachedImages, UncachedImages
from mlrc_lightning.errors import ConfigError, DiskFullError
from mlrc_lightning.files import as_json
from mlrc_lightning.parallel.signals import STOPPED
from mlrc_lightning.protocol.build import TrialData, build_datamodule
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.reading import read
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.settings.identity import identity
from mlrc_lightning.settings.recorded import recorded_settings
from mlrc_lightning.settings.types import TrainerSettings
from mlrc_lightning.training import datamodule as datamodule_module
from tests.protocol.test_trial import without_times

ROOT = Path(__file__).parents[2]
QUICK = ["fold=0", "evaluation.baselines=false", "schedule.iterations_per_epoch=3", "trunk.model.width=8"]
# glyphs are small, and shrink as well as grow
CROPS = ["transform.flip_probability=0.5", "transform.crop=28", "transform.scale=[0.3,1.0]"]
DEVICE = ["trainer.augmentation=device"]
RESIDENT = [*DEVICE, "trainer.resident_cache=true"]


def batches(settings, *overrides, number=4):
    """The first training batches, as the trunk gets them."""
    s = settings(*QUICK, *CROPS, *overrides)
    data = TrialData(s)
    module = build_datamodule(s, data, data.splits[0])
    module.batches.set_epoch(0)
    found = [module.on_after_batch_transfer(batch) for batch, _ in zip(module.train_dataloader(), range(number))]  # noqa: B905
    return [images for images, _ in found], [labels for _, labels in found]


def figures(record):
    """What a run leaves, weights included, but for how it came to that."""
    content = without_times(record)
    content.pop("data_path")
    for key in ("augmentation", "resident_cache", "num_workers"):
        content["settings"]["trainer"].pop(key)
    return content


@pytest.fixture
def full_disk(monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage)


@pytest.mark.parametrize(
    "overrides",
    [DEVICE, RESIDENT, pytest.param([*DEVICE, "trainer.num_workers=2"], marks=pytest.mark.slow),
     pytest.param([*RESIDENT, "trainer.num_workers=1"], marks=pytest.mark.slow)],
    ids=["device", "resident", "device, 2 workers", "resident, 1 worker"],
)  # fmt: skip
def test_a_batch_cropped_on_the_device_is_the_batch_by_pillow(settings, overrides):
    expected, found = batches(settings), batches(settings, *overrides)
    for one, other in zip(expected[0] + expected[1], found[0] + found[1], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(expected[0][0], expected[0][1])


@pytest.mark.slow
def test_torch_crops_the_same_boxes(settings):
    (pillows, labels), (torchs, same_labels) = batches(settings), batches(settings, "trainer.augmentation=torch")
    assert all(torch.equal(a, b) for a, b in zip(labels, same_labels, strict=True))
    differences = torch.stack([(a.int() - b.int()).abs().float() for a, b in zip(pillows, torchs, strict=True)])
    assert 0 < differences.mean() < 0.05
    assert differences.max() == 1


@pytest.mark.slow
def test_a_trial_is_the_same_whatever_crops_and_whether_it_is_cached(settings, tmp_path, monkeypatch, caplog):
    plain = run_trial(settings(*QUICK, *CROPS), tmp_path / "plain")
    assert plain.data_path == {
        "augmentation": "pil",
        "resident_cache": False,
        "pixels": {"trainval": "cached", "test": "cached"},
    }
    assert plain.folds[0].weight_digests
    resident = run_trial(settings(*QUICK, *CROPS, *RESIDENT), tmp_path / "resident")
    assert figures(resident) == figures(plain)
    assert (resident.data_path["augmentation"], resident.data_path["resident_cache"]) == ("device", True)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage)
    other_root = [f"data_root={tmp_path / 'full'}"]
    for name, overrides in {"pil": [], "device": DEVICE}.items():
        caplog.clear()
        uncached = run_trial(settings(*QUICK, *CROPS, *overrides, *other_root), tmp_path / name)
        assert "Until then images are decoded whenever they are needed" in caplog.text
        assert uncached.data_path["pixels"] == {"trainval": "decoded on the fly", "test": "decoded on the fly"}
        assert figures(uncached) == figures(plain)
    assert not list((tmp_path / "full").rglob("*.uint8*"))


def test_the_record_of_a_search_says_nothing_of_test_pixels(settings):
    data = TrialData(dataclasses.replace(settings(), stage="search"))
    assert data.data_path["pixels"] == {"trainval": "cached"}


def test_without_a_cache_an_image_of_the_other_half_is_not_there(settings, full_disk):
    data = TrialData(settings())
    assert isinstance(data.trainval.cache, UncachedImages)
    other = int(data.test.cache.indices[0])
    with pytest.raises(KeyError, match=f"image {other} is not of this part"):
        data.trainval.cache.image(data.trainval.cache.open(), other)


def test_images_can_be_cached_later(settings, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as full:
        full.setattr(cache_module.shutil, "disk_usage", lambda path: usage)
        one = TrialData(settings()).trainval.cache
    other = TrialData(settings()).trainval.cache
    assert isinstance(other, CachedImages)
    for index in one.indices[::50].tolist():
        np.testing.assert_array_equal(one.image(one.open(), index), other.image(other.open(), index))


def test_preparing_needs_the_room(tmp_path, full_disk):
    with pytest.raises(DiskFullError, match="expected about .* for the decoded images, found 0.0 MB free. Free some"):
        prepare(["experiment=smoke", f"data_root={tmp_path}"])


def test_images_that_are_not_decoded_beforehand_cannot_be_resident(settings, full_disk):
    with pytest.raises(ConfigError, match=r"resident_cache=true: expected decoded images on disk, found no room"):
        TrialData(settings(*RESIDENT))


def test_a_device_without_room_refuses_resident_images(settings, monkeypatch):
    data = TrialData(settings(*RESIDENT))
    monkeypatch.setattr(datamodule_module, "_free_bytes", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"expected room for 0.\d\d GB of images on cpu, found 0.00 GB free. Leave"):
        data.resident.on(torch.device("cpu"))
    monkeypatch.setattr(datamodule_module, "_free_bytes", lambda device: 10**9)
    pixels = data.resident.on(torch.device("cpu"))
    assert pixels.shape == (int(data.trainval.cache.shapes.prod(axis=1).sum()), 3)
    assert data.resident.on(torch.device("cpu")) is pixels


@pytest.mark.slow
def test_each_rank_crops_its_own_part(settings, monkeypatch):
    (whole, *_), (labels, *_) = batches(settings, number=1)
    for overrides in ([], DEVICE, RESIDENT):
        parts = []
        for number in range(3):
            monkeypatch.setattr(datamodule_module, "rank", lambda number=number: number)
            monkeypatch.setattr(datamodule_module, "world_size", lambda: 3)
            (part, *_), (everyones, *_) = batches(settings, *overrides, number=1)
            assert torch.equal(everyones, labels)
            parts.append(part)
        assert torch.equal(torch.cat(parts), whole)


def test_training_that_goes_on_within_an_epoch_sees_the_same_crops(settings):
    s = settings(*QUICK, *CROPS, *RESIDENT)
    expected, _ = batches(settings, *RESIDENT, number=3)
    data = TrialData(s)
    module = build_datamodule(s, data, data.splits[0])
    module.batches.start_at(0, 2)
    ((images, _),) = [module.on_after_batch_transfer(batch) for batch in module.train_dataloader()]
    assert torch.equal(images, expected[2])


@pytest.mark.slow
def test_a_validation_batch_is_left_as_it_is(settings):
    s = settings(*QUICK, *DEVICE)
    data = TrialData(s)
    module = build_datamodule(s, data, data.splits[0])
    batch = next(iter(module.val_dataloader()))
    assert module.on_after_batch_transfer(batch) is batch


def test_only_other_pixels_make_another_trial(settings):
    plain = identity(as_json(settings()))
    assert "augmentation" not in plain
    assert identity(as_json(settings(*RESIDENT))) == plain
    assert identity(as_json(settings("trainer.augmentation=torch"))) == {**plain, "augmentation": "torch"}


@pytest.mark.fault
def test_sigterm_to_the_whole_group_stops_a_training_whose_images_other_processes_read(tmp_path):
    command = [
        sys.executable, "train.py", "experiment=smoke", "trainer=cpu", "trainer.num_workers=2", "fold=0",
        "loss=triplet", "evaluation.baselines=false", "schedule.max_epochs=1000", "schedule.patience=null",
        "trunk.model.width=8",
        f"output_root={tmp_path / 'out'}", f"data_root={tmp_path / 'data'}",
    ]  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as file:
        training = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    deadline = time.monotonic() + 300
    while "epoch 2/" not in log.read_text() and time.monotonic() < deadline:
        assert training.poll() is None, log.read_text()
        time.sleep(0.05)
    os.killpg(training.pid, signal.SIGTERM)
    assert training.wait(timeout=200) == STOPPED, log.read_text()
    assert list(tmp_path.rglob("latest.pt"))


def test_a_resident_cache_needs_the_device_to_crop(settings):
    with pytest.raises(ConfigError, match=r"trainer.augmentation='pil': expected device with trainer.resident_cache"):
        settings("trainer.resident_cache=true")
    with pytest.raises(ConfigError, match=r"trainer.augmentation=gpu: unknown. Known: device, pil, torch"):
        settings("trainer.augmentation=gpu")


@pytest.mark.slow
def test_an_older_record_is_read_and_rebuilt(settings, tmp_path):
    run_trial(settings(*QUICK, "schedule.max_epochs=1"), tmp_path)
    content = json.loads((tmp_path / "record.json").read_text())
    del content["data_path"], content["settings"]["trainer"]["augmentation"]
    del content["settings"]["trainer"]["resident_cache"]
    (tmp_path / "record.json").write_text(json.dumps(content))
    record = read_json(tmp_path / "record.json", TrialRecord)
    assert record.data_path == {}
    assert recorded_settings(record).trainer.augmentation == "pil"
    assert identity(content["settings"]) == identity(as_json(settings(*QUICK, "schedule.max_epochs=1")))
    assert read(TrainerSettings, content["settings"]["trainer"]).resident_cache is False
