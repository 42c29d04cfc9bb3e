"""An image that is in a dataset more than once."""

import os

import pytest
from PIL import Image

from mlrc_lightning.data.datasets.image_csv import ImageCsv
from mlrc_lightning.errors import DatasetError
from tests.data.test_labels import table


@pytest.fixture
def photos(tmp_path):
    """A folder with a.png, b.png and other names of a.png; returns the folder."""
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{name}.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    os.link(tmp_path / "a.png", tmp_path / "hard.png")
    (tmp_path / "below").mkdir()
    (tmp_path / "other").symlink_to(tmp_path, target_is_directory=True)
    return tmp_path


OTHER_NAMES = ["a.png", "./a.png", "below/../a.png", "link.png", "hard.png", "other/a.png"]


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_file_in_two_classes_is_refused(photos, name):
    rows = [("a.png", "x"), ("b.png", "y"), (name, "y")]
    with pytest.raises(
        DatasetError, match="expected each image in one class, found the same file in x as a.png and in y"
    ):
        ImageCsv(table(photos, rows))


@pytest.mark.parametrize("name", OTHER_NAMES)
@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val"), ("query", "gallery")])
def test_a_file_in_two_parts_of_a_split_is_refused(photos, name, parts):
    rows = [("a.png", "x", parts[0]), ("b.png", "y", "train"), (name, "x", parts[1])]
    with pytest.raises(DatasetError, match=f"the same file in {parts[0]} as a.png and in {parts[1]}"):
        ImageCsv(table(photos, rows, "path,label,split"))


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_file_twice_in_its_class_counts_once(photos, name, caplog):
    images = ImageCsv(table(photos, [("a.png", "x"), (name, "x"), ("b.png", "y")]))
    assert [images.describe(number) for number in range(2)] == ["a.png", "b.png"]
    assert images.labels.tolist() == [0, 1]
    assert images.rows.tolist() == [0, 2]
    assert (
        f"1 images are listed again in their class and left out, each counts once (first: {os.path.normpath(name)})"
        in (caplog.text.replace("below/../", ""))
    )


def test_missing_files_are_told_apart_by_name(photos):
    assert len(ImageCsv(table(photos, [("no.png", "x"), ("none.png", "x"), ("./no.png", "x")])).paths) == 2
