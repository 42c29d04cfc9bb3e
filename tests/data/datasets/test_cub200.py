"""CUB-200-2011: its layouts, the order of its classes, what is missing; and from an archive to a record."""

import csv
import hashlib
import tarfile

import numpy as np
import pytest

from mlrc_lightning.cli.prepare import prepare
from mlrc_lightning.data.cache import resize_shorter_side
from mlrc_lightning.data.datasets import cub200
from mlrc_lightning.data.datasets.cub200 import CUB200
from mlrc_lightning.errors import ConfigError, DatasetError
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.settings.compose import trial_settings
from tests.data.datasets import layouts


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    assert (cub200.NUM_IMAGES, cub200.NUM_CLASSES) == (11_788, 200)
    monkeypatch.setattr(cub200, "NUM_IMAGES", 64)
    monkeypatch.setattr(cub200, "NUM_CLASSES", 16)


def test_classes_are_alphabetical_and_images_are_those_of_the_files(tmp_path):
    folder = layouts.cub(tmp_path)
    images = CUB200(str(tmp_path))
    assert images.class_names == [f"{label:03d}.Species_{chr(90 - label)}" for label in range(1, 17)]
    np.testing.assert_array_equal(images.labels, np.repeat(np.arange(16), 4))
    official = dict(line.split() for line in (folder / "images.txt").read_text().splitlines())
    labels = dict(line.split() for line in (folder / "image_class_labels.txt").read_text().splitlines())
    by_name = {name: int(labels[number]) for number, name in official.items()}
    assert [by_name[images.describe(i)] for i in range(64)] == (images.labels + 1).tolist()
    assert images.read(3).mode == "RGB", "a grey image"


@pytest.mark.parametrize(
    ("above", "root"), [(".", "."), (".", "CUB_200_2011"), (".", "CUB_200_2011/images"), ("cub2011", "."), ("a", "a")]
)
def test_every_known_place_is_recognised(tmp_path, above, root):
    layouts.cub(tmp_path / above)
    assert len(CUB200(str(tmp_path / root)).labels) == 64


def test_images_alone_are_enough(tmp_path):
    folder = layouts.cub(tmp_path)
    (folder / "images.txt").unlink()
    assert len(CUB200(str(tmp_path)).labels) == 64


def test_a_missing_file_is_named(tmp_path):
    folder = layouts.cub(tmp_path)
    path = sorted((folder / "images").glob("*/*.jpg"))[5]
    path.unlink()
    with pytest.raises(
        DatasetError, match=f"expected an image at {path}; files that differ from .*images.txt: 1. Extract"
    ):
        CUB200(str(tmp_path))
    (folder / "images.txt").unlink()
    with pytest.raises(DatasetError, match="has 63 images of 16 classes, expected 64 of 16; the download may be incom"):
        CUB200(str(tmp_path))


def test_a_file_too_many_is_named(tmp_path):
    folder = layouts.cub(tmp_path)
    extra = next((folder / "images").glob("002*")) / "copy.jpg"
    layouts.write(extra, layouts.jpeg(2, 0))
    with pytest.raises(DatasetError, match=f"expected no image, since images.txt does not list it, at {extra}"):
        CUB200(str(tmp_path))


def test_an_empty_folder_says_how_to_get_it(tmp_path):
    with pytest.raises(DatasetError, match="found none. Download it: .* dataset.download=true; or put CUB_200_"):
        CUB200(str(tmp_path))


@pytest.fixture
def served(tmp_path, local_server):
    """Serves the archive; returns the overrides of a small run that downloads it, and the folder of the data."""
    layouts.cub(tmp_path / "made")
    archive = tmp_path / "CUB_200_2011.tgz"
    with tarfile.open(archive, "w:gz") as opened:
        for entry in ("CUB_200_2011", "attributes.txt"):
            opened.add(tmp_path / "made" / entry, entry)
    content = archive.read_bytes()
    local_server.files["/CUB_200_2011.tgz"] = content
    file = f"name: CUB_200_2011.tgz, urls: ['{local_server.url}/CUB_200_2011.tgz']"
    md5 = hashlib.md5(content).hexdigest()
    overrides = [
        "dataset=cub200", "dataset.download=true", f"dataset.images.mirrors=[[{{{file}, md5: '{md5}'}}]]",
        f"data_root={tmp_path / 'data'}", "trainer=cpu", "trunk.pretrained=false", "transform.resize=40",
        "transform.crop=36", "schedule.max_epochs=2", "schedule.iterations_per_epoch=2", "evaluation.baselines=false",
    ]  # fmt: skip
    return overrides, tmp_path / "data"


@pytest.mark.slow
def test_prepare_downloads_extracts_decodes_and_lists_every_image(served, local_server):
    overrides, data_root = served
    said = prepare(overrides)
    assert "cub200: 64 images of 16 classes, all decoded; 32 to train and validate on, 32 to test on" in said
    (path,) = data_root.glob("cache/cub200/*/index.csv")
    assert str(path) in said
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["half"]) for row in rows] == [
        (str(i), "trainval" if i < 32 else "test") for i in range(64)
    ]
    images = CUB200(str(data_root / "cub200"))
    pixels = np.asarray(resize_shorter_side(images.read(37), 40))
    assert rows[37]["sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert rows[37]["name"] == images.describe(37)
    assert prepare(overrides) == said
    assert local_server.paths == ["/CUB_200_2011.tgz"]


@pytest.mark.slow
def test_prepare_without_download_extracts_the_archive_that_lies_there(served, local_server):
    overrides, data_root = served
    (data_root / "cub200").mkdir(parents=True)
    (data_root / "cub200" / "CUB_200_2011.tgz").write_bytes(local_server.files["/CUB_200_2011.tgz"])
    prepare([*overrides, "dataset.images.download=false"])
    assert not local_server.requests


@pytest.mark.slow
def test_training_with_download_goes_from_the_archive_to_a_record(served, compose_config, tmp_path):
    overrides, _ = served
    settings = trial_settings(compose_config(*overrides, "fold=0", "loss=triplet"), is_sweep_job=False)
    record = run_trial(settings, tmp_path / "run")
    assert record.status == "complete"
    assert record.settings["trunk"]["name"] == "bn_inception"
    assert record.dataset["num_images"] == 64
    assert 0 <= record.val["mean_average_precision_at_r"] <= 1


@pytest.mark.slow
def test_downloading_makes_no_other_cache(served):
    overrides, data_root = served
    prepare(overrides)
    prepare([*overrides, "dataset.download=false"])
    assert len(list(data_root.glob("cache/cub200/*"))) == 1


def test_a_misspelt_argument_is_refused_before_anything_is_got(served, local_server):
    overrides, _ = served
    with pytest.raises(ConfigError, match="dataset.images: cannot build .*CUB200.prepare: .*rooot"):
        prepare([*overrides, "+dataset.images.rooot=x"])
    assert not local_server.requests
