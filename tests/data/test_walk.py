"""What a folder of images is read as, and what is left out."""

import mlrc_lightning._torchvision  # noqa: F401

import pytest
from PIL import Image
from torchvision import datasets as torchvision_datasets

from mlrc_lightning.data.datasets.image_folder import ImageFolder
from mlrc_lightning.data.walk import EXTENSIONS
from mlrc_lightning.errors import DatasetError


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, "PNG")


@pytest.fixture
def nested(tmp_path):
    """A folder of class folders with images of every suffix, in sub-folders too."""
    root = tmp_path / "photos"
    for name in ("b", "a/x", "a/x/y", "a", "b/1-2", "b/1"):
        for number, suffix in enumerate(EXTENSIONS):
            write(root / name / f"{number}{suffix.upper() if number % 2 else suffix}")
    return root


def test_images_classes_and_order_are_those_of_torchvision(nested):
    assert EXTENSIONS == torchvision_datasets.folder.IMG_EXTENSIONS
    theirs = torchvision_datasets.ImageFolder(str(nested))
    ours = ImageFolder(str(nested))
    assert [(str(path), label) for path, label in zip(ours.paths, ours.labels.tolist(), strict=True)] == theirs.samples
    assert ours.class_names == theirs.classes
    assert len(ours.paths) == 6 * len(EXTENSIONS)


def test_what_is_left_out_is_counted_by_suffix_and_reason(nested, caplog):
    (nested / "a" / "x" / "notes.TXT").write_text("x")
    (nested / "a" / "more.txt").write_text("x")
    (nested / "b" / "README").write_text("x")
    write(nested / "b" / "._1.png")
    write(nested / "b" / ".cache" / "1.png")
    write(nested / "loose.png")
    (nested / ".hidden").mkdir()
    assert len(ImageFolder(str(nested)).paths) == 6 * len(EXTENSIONS)
    for expected in (
        "2 .txt (no image by its suffix), first", "1 file without suffix (no image by its suffix)", "1 .png (hidden)",
        "2 folder (hidden)", "1 .png (in no class folder), first",
    ):  # fmt: skip
        assert expected in caplog.text


def test_a_folder_that_is_read_in_full_is_not_talked_about(nested, caplog):
    ImageFolder(str(nested))
    assert not caplog.messages


def test_links_to_folders_are_followed_once(nested, tmp_path):
    write(tmp_path / "elsewhere" / "z.png")
    (nested / "a" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (nested / "a" / "x" / "loop").symlink_to(nested / "a", target_is_directory=True)
    names = [path.name for path in ImageFolder(str(nested)).paths]
    assert names.count("z.png") == 1
    assert len(names) == 6 * len(EXTENSIONS) + 1


def test_a_class_folder_without_an_image_is_refused(nested):
    for name in ("c", "d/below"):
        (nested / name).mkdir(parents=True)
    (nested / "c" / "photo.heic").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"in every class folder of .*, found none in c \(and 1 more\)"):
        ImageFolder(str(nested))
