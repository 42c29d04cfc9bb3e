"""Composition: what is derived from the configuration, and that every shipped YAML builds and trains."""

import re

import pytest
import torch
from omegaconf import OmegaConf

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.files import config_folder
from mlrc_lightning.protocol.build import build_module
from mlrc_lightning.settings.compose import check_choices, trial_settings
from mlrc_lightning.settings.paper import search_space

LOSSES = sorted(path.stem for path in (config_folder() / "loss").glob("*.yaml"))
DATASETS = sorted(path.stem for path in (config_folder() / "dataset").glob("*.yaml"))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_builds_and_takes_a_step_that_moves_its_parameters(settings, loss):
    s = settings(f"loss={loss}")
    assert s.loss.name == loss
    module = build_module(s, fold=0, num_train_classes=8)
    optimizer = module.configure_optimizers()
    m = s.loss.samples_per_class
    images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8).repeat_interleave(m)[:32].repeat(32 // min(32, 8 * m))
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    loss_value = module.batch_loss((images, labels))
    loss_value.backward()
    optimizer.step()
    assert torch.isfinite(loss_value)
    moved = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(before), f"did not move: {set(before) - moved}"
    groups = optimizer.param_groups
    of_loss = list(module.objective.parameters())
    assert len(groups) == (2 if of_loss else 1)
    assert groups[0]["lr"] == s.optimizer["lr"]
    if of_loss:
        assert {id(p) for p in groups[1]["params"]} == {id(p) for p in of_loss}
        assert groups[1]["lr"] == s.loss.optimizer["lr"]


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("loss", ["arcface", "triplet"])
def test_every_dataset_composes_with_its_trunk(compose_config, dataset, loss):
    overrides = ["trunk.name=test_resnet"] if dataset.startswith("image_") else []
    s = trial_settings(compose_config(f"dataset={dataset}", f"loss={loss}", *overrides), is_sweep_job=False)
    assert s.dataset.name == s.setting == dataset
    assert s.optimizer["lr"] == s.trunk.learning_rate


@pytest.mark.parametrize("loss", LOSSES)
def test_the_search_space_is_the_reference_data_s(compose_config, loss):
    cfg = compose_config(f"loss={loss}", "dataset.paper_setting=cars196")
    space = OmegaConf.to_container(cfg.search_space, resolve=True)
    expected = search_space(cfg.loss.paper_name, "cars196", 32, cfg.loss.parameter_names)
    assert space == (expected or cfg.loss.search_space)
    for key in space:
        assert OmegaConf.select(cfg, key) is not None, f"{key} is no key of the configuration"


def test_arcface_on_cars_searches_what_the_paper_searched(compose_config):
    space = compose_config("loss=arcface", "dataset.paper_setting=cars196").search_space
    assert space["loss.function.margin"] == {"type": "range", "bounds": [0.0, 90.0], "log_scale": False}
    assert space["loss.function.scale"] == {"type": "range", "bounds": [0.01, 200.0], "log_scale": False}
    assert space["loss.optimizer.lr"] == {"type": "range", "bounds": [1e-6, 1.0], "log_scale": True}


def test_batch_256_searches_its_own_space_and_names_its_own_setting(compose_config):
    cfg = compose_config("loss=arcface", "batch_size=256")
    assert cfg.setting == "glyphs_batch256"
    assert cfg.search_space["loss.function.scale"]["bounds"] == [0.01, 100.0]
    assert compose_config("loss=arcface").search_space["loss.function.scale"]["bounds"] == [0.01, 200.0]


def test_a_parameter_without_a_key_is_refused():
    with pytest.raises(ConfigError, match="expected a key for 'margin' of Triplet"):
        search_space("Triplet", "cub200", 32, {"margn": "loss.function.margin"})


def test_the_protocol_numbers_of_photos_and_optimizer_are_those_of_the_sheet(compose_config):
    cfg = compose_config("dataset=image_folder", "trunk.name=resnet50")
    assert OmegaConf.to_container(cfg.transform) == {
        "resize": 256, "crop": 227, "scale": [0.16, 1.0], "ratio": [0.75, 1.33], "flip_probability": 0.5,
    }  # fmt: skip
    assert (cfg.optimizer.lr, cfg.optimizer.momentum, cfg.optimizer.weight_decay) == (1e-6, 0.9, 1e-4)
    assert (cfg.schedule.iterations_per_epoch, cfg.schedule.max_epochs) == (100, 1000)
    assert (cfg.schedule.save_interval, cfg.schedule.patience) == (2, 9)
    assert (cfg.embedder.embedding_size, cfg.batch_size) == (128, 32)


def protocol(compose_config, *overrides):
    return compose_config(*overrides).protocol


@pytest.mark.slow
def test_the_protocol_id_changes_with_the_protocol_and_with_nothing_else(compose_config):
    base = protocol(compose_config)
    assert re.fullmatch(r"mlrc-small_cnn-[0-9a-f]{8}", base)
    for same in ("loss=triplet", "seed=3", "fold=1", "trainer=cpu", "batch_size=256", "data_root=elsewhere"):
        assert protocol(compose_config, same) == base, same
    for other in ("trunk.model.width=32", "transform.crop=28", "optimizer.momentum=0.5", "schedule.max_epochs=9"):
        assert protocol(compose_config, other) != base, other


@pytest.mark.slow
def test_a_split_that_is_not_the_papers_is_part_of_the_protocol(compose_config):
    base = protocol(compose_config)
    assert base == "mlrc-small_cnn-dfcb5e35", "the name of results that are there already"
    assert protocol(compose_config, "split=mlrc") == protocol(compose_config, "split.num_folds=4") == base
    others = {
        split: protocol(compose_config, f"split={split}") for split in ("class_disjoint", "closed_set", "predefined")
    }
    for split, other in others.items():
        assert re.fullmatch(rf"mlrc-small_cnn-{split}-[0-9a-f]{{8}}", other)
    assert protocol(compose_config, "split=closed_set", "split.splitter.seed=1") != others["closed_set"]
    assert protocol(compose_config, "split.num_folds=3") != base
    assert protocol(compose_config, "split.splitter._target_=mine.Split") != base


@pytest.mark.parametrize("dataset", ["inshop", "inaturalist2018"])
@pytest.mark.slow
def test_a_dataset_with_a_published_split_brings_it_unless_another_is_asked_for(compose_config, dataset):
    assert compose_config(f"dataset={dataset}").split.name == "predefined"
    assert compose_config(f"dataset={dataset}", "split=mlrc").split.name == "mlrc"
    assert compose_config("split=class_disjoint", f"dataset={dataset}").split.name == "class_disjoint"


@pytest.mark.slow
def test_the_trials_of_another_split_lie_elsewhere(compose_config):
    assert run_folder(compose_config, "split=closed_set") != run_folder(compose_config)
    assert run_folder(compose_config, "split=mlrc").endswith("/glyphs/arcface/train/b0be05e2"), "found again"


def test_a_fold_must_be_one_of_the_split(settings):
    assert settings("split.num_folds=6", "fold=5").folds == (5,)
    assert settings("split=closed_set", "split.num_folds=2").folds == (0, 1)
    with pytest.raises(ConfigError, match="fold=2: expected all, one of 0 to 1"):
        settings("split.num_folds=2", "fold=2")
    with pytest.raises(ConfigError, match="split.num_folds=0: expected >= 1"):
        settings("split.num_folds=0")


@pytest.mark.slow
def test_a_datasets_own_schedule_is_no_deviation(compose_config):
    names = ["dataset=glyphs", "dataset=omniglot"]
    assert len({protocol(compose_config, name) for name in names}) == 1


def run_folder(compose_config, *overrides):
    return compose_config(*overrides, return_hydra_config=True).hydra.run.dir


@pytest.mark.slow
def test_a_run_folder_is_found_again_by_the_same_command_and_by_no_other(compose_config):
    base = run_folder(compose_config)
    assert re.fullmatch(r"outputs/mlrc-small_cnn-[0-9a-f]{8}/glyphs/arcface/train/[0-9a-f]{8}", base)
    for same in ("fold=1", "trainer=cpu", "data_root=elsewhere", "keep_models=false"):
        assert run_folder(compose_config, same) == base, same
    for other in ("seed=1", "loss.function.margin=10", "trainer.precision=bf16-mixed", "dataset.images.seed=2"):
        assert run_folder(compose_config, other) != base, other


@pytest.mark.slow
def test_weights_are_named_without_their_folder(compose_config):
    common = ["dataset=image_folder", "trunk.name=resnet18"]
    one = run_folder(compose_config, *common, "trunk.pretrained=a/b/weights.safetensors")
    assert run_folder(compose_config, *common, "trunk.pretrained=/c/weights.safetensors") == one
    assert run_folder(compose_config, *common, "trunk.pretrained=a/b/others.safetensors") != one


def test_unfilled_facts_and_misspelt_arguments_are_refused(settings):
    with pytest.raises(ConfigError, match="<num_test_classes> is not known here. Known: <num_train_classes>"):
        build_module(settings("loss.function.num_classes='<num_test_classes>'"), fold=0, num_train_classes=8)
    with pytest.raises(ConfigError, match="cannot build pytorch_metric_learning.losses.ArcFaceLoss.*marign"):
        build_module(settings("+loss.function.marign=3"), fold=0, num_train_classes=8)
    with pytest.raises(ConfigError, match="cannot build torch.optim.RMSprop.*momentun"):
        build_module(settings("+optimizer.momentun=3"), fold=0, num_train_classes=8).configure_optimizers()
    with pytest.raises(ConfigError, match="cannot build pytorch_metric_learning.losses.NoSuchLoss"):
        build_module(
            settings("loss.function._target_=pytorch_metric_learning.losses.NoSuchLoss"), 0, num_train_classes=8
        )


@pytest.mark.parametrize(("option", "plain"), [("batch=b256", "batch_size=256"), ("folds=f2", "fold=2")])
def test_an_option_of_a_group_is_the_plain_key(compose_config, option, plain):
    by_option, by_key = (compose_config(word, return_hydra_config=True) for word in (option, plain))
    assert by_option.hydra.run.dir == by_key.hydra.run.dir, "the folder ends with the id of the trial"
    assert (by_option.batch_size, by_option.fold) == (by_key.batch_size, by_key.fold)


@pytest.mark.parametrize(("option", "setting"), [("b32", "cub200"), ("b256", "cub200_batch256")])
@pytest.mark.parametrize("experiment", ["cub200", "cub200_batch256"])
def test_a_batch_on_the_command_line_wins(compose_config, experiment, option, setting):
    assert compose_config(f"experiment=mlrc/{experiment}", f"batch={option}").setting == setting


def test_an_option_that_is_replaced_is_refused(compose_config):
    cfg = compose_config("batch=b256", "batch_size=64", "folds=f1", "fold=2")
    with pytest.raises(ConfigError, match="batch=b256: expected batch_size=256, found batch_size=64"):
        check_choices(cfg, ["batch=b256", "batch_size=64"])
    with pytest.raises(ConfigError, match="folds=f1: expected fold=1, found fold=2"):
        check_choices(cfg, ["folds=f1"])
    check_choices(compose_config("batch=b256", "folds=all"), ["batch=b256", "folds=all"])
