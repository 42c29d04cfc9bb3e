"""A frozen trunk: its features are what it would compute, training on them is training, and nothing mixes."""

import dataclasses
import os
import threading

import mlrc_lightning._torchvision  # noqa: F401

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch.nn.functional import normalize

from mlrc_lightning.data.augment import center_crop
from mlrc_lightning.errors import ConfigError, DatasetError, NonFiniteError
from mlrc_lightning.metrics import retrieval_metrics
from mlrc_lightning.models.folder import file_digest
from mlrc_lightning.models.timm_trunk import TimmTrunk
from mlrc_lightning.protocol import baselines
from mlrc_lightning.protocol import build as assembly
from mlrc_lightning.protocol.build import TrialData, build_datamodule, build_module, train_transform
from mlrc_lightning.protocol.evaluation import evaluate_again
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.training import features

NAME = "test_resnet"
VIEWS = 3


def write_weights(path, seed):
    torch.manual_seed(seed)
    safetensors.torch.save_file(timm.create_model(NAME, num_classes=10).state_dict(), path)
    return path


@pytest.fixture
def weights(tmp_path):
    return write_weights(tmp_path / "weights.safetensors", 0)


@pytest.fixture
def frozen(settings, weights):
    """Settings of a trial with a frozen trunk: `frozen("loss=triplet")`."""

    def read(*overrides):
        return settings(
            "trunk=timm", f"trunk.name={NAME}", f"trunk.pretrained={weights}", "trunk.frozen=true", "fold=0",
            f"trunk.views={VIEWS}", "trunk.learning_rate=1e-3", "evaluation.baselines=false", *overrides,
        )  # fmt: skip

    return read


def trunk_of(settings):
    return TimmTrunk(NAME, settings.trunk.pretrained).eval()


def embedded(trunk, images):
    with torch.no_grad():
        return trunk(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))


@pytest.mark.slow
def test_features_are_those_of_the_centre_crop_and_of_the_views_of_the_training_transform(frozen):
    s = frozen()
    data = TrialData(s)
    found = data.trainval.features
    opened, pixels = found.open(), data.trainval.cache.open()
    trunk, transform = trunk_of(s), train_transform(s)
    assert opened.shape == (len(found.indices), 1 + VIEWS, trunk.num_features)
    for row in (0, 40, len(found.indices) - 1):
        index = int(found.indices[row])
        image = data.trainval.cache.image(pixels, index)
        views = [transform(image, np.random.default_rng([index, view])) for view in range(VIEWS)]
        expected = embedded(trunk, [center_crop(image, s.transform.crop), *views])
        torch.testing.assert_close(torch.from_numpy(opened[row].copy()), expected, rtol=1e-4, atol=1e-5)
    assert len({values.tobytes() for values in opened[0]}) == 1 + VIEWS
    assert data.test.features.open().shape == (len(data.test.cache.indices), 1, trunk.num_features)


