"""docs/extending.md is a program: its files are written, its commands run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = re.findall(r"`(mine/[\w/.]+)`.*?\n\n```(?:python|yaml)\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"^\$ PYTHONPATH=\. python (.*)$", TEXT, re.MULTILINE)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the files of the page."""
    folder = tmp_path_factory.mktemp("project")
    for name, content in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def run(project, command, *more):
    """Runs a command of the page as it stands there, in the user's folder."""
    arguments = [str(ROOT / word) if word == "train.py" else word for word in command.split()]
    return subprocess.run(
        [sys.executable, *arguments, *more],
        capture_output=True,
        text=True,
        cwd=project,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([".", str(ROOT)])},
        timeout=300,
    )


def test_the_page_has_every_part():
    assert [name for name, _ in FILES] == [
        "mine/parts.py", "mine/conf/dataset/disks.yaml", "mine/conf/trunk/patches.yaml",
        "mine/conf/loss/near_pairs.yaml", "mine/conf/sampler/in_turn.yaml",
    ]  # fmt: skip
    assert len(COMMANDS) == 2


def test_own_classes_are_prepared_trained_tested_and_recorded(project):
    prepare, train = COMMANDS
    prepared = run(project, prepare)
    assert prepared.returncode == 0, prepared.stderr[-3000:]
    assert "disks: 96 images of 16 classes, all decoded; 48 to train and validate on" in prepared.stdout
    trained = run(project, train, "schedule.iterations_per_epoch=20")
    assert trained.returncode == 0, trained.stderr[-3000:]
    (path,) = project.glob("outputs/*/disks/near_pairs/train/*/record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "complete"
    settings = record["settings"]
    targets = [settings["dataset"]["images"], settings["trunk"]["model"], settings["sampler"]]
    targets += [settings["loss"]["function"], settings["loss"]["miner"]]
    names = ["Disks", "Patches", "InTurn", "SameOrNot", "NearPairs"]
    assert [target["_target_"] for target in targets] == [f"mine.parts.{name}" for name in names]
    assert record["protocol"].startswith("mlrc-patches-")
    mapr = "mean_average_precision_at_r"
    chance = 5 / 47  # of the 47 other test images 5 are of the query's class
    assert record["test"]["concatenated"][mapr] > chance, "disks of 8 sizes are told apart"


def test_its_own_sampler_makes_the_batches(project):
    code = f"""
import numpy as np
from mlrc_lightning.protocol.build import TrialData, build_datamodule
from mlrc_lightning.files import config_folder
from mlrc_lightning.settings.compose import trial_settings
from mlrc_lightning.settings.resolvers import register_resolvers
from hydra import compose, initialize_config_dir
register_resolvers()
with initialize_config_dir(str(config_folder()), version_base="1.3"):
    own = "hydra.searchpath=[file://{project / "mine" / "conf"}]"
    cfg = compose("train", [own, "dataset=disks", "loss=near_pairs", "sampler=in_turn", "fold=0", "batch_size=12"])
settings = trial_settings(cfg, is_sweep_job=True)
data = TrialData(settings)
for images, labels in list(build_datamodule(settings, data, data.splits[0]).train_dataloader())[:3]:
    print(labels.tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=project,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([".", str(ROOT)])},
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # 6 classes to train on, 12 images a batch, 3 of a class: classes 0 to 3, then 4, 5, 0, 1, then 2 to 5
    in_turn = [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]
    expected = [[label for label in labels for _ in range(3)] for labels in in_turn]
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+sampler.per_clas=3", "sampler: cannot build mine.parts.InTurn: .*per_clas"),
        ("loss.miner._target_=mine.parts.NearPair", "loss.miner: cannot build mine.parts.NearPair: .*NearPair"),
        ("+trunk.model.depth=3", "trunk.model: cannot build mine.parts.Patches: .*depth"),
        (
            "sampler.batch_size='<batch>'",
            "sampler: <batch> is not known here. Known: <samples_per_class>, <batch_size>",
        ),
    ],
)
def test_a_mistake_in_ones_own_files_is_one_message(project, override, message):
    done = run(project, COMMANDS[1], override, f"output_root={override.split('=')[0].strip('+')}")
    assert done.returncode == 2, done.stderr[-3000:]
    assert re.search(message, done.stderr, re.DOTALL), done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_not_there_is_one_message(project):
    done = run(project, COMMANDS[0].replace("mine/conf", "mine/config"))
    assert done.returncode == 2
    assert "--config-dir mine/config: expected a folder of YAML files, found none" in done.stderr


def test_the_search_space_of_the_page_names_keys_of_the_configuration():
    loss = yaml.safe_load(dict(FILES)["mine/conf/loss/near_pairs.yaml"])
    for key in loss["search_space"]:
        node = {"loss": loss}
        for part in key.split("."):
            node = node[part]
        assert isinstance(node, float)
