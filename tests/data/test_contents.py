"""The same pixels under several names, and decoded images that are not what was decoded."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mlrc_lightning.cli.prepare import prepare
from mlrc_lightning.data.cache import cached_images
from mlrc_lightning.data.datasets.image_folder import ImageFolder
from mlrc_lightning.errors import DatasetError
from mlrc_lightning.protocol.build import TrialData
from mlrc_lightning.settings.compose import trial_settings

NUM_CLASSES, NUM_IMAGES = 16, 4


@pytest.fixture
def photos(tmp_path):
    """Writes root/class/image.png of noise; returns the root."""
    root = tmp_path / "photos"
    for label in range(NUM_CLASSES):
        (root / f"class_{label:02d}").mkdir(parents=True)
        for number in range(NUM_IMAGES):
            pixels = np.random.default_rng([label, number]).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class_{label:02d}" / f"{number}.png")
    return root


@pytest.fixture
def overrides(photos, tmp_path):
    return [
        "dataset=image_folder", f"dataset.images.root={photos}", f"data_root={tmp_path / 'data'}", "trunk=small_cnn",
        "transform.resize=20", "transform.crop=16",
    ]  # fmt: skip


@pytest.fixture
def data(overrides, compose_config):
    def made(*more, is_sweep_job=False, **arguments):
        cfg = compose_config(*overrides, *more)
        return TrialData(trial_settings(cfg, is_sweep_job=is_sweep_job), **arguments)

    return made


# where the copy of class_00/0.png goes: the classes of test are 08 to 15, those of train and val 00 to 07
@pytest.mark.parametrize("to", ["class_01/9.png", "class_06/9.png", "class_12/9.png"])
def test_a_copy_in_another_class_is_refused(photos, overrides, data, to):
    shutil.copy(photos / "class_00" / "0.png", photos / to)
    for ask in (data, lambda: prepare(overrides)):
        with pytest.raises(
            DatasetError, match=rf"the same pixels in class_00/0.png \(class class_00.*{to} \(class"
        ) as e:
            ask()
        assert "Copies: 1 in another class. List an image once" in str(e.value)
    assert data("dataset.copies=report").description["copies"] == {"in another class": 1}


def test_another_file_with_the_same_pixels_is_a_copy(photos, data):
    Image.open(photos / "class_00" / "0.png").save(photos / "class_09" / "9.bmp")
    with pytest.raises(DatasetError, match="the same pixels in class_00/0.png"):
        data()


def test_a_copy_within_its_class_is_reported_and_counted(photos, overrides, data, caplog):
    shutil.copy(photos / "class_09" / "0.png", photos / "class_09" / "9.png")
    assert "With the pixels of an earlier image: 1 in its class. Listed in" in prepare(overrides)
    assert "Images with the pixels of an earlier one, which a query finds first: 1 in its class" in caplog.text
    assert data().description["copies"] == {"in its class": 1}


def test_a_file_listed_again_is_counted_in_the_record(photos, data):
    (photos / "class_09" / "again.png").symlink_to(photos / "class_09" / "0.png")
    assert data().description["copies"] == {"listed again and left out": 1}


def test_a_copy_in_another_part_of_the_split_is_refused(photos, data):
    for number in range(4, 12):
        pixels = np.random.default_rng([5, number]).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        for label in range(NUM_CLASSES):
            Image.fromarray(np.roll(pixels, label, axis=0)).save(photos / f"class_{label:02d}" / f"{number}.png")
    split = ["split=closed_set", "split.num_folds=2"]
    data(*split)
    for number in range(12, 18):
        shutil.copy(photos / "class_05" / "0.png", photos / "class_05" / f"{number}.png")
    with pytest.raises(DatasetError, match=r"the same pixels in class_05/0.png \(class class_05, (train|val|test)\)"):
        data(*split)


def test_queries_do_not_find_their_copies_in_the_gallery(photos, tmp_path, compose_config):
    shutil.copy(photos / "class_12" / "0.png", photos / "class_12" / "4.png")
    rows = ["path,label,split"]
    for path in sorted(photos.rglob("*.png")):
        label = int(path.parent.name[-2:])
        part = "trainval" if label < 8 else ("query", "gallery")[int(path.stem) % 2]
        part = "gallery" if path.name == "4.png" else part
        rows.append(f"{path},{label},{part}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    cfg = compose_config(
        "dataset=image_csv", f"dataset.images.csv={tmp_path / 'table.csv'}", "split=predefined", "trunk=small_cnn",
        "transform.resize=20", "transform.crop=16", f"data_root={tmp_path / 'data'}",
    )  # fmt: skip
    with pytest.raises(DatasetError, match="12, the queries of test.*12, test"):
        TrialData(trial_settings(cfg, is_sweep_job=False))


def test_a_search_compares_digests_of_test_images_without_their_pixels(photos, data):
    data("dataset.copies=report")
    shutil.copy(photos / "class_12" / "0.png", photos / "class_00" / "9.png")
    data("dataset.copies=report")
    for path in (photos.parent / "data").rglob("test-*.uint8"):
        path.unlink()
    for path in (photos.parent / "data").rglob("test.json"):
        path.unlink()
    with pytest.raises(DatasetError, match="the same pixels in"):
        data(is_sweep_job=True)


def test_a_search_before_anything_of_test_was_decoded_compares_its_own_images(photos, data):
    shutil.copy(photos / "class_12" / "0.png", photos / "class_00" / "9.png")
    assert "copies" not in data(is_sweep_job=True).description
    shutil.copy(photos / "class_01" / "0.png", photos / "class_01" / "7.png")
    assert data(is_sweep_job=True).description["copies_in_trainval"] == {"in its class": 1}
    shutil.copy(photos / "class_01" / "0.png", photos / "class_00" / "8.png")
    with pytest.raises(DatasetError, match=r"class_00/8.png .*class_01/0.png"):
        data(is_sweep_job=True)


def test_the_rule_for_copies_changes_no_id(compose_config):
    usual, other = (compose_config("dataset=image_folder", "trunk.name=x", *m) for m in ([], ["dataset.copies=report"]))
    assert (usual.protocol, usual.run_set) == (other.protocol, other.run_set)


@pytest.mark.parametrize("name", ["cub200", "cars196", "sop", "inshop", "inaturalist2018", "omniglot"])
def test_published_datasets_keep_their_copies(compose_config, name):
    assert compose_config(f"dataset={name}").dataset.copies == "report"


def test_without_a_cache_copies_are_found_too(photos, data, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
    data()
    data()  # by the list of images that decode
    shutil.copy(photos / "class_00" / "0.png", photos / "class_12" / "9.png")
    with pytest.raises(DatasetError, match="the same pixels in"):
        data()


INDICES = np.arange(NUM_CLASSES * NUM_IMAGES // 2)


def invert(folder, cached):
    cached.file.write_bytes(bytes(255 - np.fromfile(cached.file, dtype=np.uint8)))


def swap(folder, cached):
    cached.file.write_bytes(bytes(np.fromfile(cached.file, dtype=np.uint8).reshape(len(INDICES), -1)[::-1]))


def in_the_index(change):
    def damage(folder, cached):
        index = json.loads((folder / "trainval.json").read_text())
        change(index["content"])
        (folder / "trainval.json").write_text(json.dumps(index))

    return damage


def of_other_pixels(folder, cached):
    digests = json.loads((folder / "digests-trainval.json").read_text())
    digests["digests"].reverse()
    (folder / "digests-trainval.json").write_text(json.dumps(digests))


DAMAGES = {
    "inverted pixels": invert,
    "images in another order": swap,
    "reversed shapes": in_the_index(lambda content: content["shapes"].reverse() or content["shapes"][0].reverse()),
    "another shape": in_the_index(lambda content: content["shapes"].__setitem__(0, [10, 40])),
    "negative shapes": in_the_index(lambda content: content["shapes"].__setitem__(0, [-20, -20])),
    "huge shapes": in_the_index(lambda content: content["shapes"].__setitem__(0, [10**12, 10**12])),
    "another file": in_the_index(lambda content: content.update(file="trainval.json")),
    "digests of other pixels": of_other_pixels,
    "an index of another kind": lambda folder, cached: (folder / "trainval.json").write_text("[1]"),
    "no digests": lambda folder, cached: (folder / "digests-trainval.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_decoded_images_that_were_changed_are_made_again(photos, tmp_path, damage):
    images, folder = ImageFolder(str(photos)), tmp_path / "cache"
    cached = cached_images(images, INDICES, 20, folder, "trainval")
    expected = np.array(cached.open())
    damage(folder, cached)
    again = cached_images(images, INDICES, 20, folder, "trainval")
    np.testing.assert_array_equal(again.open(), expected)
    assert list(again.digests) == list(cached.digests)


def test_prepare_verify_finds_a_single_changed_byte(photos, overrides, caplog):
    first = prepare(overrides)
    (file,) = photos.parent.glob("data/cache/*/*/test-*.uint8")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert prepare(overrides, verify=True) == first
    assert "1 of 32 images have other pixels, first 63" in caplog.text
    content[-1] ^= 1
    assert file.read_bytes() == content


def test_opening_a_cache_leaves_the_streams_of_random_numbers(photos, tmp_path):
    images = ImageFolder(str(photos))
    cached_images(images, INDICES, 20, tmp_path / "cache", "trainval")
    before = np.random.get_state()[1].copy()
    cached_images(images, INDICES, 20, tmp_path / "cache", "trainval")
    np.testing.assert_array_equal(np.random.get_state()[1], before)
