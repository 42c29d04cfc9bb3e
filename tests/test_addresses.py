"""What a YAML names by class has an address that is no file, so that moving a file renames no result."""

import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import get_class

from mlrc_lightning.files import config_folder
from mlrc_lightning.settings.recorded import trusted_targets

ROOT = Path(__file__).parents[1]
TARGETS = set().union(*trusted_targets([config_folder()]).values())
OURS = sorted(name for name in TARGETS if name.startswith("mlrc_lightning."))
COMPOSE = """
import dataclasses, json, sys
from hydra import compose, initialize_config_dir
import mlrc_lightning
from mlrc_lightning.files import config_folder
from mlrc_lightning.settings.compose import prepare_hydra, trial_settings

prepare_hydra()
ids = {}
for line in json.load(sys.stdin):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", line, return_hydra_config=True)
    ids[" ".join(line)] = [cfg.protocol, cfg.hydra.run.dir, dataclasses.asdict(trial_settings(cfg, is_sweep_job=False))]
print(json.dumps([mlrc_lightning.__file__, ids], default=str))
"""


@pytest.mark.parametrize("address", OURS)
def test_class_in_conf_is_named_by_its_room(address):
    room, _, name = address.rpartition(".")
    assert hasattr(importlib.import_module(room), "__path__"), f"{room} is a file, and a file may be renamed"
    assert get_class(address).__name__ == name


@pytest.mark.slow
def test_renaming_a_module_changes_no_id(tmp_path):
    datasets = sorted(path.stem for path in (config_folder() / "dataset").glob("*.yaml"))
    losses = itertools.cycle(["soft_triple", "proxy_nca", "arcface"])
    splits = itertools.cycle(["mlrc", "class_disjoint", "closed_set", "predefined"])
    trunks = itertools.cycle(["bn_inception", "small_cnn", "timm"])
    overrides = [
        [f"dataset={dataset}", f"loss={next(losses)}", f"split={next(splits)}", f"trunk={trunk}"]
        + ["trunk.name=resnet18"] * (trunk == "timm")
        for dataset, trunk in zip(datasets, trunks, strict=False)
    ]
    (tmp_path / "as_it_is").mkdir()
    (tmp_path / "renamed").mkdir()
    for copy in tmp_path.iterdir():
        shutil.copytree(ROOT / "mlrc_lightning", copy / "mlrc_lightning", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(config_folder(), copy / "conf", dirs_exist_ok=True)
    for address in OURS:
        rename_module_of(get_class(address), tmp_path / "renamed")
    before, after = (ids_of_trials(tmp_path / name, overrides) for name in ("as_it_is", "renamed"))
    assert before == after
    assert len({run_folder for _, run_folder, _ in before.values()}) == len(overrides)


def rename_module_of(cls, root):
    """Renames the file of a class and every mention of it in code."""
    package, _, stem = cls.__module__.rpartition(".")
    file = root / Path(*package.split(".")) / f"{stem}.py"
    if file.exists():  # a module that has two of the classes is renamed once
        file.rename(file.with_name(f"{stem}_renamed.py"))
        mention = re.compile(rf"{re.escape(package)}\.{stem}\b|(?<=\.){stem}(?=\": \()|(?<=from \.){stem}\b")
        for source in root.rglob("*.py"):
            source.write_text(mention.sub(lambda found: f"{found[0]}_renamed", source.read_text()))


def ids_of_trials(root, overrides):
    done = subprocess.run(
        [sys.executable, "-c", COMPOSE],
        input=json.dumps(overrides),
        stdout=subprocess.PIPE,  # and what goes wrong is in the test's own output
        text=True,
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    file, found = json.loads(done.stdout)
    assert Path(file).is_relative_to(root)
    return found
