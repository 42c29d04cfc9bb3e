"""Shared fixtures: a small trial, real data where it is to be had, and one thread a process."""

import copy
import functools
import os
import shutil
import signal

# what ignores a signal, as nohup and the background of a script do, hands that on to all that it starts; a handler is
# not handed on, and this one of SIGHUP leaves pytest as it is
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)
# two processes with two spinning threads each on two cores take ten times as long as with one
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from mlrc_lightning.files import config_folder
from mlrc_lightning.names import RECORD_FILE
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.settings.compose import trial_settings
from mlrc_lightning.settings.resolvers import register_resolvers
from tests.local_server import serve

REPOSITORY = Path(__file__).parents[1]
SHARED = Path(os.environ.get("MLRC_SHARED", REPOSITORY.parent / "shared"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Returns the processes of `-n auto`: one a core, at most four, since many tests start processes of their own."""
    return min(4, len(os.sched_getaffinity(0)))


# words of the names of tests no two of which run at the same time: on a real SLURM, and those that measure
ALONE = ("_on_slurm.py", "OnSlurm", "processor_time")


def group_of(nodeid):
    """Returns the group of a test, which runs in one process: its module, or `alone`."""
    return "alone" if any(word in nodeid for word in ALONE) else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hands out whole groups. (`--dist loadgroup` of xdist 3.8 groups nothing with pytest 9.2: xdist issue 1386.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return ByGroup(config, log)


def pytest_collection_modifyitems(config, items):
    """Puts the group `alone` first, the longest, and skips tests of real data where there is none."""
    if hasattr(config, "workerinput"):
        ungrouped = [i.nodeid for i in items if i.get_closest_marker("slurm") and group_of(i.nodeid) != "alone"]
        assert not ungrouped, f"tests on a real SLURM have one of {ALONE} in their names, unlike {ungrouped}"
        items.sort(key=lambda item: group_of(item.nodeid) != "alone")
    if not (SHARED / "data").is_dir():
        for item in items:
            if item.get_closest_marker("real_data"):
                item.add_marker(pytest.mark.skip(reason=f"MLRC_SHARED: no real data in {SHARED}"))


@pytest.fixture(scope="session", autouse=True)
def _resolvers():
    register_resolvers()


@pytest.fixture(autouse=True)
def _no_word_of_tracebacks():
    """Takes back what a command of the test noted for itself and its children: whether a traceback was asked for."""
    names = ("HYDRA_FULL_ERROR", "MLRC_FULL_ERROR")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def compose_config():
    """Composes conf/train.yaml with some overrides."""

    def composed(*overrides, return_hydra_config=False):
        return copy.deepcopy(_composed(overrides, return_hydra_config))

    return composed


@functools.cache
def _composed(overrides, return_hydra_config):
    """The same overrides are composed once a process: that takes longer than most of the tests that ask."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=return_hydra_config)


@pytest.fixture
def settings(compose_config, tmp_path):
    """The settings of a trial that takes a second: `settings("loss=triplet")`."""

    def read(*overrides, is_sweep_job=False):
        cfg = compose_config("experiment=smoke", "trainer=cpu", *overrides)
        if not any(override.startswith("data_root=") for override in overrides):
            cfg.data_root = str(tmp_path / "data")
        return trial_settings(cfg, is_sweep_job=is_sweep_job)

    return read


@pytest.fixture(scope="session")
def _trials(tmp_path_factory):
    """Where the trials of `trained` lie, and which there are."""
    return tmp_path_factory.mktemp("trials"), {}


@pytest.fixture
def trained(settings, tmp_path, _trials):
    """A finished trial, trained once a process: `trained(folder, "loss=triplet")` puts a copy of it and its data here.

    The copy is what `run_trial(settings("loss=triplet"), folder)` leaves. Returns its record.
    """
    from mlrc_lightning.protocol.trial import run_trial

    def copied(folder, *overrides, is_sweep_job=False):
        root, known = _trials
        key = (overrides, is_sweep_job)
        if key not in known:
            place = root / str(len(known))
            run_trial(settings(*overrides, f"data_root={place / 'data'}", is_sweep_job=is_sweep_job), place / "run")
            known[key] = place
        shutil.copytree(known[key] / "run", folder)
        shutil.copytree(known[key] / "data", tmp_path / "data", dirs_exist_ok=True)
        path = folder / RECORD_FILE
        path.write_text(path.read_text().replace(str(known[key] / "data"), str(tmp_path / "data")))
        return read_json(path, TrialRecord)

    return copied


@pytest.fixture
def image_folder(tmp_path):
    """Makes root/class/image.jpg of 12 classes with 4 images each, of uneven sizes; returns the root."""
    root = tmp_path / "photos"
    for label in range(12):
        folder = root / f"class_{label:02d}"
        folder.mkdir(parents=True)
        for number in range(4):
            color = (20 * label, 10 * number, 255 - 20 * label)
            Image.new("RGB", (40 + number, 36 + label), color).save(folder / f"{number}.jpg")
    return root


@pytest.fixture
def local_server(monkeypatch):
    """A web server on this machine, reached without any proxy of the environment."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve() as server:
        yield server
