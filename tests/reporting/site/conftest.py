"""A half-done study and its report, built once."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mlrc_lightning.reporting.figures.toy_scores import store_toy
from mlrc_lightning.reporting.site.site import build
from mlrc_lightning.settings.composition import compose, overrides_of
from tests.reporting.site import synthetic

SMALL = "mlrc-small_cnn-aaaa0000"


@pytest.fixture(scope="session")
def composed(tmp_path_factory):
    """Folder of results that remembers what the paper's configurations come to, and the paper's protocol."""
    outputs = tmp_path_factory.mktemp("composed")
    for name in ("cars196", "sop", "cub200_batch256", "smoke", "demo"):
        compose(overrides_of(name), outputs)
    return outputs, compose(overrides_of("cub200"), outputs).protocol


@pytest.fixture
def empty(composed, tmp_path):
    """An empty folder of results, and the paper's protocol."""
    shutil.copytree(composed[0], tmp_path / "outputs")
    return tmp_path / "outputs", composed[1]


@pytest.fixture(scope="session")
def study(composed, tmp_path_factory):
    """Folder of a half-done study with its report, and the paper's protocol."""
    outputs = tmp_path_factory.mktemp("study") / "outputs"
    shutil.copytree(composed[0], outputs)
    write_half_done(outputs, composed[1])
    build(outputs)
    return outputs, composed[1]


def write_half_done(outputs, protocol):
    """Finished and unfinished searches and runs, failed ones, two sources, two protocols, a single trial."""
    losses = ("arcface", "contrastive", "triplet")
    synthetic.write_study(
        outputs, protocol, losses=losses, settings=("cub200",), trials=50, runs=3, epochs=20, classes=10
    )
    random = np.random.default_rng(1)
    synthetic.write_search(outputs, protocol, "cars196", "arcface", random, 0.4, 12, finished=None, budget=50)
    synthetic.write_run(outputs, protocol, "cub200", "margin", 0, random, 0.3, classes=10, per_class=10)
    failed = synthetic.write_run(
        outputs, protocol, "cub200", "margin", 1, random, 0.3, failure="RuntimeError: loss <nan> is not finite"
    )
    unfinished = failed.parent / "2" / "fold_0"
    unfinished.mkdir(parents=True)
    (unfinished / "fold.json").write_text("{}")
    synthetic.write_run(outputs, protocol, "cub200", "arcface", 0, random, 0.5, source="paper", digest="22222222")
    synthetic.write_study(outputs, SMALL, losses=("arcface", "mine"), settings=("glyphs",), trials=6, runs=2, epochs=6)
    synthetic.write_search(outputs, SMALL, "glyphs", "mine", random, 0.3, 4, name="a #2?")
    single = outputs / protocol / "cub200" / "triplet" / "train" / "33333333"
    single.mkdir(parents=True)
    shutil.copy(outputs / protocol / "cub200/triplet/reproduce/search-11111111/1/record.json", single)
    store_toy(outputs / "figures" / "inputs" / "toy.npz")


def pages(outputs: Path):
    """Every page of a report by its path below it."""
    folder = outputs / "report"
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.html"))}
