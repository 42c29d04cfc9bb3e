"""The paper's configuration, started as its users start it, on birds in the layout of CUB200."""

import pytest

from mlrc_lightning.data.datasets import cub200
from mlrc_lightning.names import RECORD_FILE
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.settings.compose import trial_settings
from tests.data.datasets import layouts
from tests.training.losses.cases import LOSSES

NUM_CLASSES, NUM_IMAGES = 16, 4
# of classes with weights of its own, of pairs with a learned margin for each class, of pairs with a miner
EVERY_TIME = ("arcface", "margin_per_class", "multi_similarity_miner")


@pytest.fixture
def birds(tmp_path, monkeypatch):
    """A data root with 16 species of CUB200, each with 4 images; the published counts are told of these."""
    layouts.cub(tmp_path / "cub200", NUM_CLASSES, NUM_IMAGES)
    monkeypatch.setattr(cub200, "NUM_CLASSES", NUM_CLASSES)
    monkeypatch.setattr(cub200, "NUM_IMAGES", NUM_CLASSES * NUM_IMAGES)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", [pytest.param(loss, marks=() if loss in EVERY_TIME else pytest.mark.nightly) for loss in LOSSES]
)
def test_the_paper_s_configuration_trains_one_epoch_and_leaves_a_record(loss, birds, compose_config):
    """BN-Inception at 227 px, batch 32, the published optimum; an epoch of 2 batches, one fold, random weights."""
    cfg = compose_config(
        "experiment=mlrc/cub200", f"loss={loss}", "hyperparameters=paper", f"data_root={birds}", "trainer=cpu",
        "fold=0", "trunk.pretrained=false", "schedule.max_epochs=1", "schedule.save_interval=1",
        "schedule.iterations_per_epoch=2", "evaluation.baselines=false", "keep_models=false",
    )  # fmt: skip
    record = run_trial(trial_settings(cfg, is_sweep_job=True), birds / "run")
    assert record == read_json(birds / "run" / RECORD_FILE, TrialRecord)
    assert (record.status, record.setting, record.loss) == ("complete", "cub200", loss)
    assert record.settings["hyperparameters"]["source"].startswith("paper")
    assert record.settings["hyperparameters"]["replaced"] == []
    assert (record.settings["trunk"]["name"], record.settings["transform"]["crop"]) == ("bn_inception", 227)
    (fold,) = record.folds
    assert (len(fold.train_classes), len(fold.val_classes), fold.num_train_images) == (6, 2, 24)
    untrained, epoch = fold.epochs
    assert fold.num_val_queries == 8
    assert 0 <= epoch.val["mean_average_precision_at_r"] <= 1
    assert untrained.train_loss is None
    assert epoch.train_loss > 0
    assert record.test is None