@pytest.mark.slow
def test_training_on_features_is_training_an_embedder_on_the_trunk(frozen, tmp_path):
    s = frozen("schedule.max_epochs=1", "schedule.iterations_per_epoch=6", "loss=multi_similarity")
    record = run_trial(s, tmp_path / "run")
    # the same by hand: images through the trunk, one optimizer step a batch
    data = TrialData(s)
    split = data.splits[0]
    datamodule = build_datamodule(s, data, split)
    module = build_module(s, 0, len(split.classes("train")), data.num_features)
    embedder, trunk, transform = module.embedder, trunk_of(s), train_transform(s)
    optimizer = torch.optim.RMSprop(embedder.parameters(), lr=1e-3, **{
        name: value for name, value in s.optimizer.items() if name not in ("_target_", "_partial_", "lr")
    })  # fmt: skip
    opened = data.trainval.cache.open()
    for number in range(6):
        batch = datamodule.batches.batch(number)
        images = [
            transform(data.trainval.cache.image(opened, index), np.random.default_rng([index, seed % VIEWS]))
            for index, seed in batch
        ]
        labels = torch.tensor([int(data.images.labels[index]) for index, _ in batch])
        optimizer.zero_grad()
        module.objective(normalize(embedder(embedded(trunk, images)), dim=1), labels).backward()
        optimizer.step()
    kept = safetensors.torch.load_file(tmp_path / "run" / record.folds[0].weights["embedder"])
    if record.folds[0].selected_epoch == 0:
        pytest.fail("the test needs a setting that learns")
    torch.testing.assert_close(kept["weight"], embedder.weight.data, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_model_folder_is_whole_and_gives_the_record_s_figures(frozen, tmp_path):
    s = frozen()
    record = run_trial(s, tmp_path / "run")
    fold = record.folds[0]
    file = tmp_path / "run" / fold.weights["trunk"]
    assert file_digest(file) == fold.weight_digests["trunk"] == record.dataset["frozen_features"]["trunk_sha256"]
    assert os.stat(file).st_nlink > 1  # one file for all models
    trunk = TimmTrunk(NAME, False)
    trunk.load_state_dict(safetensors.torch.load_file(file))
    embedder = safetensors.torch.load_file(tmp_path / "run" / fold.weights["embedder"])
    data = TrialData(s)
    images, opened = data.test.cache.indices, data.test.cache.open()
    crops = [center_crop(data.test.cache.image(opened, int(index)), s.transform.crop) for index in images]
    embeddings = normalize(embedded(trunk.eval(), crops) @ embedder["weight"].T + embedder["bias"], dim=1)
    expected = retrieval_metrics(embeddings, torch.from_numpy(data.images.labels[images])).as_dict()
    assert record.test.separated == pytest.approx(expected, abs=1e-3)
    again = evaluate_again(s, data, record.folds, tmp_path / "run", "test")
    assert again.separated == record.test.separated
    assert evaluate_again(s, data, record.folds, tmp_path / "run", "val").separated == pytest.approx(fold.val)


@pytest.mark.slow
def test_baselines_are_those_of_the_trunk_itself(frozen, settings, weights, tmp_path):
    s = frozen("evaluation.baselines=true")
    found = run_trial(s, tmp_path / "frozen")
    trunk = dataclasses.replace(s.trunk, frozen=False)
    expected = run_trial(dataclasses.replace(s, trunk=trunk), tmp_path / "trained")
    for name in ("untrained_trunk", "untrained_embedder"):
        assert found.test.baselines[name] == pytest.approx(expected.test.baselines[name], abs=1e-3)
    assert found.folds[0].untrained_trunk_val == pytest.approx(expected.folds[0].untrained_trunk_val, abs=1e-3)


@pytest.mark.slow
def test_a_search_computes_no_features_of_test_images(frozen, tmp_path):
    run_trial(frozen("stage=search"), tmp_path / "run")
    made = {path.name.partition("-")[0] for path in tmp_path.rglob("*.float32")}
    assert made == {"trainval"}


@pytest.mark.slow
def test_features_are_computed_once(frozen, tmp_path, monkeypatch):
    run_trial(frozen("stage=search"), tmp_path / "one")

    def refuse(*arguments, **more):
        raise AssertionError("the trunk was built again")

    monkeypatch.setattr("mlrc_lightning.models.timm_trunk.TimmTrunk.__init__", refuse)
    run_trial(frozen("stage=search", "loss=triplet", "seed=3"), tmp_path / "two")


@pytest.mark.slow
def test_two_that_want_the_same_features_compute_them_once(frozen, monkeypatch):
    s, built = frozen("stage=search"), []
    TrialData(dataclasses.replace(s, trunk=dataclasses.replace(s.trunk, frozen=False)))  # decoded already
    started = threading.Event()
    forward = features._forward

    def slow(*arguments):
        started.set()
        return forward(*arguments)

    monkeypatch.setattr(features, "_forward", slow)
    monkeypatch.setattr(
        assembly, "build", lambda target, *more, build=assembly.build, **facts: (
            built.append(target["_target_"]), build(target, *more, **facts))[1]
    )  # fmt: skip
    found = []
    threads = [threading.Thread(target=lambda: found.append(TrialData(s).trainval.features)) for _ in range(2)]
    threads[0].start()
    started.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join(60)
    assert found[0].digest == found[1].digest
    assert sum(target.endswith("TimmTrunk") for target in built) == 1


@pytest.mark.slow
def test_what_was_computed_before_a_kill_is_not_computed_again(frozen, monkeypatch, tmp_path):
    s, calls, forward = frozen("stage=search"), [], features._forward
    expected = TrialData(s).trainval.features
    reference = expected.open().copy()
    for path in (expected.file, expected.file.with_suffix(".json")):
        path.unlink()

    def killed(*arguments):
        calls.append(len(arguments[1]))
        if len(calls) == (1 + VIEWS) + 2:  # in the second step
            raise KeyboardInterrupt
        return forward(*arguments)

    monkeypatch.setattr(features, "_forward", killed)
    with pytest.raises(KeyboardInterrupt):
        TrialData(s)
    monkeypatch.setattr(
        features, "_forward", lambda *arguments: (calls.append(len(arguments[1])), forward(*arguments))[1]
    )
    calls.clear()
    found = TrialData(s).trainval.features
    np.testing.assert_array_equal(found.open(), reference)
    assert found.digest == expected.digest
    assert sum(calls) == (len(found.indices) - features._BATCH) * (1 + VIEWS)


@pytest.mark.slow
def test_other_weights_are_other_features(frozen, weights):
    before = TrialData(frozen("stage=search")).trainval.features
    write_weights(weights, 1)
    after = TrialData(frozen("stage=search")).trainval.features
    assert before.file != after.file
    assert before.digest != after.digest
    # and the same weights elsewhere are the same
    copy = weights.with_name("copy.safetensors")
    copy.write_bytes(weights.read_bytes())
    assert TrialData(frozen("stage=search", f"trunk.pretrained={copy}")).trainval.features.file == after.file


@pytest.mark.slow
def test_a_proxy_is_named_so_and_has_results_of_its_own(frozen, settings, weights):
    proxy = frozen()
    assert proxy.protocol.startswith(f"mlrc-frozen_proxy-{NAME}-")
    assert proxy.protocol != frozen("trunk.views=4").protocol
    names = ["trunk=timm", f"trunk.name={NAME}", f"trunk.pretrained={weights}"]
    own = settings(*names)
    assert "proxy" not in own.protocol
    assert own.protocol == settings(*names, "trunk.views=4").protocol  # of no effect on a trunk that trains


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trunk.pretrained=false", "trunk.pretrained=False: expected weights"),
        ("trainer.compile=true", "trainer.compile=True: expected false with trunk.frozen=true"),
        (
            "trunk.learning_rate=1e-6",
            "trunk.learning_rate=1e-06: expected more than the paper's 1e-06 with trunk.frozen",
        ),
        ("trainer.channels_last=true", "trainer.channels_last=True: expected false"),
        ("trunk.views=0", "trunk.views=0: expected >= 1"),
    ],
)
@pytest.mark.slow
def test_what_makes_no_sense_is_refused(frozen, override, message):
    with pytest.raises(ConfigError, match=message):
        frozen(override)


