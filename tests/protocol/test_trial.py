"""A whole trial on small data: folds, records, resume, test, and what a search may not touch."""

import dataclasses
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mlrc_lightning.data.datasets.glyphs import CHARACTERS, Glyphs
from mlrc_lightning.data.splits import FoldSplit
from mlrc_lightning.errors import ConfigError, DatasetError, NonFiniteError, RecordError, SplitError
from mlrc_lightning.files import write_json
from mlrc_lightning.metrics import METRICS, retrieval_metrics
from mlrc_lightning.protocol import build as assembly
from mlrc_lightning.protocol import trial
from mlrc_lightning.protocol.baselines import reduce_by_pca
from mlrc_lightning.protocol.finished import finished_trial, objective_values
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.reporting.tables.trial import render_trial
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.settings.compose import trial_settings
from mlrc_lightning.training.checkpoint import FoldCheckpoint

QUICK = ["schedule.iterations_per_epoch=2", "evaluation.baselines=false"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def without_times(record):
    """The record without what differs between two runs of the same: times."""
    content = json.loads(json.dumps(dataclasses.asdict(record)))
    for key in ("started_at", "seconds", "environment"):
        content.pop(key)
    for fold in content["folds"]:
        fold.pop("seconds")
        for epoch in fold["epochs"]:
            epoch.pop("seconds")
    if content["test"] is not None:
        content["test"].pop("opened_at")
    content["settings"].pop("data_root")
    return content


def test_a_trial_trains_four_folds_tests_them_and_leaves_a_complete_record(settings, folder):
    record = run_trial(settings(), folder)
    assert read_json(folder / "record.json", TrialRecord) == record
    assert (record.status, record.stage, record.setting, record.loss) == ("complete", "train", "glyphs", "arcface")
    assert [fold.fold for fold in record.folds] == [0, 1, 2, 3]
    for fold in record.folds:
        assert [epoch.epoch for epoch in fold.epochs] == [0, 1, 2]
        assert fold.epochs[0].train_loss is None
        assert all(np.isfinite(epoch.train_loss) for epoch in fold.epochs[1:])
        assert set(fold.val) == set(METRICS)
        assert fold.val == fold.epochs[fold.selected_epoch].val
        assert len(fold.train_classes) == 9
        assert len(fold.val_classes) == 3
    mapr = "mean_average_precision_at_r"
    assert record.val[mapr] == pytest.approx(np.mean([fold.val[mapr] for fold in record.folds]))
    assert objective_values(record) == {mapr: [fold.val[mapr] for fold in record.folds]}
    assert record.test.num_queries == 12 * 6
    assert record.test.separated[mapr] == pytest.approx(
        np.mean([v[mapr] for v in record.test.separated_folds.values()])
    )
    assert set(record.test.concatenated) == set(METRICS)
    assert record.environment["packages"]["torch"] == version("torch")
    assert record.settings["loss"]["function"]["margin"] == 28.6
    assert not (folder / ".lock").exists()
    assert not list(folder.rglob("latest.pt"))
    table = render_trial(record)
    assert f"{100 * record.test.concatenated[mapr]:.2f}" in table


@pytest.mark.slow
def test_the_test_accuracies_are_those_of_the_saved_weights(settings, trained, folder):
    s = settings(*QUICK)
    record = trained(folder, *QUICK)
    data = assembly.TrialData(s)
    pixels, indices = data.test.cache.open(), data.test.cache.indices
    images = torch.stack([torch.tensor(data.test.cache.image(pixels, i)).permute(2, 0, 1) for i in indices])
    labels = torch.from_numpy(data.images.labels[indices])
    embeddings = []
    for fold in record.folds:
        module = assembly.build_module(s, fold.fold, None).eval()
        for part in ("trunk", "embedder"):
            getattr(module, part).load_state_dict(safetensors.torch.load_file(folder / fold.weights[part]))
        with torch.no_grad():
            embeddings.append(module(images))
        expected = retrieval_metrics(embeddings[-1], labels).as_dict()
        assert record.test.separated_folds[str(fold.fold)] == pytest.approx(expected, abs=1e-9)
    assert embeddings[0].norm(dim=1).allclose(torch.ones(len(labels)))
    concatenated = retrieval_metrics(torch.cat(embeddings, dim=1), labels).as_dict()
    assert record.test.concatenated == pytest.approx(concatenated, abs=1e-9)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trial_and_another_seed_another(settings, tmp_path):
    one, again, other = (
        run_trial(settings(*QUICK, f"seed={seed}"), tmp_path / name) for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    assert without_times(one) == without_times(again)
    assert one.val != other.val


def test_a_finished_trial_is_not_run_again(settings, trained, folder, monkeypatch):
    record = trained(folder, *QUICK)
    monkeypatch.setattr(trial, "_run_fold", lambda *_: pytest.fail("ran again"))
    assert run_trial(settings(*QUICK), folder) == record


@pytest.mark.slow
def test_a_finished_trial_is_known_by_its_folds_stage_and_settings(settings, trained, folder):
    assert finished_trial(settings(*QUICK), folder) is None
    assert not folder.exists()
    record = trained(folder, *QUICK, "fold=2")
    assert finished_trial(settings(*QUICK, "fold=2"), folder) == record
    assert finished_trial(settings(*QUICK), folder) is None  # three folds are left
    assert finished_trial(settings(*QUICK, "fold=2", is_sweep_job=True), folder) is None  # a search has no test
    with pytest.raises(RecordError, match="other settings .*seed: 0 there, 1 now"):
        finished_trial(settings(*QUICK, "fold=2", "seed=1"), folder)
    write_json(folder / "record.json", dataclasses.replace(record, status="failed", failure="RuntimeError: no"))
    assert finished_trial(settings(*QUICK, "fold=2"), folder) is None


@pytest.mark.slow
def test_more_folds_reuse_the_finished_ones(settings, trained, folder):
    first = trained(folder, *QUICK, "fold=2")
    assert first.test.concatenated is None
    assert "concatenated embeddings need all 4 folds, found 1" in first.test.notes
    everything = run_trial(settings(*QUICK), folder)
    assert everything.folds[2] == first.folds[0]
    assert everything.test.concatenated is not None


@pytest.mark.parametrize(
    ("loss", "kill_at"),
    [
        ("arcface", (2, 2)),
        ("multi_similarity_miner", (1, 3)),
        pytest.param("arcface", (0, 1), marks=pytest.mark.nightly),
        pytest.param("arcface", (1, 3), marks=pytest.mark.nightly),
        pytest.param("multi_similarity_miner", (0, 1), marks=pytest.mark.nightly),
        pytest.param("multi_similarity_miner", (2, 2), marks=pytest.mark.nightly),
    ],
    ids=lambda value: value if isinstance(value, str) else f"fold{value[0]}-epoch{value[1]}",
)
@pytest.mark.slow
def test_a_trial_killed_after_a_validation_ends_as_the_whole_one(settings, tmp_path, monkeypatch, loss, kill_at):
    s = settings(*QUICK, f"loss={loss}", "schedule.max_epochs=3")
    uninterrupted = run_trial(s, tmp_path / "whole")
    save = FoldCheckpoint._save_resume_state

    def save_and_die(self, trainer, module):
        save(self, trainer, module)
        if (int(self.folder.name.removeprefix("fold_")), self.history[-1].epoch) == kill_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(FoldCheckpoint, "_save_resume_state", save_and_die)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_trial(s, tmp_path / "killed")
    monkeypatch.setattr(FoldCheckpoint, "_save_resume_state", save)
    torch.manual_seed(1234)  # whatever state the new process starts with
    resumed = run_trial(s, tmp_path / "killed")
    assert without_times(resumed) == without_times(uninterrupted)
    for fold in resumed.folds:
        for file in fold.weights.values():
            assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_folder_of_another_setting_is_refused_with_the_difference_and_left_as_it_is(settings, trained, folder):
    trained(folder, *QUICK)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(RecordError, match="loss.function.margin: 28.6 there, 5.0 now"):
        run_trial(settings(*QUICK, "loss.function.margin=5.0"), folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_search_draws_no_test_character_and_makes_no_test_cache(settings, tmp_path, monkeypatch):
    drawn = set()
    read = Glyphs.read
    monkeypatch.setattr(
        Glyphs, "read", lambda self, index: (drawn.add(CHARACTERS[self.labels[index]]), read(self, index))[1]
    )
    opened = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    record = run_trial(settings(*QUICK, is_sweep_job=True), tmp_path / "run")
    assert record.test is None
    assert record.stage == "search"
    assert drawn == set(CHARACTERS[:12])
    mine = [Path(path).name for path in opened if str(tmp_path) in path]
    assert any(name.startswith("trainval") for name in mine)
    assert not [name for name in mine if name.startswith("test")]
    assert not list(tmp_path.rglob("*.safetensors")), "a search keeps no models"


@pytest.mark.slow
def test_the_hook_of_the_test_above_sees_a_planted_opening(settings, tmp_path):
    opened = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    run_trial(settings(*QUICK, "stage=train", "fold=0"), tmp_path / "run")
    assert [path for path in opened if str(tmp_path) in path and Path(path).name.startswith("test-")]


@pytest.mark.slow
def test_a_diverging_trial_fails_with_its_reason_and_keeps_the_finished_folds(settings, folder, monkeypatch):
    s = settings(*QUICK)
    loss = assembly.EmbeddingModule.batch_loss
    folds = []

    def diverge_in_the_second_fold(self, batch):
        folds.append(id(self))
        return loss(self, batch) * (float("nan") if len(set(folds)) == 2 else 1.0)

    monkeypatch.setattr(assembly.EmbeddingModule, "batch_loss", diverge_in_the_second_fold)
    with pytest.raises(NonFiniteError):
        run_trial(s, folder)
    record = read_json(folder / "record.json", TrialRecord)
    assert record.status == "failed"
    assert record.failure.startswith("NonFiniteError: ")
    assert [fold.fold for fold in record.folds] == [0]
    monkeypatch.setattr(assembly.EmbeddingModule, "batch_loss", loss)
    assert run_trial(s, folder).status == "complete"


def test_non_finite_is_another_trials_matter_and_usage_errors_are_not():
    assert not NonFiniteError.is_usage_error
    assert ConfigError.is_usage_error
    assert DatasetError.is_usage_error


def test_too_few_classes_and_lonely_images_are_refused_before_training(settings, folder):
    with pytest.raises(SplitError, match="at least 8 classes.*found 5"):
        run_trial(settings("dataset.images.num_classes=5"), folder)
    with pytest.raises(DatasetError, match="at least 2 images in every class, found fewer in 24"):
        run_trial(settings("dataset.images.images_per_class=1"), folder / "b")


@pytest.mark.slow
def test_baselines_are_the_untrained_trunk_its_pca_and_the_untrained_embedder(settings, folder):
    s = settings("evaluation.baselines=true", "embedder.embedding_size=16", "schedule.iterations_per_epoch=1")
    record = run_trial(s, folder)
    assert set(record.test.baselines) == {"untrained_trunk", "untrained_trunk_pca", "untrained_embedder"}
    assert all(set(accuracies) == set(METRICS) for accuracies in record.test.baselines.values())
    assert all(fold.untrained_trunk_val is not None for fold in record.folds)
    trunk = assembly.build_module(s, 0, None).trunk.eval()
    data = assembly.TrialData(s)
    pixels, indices = data.test.cache.open(), data.test.cache.indices
    images = torch.stack([torch.tensor(data.test.cache.image(pixels, i)).permute(2, 0, 1) for i in indices])
    with torch.no_grad():
        expected = retrieval_metrics(trunk(images), torch.from_numpy(data.images.labels[indices])).as_dict()
    one_fold = run_trial(
        settings("embedder.embedding_size=16", "schedule.iterations_per_epoch=1", "fold=0"), folder / "0"
    )
    assert one_fold.test.baselines["untrained_trunk"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_a_pca_that_the_data_cannot_carry_is_missing_with_the_reason(settings, folder):
    record = run_trial(settings("schedule.iterations_per_epoch=1", "fold=0"), folder)
    assert record.test.baselines["untrained_trunk_pca"] is None
    assert any(
        "PCA to 128 needs as many test images and trunk features, found (72, 768)" in n for n in record.test.notes
    )
    assert "–" in render_trial(record)


def test_pca_keeps_the_distances_of_standardised_features():
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 3, 4, 5, 60.0])
    standardised = (features - features.mean(0)) / features.std(0, correction=0)
    reduced = reduce_by_pca(features, 6)
    distances = [torch.cdist(values.double(), values.double()) for values in (reduced, standardised)]
    torch.testing.assert_close(*distances, rtol=1e-4, atol=1e-4)


SPLITS = {
    # overrides; images of train, val and test of a fold of 24 classes with 6 images; classes of each
    "class_disjoint": (["split=class_disjoint"], (54, 18, 72), (9, 3, 12)),
    "closed_set": (["split=closed_set", "split.num_folds=3", "dataset.images.images_per_class=12"], (96, 48, 144), 24),
    "mlrc_of_3": (["split.num_folds=3"], (48, 24, 72), (8, 4, 12)),
}


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.slow
def test_a_trial_on_another_split_trains_validates_and_tests_its_images(settings, folder, name):
    overrides, num_images, num_classes = SPLITS[name]
    s = settings(*QUICK, *overrides, "schedule.max_epochs=1")
    record = run_trial(s, folder)
    assert record.status == "complete"
    assert [fold.fold for fold in record.folds] == list(range(s.split.num_folds))
    assert record.settings["split"]["name"] in record.protocol
    classes = num_classes if isinstance(num_classes, tuple) else (num_classes,) * 3
    for fold in record.folds:
        assert (fold.num_train_images, fold.num_val_queries, record.test.num_queries) == num_images
        assert (len(fold.train_classes), len(fold.val_classes)) == classes[:2]
    assert record.test.concatenated is not None
    assert f"test, concatenated, {128 * s.split.num_folds}" in render_trial(record)
    data = assembly.TrialData(s)
    assert len(set(data.images.labels[data.test.cache.indices])) == classes[2]
    for split in data.splits.values():
        assert set(data.trainval.cache.indices) == set(split.train) | set(split.val)
        assert set(data.trainval.cache.indices).isdisjoint(data.test.cache.indices)


@pytest.mark.slow
def test_the_split_column_of_a_csv_is_trained_validated_and_tested(compose_config, tmp_path, folder, image_folder):
    rows = ["path,label,split"]
    for path in sorted(image_folder.rglob("*.jpg")):
        label = int(path.parent.name[-2:])
        part = "test" if label in (0, 5) else "val" if label in (1, 2) else "train"
        rows.append(f"{path.relative_to(image_folder)},{label},{part}")
    (image_folder / "table.csv").write_text("\n".join(rows))
    overrides = [
        "dataset=image_csv", f"dataset.images.csv={image_folder / 'table.csv'}", "split=predefined",
        "trunk=small_cnn", "transform.resize=32", "transform.crop=32", "trainer=cpu", f"data_root={tmp_path}",
        "schedule.max_epochs=1", "schedule.save_interval=1", "loss=triplet", *QUICK,
    ]  # fmt: skip
    with pytest.raises(SplitError, match="names its val images.*Add split.num_folds=1"):
        run_trial(trial_settings(compose_config(*overrides), is_sweep_job=False), folder / "a")
    record = run_trial(trial_settings(compose_config(*overrides, "split.num_folds=1"), is_sweep_job=False), folder)
    (fold,) = record.folds
    assert fold.val_classes == (1, 2)
    assert fold.train_classes == (3, 4, 6, 7, 8, 9, 10, 11)
    assert record.test.num_queries == 8
    # one fold: its embedding is the concatenated one
    assert record.test.concatenated == record.test.separated


@pytest.mark.slow
def test_caches_of_two_splits_never_replace_each_other(settings):
    def data(split):
        return assembly.TrialData(settings(split, "dataset.images.images_per_class=16"))

    first, other = data("split=mlrc"), data("split=closed_set")
    assert first.trainval.cache.file.parent != other.trainval.cache.file.parent
    assert first.trainval.cache.file.exists()
    again = data("split=mlrc")
    assert again.trainval.cache.file == first.trainval.cache.file


class LeakingSplit:
    """A splitter of a user who made a mistake: the first test image is trained on as well."""

    def folds(self, labels, own_split):
        train, val, test = np.arange(0, 60), np.arange(60, 72), np.arange(72, 144)
        return [FoldSplit(0, labels, np.append(train, 72), val, test)]


class MySplit:
    """A splitter of a user: the last classes are validated on, one fold."""

    def folds(self, labels, own_split):
        return [FoldSplit(0, labels, np.arange(72, 126), np.arange(126, 144), np.arange(72))]


@pytest.mark.slow
def test_a_splitter_of_ones_own_is_taken_by_its_name_and_a_planted_leak_of_it_refused(settings, folder):
    own = ["split.name=mine", "split.num_folds=1"]
    s = settings(*QUICK, *own, "~split.splitter.num_folds", f"split.splitter._target_={__name__}.MySplit")
    record = run_trial(s, folder)
    assert record.folds[0].val_classes == (21, 22, 23)
    assert record.test.num_queries == 72
    leaking = settings(*own, "~split.splitter.num_folds", f"split.splitter._target_={__name__}.LeakingSplit")
    with pytest.raises(SplitError, match="train and test to share no image, found 1 shared"):
        assembly.TrialData(leaking)
