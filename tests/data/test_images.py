"""Images in files: layouts, label order, colour, and everything that can be wrong with them."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlrc_lightning.data.datasets.image_csv import ImageCsv
from mlrc_lightning.data.datasets.image_folder import ImageFolder
from mlrc_lightning.data.datasets.omniglot import Omniglot
from mlrc_lightning.data.images import ImageFiles, check_classes
from mlrc_lightning.errors import DatasetError, ImageError


def write_csv(path, rows, header="path,label"):
    path.write_text("\n".join([header, *(f"{file},{label}" for file, label in rows)]) + "\n", encoding="utf-8")
    return str(path)


def test_a_folder_sorts_its_classes_by_name_and_its_images_within(image_folder):
    images = ImageFolder(str(image_folder))
    assert images.class_names == [f"class_{label:02d}" for label in range(12)]
    np.testing.assert_array_equal(images.labels, np.repeat(np.arange(12), 4))
    assert images.describe(5) == "class_01/1.jpg"
    assert images.read(5).size == (41, 37)


@pytest.mark.parametrize(
    ("root", "path", "described"),
    [("/r", "/r/a/x.png", "a/x.png"), ("/r", "/rr/x.png", "/rr/x.png"), ("/", "/r/x.png", "r/x.png"),
     (".", "a/x.png", "a/x.png"), (".", "/r/x.png", "/r/x.png"), ("r", "r/x.png", "x.png")],
)  # fmt: skip
def test_an_image_is_described_by_its_path_below_the_root(root, path, described):
    assert ImageFiles([Path(path)], [0], Path(root)).describe(0) == described


def test_files_that_are_no_images_and_hidden_ones_are_left_out(image_folder):
    (image_folder / "class_00" / "notes.txt").write_text("x")
    (image_folder / "class_00" / "._0.jpg").write_bytes(b"x")
    (image_folder / ".hidden").mkdir()
    assert len(ImageFolder(str(image_folder)).labels) == 48


def test_integer_labels_sort_numerically_and_others_alphabetically(image_folder):
    files = [f"class_{n:02d}/0.jpg" for n in range(3)]
    numeric = write_csv(image_folder / "n.csv", zip(files, ["10", "2", "1"], strict=True))
    assert ImageCsv(numeric).class_names == ["1", "2", "10"]
    assert list(ImageCsv(numeric).labels) == [2, 1, 0]
    words = write_csv(image_folder / "w.csv", zip(files, ["10", "2", "b"], strict=True))
    assert ImageCsv(words).class_names == ["10", "2", "b"]


def test_a_csv_may_have_more_columns_a_root_and_a_byte_order_mark(image_folder, tmp_path):
    table = tmp_path / "elsewhere.csv"
    table.write_text("\ufeffid,label,path\n1,a,class_03/2.jpg\n", encoding="utf-8")
    images = ImageCsv(str(table), root=str(image_folder))
    assert images.paths == [image_folder / "class_03/2.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\na.jpg,1\n", "expected the columns path and label in the first line, found file, label"),
        ("path,label\n", "expected at least one row"),
        ("path,label\na.jpg,\n", "line 2: expected a path and a label"),
        ("path,label\na.jpg\n", "line 2: expected a path and a label"),
        ("", "expected the columns path and label"),
        ("path,label\na.jpg,1\nb\0.jpg,1\n", "line 3: expected a path of printable characters"),
        ("path,label\na.jpg,x\x1b[2J\n", "line 2: expected a label of printable characters"),
        (f"path,label\nx/{'a' * 300}/b.jpg,1\n", "line 2: expected names of at most 255 bytes"),
        (f"path,label\na.jpg,{'é' * 200}\n", "line 2: expected names of at most 255 bytes"),
        ("path,label\na.jpg,1\nb.jpg,é\n".encode("latin-1"), "line 3: expected UTF-8, found the byte 0xe9"),
        ("path,label\na.jpg,NaN\n", "line 2: expected a label, found NaN"),
        ("path,label\na.jpg,-1\n", "line 2: expected a name, or a number from 0 with at most 18 digits"),
        (f"path,label\na.jpg,{'9' * 200}\n", "line 2: expected a name, or a number from 0 with at most 18 digits"),
        (f"path,label\n{'a' * 200_000},1\n", "line 2: expected a row of a CSV, found: field larger"),
    ],
)
def test_a_csv_that_is_not_as_expected_is_refused(tmp_path, content, message):
    table = tmp_path / "table.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DatasetError, match=message) as error:
        ImageCsv(str(table))
    assert str(error.value).startswith(str(table))
    assert len(str(error.value)) < 800


def test_missing_places_are_named(tmp_path):
    with pytest.raises(DatasetError, match="expected a table at .*none.csv, found none"):
        ImageCsv(str(tmp_path / "none.csv"))
    with pytest.raises(DatasetError, match="expected a folder at .*none, found nothing there"):
        ImageFolder(str(tmp_path / "none"))
    with pytest.raises(DatasetError, match="expected class folders in .*, found none"):
        ImageFolder(str(tmp_path))


@pytest.mark.parametrize("mode", ["L", "CMYK", "1", "P", "RGBA", "LA", "I;16"])
def test_every_colour_mode_becomes_rgb(image_folder, mode):
    suffix = {"CMYK": "jpg", "L": "jpg"}.get(mode, "png")
    path = image_folder / "class_00" / f"z.{suffix}"
    Image.new(mode, (10, 12), 1 if mode == "1" else None).save(path)
    images = ImageFolder(str(image_folder))
    read = images.read(images.paths.index(path))
    assert (read.mode, read.size) == ("RGB", (10, 12))


def test_a_grey_image_has_three_equal_channels(image_folder):
    path = image_folder / "class_00" / "z.png"
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(path)
    images = ImageFolder(str(image_folder))
    pixels = np.asarray(images.read(images.paths.index(path)))
    for channel in range(3):
        np.testing.assert_array_equal(pixels[..., channel], np.arange(100).reshape(10, 10))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "found a file of 0 bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "does not decode"),
        (lambda path: path.write_text("<html>not found</html>"), "does not decode"),
        (lambda path: path.unlink(), "found no file"),
    ],
    ids=["empty", "truncated", "html", "missing"],
)
def test_a_broken_image_is_named(image_folder, damage, message):
    images = ImageFolder(str(image_folder))
    damage(images.paths[7])
    with pytest.raises(ImageError, match=f"class_01/3.jpg: expected an image, .*{message}"):
        images.read(7)


def test_a_class_with_one_image_is_named(image_folder):
    for number in (1, 2, 3):
        (image_folder / "class_04" / f"{number}.jpg").unlink()
    images = ImageFolder(str(image_folder))
    with pytest.raises(DatasetError, match=r"at least 2 images in every class, found fewer in 1: class_04 \(1\)"):
        check_classes(images, 2)
    check_classes(images, 1)


def test_the_fingerprint_follows_content_and_labels_of_its_images_alone(image_folder):
    images = ImageFolder(str(image_folder))
    first, second = np.arange(24), np.arange(24, 48)
    before = images.fingerprint(first), images.fingerprint(second)
    images.paths[3].write_bytes(images.paths[3].read_bytes() + b" ")
    assert images.fingerprint(first) != before[0]
    assert images.fingerprint(second) == before[1]


def omniglot_archive(path, characters=3, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(1, characters + 1):
            for drawer in range(1, 3):
                archive.writestr(f"{prefix}Greek/character{number:02d}/0001_{drawer:02d}.png", b"x")
    return str(path)


@pytest.mark.parametrize("prefix", ["", "images_background/"])
def test_omniglot_is_extracted_once_and_counted(tmp_path, prefix):
    root = tmp_path / "data" / "omniglot"
    archive = omniglot_archive(tmp_path / "o.zip", prefix=prefix)
    Omniglot.prepare(str(root), archive)
    Omniglot.prepare(str(root), archive)
    assert len(list(root.glob("**/*.png"))) == 6
    with pytest.raises(DatasetError, match="expected 964 characters and 19,280 drawings in .*, found 3 and 6"):
        Omniglot(str(root))
    assert not list(tmp_path.glob("**/*.partial*"))


def test_omniglot_says_where_to_get_it(tmp_path):
    with pytest.raises(DatasetError, match="Download images_background.zip.*prepare dataset=omniglot"):
        Omniglot(str(tmp_path))


def test_a_hostile_or_broken_archive_leaves_nothing_behind(tmp_path):
    root = tmp_path / "omniglot"
    hostile = tmp_path / "hostile.zip"
    with zipfile.ZipFile(hostile, "w") as archive:
        archive.writestr("../outside.png", b"x")
    with pytest.raises(DatasetError, match=r"names files outside its folder \(../outside.png\)"):
        Omniglot.prepare(str(root), str(hostile))
    broken = tmp_path / "broken.zip"
    broken.write_bytes((tmp_path / "hostile.zip").read_bytes()[:40])
    with pytest.raises(DatasetError, match="expected an intact zip archive"):
        Omniglot.prepare(str(root), str(broken))
    with pytest.raises(DatasetError, match="expected a zip file at .*none.zip"):
        Omniglot.prepare(str(root), str(tmp_path / "none.zip"))
    assert not root.exists()
    assert not (tmp_path / "outside.png").exists()
    assert not list(tmp_path.glob("*.partial*"))