def test_a_small_disk_and_a_broken_trunk_are_told(frozen, monkeypatch):
    s = frozen("stage=search")
    with monkeypatch.context() as patched:
        patched.setattr(features, "_forward", lambda trunk, images, device: torch.full((len(images), 64), torch.nan))
        with pytest.raises(NonFiniteError, match="not finite"):
            TrialData(s)
    usage = features.shutil.disk_usage("/")
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DatasetError, match=r"fewer trunk.views"):
        TrialData(s)


@pytest.mark.slow
def test_an_untrained_pretrained_trunk_is_evaluated_once_a_fold(settings, weights, tmp_path, monkeypatch):
    names = ["trunk=timm", f"trunk.name={NAME}", f"trunk.pretrained={weights}", "fold=0", "stage=search"]
    names += ["evaluation.check_untrained_accuracy=true", "schedule.iterations_per_epoch=1", "schedule.max_epochs=1"]
    expected = run_trial(settings(*names), tmp_path / "one").folds[0].untrained_trunk_val
    evaluated = []
    features_of = baselines._untrained_features
    monkeypatch.setattr(
        baselines, "_untrained_features", lambda *more: (evaluated.append(more[3]), features_of(*more))[1]
    )
    again = run_trial(settings(*names, "loss=triplet", "seed=1"), tmp_path / "two").folds[0].untrained_trunk_val
    assert again == expected
    assert evaluated == []
    write_weights(weights, 1)
    other = run_trial(settings(*names, "loss=contrastive"), tmp_path / "three").folds[0].untrained_trunk_val
    assert evaluated == [0]
    assert other != expected
