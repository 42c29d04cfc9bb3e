"""iNaturalist 2018: the two lists of its split, species by number, and what can be wrong."""

import io
import tarfile
import zipfile

import numpy as np
import pytest

from mlrc_lightning.data.datasets import inaturalist2018
from mlrc_lightning.data.datasets.inaturalist2018 import INaturalist2018
from mlrc_lightning.data.splits import PredefinedSplit
from mlrc_lightning.errors import DatasetError
from tests.data.datasets import layouts

TEST_CLASSES = (3, 7, 11, 15)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    assert (sum(inaturalist2018.NUM_IMAGES.values()), inaturalist2018.NUM_CLASSES) == (461_939, 8_142)
    monkeypatch.setattr(inaturalist2018, "NUM_IMAGES", {"trainval": 48, "test": 16})
    monkeypatch.setattr(inaturalist2018, "NUM_CLASSES", 16)


def test_species_follow_their_numbers_and_the_split_its_lists(tmp_path):
    images = INaturalist2018(str(layouts.inaturalist2018(tmp_path)))
    # 7 comes before 14 and 105, as text it would not
    assert images.class_names == [str(7 * label) for label in range(16)]
    for index in (0, 30, 50, 63):
        label = images.labels[index]
        number = int(images.paths[index].stem[-1])
        assert images.paths[index].read_bytes() == layouts.jpeg(label, number)
        assert (images.own_split[index] == "test") == (label in TEST_CLASSES)
    for fold in PredefinedSplit(4, class_disjoint=True).folds(images.labels, images.own_split):
        assert fold.classes("test") == TEST_CLASSES
        assert len(fold.val) == 12
    assert np.bincount(images.labels).tolist() == [4] * 16


@pytest.mark.parametrize("line", ["", "train_val2018/Aves/x/a.jpg", "test2018/Aves/7/a.jpg", "Aves/7/a.jpg"])
def test_a_line_that_is_not_as_expected_is_refused(tmp_path, line):
    index = layouts.inaturalist2018(tmp_path) / "Inat_dataset_splits" / "Inaturalist_test_set1.txt"
    index.write_text(f"{index.read_text()}{line}\n")
    with pytest.raises(DatasetError, match=rf"test_set1.txt, line 17: expected train_val2018/GROUP.*found '{line}'"):
        INaturalist2018(str(tmp_path))


def test_what_is_missing_is_named(tmp_path):
    folder = layouts.inaturalist2018(tmp_path)
    index = folder / "Inat_dataset_splits" / "Inaturalist_test_set1.txt"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(lines[1:]))
    with pytest.raises(DatasetError, match="has 63 images of 16 classes, expected 64 of 16"):
        INaturalist2018(str(folder))
    train = index.with_name("Inaturalist_train_set1.txt")
    train.write_text(train.read_text() + lines[0])
    with pytest.raises(DatasetError, match="expected 16 test, 48 trainval images, found 15 test, 49 trainval"):
        INaturalist2018(str(folder))
    index.unlink()
    with pytest.raises(DatasetError, match=r"Download it: .*download=true; or put train_val2018.tar.gz and Inat_data"):
        INaturalist2018(str(folder))


def test_it_extracts_both_archives_where_asked(tmp_path, local_server):
    made = layouts.inaturalist2018(tmp_path / "made")
    tar, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        archive.add(made / "train_val2018", "train_val2018")
    with zipfile.ZipFile(zipped, "w") as archive:
        for path in sorted((made / "Inat_dataset_splits").iterdir()):
            archive.write(path, path.relative_to(made))
    local_server.files.update({"/images.tar.gz": tar.getvalue(), "/splits.zip": zipped.getvalue()})
    files = [("Inat_dataset_splits.zip", "splits.zip"), ("train_val2018.tar.gz", "images.tar.gz")]
    mirrors = [[{"name": name, "urls": [f"{local_server.url}/{served}"]} for name, served in files]]
    images = INaturalist2018(str(tmp_path / "inat"), download=True, mirrors=mirrors)
    assert len(images.labels) == 64
