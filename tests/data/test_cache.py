"""The cache of decoded images: bit-equal, rebuilt when it must be, and never half there."""

import errno
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mlrc_lightning.data import cache as cache_module
from mlrc_lightning.data.cache import cached_images, resize_shorter_side, uncached_images
from mlrc_lightning.data.datasets.image_folder import ImageFolder
from mlrc_lightning.errors import DatasetError, DiskFullError, ImageError

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
    message = r"class_00/2.jpg: expected an image.* So do 2 others. Replace the files by what they should be"
    with pytest.raises(ImageError, match=message):
        cached_images(images, FIRST_HALF, 32, folder, "trainval")
    assert [path.name for path in folder.glob("*")] == ["trainval.lock"]


def test_a_full_disk_is_announced_before_it_is_full(image_folder, folder, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DatasetError, match="about 0.1 MB for the decoded images, found 0.0 MB free. Free some space"):
        cached_images(ImageFolder(str(image_folder)), FIRST_HALF, 32, folder, "trainval")
    assert [path.name for path in folder.glob("*")] == ["trainval.lock"]


def test_what_a_killed_process_left_is_overwritten(image_folder, folder):
    folder.mkdir()
    (folder / "trainval.uint8.partial").write_bytes(b"x" * 10**6)
    cached = cached_images(ImageFolder(str(image_folder)), FIRST_HALF, 32, folder, "trainval")
    assert cached.file.stat().st_size == sum(int(h * w * 3) for h, w in cached.shapes)
    assert not list(folder.glob("*.partial"))


def test_several_that_want_the_same_images_decode_them_once(image_folder, folder, monkeypatch, caplog):
    calls = decodes(monkeypatch)
    images = ImageFolder(str(image_folder))
    with caplog.at_level("INFO"), ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: cached_images(images, FIRST_HALF, 32, folder, "trainval").file, range(3)))
    assert len(set(found)) == 1
    assert sorted(calls) == FIRST_HALF.tolist()


def test_a_quota_that_was_full_is_not_tried_again_by_each_trial(image_folder, folder, monkeypatch):
    calls = decodes(monkeypatch)
    images = ImageFolder(str(image_folder))

    def full(descriptor):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(cache_module.os, "fsync", full)
        for _ in range(2):
            with pytest.raises(DiskFullError):
                cached_images(images, FIRST_HALF, 32, folder, "trainval", tries_again=False)
        assert len(calls) == 24
    with pytest.raises(DiskFullError, match="found none when they were decoded last"):
        cached_images(images, FIRST_HALF, 32, folder, "trainval", tries_again=False)
    cached_images(images, FIRST_HALF, 32, folder, "trainval")
    cached_images(images, FIRST_HALF, 32, folder, "trainval", tries_again=False)
    assert len(calls) == 48
    assert not (folder / "trainval.full.json").exists()


def test_another_pillow_may_round_otherwise_and_decodes_again(image_folder, folder, monkeypatch):
    calls = decodes(monkeypatch)
    images = ImageFolder(str(image_folder))
    cached_images(images, FIRST_HALF, 32, folder, "trainval")
    monkeypatch.setattr(cache_module.PIL, "__version__", "1.1.7")
    cached_images(images, FIRST_HALF, 32, folder, "trainval")
    assert len(calls) == 48


def test_size_and_time_are_announced_and_no_image_is_decoded_twice(image_folder, folder, monkeypatch, caplog):
    calls = decodes(monkeypatch)
    monkeypatch.setattr(cache_module, "_PROBED", 5)
    with caplog.at_level("INFO"):
        cached = cached_images(ImageFolder(str(image_folder)), FIRST_HALF, 32, folder, "trainval")
    assert f"Decoding 24 images (trainval) into {folder}: about 0.1 MB and 0 s" in caplog.text
    assert sorted(calls) == FIRST_HALF.tolist()
    assert cached.file.stat().st_size == pytest.approx(0.1e6, rel=0.5)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (7300, "122 min")])
def test_times_are_readable(seconds, text):
    assert cache_module._duration(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(3.14e9, "3.1 GB"), (1e9, "1.0 GB"), (9.99e8, "999.0 MB"), (0, "0.0 MB")])
def test_sizes_are_readable(size, text):
    assert cache_module._size(size) == text


def test_uncached_pixels_are_the_cached_ones(image_folder, folder):
    images = ImageFolder(str(image_folder))
    cached = cached_images(images, FIRST_HALF, 32, folder, "trainval")
    uncached = uncached_images(images, FIRST_HALF, 32, folder, "trainval")
    pixels, nothing = cached.open(), uncached.open()
    for index in FIRST_HALF.tolist():
        np.testing.assert_array_equal(uncached.image(nothing, index), cached.image(pixels, index))
    with pytest.raises(KeyError, match="image 24 is not of this part"):
        uncached.image(nothing, 24)


def test_without_a_cache_images_are_tried_once_and_again_when_they_change(image_folder, folder, monkeypatch):
    calls = decodes(monkeypatch)
    images = ImageFolder(str(image_folder))
    for _ in range(2):
        uncached_images(images, FIRST_HALF, 32, folder, "trainval")
        assert sorted(calls) == FIRST_HALF.tolist()
    images.paths[5].write_bytes(b"")
    with pytest.raises(ImageError, match=r"class_01/1.jpg: expected an image, found a file of 0 bytes"):
        uncached_images(images, FIRST_HALF, 32, folder, "trainval")


def test_a_disk_that_fills_up_while_pixels_are_written_leaves_no_pixels(image_folder, folder, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.os, "fsync", full)
    with pytest.raises(DiskFullError, match="No space left on device. Free some space"):
        cached_images(ImageFolder(str(image_folder)), FIRST_HALF, 32, folder, "trainval")
    assert sorted(path.name for path in folder.glob("*")) == ["trainval.full.json", "trainval.lock"]


def test_another_fault_of_the_disk_is_no_full_disk(image_folder, folder, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(cache_module.os, "fsync", broken)
    with pytest.raises(DatasetError, match="Input/output error") as raised:
        cached_images(ImageFolder(str(image_folder)), FIRST_HALF, 32, folder, "trainval")
    assert not isinstance(raised.value, DiskFullError)
