"""docs/scale.md has the tables that benchmarks/scale.py makes; their inputs are the protocol's, and the trunk's."""

from pathlib import Path

import pytest
import scale
import torch
from torch.utils.flop_counter import FlopCounterMode

from mlrc_lightning.data.splits import first_half_classes, mlrc_classes
from mlrc_lightning.models.bn_inception import BNInception
from mlrc_lightning.training.selection import UNTRAINED_EPOCH, Selection

ROOT = Path(__file__).parents[1]


def test_the_page_has_the_tables_that_its_script_makes():
    page = (ROOT / "docs" / "scale.md").read_text()
    assert scale.replaced(page) == page, "run python benchmarks/scale.py --into docs/scale.md"
    assert "| models | 10,080 | 3,360 | 13,440 |" in page  # 14 losses x 60 trials and runs x 4 folds, 3 settings and 1


def test_the_trunk_costs_what_the_page_says():
    with torch.device("meta"):
        trunk = BNInception(pretrained=False).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            trunk(torch.empty(1, 3, 227, 227))
    assert counter.get_total_flops() / 2e9 == pytest.approx(scale.GMAC, abs=5e-4)
    assert sum(parameter.numel() for parameter in trunk.parameters()) / 1e6 == pytest.approx(10.27, abs=0.005)
    assert scale.gflop_per_training_image() == pytest.approx(12.3, abs=0.01)


@pytest.mark.parametrize(("name", "interval", "patience"), [("CUB200", 2, 9), ("Cars196", 5, 14), ("SOP", 20, 39)])
def test_the_fewest_epochs_are_those_of_a_model_that_never_beats_the_untrained_one(name, interval, patience):
    selection = Selection(patience)
    selection.update(UNTRAINED_EPOCH, 1.0)
    epoch = interval
    while not selection.should_stop(epoch):
        selection.update(epoch, 0.5)
        epoch += interval
    setting = next(setting for setting in scale.SETTINGS if setting.name == name)
    assert scale.epochs_of(setting, None) == epoch
    assert scale.epochs_of(setting, 100) == 100
    # as many validations as there are multiples of the interval, and one before training
    assert scale.images_of(setting, None) == (epoch * 100 * 32, (epoch // interval + 1) * setting.val_images)


@pytest.mark.parametrize(("name", "classes"), [("CUB200", 200), ("Cars196", 196), ("SOP", 22_634)])
def test_a_fold_validates_on_its_share_of_the_classes(name, classes):
    setting = next(setting for setting in scale.SETTINGS if setting.name == name)
    share = len(mlrc_classes(classes, 0, 4).val) / len(first_half_classes(classes))
    assert setting.val_images == int(setting.images * share)


def test_no_number_of_gpus_is_quicker_than_the_trials_of_the_longest_search_in_a_row():
    day = 86_400
    assert scale.days_on(8, 80 * day, day / 240, 60) == "10.00"
    assert scale.days_on(56, 56 * day, day, 60) == "240.00 (longest search)"  # 60 x 4 folds
    assert scale.days_on(224, 56 * day, day, 60) == "51.00 (longest search)"  # folds and runs side by side
    assert scale.seconds(100, 30, 10) == 11  # a validated image is a third of a trained one
    assert scale.seconds(100, 300, None) == 400 / 1022  # PIL decodes 511 a second and core, whatever for
