"""Runs of one setting: their seeds, folders, per-query results, what they take from a search, and resuming."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from mlrc_lightning.errors import ConfigError, RecordError
from mlrc_lightning.metrics import METRICS
from mlrc_lightning.names import QUERIES_FILE
from mlrc_lightning.protocol import build as assembly
from mlrc_lightning.protocol import embed
from mlrc_lightning.protocol import fold as fold_module
from mlrc_lightning.protocol.baselines import TRUNK_BASELINES
from mlrc_lightning.protocol.evaluation import load_module
from mlrc_lightning.protocol.finished import objective_values
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.results.queries import read_queries
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.settings.compose import trial_settings
from mlrc_lightning.settings.identity import seed_of_run
from tests.reference import retrieval_by_loops
from tests.reporting.tables import fakes

ROOT = Path(__file__).parents[2]
GIVEN = ["stage=reproduce", "hyperparameters=default", "schedule.iterations_per_epoch=2"]
MAPR = "mean_average_precision_at_r"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def test_the_seeds_of_runs_are_numpys_children_of_the_root_seed():
    children = np.random.SeedSequence(7).spawn(12)
    seeds = [seed_of_run(7, run) for run in range(12)]
    assert seeds == [int(child.generate_state(1, np.uint64)[0] // 2) for child in children]
    assert len({*seeds, *(seed_of_run(8, run) for run in range(12))}) == 24


@pytest.mark.slow
def test_a_run_has_its_own_seed_and_the_record_has_run_and_root_seed(settings, folder):
    s = settings(*GIVEN, "run=3", "seed=5")
    assert (s.run, s.root_seed, s.seed) == (3, 5, seed_of_run(5, 3))
    record = run_trial(s, folder)
    assert (record.stage, record.run, record.root_seed, record.seed) == ("reproduce", 3, 5, s.seed)
    assert read_json(folder / "record.json", TrialRecord) == record
    assert record.test.baselines == {}
    assert record.test.concatenated is not None


@pytest.mark.slow
def test_runs_are_numbered_and_nothing_else_is(settings):
    with pytest.raises(ConfigError, match="run=None: expected the number of a run.*-m stage=reproduce"):
        settings(*GIVEN)
    with pytest.raises(ConfigError, match="run=-1: expected the number of a run"):
        settings(*GIVEN, "run=-1")
    with pytest.raises(ConfigError, match="run=2: expected null with stage=train"):
        settings("run=2")
    with pytest.raises(ConfigError, match="run=2: expected null with stage=search"):
        settings("run=2", is_sweep_job=True)


@pytest.mark.slow
def test_per_query_results_have_the_records_means_and_name_their_images(settings, folder):
    # a class with a single image is no query, but a neighbour of others
    s = settings(*GIVEN, "run=0")
    record = run_trial(s, folder)
    queries = read_queries(folder / QUERIES_FILE)
    data = assembly.TrialData(s)
    assert queries.folds.tolist() == [0, 1, 2, 3]
    assert queries.index.tolist() == data.test.cache.indices.tolist()
    assert queries.label.tolist() == data.images.labels[queries.index].tolist()
    for fold, means in zip(queries.folds, queries.separated.means(), strict=True):
        assert means == pytest.approx(record.test.separated_folds[str(fold)], abs=1e-6)
    assert queries.concatenated.means()[0] == pytest.approx(record.test.concatenated, abs=1e-6)
    with np.load(folder / QUERIES_FILE) as arrays:
        found = {name: (arrays[name].dtype.name, arrays[name].shape) for name in arrays.files}
    assert found == {
        "index": ("int64", (72,)), "label": ("int64", (72,)), "folds": ("int64", (4,)),
        "correct_at_1": ("uint8", (4, 72)), "r_precision": ("float32", (4, 72)),
        "average_precision_at_r": ("float32", (4, 72)),
        "concatenated_correct_at_1": ("uint8", (72,)), "concatenated_r_precision": ("float32", (72,)),
        "concatenated_average_precision_at_r": ("float32", (72,)),
    }  # fmt: skip


@pytest.mark.slow
def test_the_first_run_of_a_setting_stores_what_figures_of_embeddings_need(settings, tmp_path):
    for run, override, is_stored in ((0, "null", True), (1, "null", False), (0, "false", False), (1, "true", True)):
        folder = tmp_path / f"{run}-{override}"
        s = settings(*GIVEN, f"run={run}", f"evaluation.figure_inputs={override}")
        run_trial(s, folder)
        assert sorted(path.name for path in folder.glob("*_test.npz")) == (
            ["neighbors_test.npz", "projection_test.npz", QUERIES_FILE] if is_stored else [QUERIES_FILE]
        )
    data = assembly.TrialData(s)
    names = data.images.class_names
    with np.load(folder / "projection_test.npz") as stored:
        assert stored["points"].shape == (72, 2)
        assert stored["labels"].tolist() == data.images.labels[data.test.cache.indices].tolist()
        assert stored["class_names"].tolist() == list(names)
    with np.load(folder / "neighbors_test.npz") as stored:
        indices = data.test.cache.indices[stored["indices"]]
        assert stored["labels"].tolist() == data.images.labels[indices].tolist()
        pixels = data.test.cache.image(data.test.cache.open(), indices[0])
        height, width = pixels.shape[:2]
        assert max(height, width) <= 64  # so that the thumbnail is the image itself
        top, left = (64 - height) // 2, (64 - width) // 2
        np.testing.assert_array_equal(stored["thumbnails"][0, top : top + height, left : left + width], pixels)


def test_a_search_and_a_single_trial_store_nothing_for_figures(settings):
    assert not settings(is_sweep_job=True).stores_figure_inputs
    assert not settings().stores_figure_inputs
    assert settings(*GIVEN, "run=0").stores_figure_inputs


@pytest.mark.slow
def test_per_query_results_are_those_of_a_slow_loop(settings, folder):
    s = settings(*GIVEN, "run=0", "fold=2")
    record = run_trial(s, folder)
    queries = read_queries(folder / QUERIES_FILE)
    assert queries.concatenated is None
    data = assembly.TrialData(s)
    pixels = data.test.cache.open()
    images = np.stack([data.test.cache.image(pixels, index) for index in data.test.cache.indices])
    module = load_module(s, record.folds[0], folder).eval()
    embeddings = module(assembly.torch.from_numpy(images).permute(0, 3, 1, 2)).detach()
    for row in range(0, 72, 7):
        expected = retrieval_by_loops(embeddings.numpy(), queries.label, row)
        found = queries.separated
        assert (
            found.correct_at_1[0, row], found.r_precision[0, row], found.average_precision_at_r[0, row]
        ) == pytest.approx(expected, abs=1e-6)  # fmt: skip


@pytest.mark.slow
def test_lonely_images_are_no_queries(settings, folder, monkeypatch):
    from mlrc_lightning.data.datasets.glyphs import Glyphs

    made = Glyphs.__init__

    def lonely(self, *arguments, **keywords):
        made(self, *arguments, **keywords)
        self.labels = self.labels.copy()
        self.labels[-5:] = self.labels[-7]  # the last class keeps one image
        self.labels.sort()

    monkeypatch.setattr(Glyphs, "__init__", lonely)
    record = run_trial(settings(*GIVEN, "run=0", "dataset.min_images_per_class=1", "fold=0"), folder)
    queries = read_queries(folder / QUERIES_FILE)
    assert record.test.num_without_relevant == 1
    assert len(queries.index) == record.test.num_queries == 71
    assert 24 * 6 - 1 not in queries.index
    assert queries.separated.means()[0] == pytest.approx(record.test.separated, abs=1e-6)


def test_queries_of_a_gallery_are_named_in_the_order_of_their_results():
    """Images 2 to 9; 3, 5, 6 and 8 are queries, of which 5 has no image of its class in the gallery."""
    labels = np.array([0, 0, 1, 1, 2, 3, 2, 1, 1, 2])
    images, queries = np.arange(2, 10), np.array([3, 5, 6, 8])
    cache = SimpleNamespace(indices=images)
    data = SimpleNamespace(
        test=SimpleNamespace(cache=cache, labels=labels), test_queries=queries, images=SimpleNamespace(labels=labels),
        num_classes=4,
    )  # fmt: skip
    embeddings = assembly.torch.randn(8, 3, generator=assembly.torch.Generator().manual_seed(0))
    assert embed._queries_on_test(data).tolist() == [3, 6, 8]
    found = embed.metrics_on_test(embeddings, data)
    assert (found.num_queries, found.num_without_relevant) == (3, 1)
    for row, query in enumerate((3, 6, 8)):
        alone = SimpleNamespace(**{**vars(data), "test_queries": np.array([query])})
        kept = ~np.isin(images, np.setdiff1d(queries, [query]))  # the others are no gallery
        alone.test = SimpleNamespace(cache=SimpleNamespace(indices=images[kept]), labels=labels)
        expected = embed.metrics_on_test(embeddings[kept], alone)
        assert found.per_query[row].tolist() == pytest.approx(expected.per_query[0].tolist())
    data.test_queries = None
    assert embed._queries_on_test(data).tolist() == [2, 3, 4, 6, 7, 8, 9]


def test_damaged_or_missing_per_query_results_are_refused_by_name(tmp_path):
    with pytest.raises(RecordError, match="expected the accuracies of single queries, found no file"):
        read_queries(tmp_path / QUERIES_FILE)
    for content in (b"", b"PK\x03\x04 cut off", b"no archive"):
        (tmp_path / QUERIES_FILE).write_bytes(content)
        with pytest.raises(RecordError, match="queries_test.npz: expected .*, found a damaged file"):
            read_queries(tmp_path / QUERIES_FILE)


# without training


@pytest.mark.slow
def test_without_training_the_run_tests_untrained_trunk_and_embedders(settings, folder):
    size = "embedder.embedding_size=16"
    s = settings("stage=untrained", "run=1", size)
    record = run_trial(s, folder)
    assert (record.loss, record.stage, record.run, record.folds, record.val) == ("untrained", "untrained", 1, (), None)
    assert record.status == "complete"
    baselines = record.test.baselines
    assert set(baselines) == {*TRUNK_BASELINES, "untrained_embedder", "untrained_embedder_concatenated"}
    assert all(set(accuracies) == set(METRICS) for accuracies in baselines.values())
    # a trained run with the same seed and baselines on finds the same before training
    trained = dataclasses.replace(s, stage="train", run=None, root_seed=s.seed)
    other = run_trial(trained, folder.with_name("trained"))
    for name in ("untrained_trunk", "untrained_trunk_pca", "untrained_embedder"):
        assert baselines[name] == other.test.baselines[name]
    assert record.test.separated == baselines["untrained_embedder"]
    assert record.test.concatenated == baselines["untrained_embedder_concatenated"]
    assert read_queries(folder / QUERIES_FILE).concatenated.means()[0] == pytest.approx(
        record.test.concatenated, abs=1e-6
    )
    assert objective_values(record) == {MAPR: [record.test.separated[MAPR]]}
    assert run_trial(s, folder) == record


@pytest.mark.slow
def test_a_random_trunk_differs_between_runs_and_a_pretrained_one_is_computed_once(settings, tmp_path, monkeypatch):
    runs = [settings("stage=untrained", f"run={run}", "embedder.embedding_size=16") for run in (0, 1)]
    first, second = (run_trial(s, tmp_path / "random" / str(s.run)).test.baselines for s in runs)
    assert all(first[name] != second[name] for name in TRUNK_BASELINES)
    # the flag alone: a small_cnn knows no pretrained weights, and its seed makes the two runs differ if not shared
    runs = [dataclasses.replace(s, trunk=dataclasses.replace(s.trunk, pretrained=True)) for s in runs]
    first = run_trial(runs[0], tmp_path / "pretrained" / "0").test.baselines
    monkeypatch.setattr("mlrc_lightning.protocol.baselines.reduce_by_pca", lambda *_: pytest.fail("computed again"))
    second = run_trial(runs[1], tmp_path / "pretrained" / "1").test.baselines
    assert all(first[name] == second[name] for name in TRUNK_BASELINES)
    assert first["untrained_embedder"] != second["untrained_embedder"]


@pytest.mark.slow
def test_without_training_the_loss_decides_nothing(compose_config):
    def run_set(*overrides):
        return compose_config("stage=untrained", *overrides).run_set

    assert run_set("loss=triplet") == run_set("loss=arcface", "seed=3") == run_set("hyperparameters=paper",
        "dataset.paper_setting=cub200")  # fmt: skip
    assert run_set("dataset.images.seed=9") != run_set()
    assert run_set().startswith("given-")
    hydra = compose_config("stage=untrained", return_hydra_config=True).hydra
    assert re.search(r"/glyphs/untrained/reproduce/given-[0-9a-f]{8}$", hydra.sweep.dir)


# folders, and where hyperparameters come from


@pytest.mark.slow
def test_a_set_of_runs_is_named_by_source_and_setting(compose_config):
    def run_set(*overrides):
        return compose_config("stage=reproduce", "loss=arcface", "dataset.paper_setting=cub200", *overrides).run_set

    paper = run_set("hyperparameters=paper")
    assert re.fullmatch("paper-[0-9a-f]{8}", paper)
    for same in ("seed=4", "run=2", "num_runs=3", "fold=1", "trainer=cpu", "data_root=elsewhere"):
        assert run_set("hyperparameters=paper", same) == paper
    for other in ("loss.function.margin=3", "dataset.images.seed=3"):
        assert run_set("hyperparameters=paper", other)[-8:] != paper[-8:]
    assert run_set("hyperparameters=paper", "loss.function.margin=3").startswith("given-")
    assert run_set("hyperparameters=default").startswith("given-")


def test_runs_lie_where_the_layout_says(compose_config):
    cfg = compose_config(*GIVEN, "run=3", "loss=triplet", return_hydra_config=True)
    pattern = rf"outputs/{cfg.protocol}/glyphs/triplet/reproduce/given-[0-9a-f]{{8}}"
    assert re.fullmatch(f"{pattern}/3", cfg.hydra.run.dir)
    assert re.fullmatch(pattern, cfg.hydra.sweep.dir)
    assert cfg.hydra.sweep.subdir == "3"


@pytest.fixture
def search(compose_config, tmp_path):
    """Writes the files of a search as the sweeper leaves them; returns the overrides of its reproductions."""

    def write(loss="arcface", finished="max_trials", score=0.75, **values):
        places = [f"output_root={tmp_path / 'out'}", f"loss={loss}", "experiment=smoke"]
        cfg = compose_config(*places)
        folder = Path(cfg.output_root) / cfg.protocol / cfg.setting / cfg.loss.name / cfg.sweep_name
        shared = {"loss": loss, "experiment": "smoke", "trainer": "cpu", "data_root": "elsewhere", "seed": 4}
        space = {key: {"type": "fixed", "values": [value]} for key, value in shared.items()}
        best = {key.replace("__", "."): value for key, value in values.items()}
        others = {key: value if isinstance(value, str) else value / 2 for key, value in best.items()}
        trials = [(best, (score,)) if number == 6 else (others, (0.5,)) for number in range(50)]
        space |= {"(other overrides)": ["~x"], **{key: {"type": "range", "bounds": [0, 90]} for key in best}}
        fakes.write_ledger(folder, 50, trials, finished, space=space)
        with (folder / "ledger.jsonl").open("ab") as ledger_file:
            ledger_file.write(b'{"seq":9,"type":"cut o')
        return [*places, "stage=reproduce", "run=0"]

    return write


FOUND = {"loss__function__margin": 33.5, "loss__function__scale": 7, "loss__optimizer__lr": 0.25}


@pytest.mark.slow
def test_the_default_setting_is_the_searchs_best(compose_config, search):
    overrides = search(**FOUND)
    cfg = compose_config(*overrides)
    s = trial_settings(cfg, is_sweep_job=False)
    assert (s.loss.function["margin"], s.loss.function["scale"], s.loss.optimizer["lr"]) == (33.5, 7.0, 0.25)
    assert s.hyperparameters.name == "search"
    assert s.hyperparameters.source == "smoke: trial 6, best of 50, finished"
    assert s.hyperparameters.published == {key.replace("__", "."): value for key, value in FOUND.items()}
    assert cfg.run_set.startswith("search-")
    by_hand = ["loss.function.margin=33.5", "loss.function.scale=7.0", "loss.optimizer.lr=0.25"]
    given = compose_config(*overrides, "hyperparameters=default", *by_hand)
    assert given.run_set == cfg.run_set.replace("search", "given")


@pytest.mark.slow
def test_a_choice_on_the_command_line_wins_over_the_search(compose_config, search):
    overrides = [*search(**FOUND), "hyperparameters=paper", "dataset.paper_setting=cub200"]
    assert trial_settings(compose_config(*overrides), is_sweep_job=False).loss.function["margin"] == 23.2259


@pytest.mark.slow
def test_without_a_search_the_message_has_its_command(compose_config, tmp_path):
    overrides = [f"output_root={tmp_path}", "loss=cosface", "stage=reproduce", "run=0", "num_runs=3"]
    with pytest.raises(ConfigError, match="expected a finished search in .*/glyphs/cosface/search, found none"):
        trial_settings(compose_config(*overrides), is_sweep_job=False)
    cfg = compose_config(*overrides, return_hydra_config=True)
    with pytest.raises(Exception, match=f"Search first: python train.py -m output_root={tmp_path} loss=cosface\n"):
        _ = cfg.hydra.run.dir


@pytest.mark.slow
def test_an_unfinished_search_is_refused_unless_asked_for(compose_config, search):
    """Also one that a kill in a write has left with a torn line."""
    overrides = search(**FOUND, finished=None)
    with pytest.raises(ConfigError, match=r"found an unfinished one.[\s\S]*hyperparameters.allow_unfinished=true"):
        trial_settings(compose_config(*overrides), is_sweep_job=False)
    s = trial_settings(compose_config(*overrides, "hyperparameters.allow_unfinished=true"), is_sweep_job=False)
    assert (s.loss.function["margin"], s.loss.function["scale"]) == (33.5, 7.0)
    assert s.hyperparameters.source == "smoke: trial 6, best of 50, unfinished"


@pytest.mark.slow
def test_a_search_without_a_success_has_no_setting(compose_config, tmp_path):
    overrides = [f"output_root={tmp_path}", "loss=cosface", "stage=reproduce", "run=0"]
    cfg = compose_config(*overrides)
    folder = tmp_path / cfg.protocol / cfg.setting / "cosface" / cfg.sweep_name
    fakes.write_ledger(
        folder, 2, [({"loss.function.margin": 1.0}, "out of memory"), ({"loss.function.margin": 2.0}, None)]
    )
    with pytest.raises(ConfigError, match="no trial of the search in .* has succeeded"):
        trial_settings(compose_config(*overrides, "hyperparameters.allow_unfinished=true"), is_sweep_job=False)


@pytest.mark.slow
def test_the_first_of_equals_is_the_searchs_best(compose_config, search):
    s = trial_settings(compose_config(*search(**FOUND, score=0.5)), is_sweep_job=False)
    assert s.hyperparameters.source == "smoke: trial 0, best of 50, finished"


@pytest.mark.slow
def test_other_values_than_the_searchs_are_refused(compose_config, search):
    for more, overrides, message in (
        ({}, ["loss.function.margin=3.0"], "the search has loss.function.margin=33.5, the configuration 3.0"),
        ({"dataset__images__num_classes": 99}, [], "has dataset.images.num_classes=99, the configuration 24"),
        ({"loss__function__nu": 0.5}, [], "has loss.function.nu=0.5, .*{mlrc.paper_or:loss.function.nu,DEFAULT}"),
    ):
        with pytest.raises(ConfigError, match=message):
            trial_settings(compose_config(*search(**FOUND, **more), *overrides), is_sweep_job=False)


@pytest.mark.slow
def test_a_loss_of_ones_own_takes_the_searchs_values_by_key(compose_config, search):
    own = "loss.function.margin='${mlrc.paper_or:loss.function.margin,0.05}'"
    none = ["loss.parameter_names={}", "loss.paper_name=null"]
    overrides = [*search("triplet", loss__function__margin=0.125), own]
    s = trial_settings(compose_config(*overrides, *none), is_sweep_job=False)
    assert s.loss.function["margin"] == 0.125
    default = compose_config("loss=triplet", own)
    assert default.loss.function.margin == 0.05


# from the command line


def command(folder, *arguments):
    flags = [argument for argument in arguments if argument == "-m"]  # argparse takes flags first
    arguments = [argument for argument in arguments if argument != "-m"]
    return [
        sys.executable, str(ROOT / "train.py"), *flags, "experiment=smoke", "loss=triplet", "trainer=cpu",
        "schedule.iterations_per_epoch=1", f"output_root={folder}", f"data_root={folder.parent / 'data'}", *arguments,
    ]  # fmt: skip


def run(folder, *arguments):
    return subprocess.run(command(folder, *arguments), capture_output=True, text=True, cwd=ROOT, timeout=500)


RUNS = ["-m", "stage=reproduce", "hyperparameters=default", "loss.function.margin=0.3"]


def the_set(folder):
    (found,) = folder.glob("*/glyphs/triplet/reproduce/given-*")
    return found


def ledger(folder):
    return [json.loads(line) for line in (the_set(folder) / "ledger.jsonl").read_text().splitlines()]


def essence(folder):
    """What two executions of the same runs must have in common, without times."""
    found = {}
    for path in sorted(the_set(folder).glob("*/record.json")):
        record = json.loads(path.read_text())
        folds = [{k: v for k, v in fold.items() if k not in ("seconds", "epochs")} for fold in record["folds"]]
        test = {key: value for key, value in record["test"].items() if key != "opened_at"}
        queries = (path.parent / QUERIES_FILE).read_bytes()
        found[path.parent.name] = (record["status"], record["seed"], record["run"], record["val"], folds, test, queries)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three uninterrupted runs."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    done = run(folder, *RUNS, "num_runs=3")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_runs_are_a_grid_in_order_in_folders_of_their_numbers(whole):
    proposed = [record["payload"]["parameters"] for record in ledger(whole) if record["type"] == "proposed"]
    assert proposed == [{"run": 0}, {"run": 1}, {"run": 2}]
    results = essence(whole)
    assert sorted(results) == ["0", "1", "2"]
    assert [results[name][:3] for name in results] == [("complete", seed_of_run(0, n), n) for n in range(3)]
    assert len({results[name][3][MAPR] for name in results}) == 3


@pytest.mark.slow
def test_one_run_by_itself_is_the_one_of_the_set(whole, tmp_path):
    alone = [argument for argument in RUNS if argument != "-m"]
    done = run(tmp_path / "out", *alone, "run=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert essence(tmp_path / "out")["2"] == essence(whole)["2"]
    again = run(whole, *alone, "run=2")
    assert "is finished already" in again.stdout
    assert "triplet on glyphs" in again.stdout
    assert ", run 2, folds 0, 1, 2, 3, seed" in again.stdout


@pytest.mark.slow
@pytest.mark.fault
def test_runs_killed_inside_and_between_end_as_the_uninterrupted_ones(whole, tmp_path):
    folder = tmp_path / "out"
    moments = [
        lambda: list(folder.rglob("0/fold_1/latest.pt")),  # inside a fold
        lambda: list(folder.rglob("0/record.json")),  # between runs, or at the start of the next
        lambda: list(folder.rglob("1/fold_3/fold.json")),  # before the test
    ]
    for has_come in moments:
        process = subprocess.Popen(
            command(folder, *RUNS, "num_runs=3"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        deadline = time.monotonic() + 200
        while not has_come():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = run(folder, *RUNS, "num_runs=3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert essence(folder) == essence(whole)
    for pattern in ("*partial*", "*.lock", "latest.pt", "*_epoch*"):
        assert not list(folder.rglob(pattern)), pattern


@pytest.mark.slow
def test_more_runs_go_on_and_change_nothing_that_is_there(tmp_path):
    folder = tmp_path / "out"
    for count in (1, 2):
        done = run(folder, *RUNS, f"num_runs={count}")
        assert done.returncode == 0, done.stderr[-3000:]
        assert sorted(essence(folder)) == [str(number) for number in range(count)]
    assert [r["payload"]["parameters"] for r in ledger(folder) if r["type"] == "proposed"] == [{"run": 0}, {"run": 1}]


@pytest.mark.slow
def test_a_failed_run_keeps_no_other_from_running_and_is_tried_again_alone(whole, tmp_path):
    folder = tmp_path / "out"
    set_of_it = folder / the_set(whole).relative_to(whole)
    set_of_it.mkdir(parents=True)
    (set_of_it / "1").write_text("a file in the place of the folder of run 1")
    done = run(folder, *RUNS, "num_runs=3")
    assert done.returncode != 0
    assert sorted(essence(folder)) == ["0", "2"]
    before = {path: path.stat().st_mtime_ns for path in set_of_it.glob("[02]/**/*.json")}
    (set_of_it / "1").unlink()
    again = run(folder, *RUNS, "num_runs=3")
    assert again.returncode == 0, again.stderr[-3000:]
    assert essence(folder) == essence(whole)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "run=0,1"], "`run` may not be searched over: A search has no runs.*stage=reproduce"),
        ([*RUNS, "run=1"], "run=1 with -m: expected null"),
        ([*RUNS, "seed=0,1"], "`seed` may not be searched over: The runs of one setting have seeds of their own"),
        ([*RUNS, "num_runs=0"], "num_runs=0: expected 1 or more"),
        ([*RUNS, "+loss.function.swap=true,false"], "run_set=given-.*: expected given-.*sweep over nothing but"),
        (["-m", "stage=reproduce"], r"Search first: python train.py -m experiment=smoke loss=triplet"),
        (["stage=reproduce", "hyperparameters=default"], "run=None: expected the number of a run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_is_one_message(tmp_path, arguments, message):
    done = run(tmp_path / "out", *arguments)
    assert done.returncode == 2, done.stderr[-2000:]
    assert re.search(message, done.stderr, re.DOTALL), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.slow
def test_searches_are_reproduced_without_typing_their_results(tmp_path):
    folder = tmp_path / "out"
    for arguments in (["-m", "max_trials=2"], ["-m", "stage=reproduce", "num_runs=1"]):
        several = [
            argument.replace("loss=triplet", "loss=triplet,contrastive") for argument in command(folder, *arguments)
        ]
        done = subprocess.run(several, capture_output=True, text=True, cwd=ROOT, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
    for loss, key in (("triplet", "margin"), ("contrastive", "neg_margin")):
        (path,) = folder.glob(f"*/glyphs/{loss}/reproduce/search-*/0/record.json")
        (results,) = folder.glob(f"*/glyphs/{loss}/smoke/optimization_results.yaml")
        best = yaml.safe_load(results.read_text())["ax"][f"loss.function.{key}"]
        record = read_json(path, TrialRecord)
        assert record.settings["loss"]["function"][key] == best
        assert record.test is not None


@pytest.mark.slow
def test_all_runs_without_training_are_one_command(tmp_path):
    folder = tmp_path / "out"
    done = run(folder, "stage=untrained", "num_runs=2")
    assert done.returncode == 0, done.stderr[-3000:]
    paths = sorted(folder.glob("*/glyphs/untrained/reproduce/given-*/*/record.json"))
    assert [path.parent.name for path in paths] == ["0", "1"]
    assert done.stdout.count("untrained embedders, concatenated") == 2
    before = [path.read_bytes() for path in paths]
    swept = run(folder, "-m", "stage=untrained", "num_runs=3")
    assert swept.returncode == 0, swept.stderr[-3000:]
    assert [path.read_bytes() for path in paths] == before
    assert (paths[0].parents[1] / "2" / "record.json").exists()


@pytest.mark.slow
def test_a_kill_between_the_last_epoch_and_the_result_loses_nothing(settings, tmp_path, monkeypatch):
    s = settings(*GIVEN, "run=0", "fold=0")
    whole = run_trial(s, tmp_path / "whole").folds[0]
    steps = ("write_model_folder", "_fold_result", "write_json")
    for step in steps:
        real = getattr(fold_module, step)

        def die(*arguments, step=step, real=real):
            if step != "write_json" or arguments[0].name == "fold.json":
                real(*arguments)
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(fold_module, step, die)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run_trial(s, tmp_path / step)
        monkeypatch.setattr(fold_module, step, real)
        resumed = run_trial(s, tmp_path / step).folds[0]
        assert resumed.weight_digests == whole.weight_digests
        assert resumed.val == whole.val
        kept = sorted(path.name for path in (tmp_path / step / "fold_0").iterdir())
        assert kept == ["README.md", "embedder.safetensors", "fold.json", "transform.json", "trunk.safetensors"]
