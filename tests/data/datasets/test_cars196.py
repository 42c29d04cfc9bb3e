"""Cars196: three layouts of the same cars, the order of their ids, and what can be wrong with them."""

import numpy as np
import pytest

from mlrc_lightning.data.datasets import cars196
from mlrc_lightning.data.datasets.cars196 import Cars196
from mlrc_lightning.errors import DatasetError
from tests.data.datasets import layouts

LAYOUTS = {
    "annotations": layouts.cars_annos,
    "class folders": layouts.cars_class_folders,
    "development kit": layouts.cars_devkit,
    "development kit alone": layouts.cars_devkit_alone,
    "Kaggle's": layouts.cars_kaggle,
    "Kaggle's of annotations": layouts.cars_annos_deeper,
}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    assert (cars196.NUM_IMAGES, cars196.NUM_CLASSES) == (16_185, 196)
    monkeypatch.setattr(cars196, "NUM_IMAGES", 48)
    monkeypatch.setattr(cars196, "NUM_CLASSES", 12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("below", ["", "stanford_cars"])
def test_every_layout_has_the_same_images_in_every_class(tmp_path, layout, below):
    (tmp_path / below).mkdir(exist_ok=True)
    LAYOUTS[layout](tmp_path / below)
    images = Cars196(str(tmp_path))
    assert images.class_names == [str(label) for label in range(1, 13)], "numerically: 2 before 10"
    found = sorted((int(label), path.read_bytes()) for label, path in zip(images.labels, images.paths, strict=True))
    expected = sorted((label - 1, layouts.jpeg(label, number)) for label in range(1, 13) for number in range(4))
    assert found == expected


def test_the_layout_of_the_paper_comes_first_and_keeps_its_order(tmp_path):
    layouts.cars_class_folders(tmp_path)
    layouts.cars_annos(tmp_path)
    images = Cars196(str(tmp_path))
    assert images.describe(0) == "car_ims/000001.jpg"
    np.testing.assert_array_equal(images.labels, np.repeat(np.arange(12), 4))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_image_is_named(tmp_path, layout):
    LAYOUTS[layout](tmp_path)
    path = sorted(tmp_path.rglob("*.jpg"))[7]
    path.unlink()
    with pytest.raises(DatasetError, match=f"Cars196: expected an image at {path}, found no file. Extract"):
        Cars196(str(tmp_path))


def test_a_missing_row_is_counted(tmp_path):
    layouts.cars_class_folders(tmp_path)
    table = tmp_path / "anno_test.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(
        DatasetError, match="has 47 images of 12 classes, expected 48 of 12; the download may be incomp"
    ):
        Cars196(str(tmp_path))


@pytest.mark.parametrize("row", ["00001.jpg,1,2,3,4", "00001.jpg,1,2,3,4,13", "00001.jpg,1,2,3,4,0", "a,1,2,3,4,x"])
def test_a_row_that_is_none_is_named(tmp_path, row):
    layouts.cars_class_folders(tmp_path)
    with (tmp_path / "anno_train.csv").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(
        DatasetError, match="anno_train.csv, line 25: expected a file, four corners and a class id of 1"
    ):
        Cars196(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"<html>", None], ids=["empty", "html", "another table"])
def test_annotations_that_are_none_are_refused(tmp_path, content):
    layouts.cars_annos(tmp_path)
    if content is None:
        layouts.savemat(tmp_path / "cars_annos.mat", {"other": 1})
    else:
        (tmp_path / "cars_annos.mat").write_bytes(content)
    with pytest.raises(
        DatasetError, match="cars_annos.mat: expected MATLAB annotations with relative_im_path and class"
    ):
        Cars196(str(tmp_path))


@pytest.mark.parametrize("root", [".", "none"])
def test_an_incomplete_layout_says_what_belongs_to_one(tmp_path, root):
    layouts.cars_annos(tmp_path)
    (tmp_path / "cars_annos.mat").unlink()
    with pytest.raises(
        DatasetError, match=r"cars_annos.mat and car_ims; or anno_train.csv and .*Download it: python -m"
    ):
        Cars196(str(tmp_path / root))


def test_archive_and_annotations_that_lie_there_are_extracted(tmp_path):
    import tarfile

    made, root = tmp_path / "made", tmp_path / "cars196"
    made.mkdir()
    root.mkdir()
    layouts.cars_annos(made)
    with tarfile.open(root / "car_ims.tgz", "w:gz") as archive:
        archive.add(made / "car_ims", "car_ims")
    mirrors = [[{"name": name, "urls": []} for name in ("cars_annos.mat", "car_ims.tgz")]]
    Cars196.prepare(str(root), download=False, mirrors=mirrors)
    assert not (root / "car_ims").exists(), "the annotations are missing"
    (made / "cars_annos.mat").rename(root / "cars_annos.mat")
    Cars196.prepare(str(root), download=False, mirrors=mirrors)
    assert len(Cars196(str(root), download=False, mirrors=mirrors).labels) == 48
