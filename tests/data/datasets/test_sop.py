"""Stanford Online Products: class ids over both index files, halves of the protocol, and what can be wrong."""

import io
import zipfile

import numpy as np
import pytest

from mlrc_lightning.data.datasets import sop
from mlrc_lightning.data.datasets.sop import StanfordOnlineProducts
from mlrc_lightning.data.splits import PredefinedSplit, first_half_classes, second_half_classes
from mlrc_lightning.errors import DatasetError
from tests.data.datasets import layouts


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    assert (sop.NUM_IMAGES, sop.NUM_CLASSES) == (120_053, 22_634)
    monkeypatch.setattr(sop, "NUM_IMAGES", 42)
    monkeypatch.setattr(sop, "NUM_CLASSES", 14)


@pytest.mark.parametrize("below", ["", "Stanford_Online_Products"])
def test_classes_follow_their_ids_over_both_files(tmp_path, below):
    layouts.sop(tmp_path)
    images = StanfordOnlineProducts(str(tmp_path / below))
    np.testing.assert_array_equal(images.labels, np.repeat(np.arange(14), 3))
    assert images.class_names == [str(label) for label in range(1, 15)]
    assert images.own_split == ["trainval"] * 21 + ["test"] * 21
    for index in (0, 20, 41):
        assert images.paths[index].read_bytes() == layouts.jpeg(index // 3 + 1, index % 3)


def test_the_halves_are_the_protocols_one_class_off_the_two_files():
    assert (len(first_half_classes(22_634)), len(second_half_classes(22_634))) == (11_317, 11_317)


def test_the_official_split_is_that_of_the_two_files(tmp_path):
    layouts.sop(tmp_path)
    images = StanfordOnlineProducts(str(tmp_path))
    for fold in PredefinedSplit(2, class_disjoint=True).folds(images.labels, images.own_split):
        assert fold.classes("test") == tuple(range(7, 14))
        assert sorted(fold.classes("train") + fold.classes("val")) == list(range(7))


def test_a_missing_image_is_named(tmp_path):
    folder = layouts.sop(tmp_path)
    for path in sorted((folder / "chair_final").iterdir())[:2]:
        path.unlink()
    with pytest.raises(
        DatasetError, match="expected an image at .*chair_final/.*JPG and 1 others, found no file. Extract"
    ):
        StanfordOnlineProducts(str(tmp_path))


def test_a_missing_folder_is_named(tmp_path):
    folder = layouts.sop(tmp_path)
    (folder / "chair_final").rename(tmp_path / "away")
    with pytest.raises(DatasetError, match="expected an image at .*chair_final/.*JPG and 20 others, found no file"):
        StanfordOnlineProducts(str(tmp_path))


def test_a_missing_row_is_counted(tmp_path):
    index = layouts.sop(tmp_path) / "Ebay_test.txt"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DatasetError, match="has 41 images of 14 classes, expected 42 of 14"):
        StanfordOnlineProducts(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected the columns image_id class_id super_class_id path in the first line, found an empty file"),
        ("1 1 1 a.JPG\n", "expected the columns .* found 1 1 1 a.JPG"),
        ("image_id class_id super_class_id path\n1 1 1\n", "line 2: expected image_id .*, found '1 1 1'"),
        ("image_id class_id super_class_id path\n1 x 1 a.JPG\n", "line 2: expected image_id"),
    ],
)
def test_an_index_that_is_not_as_expected_is_refused(tmp_path, content, message):
    (layouts.sop(tmp_path) / "Ebay_train.txt").write_text(content)
    with pytest.raises(DatasetError, match=f"Ebay_train.txt.*{message}"):
        StanfordOnlineProducts(str(tmp_path))


def test_a_missing_index_says_how_to_get_it(tmp_path):
    (layouts.sop(tmp_path) / "Ebay_test.txt").unlink()
    with pytest.raises(
        DatasetError, match="found at most one of them. Download it: .*download=true; or put Stanford_On"
    ):
        StanfordOnlineProducts(str(tmp_path))


def test_it_downloads_itself_where_asked(tmp_path, local_server):
    layouts.sop(tmp_path / "made")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted((tmp_path / "made").rglob("*")):
            archive.write(path, path.relative_to(tmp_path / "made"))
    local_server.files["/sop.zip"] = buffer.getvalue()
    mirrors = [[{"name": "Stanford_Online_Products.zip", "urls": [f"{local_server.url}/sop.zip"]}]]
    images = StanfordOnlineProducts(str(tmp_path / "sop"), download=True, mirrors=mirrors)
    assert len(images.labels) == 42
