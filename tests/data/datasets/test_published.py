"""The paper's three datasets as they are shipped: the sheet's numbers, and mirrors that can be read."""

import pytest
from omegaconf import OmegaConf

from mlrc_lightning.data.download import _remote_file
from mlrc_lightning.errors import DatasetError
from mlrc_lightning.protocol.build import build
from mlrc_lightning.settings.compose import trial_settings

# docs/protocol.md, §1.3, §6: save interval, patience, digests
PUBLISHED = {
    "cub200": (2, 9, {"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"}),
    "cars196": (
        5,
        14,
        {
            "car_ims.tgz": "d5c8f0aa497503f355e17dc7886c3f14",
            "cars_annos.mat": "b407c6086d669747186bd1d764ff9dbc",
            "CARS196.zip": None,
            "stanford-car-dataset-by-classes-folder.zip": None,
        },
    ),
    "sop": (20, 39, {"Stanford_Online_Products.zip": "7f73d41a2f44250d4779881525aea32e"}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_numbers_are_the_sheets(compose_config, name):
    settings = trial_settings(compose_config(f"dataset={name}"), is_sweep_job=False)
    save_interval, patience, _ = PUBLISHED[name]
    assert (settings.schedule.save_interval, settings.schedule.patience) == (save_interval, patience)
    assert settings.schedule.max_epochs == 1000
    assert settings.dataset.paper_setting == settings.setting == name
    assert settings.trunk.name == "bn_inception"
    assert (settings.transform.resize, settings.transform.crop) == (256, 227)
    assert settings.dataset.images["download"] is False, "nothing is downloaded unasked"


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_source_is_one_that_can_be_read_and_every_known_digest_is_given(compose_config, name):
    mirrors = OmegaConf.to_container(compose_config(f"dataset={name}").dataset.images.mirrors, resolve=True)
    files = [_remote_file(file) for alternative in mirrors for file in alternative]
    assert {file.name: file.md5 for file in files} == PUBLISHED[name][2]
    assert sum(len(file.urls) for file in files) >= 3
    assert all(len(url.split()) == 1 for file in files for url in file.urls)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("inshop", {"list_eval_partition.txt": None, "img.zip": None}),
        (
            "inaturalist2018",
            # README of visipedia/inat_comp, folder 2018
            {"Inat_dataset_splits.zip": None, "train_val2018.tar.gz": "b1c6952ce38f31868cc50ea72d066cc3"},
        ),
    ],
)
def test_sources_of_the_datasets_beside_the_papers_can_be_read(compose_config, name, files):
    mirrors = OmegaConf.to_container(compose_config(f"dataset={name}").dataset.images.mirrors, resolve=True)
    found = [_remote_file(file) for alternative in mirrors for file in alternative]
    assert {file.name: file.md5 for file in found} == files
    assert all(len(url.split()) == 1 for file in found for url in file.urls)


@pytest.mark.parametrize("name", [*PUBLISHED, "inshop", "inaturalist2018"])
def test_without_its_data_it_says_how_to_get_it_and_leaves_nothing_behind(compose_config, tmp_path, name):
    cfg = compose_config(f"dataset={name}", f"data_root={tmp_path}")
    settings = trial_settings(cfg, is_sweep_job=False)
    with pytest.raises(DatasetError, match=f"prepare dataset={name} dataset.download=true; or put "):
        build(settings.dataset.images, "dataset.images")
    assert not list(tmp_path.iterdir())
