"""The cache of decoded images: bit-equal, rebuilt when it must be, and never half there."""

import os

import numpy as np
import pytest
from PIL import Image

from mlrc_lightning.datasets import cache as cache_module
from mlrc_lightning.datasets.cache import cached_images, resize_shorter_side
from mlrc_lightning.datasets.image_folder import ImageFolder
from mlrc_lightning.errors import DatasetError, ImageError

FIRST_HALF = np.arange(24)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def test_cached_pixels_are_those_of_the_files(image_folder, folder):
    images = ImageFolder(str(image_folder))
    cached = cached_images(images, FIRST_HALF, 32, folder, "trainval")
    pixels = cached.open()
    for index in FIRST_HALF:
        expected = np.asarray(resize_shorter_side(images.read(index), 32))
        np.testing.assert_array_equal(cached.image(pixels, index), expected)
    assert cached.file.stat().st_size == sum(int(h * w * 3) for h, w in cached.shapes)


def test_an_image_of_the_other_half_is_not_there(image_folder, folder):
    cached = cached_images(ImageFolder(str(image_folder)), FIRST_HALF, 32, folder, "trainval")
    with pytest.raises(KeyError, match="image 24 is not in"):
        cached.image(cached.open(), 24)


def decodes(monkeypatch):
    """Counts decoded images."""
    calls = []
    original = ImageFolder.read
    monkeypatch.setattr(ImageFolder, "read", lambda self, index: (calls.append(index), original(self, index))[1])
    return calls


def test_it_is_made_once_and_again_when_images_change(image_folder, folder, monkeypatch):
    calls = decodes(monkeypatch)
    images = ImageFolder(str(image_folder))
    cached_images(images, FIRST_HALF, 32, folder, "trainval")
    cached_images(images, FIRST_HALF, 32, folder, "trainval")
    assert len(calls) == 24
    Image.new("RGB", (50, 50), "red").save(images.paths[3])
    again = cached_images(images, FIRST_HALF, 32, folder, "trainval")
    assert len(calls) == 48
    assert again.image(again.open(), 3)[0, 0, 0] > 200
    assert len(list(folder.glob("*.uint8"))) == 1, "the stale file is removed"


@pytest.mark.parametrize("damage", ["index", "pixels", "no pixels", "another size"])
def test_a_damaged_cache_is_made_again(image_folder, folder, damage):
    images = ImageFolder(str(image_folder))
    cached = cached_images(images, FIRST_HALF, 32, folder, "trainval")
    expected = np.array(cached.open())
    if damage == "index":
        (folder / "trainval.json").write_text('{"key": ')
    elif damage == "pixels":
        cached.file.write_bytes(cached.file.read_bytes()[:-1])
    elif damage == "no pixels":
        cached.file.unlink()
    else:
        cached_images(images, FIRST_HALF, 24, folder, "trainval")
    np.testing.assert_array_equal(cached_images(images, FIRST_HALF, 32, folder, "trainval").open(), expected)


def test_all_broken_images_are_counted_and_no_cache_is_left(image_folder, folder):
    images = ImageFolder(str(image_folder))
    for index in (2, 9, 11):
        images.paths[index].write_bytes(b"")
    message = r"class_00/2.jpg: expected an image.* So do 2 others. Replace or remove the files"
    with pytest.raises(ImageError, match=message):
        cached_images(images, FIRST_HALF, 32, folder, "trainval")
    assert not list(folder.glob("*"))


def test_a_full_disk_is_announced_before_it_is_full(image_folder, folder, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DatasetError, match="GB for the decoded images, found 0.0 GB free. Free some space"):
        cached_images(ImageFolder(str(image_folder)), FIRST_HALF, 32, folder, "trainval")
    assert not list(folder.glob("*"))


def test_leftovers_of_killed_processes_are_removed_and_those_of_living_ones_are_not(image_folder, folder):
    folder.mkdir()
    dead, living = folder / "trainval.uint8.partial-4194300", folder / f"trainval.uint8.partial-{os.getppid()}"
    dead.write_bytes(b"x")
    living.write_bytes(b"x")
    cached_images(ImageFolder(str(image_folder)), FIRST_HALF, 32, folder, "trainval")
    assert not dead.exists()
    assert living.exists()
