"""In-shop Clothes: its index, its layouts, its own split, and that its queries search its gallery."""

import io
import zipfile

import numpy as np
import pytest
import torch

from mlrc_lightning.data.datasets import inshop
from mlrc_lightning.data.datasets.inshop import InShopClothes
from mlrc_lightning.errors import DatasetError
from mlrc_lightning.protocol import build as assembly
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.settings.compose import trial_settings
from tests.data.datasets import layouts


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    assert (sum(inshop.NUM_IMAGES.values()), inshop.NUM_CLASSES) == (52_712, 7_982)
    monkeypatch.setattr(inshop, "NUM_IMAGES", {"trainval": 32, "query": 16, "gallery": 16})
    monkeypatch.setattr(inshop, "NUM_CLASSES", 16)


@pytest.mark.parametrize("below", [("Eval", "Img"), (".", "."), ("Eval", "."), (".", "Img")])
def test_classes_follow_their_ids_in_every_layout(tmp_path, below):
    images = InShopClothes(str(layouts.inshop(tmp_path, below=below)))
    # the index of the fixture lists them backwards
    np.testing.assert_array_equal(images.labels, np.repeat(np.arange(16)[::-1], 4))
    assert images.class_names[0] == "id_00000001"
    assert images.own_split == ["query", "gallery"] * 16 + ["trainval"] * 32
    assert images.paths[5].read_bytes() == layouts.jpeg(15, 1)
    assert images.describe(5) == "img/MEN/Tees_Tanks/id_00000015/02_1_front.jpg"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "number of images in the first line and the columns .*found an empty file"),
        ("image_name item_id evaluation_status\n64\n", "found image_name item_id evaluation_status / 64"),
        ("1\nimage_name item_id evaluation_status\nimg/a.jpg id_1\n", "line 3: expected .* found 'img/a.jpg id_1'"),
        ("1\nimage_name item_id evaluation_status\nimg/a.jpg id_1 val\n", "one of train, query, gallery, found"),
    ],
)
def test_an_index_that_is_not_as_expected_is_refused(tmp_path, content, message):
    (layouts.inshop(tmp_path) / "Eval" / "list_eval_partition.txt").write_text(content)
    with pytest.raises(DatasetError, match=f"list_eval_partition.txt.*{message}"):
        InShopClothes(str(tmp_path))


def test_parts_of_other_sizes_and_missing_files_are_refused(tmp_path):
    index = layouts.inshop(tmp_path) / "Eval" / "list_eval_partition.txt"
    index.write_text(index.read_text().replace("gallery", "query", 1))
    with pytest.raises(
        DatasetError, match="expected 16 gallery, 16 query, 32 trainval images, found 15 gallery, 17 que"
    ):
        InShopClothes(str(tmp_path))
    next((tmp_path / "Img" / "img").rglob("*.jpg")).unlink()
    with pytest.raises(DatasetError, match="expected an image at .*jpg, found no file. Extract"):
        InShopClothes(str(tmp_path))
    index.unlink()
    with pytest.raises(DatasetError, match=r"Download it: .*download=true; or put list_eval_partition.txt and img.zip"):
        InShopClothes(str(tmp_path))


def test_it_downloads_itself_where_asked(tmp_path, local_server):
    made = layouts.inshop(tmp_path / "made", below=(".", "."))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted((made / "img").rglob("*.jpg")):
            archive.write(path, path.relative_to(made))
    local_server.files["/img.zip"] = buffer.getvalue()
    local_server.files["/list.txt"] = (made / "list_eval_partition.txt").read_bytes()
    mirrors = [
        [
            {"name": "list_eval_partition.txt", "urls": [f"{local_server.url}/list.txt"]},
            {"name": "img.zip", "urls": [f"{local_server.url}/img.zip"]},
        ]
    ]
    images = InShopClothes(str(tmp_path / "inshop"), download=True, mirrors=mirrors)
    assert len(images.labels) == 64


@pytest.mark.slow
def test_queries_search_the_gallery_and_nothing_else(tmp_path, compose_config):
    layouts.inshop(tmp_path / "data" / "inshop")
    overrides = [
        "dataset=inshop", f"data_root={tmp_path / 'data'}", "trainer=cpu", "trunk=small_cnn", "transform.resize=36",
        "transform.crop=32", "schedule.max_epochs=1", "schedule.save_interval=1", "schedule.iterations_per_epoch=1",
        "loss=triplet", "fold=1",
    ]  # fmt: skip
    settings = trial_settings(compose_config(*overrides), is_sweep_job=False)
    record = run_trial(settings, tmp_path / "run")
    assert record.settings["split"]["name"] == "predefined"
    assert "-predefined-" in record.protocol
    # labels 0 to 7 are train; KFold's second quarter is validated, its images querying each other
    assert record.folds[0].val_classes == (2, 3)
    assert record.folds[0].num_val_queries == 8
    assert (record.test.num_queries, record.test.num_without_relevant) == (16, 0)
    data = assembly.TrialData(settings)
    images = data.test.cache.indices
    trunk = assembly.build_module(settings, 1, None).trunk.eval()
    opened = data.test.cache.open()
    with torch.no_grad():
        features = torch.stack(
            [trunk(_center(data.test.cache.image(opened, index))[None])[0].double() for index in images.tolist()]
        )
    units = torch.nn.functional.normalize(features, dim=1)
    is_query = [data.images.own_split[index] == "query" for index in images]
    labels = data.images.labels[images]
    expected = []
    for query in np.flatnonzero(is_query):
        gallery = [row for row in range(len(images)) if not is_query[row]]
        nearest = sorted(gallery, key=lambda row: -float(units[query] @ units[row]))
        hits = [labels[row] == labels[query] for row in nearest[:2]]  # each item has two images in the gallery
        expected.append((hits[0] + hits[1] * (hits[0] + 1) / 2) / 2)
    assert len(expected) == 16
    found = record.test.baselines["untrained_trunk"]["mean_average_precision_at_r"]
    assert found == pytest.approx(np.mean(expected), abs=1e-6)


def _center(image):
    top, left = (image.shape[0] - 32) // 2, (image.shape[1] - 32) // 2
    return torch.tensor(image[top : top + 32, left : left + 32]).permute(2, 0, 1)
