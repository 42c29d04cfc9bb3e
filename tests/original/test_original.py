"""Folders and models of the original: what they become, what is told, and that models go there and back bit for bit.

The folders are written as the original writes them (`yaml.dump` of one mapping a category, `sort_keys=False`), in the
keys of the paper's time (powerful-benchmarker a354e75, with pytorch-metric-learning up to 0.9.86) and those of 0.9.33.
"""

import copy
import csv
import itertools
import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import mlrc_lightning._torchvision  # noqa: F401  # isort: skip
import pytest
import torch
import yaml
from torch import nn

from mlrc_lightning import __main__ as cli
from mlrc_lightning.errors import ConfigError, RecordError, WeightsError
from mlrc_lightning.files import as_json, config_folder
from mlrc_lightning.models.bn_inception import BNInception
from mlrc_lightning.models.small_cnn import SmallCNN
from mlrc_lightning.original.models import export_original, load_original
from mlrc_lightning.original.run import reproduce
from mlrc_lightning.original.translate import is_original, read_original
from mlrc_lightning.protocol.trial import run_trial
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.settings.compose import trial_settings
from mlrc_lightning.settings.identity import identity
from mlrc_lightning.training.module import EmbeddingModule

REFERENCE = config_folder().parent / "mlrc_lightning" / "reference"
SETTINGS = {  # dataset class, save_interval, patience, batch size (PROTOCOL 1.3, 1.4)
    "cub200": ("CUB200", 2, 9, 32),
    "cars196": ("Cars196", 5, 14, 32),
    "sop": ("StanfordOnlineProducts", 20, 39, 32),
    "cub200_batch256": ("CUB200", 2, 9, 256),
}
# the original's class, and what its configs hold beside the searched parameters
LOSSES = {
    "Contrastive": ("ContrastiveLoss", {"use_similarity": False, "power": 1, "avg_non_zero_only": True}),
    "Triplet": ("TripletMarginLoss", {"avg_non_zero_only": True}),
    "NTXent": ("NTXentLoss", {}),
    "ProxyNCA": ("ProxyNCALoss", {}),
    "Margin": ("MarginLoss", {"nu": 0, "learnable_param_names": ["beta"]}),
    "Margin / class": ("MarginLoss", {"nu": 0, "learnable_param_names": ["beta"], "num_class_per_param": True}),
    "Normalized Softmax": ("NormalizedSoftmaxLoss", {}),
    "CosFace": ("CosFaceLoss", {}),
    "ArcFace": ("ArcFaceLoss", {}),
    "FastAP": ("FastAPLoss", {}),
    "SNR Contrastive": ("SignalToNoiseRatioContrastiveLoss", {"avg_non_zero_only": True}),
    "Multi Similarity": ("MultiSimilarityLoss", {}),
    "Multi Similarity + Miner": ("MultiSimilarityLoss", {}),
    "SoftTriple": ("SoftTripleLoss", {}),
}
CLASSIFICATION = {"ProxyNCA", "Normalized Softmax", "CosFace", "ArcFace", "SoftTriple"}
RMSPROP = {"lr": 0.000001, "weight_decay": 0.0001, "momentum": 0.9}


def old_configs(loss="ContrastiveLoss", arguments=None, setting="cub200"):
    """The files of the paper's time: one file for data and training, the batch size with the models."""
    dataset, save_interval, patience, batch_size = SETTINGS[setting]
    return {
        "config_general": {
            "training_method": "MetricLossOnly",
            "testing_method": "GlobalEmbeddingSpaceTester",
            "meta_testing_method": "ConcatenateEmbeddings",
            "dataset": {dataset: None},
            "num_epochs_train": 1000,
            "iterations_per_epoch": 100,
            "save_interval": save_interval,
            "special_split_scheme_name": None,
            "test_size": 0.5,
            "test_start_idx": 0.5,
            "num_training_partitions": 4,
            "num_training_sets": 4,
            "label_hierarchy_level": 0,
            "dataloader_num_workers": 2,
            "check_untrained_accuracy": True,
            "skip_eval_if_already_done": True,
            "skip_meta_eval_if_already_done": True,
            "patience": patience,
        },
        "config_models": {
            "models": {
                "trunk": {"bninception": {"pretrained": "imagenet"}},
                "embedder": {"MLP": {"layer_sizes": [128]}},
            },
            "batch_size": batch_size,
            "freeze_batchnorm": True,
        },
        "config_optimizers": {
            "optimizers": {
                "trunk_optimizer": {"RMSprop": dict(RMSPROP)},
                "embedder_optimizer": {"RMSprop": dict(RMSPROP)},
            }
        },
        "config_loss_and_miners": {
            "loss_funcs": {"metric_loss": {loss: arguments}},
            "sampler": {"MPerClassSampler": {"m": 4}},
            "mining_funcs": {},
        },
        "config_transforms": {
            "transforms": {
                "train": {
                    "Resize": {"size": 256},
                    "RandomResizedCrop": {"scale": "0.16 1", "ratio": "0.75 1.33", "size": 227},
                    "RandomHorizontalFlip": {"p": 0.5},
                },
                "eval": {"Resize": {"size": 256}, "CenterCrop": {"size": 227}},
            }
        },
        "config_eval": {
            "eval_reference_set": "compared_to_self",
            "eval_normalize_embeddings": True,
            "eval_use_trunk_output": False,
            "eval_batch_size": 32,
            "eval_primary_metric": "mean_average_precision_at_r",
            "eval_dataloader_num_workers": 2,
            "eval_pca": None,
            "eval_size_of_tsne": 0,
        },
    }


def new_configs():
    """The same experiment in the keys of 0.9.33, with all its eight files."""
    configs = old_configs()
    del configs["config_models"]["batch_size"], configs["config_models"]["freeze_batchnorm"]
    return configs | {
        "config_dataset": {
            "dataset": {"CUB200": None},
            "splits_to_eval": ["val"],
            "split_manager": {
                "MLRCSplitManager": {
                    "test_size": 0.5,
                    "test_start_idx": 0.5,
                    "num_training_partitions": 4,
                    "num_training_sets": 4,
                    "hierarchy_level": 0,
                    "data_and_label_getter_keys": ["data", "label"],
                }
            },
        },
        "config_general": {
            "api_parser": None,
            "trainer": {
                "MetricLossOnly": {
                    "iterations_per_epoch": 100,
                    "dataloader_num_workers": 2,
                    "batch_size": 32,
                    "freeze_trunk_batchnorm": True,
                    "label_hierarchy_level": 0,
                    "loss_weights": None,
                    "set_min_label_to_zero": True,
                }
            },
            "num_epochs_train": 1000,
            "save_interval": 2,
            "patience": 9,
            "check_untrained_accuracy": True,
            "skip_eval_if_already_done": True,
            "skip_ensemble_eval_if_already_done": True,
            "log_data_to_tensorboard": True,
            "save_figures_on_tensorboard": False,
            "save_lists_in_db": False,
            "override_required_compatible_factories": False,
        },
        "config_eval": {
            "tester": {
                "GlobalEmbeddingSpaceTester": {
                    "reference_set": "compared_to_self",
                    "normalize_embeddings": True,
                    "use_trunk_output": False,
                    "batch_size": 32,
                    "dataloader_num_workers": 2,
                    "pca": None,
                    "accuracy_calculator": {"AccuracyCalculator": None},
                    "label_hierarchy_level": 0,
                    "visualizer": {},
                }
            },
            "aggregator": {"MeanAggregator": {"split_to_aggregate": "val"}},
            "ensemble": {"ConcatenateEmbeddings": {"normalize_embeddings": True, "use_trunk_output": False}},
            "hook_container": {
                "HookContainer": {
                    "primary_metric": "mean_average_precision_at_r",
                    "validation_split_name": "val",
                    "save_models": True,
                }
            },
        },
        "config_factories": {
            "factories": {
                key: {f"{name}Factory": {}}
                for key, name in {"model": "Model", "loss": "Loss", "split_manager": "SplitManager"}.items()
            }
        },
    }


@pytest.fixture
def write(tmp_path):
    """Writes an experiment folder; returns it."""

    def written(configs, name="cub_contrastive41_reproduction0", parameters=None, best=None):
        folder = tmp_path / name
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        for category, content in configs.items():
            text = (
                content if isinstance(content, str) else yaml.dump(content, default_flow_style=False, sort_keys=False)
            )
            (folder / "configs" / f"{category}.yaml").write_text(text)
        if parameters is not None:
            (folder / "bayes_opt_parameters.yaml").write_text(yaml.dump(parameters))
        if best is not None:
            content = {
                "best_sub_experiment_name": f"{name}41",
                "best_parameters": best,
                "best_values": {"x": {"SEM": 0}},
            }
            (folder / "best_parameters.yaml").write_text(yaml.dump(content))
        return folder

    return written


@pytest.fixture
def settings_of(compose_config):
    """The settings of a trial that a translated folder gives."""

    def composed(folder, *given):
        return trial_settings(compose_config(*read_original(folder, given).overrides), is_sweep_job=False)

    return composed


def changed(configs, path, value):
    configs = copy.deepcopy(configs)
    node = configs
    *above, last = path.split("/")
    for key in above:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return configs


def notes(experiment):
    return {unmapped.key: unmapped.instead for unmapped in experiment.unmapped}


MISSING_OF_OLD = {"configs/config_dataset.yaml", "configs/config_factories.yaml"}  # categories that came later


# the 56 published settings


def optimum(paper_name, setting):
    """The paper's best parameters, by the original's path below the loss, the miner or the optimizer."""
    values = {}
    for file in ("optimal_hyperparameters.csv", "optimal_hyperparameters_full_precision.csv"):
        with (REFERENCE / file).open(encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                if (row["loss"], row["setting"]) == (paper_name, setting) and row["value"] != "N/A":
                    name = "lr" if row["parameter"].endswith("lr") else row["parameter"].removeprefix("init ")
                    values[name] = int(row["value"]) if name == "num_bins" else float(row["value"])
    return values


def published(paper_name, setting):
    """The folder of one published reproduction, without its models."""
    name, fixed = LOSSES[paper_name]
    values = optimum(paper_name, setting)
    lr, epsilon = values.pop("lr", None), values.pop("epsilon", None)
    if paper_name == "SoftTriple":
        fixed = {"centers_per_class": 1 if setting == "sop" else 10, "reg_weight": 0.2}  # overwritten where searched
    configs = old_configs(name, {**fixed, **values}, setting)
    if lr is not None:
        weight_decay = 0 if paper_name.startswith("Margin") else 0.0001
        of_loss = {"RMSprop": {"lr": lr, "weight_decay": weight_decay, "momentum": 0.9}}
        configs["config_optimizers"]["optimizers"]["metric_loss_optimizer"] = of_loss
    if epsilon is not None:
        miner = {"tuple_miner": {"MultiSimilarityMiner": {"epsilon": epsilon}}}
        configs["config_loss_and_miners"]["mining_funcs"] = miner
    if paper_name in CLASSIFICATION:
        configs["config_loss_and_miners"]["sampler"]["MPerClassSampler"]["m"] = 1
    return configs


def cells():
    """Every loss at every setting; at one setting each time, at the others nightly."""
    found = []
    for number, name in enumerate(LOSSES):
        for place, setting in enumerate(SETTINGS):
            is_nightly = number % len(SETTINGS) != place and (name, setting) != ("SoftTriple", "sop")
            found.append(pytest.param(name, setting, marks=pytest.mark.nightly if is_nightly else ()))
    return found


@pytest.mark.parametrize(("paper_name", "setting"), cells())
@pytest.mark.slow
def test_a_published_folder_is_the_trial_of_hyperparameters_paper(
    write, settings_of, compose_config, paper_name, setting
):
    folder = write(published(paper_name, setting))
    found = settings_of(folder)
    by_paper_name = {
        yaml.safe_load(path.read_text())["paper_name"]: path.stem for path in (config_folder() / "loss").glob("*.yaml")
    }
    overrides = [f"experiment=mlrc/{setting}", f"loss={by_paper_name[paper_name]}", "hyperparameters=paper"]
    expected = trial_settings(compose_config(*overrides), is_sweep_job=False)
    assert identity(as_json(found)) == identity(as_json(expected))
    assert (found.folds, found.trunk.pretrained) == ((0, 1, 2, 3), True)
    told = set(notes(read_original(folder)))
    where = f"loss_funcs/metric_loss/{LOSSES[paper_name][0]}"
    dropped = {f"{where}/{key}" for key in ("avg_non_zero_only", "use_similarity") if key in LOSSES[paper_name][1]}
    if (paper_name, setting) == ("SoftTriple", "sop"):
        dropped.add(f"{where}/reg_weight")
    assert told == MISSING_OF_OLD | dropped


def test_the_keys_of_0_9_33_say_the_same_and_leave_nothing_unmapped(write, settings_of):
    new, old = write(new_configs(), "new"), write(old_configs(), "old")
    assert as_json(settings_of(new)) == as_json(settings_of(old))
    where = "loss_funcs/metric_loss/ContrastiveLoss"
    assert set(notes(read_original(new))) == {f"{where}/pos_margin", f"{where}/neg_margin"}  # taken from conf/loss
    assert settings_of(new).loss.function["neg_margin"] == 1.0


# keywords


@pytest.mark.parametrize(
    ("category", "text", "expected"),
    [
        ("config_dataset", "dataset~OVERRIDE~:\n  Cars196:\n", ["dataset=cars196"]),
        ("config_dataset", "dataset~OVERRIDE~:\n  StanfordOnlineProducts:\n", ["dataset=sop"]),
        ("config_dataset", "dataset: {CUB200: {download: True}}", ["dataset=cub200"]),
        ("config_dataset", "dataset~SWAP~1: {Cars196: {}}", ["dataset=cars196"]),
        ("config_dataset", "split_manager~APPLY~2: {num_training_sets: 1}", ["fold=0"]),
        ("config_dataset", "split_manager~APPLY~2: {num_training_sets: 2}", ["fold=[0,1]"]),
        ("config_general", "trainer~APPLY~2:\n  batch_size: 256\n", ["batch_size=256"]),
        ("config_general", "save_interval: 20\npatience: 39\n", ["schedule.save_interval=20", "schedule.patience=39"]),
        ("config_general", "patience: null\n", ["schedule.patience=null"]),
        ("config_models", "batch_size: 256", ["batch_size=256"]),
        ("config_models", "models: {trunk: {bninception~APPLY~1: {pretrained: null}}}", ["trunk.pretrained=false"]),
        ("config_optimizers", "optimizers~APPLY~3: {lr: 1e-5}", ["optimizer.lr=1e-05", "optimizer.momentum=0.9"]),
        (
            "config_transforms",
            "transforms: {train: {RandomHorizontalFlip~DELETE~: {}}}",
            ["transform.flip_probability=0.0"],
        ),
        ("config_loss_and_miners", "sampler~OVERRIDE~:\n  MPerClassSampler:\n    m: 1", ["loss.samples_per_class=1"]),
        (
            "config_loss_and_miners",
            "loss_funcs~OVERRIDE~: {metric_loss: {TripletMarginLoss: {margin: 0.1}}}",
            ["loss=triplet", "loss.function.margin=0.1"],
        ),
        (
            "config_loss_and_miners",
            "mining_funcs: {tuple_miner: {MultiSimilarityMiner: {epsilon: 0.2}}}",
            [
                "loss=contrastive",
                "loss.miner={_target_:pytorch_metric_learning.miners.MultiSimilarityMiner,epsilon:0.2}",
            ],
        ),
        (
            "config_optimizers",
            "optimizers~SWAP~2: {Adam: {}}",
            ["optimizer._target_=torch.optim.Adam", "~optimizer.momentum"],
        ),
    ],
)
def test_the_packaged_variants_and_keywords_have_their_effect(write, compose_config, category, text, expected):
    if "Adam" in text:
        values = {"lr": 1.0e-6, "weight_decay": 1.0e-4}
        text = (
            yaml.dump({"optimizers": {f"{k}_optimizer": {"RMSprop": dict(values)} for k in ("trunk", "embedder")}})
            + text
        )
    experiment = read_original(write({category: text}))
    assert set(expected) <= set(experiment.overrides)
    files = {key for key in notes(experiment) if key.startswith("configs/")}
    assert len(files) == 7  # every category but this one fell back to the original's defaults
    assert all(notes(experiment)[key] == "no such file, the original's defaults are taken" for key in files)
    cfg = compose_config(*experiment.overrides)
    assert trial_settings(cfg, is_sweep_job=False).setting == cfg.setting


def test_a_search_s_trial_takes_its_parameters_and_a_whole_search_the_best(write, settings_of):
    configs = old_configs(
        "MultiSimilarityLoss", {"alpha~LOG_BAYESIAN~": [0.01, 100], "beta": 50, "base~BAYESIAN~": [0, 1]}
    )
    values = {
        f"loss_funcs/metric_loss/MultiSimilarityLoss/{key}": value for key, value in (("alpha", 3.5), ("base", 0.25))
    }
    for folder in (write(configs, "trial", values), write(configs, "search", best=values)):
        function = settings_of(folder).loss.function
        assert (function["alpha"], function["beta"], function["base"]) == (3.5, 50.0, 0.25)
        assert set(notes(read_original(folder))) == MISSING_OF_OLD
    both = write(configs, "both", values, dict.fromkeys(values, 9.0))  # the trial's own, where it has some
    assert settings_of(both).loss.function["alpha"] == 3.5


def test_bounds_without_a_value_are_refused_unless_one_is_given(write, settings_of):
    folder = write(old_configs("TripletMarginLoss", {"margin~BAYESIAN~": [-0.2, 2]}))
    message = (
        r"TripletMarginLoss/margin~BAYESIAN~: \[-0.2, 2\] has no counterpart.*bayes_opt_parameters.yaml or best_.*"
    )
    with pytest.raises(ConfigError, match=f"{message}Give what shall be taken instead: loss.function.margin=…"):
        read_original(folder)
    assert settings_of(folder, "loss.function.margin=0.3").loss.function["margin"] == 0.3


def test_parameters_that_do_not_fit_the_configs_are_told(write):
    values = {
        "loss_funcs/metric_loss/TripletMarginLoss/margin": 0.2,
        "optimizers/metric_loss_optimizer/RMSprop/lr": 0.1,
    }
    told = notes(read_original(write(old_configs("TripletMarginLoss", {"margin": 0.1}), parameters=values)))
    assert told["bayes_opt_parameters.yaml: loss_funcs/metric_loss/TripletMarginLoss/margin"] == (
        "configs/ has 0.1, which is taken"
    )
    assert "no such entry" in told["bayes_opt_parameters.yaml: optimizers/metric_loss_optimizer/RMSprop/lr"]


def test_settings_changed_on_a_resume_are_told(write):
    folder = write(old_configs())
    diffs = folder / "configs" / "resume_training_config_diffs_50_30_0_0"
    diffs.mkdir()
    (diffs / "config_general.yaml").write_text("num_epochs_train: 150\n")
    (found,) = [u for u in read_original(folder).unmapped if "resume_training" in u.key]
    assert found.value == {"num_epochs_train": 150}
    assert "from epoch 50, 30, 0, 0 of its folds" in found.instead


# versions of a loss


@pytest.mark.parametrize(
    ("arguments", "name", "learns"),
    [
        ({"margin": 0.1, "nu": 0, "beta": 1}, "margin", False),
        ({"margin": 0.1, "nu": 0, "beta": 1, "learnable_param_names": ["beta"]}, "margin", True),
        (
            {"margin": 0.1, "nu": 0, "beta": 1, "learnable_param_names": ["beta"], "num_class_per_param": 100},
            "margin_per_class",
            True,
        ),
        ({"margin": 0.1, "nu": 0, "beta": 1, "learn_beta": True}, "margin_per_class", True),  # num_classes is filled in
        ({"margin": 0.1, "nu": 0, "beta": 1, "learn_beta": True, "num_classes": None}, "margin", True),
    ],
)
def test_margin_s_old_and_new_arguments_tell_which_of_both_it_is(write, settings_of, arguments, name, learns):
    configs = old_configs("MarginLoss", arguments)
    if learns:
        of_loss = {"RMSprop": {"lr": 0.01, "momentum": 0.9}}  # no weight decay: torch's 0
        configs["config_optimizers"]["optimizers"]["metric_loss_optimizer"] = of_loss
    loss = settings_of(write(configs)).loss
    assert (loss.name, loss.function["learn_beta"], loss.function["beta"]) == (name, learns, 1.0)
    assert ("num_classes" in loss.function) == (name == "margin_per_class")
    assert loss.optimizer["weight_decay"] == 0.0
    assert not learns or loss.optimizer["lr"] == 0.01


def test_arguments_that_are_not_given_are_those_of_the_library_of_that_time(write, settings_of):
    configs = old_configs("ProxyNCALoss", {})
    configs["config_optimizers"]["optimizers"]["metric_loss_optimizer"] = {"RMSprop": {"lr": 0.01}}
    folder = write(configs)
    loss = settings_of(folder).loss
    assert loss.function["softmax_scale"] == 1.0
    assert loss.optimizer == {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0}  # and so are torch's
    assert "not given: 1.0" in notes(read_original(folder))["loss_funcs/metric_loss/ProxyNCALoss/softmax_scale"]


def test_the_halved_regulariser_of_soft_triple_s_new_name_is_taken_into_account(write, settings_of):
    arguments = {"centers_per_class": 5, "la": 20, "gamma": 0.1, "margin": 0.01, "weight_reg_weight": 0.4}
    configs = old_configs("SoftTripleLoss", {**arguments, "weight_regularizer": {"SparseCentersRegularizer": {}}})
    configs["config_optimizers"]["optimizers"]["metric_loss_optimizer"] = {"RMSprop": dict(RMSPROP)}
    function = settings_of(write(configs)).loss.function
    assert (function["reg_weight"], function["centers_per_class"]) == (0.2, 5)


# what has no counterpart


@pytest.mark.parametrize(
    ("path", "value", "message", "given"),
    [
        (
            "config_loss_and_miners/loss_funcs/metric_loss",
            {"CircleLoss": {"m": 0.4}},
            "loss_funcs/metric_loss: 'CircleLoss' has no counterpart here: expected one of Contrast",
            "loss=triplet",
        ),
        (
            "config_loss_and_miners/loss_funcs",
            {"a": {"NTXentLoss": {}}, "b": {}},
            "loss_funcs: .*expected one loss, metric_loss.*loss=…",
            "loss=triplet",
        ),
        (
            "config_loss_and_miners/mining_funcs",
            {"tuple_miner": {"BatchHardMiner": {}}},
            "mining_funcs/tuple_miner: 'BatchHardMiner'.*loss.miner=…",
            "loss.miner=null",
        ),
        ("config_loss_and_miners/sampler", {}, "sampler: .*expected MPerClassSampler", "loss.samples_per_class=4"),
        (
            "config_general/dataset",
            {"CelebA": None},
            "dataset: 'CelebA' has no.*CUB200, Cars196, StanfordOnlineProducts.*dataset=…",
            "dataset=cub200",
        ),
        (
            "config_general/special_split_scheme_name",
            "predefined",
            "special_split_scheme_name: 'predefined'",
            "fold=all",
        ),
        ("config_general/test_size", 0.3, "test_size: 0.3 .*second half of the classes", "fold=all"),
        ("config_general/num_training_partitions", 10, "num_training_partitions: 10 .*expected 4", "fold=all"),
        (
            "config_models/models/trunk",
            {"resnet50": {"pretrained": True}},
            "models/trunk: 'resnet50'.*trunk=…",
            "trunk=bn_inception",
        ),
        (
            "config_models/models/embedder",
            {"MLP": {"layer_sizes": [512, 128]}},
            "models/embedder: .*one layer.*embedding_size=…",
            "embedder.embedding_size=128",
        ),
        (
            "config_optimizers/optimizers/trunk_optimizer",
            {"Adam": {"lr": 0.1}},
            "optimizers: .*expected the same for both",
            "optimizer.lr=1",
        ),
        (
            "config_optimizers/optimizers/embedder_optimizer",
            {"RMSprop": {**RMSPROP, "lr": 0.1}},
            "optimizers: .*same for both",
            "optimizer.lr=1",
        ),
        (
            "config_transforms/transforms/eval/CenterCrop/size",
            224,
            r"CenterCrop: \[227, 224\].*the same in train and eval",
            "transform.crop=227",
        ),
        (
            "config_general/num_epochs_train",
            {"Test50_50_Partitions4_0": 50},
            "num_epochs_train: .*a number.*max_epochs=…",
            "schedule.max_epochs=50",
        ),
        (
            "config_general/training_method",
            "CascadedEmbeddings",
            "trainer: 'CascadedEmbeddings' has no counterpart",
            None,
        ),
    ],
)
@pytest.mark.slow
def test_what_decides_the_results_is_refused_by_name_unless_something_is_given_for_it(
    write, settings_of, path, value, message, given
):
    folder = write(changed(old_configs(), path, value))
    with pytest.raises(ConfigError, match=message) as error:
        read_original(folder)
    assert str(folder) in str(error.value)
    if given is not None and not given.startswith("optimizer"):
        key, _ = given.split("=")
        assert given in read_original(folder, [given]).overrides
        assert any(f"{key} as given" == instead for instead in notes(read_original(folder, [given])).values())
        settings_of(folder, given)


def test_a_loss_with_weights_that_nothing_trains_is_refused(write):
    configs = old_configs("ArcFaceLoss", {"margin": 20, "scale": 64})
    with pytest.raises(ConfigError, match="metric_loss_optimizer: None .*arcface learns.*loss.optimizer.lr=…"):
        read_original(write(configs))
    assert read_original(write(configs), ["loss.optimizer.lr=0.1"]).overrides[-1] == "loss.optimizer.lr=0.1"


@pytest.mark.parametrize(
    ("path", "value", "key", "instead"),
    [
        (
            "config_transforms/transforms/train/ColorJitter",
            {"hue": 0.1},
            "transforms/train/ColorJitter",
            "not known here",
        ),
        ("config_general/my_own_key", {"a": [1]}, "my_own_key/a[0]", "not known here"),
        ("config_eval/eval_primary_metric", "r_precision", "hook_container/HookContainer/primary_metric", "MAP@R"),
        ("config_eval/eval_pca", 128, "tester/GlobalEmbeddingSpaceTester/pca", "none"),
        (
            "config_loss_and_miners/loss_funcs/metric_loss/ContrastiveLoss",
            {"pos_margin": 0, "neg_margin": 1, "power": 2},
            "loss_funcs/metric_loss/ContrastiveLoss/power",
            "not raised",
        ),
        (
            "config_loss_and_miners/loss_funcs/metric_loss/ContrastiveLoss",
            {"pos_margin": 0, "neg_margin": 1, "use_similarity": True},
            "loss_funcs/metric_loss/ContrastiveLoss/use_similarity",
            "Euclidean",
        ),
        (
            "config_optimizers/optimizers/metric_loss_optimizer",
            {"RMSprop": {"lr": 1}},
            "optimizers/metric_loss_optimizer",
            "contrastive has no parameters",
        ),
        (
            "config_general/split_manager",
            {"ClassDisjointSplitManager": {}},
            "split_manager",
            "the folds of MLRCSplitManager",
        ),
        ("config_general/dataset", {"CUB200": {"root": "/scratch"}}, "dataset/CUB200/root", "data_root"),
    ],
)
def test_everything_else_without_a_counterpart_is_told_with_its_key(write, settings_of, path, value, key, instead):
    configs = changed(old_configs(), path, value)
    if "split_manager" in path:
        configs["config_general"] = {
            k: v for k, v in configs["config_general"].items() if not k.startswith(("test_", "num_t"))
        }
    folder = write(configs)
    assert instead in notes(read_original(folder))[key]
    settings_of(folder)


def test_both_optimizers_take_the_options_of_torch(write, settings_of):
    configs = old_configs()
    values = {
        "RMSprop": {
            "lr": 0.001,
            "alpha": 0.95,
            "centered": True,
            "_target_=a": 1,
            "scheduler_by_epoch": {"StepLR": {"step_size": 2}},
        }
    }
    configs["config_optimizers"]["optimizers"] = {
        "trunk_optimizer": values,
        "embedder_optimizer": copy.deepcopy(values),
    }
    folder = write(configs)
    assert settings_of(folder).optimizer == {
        "_target_": "torch.optim.RMSprop",
        "lr": 0.001,
        "alpha": 0.95,
        "centered": True,
    }
    assert "no argument" in notes(read_original(folder))["optimizers/trunk_optimizer/RMSprop/_target_=a"]
    assert "left out" in notes(read_original(folder))["optimizers/trunk_optimizer/RMSprop/scheduler_by_epoch"]


ANCHORS = itertools.pairwise("abcdefghi")
LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in ANCHORS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "config_general.yaml: expected plain YAML"),
        ("!!python/object/apply:print [this must not run]", "config_general.yaml: expected plain YAML"),
        ("- a\n", "config_general.yaml: expected a mapping, found"),
        (LAUGHS, "config_general.yaml: expected plain YAML, found something else (more than 20 aliases"),
        ("a: &a [*a]", "or one of a node inside of itself"),
        ("a: &a\n  b: *a\n", "or one of a node inside of itself"),
        ("[" * 9_999, "more than 32 levels"),
        ("a: " + "{b: " * 40 + "1" + "}" * 40, "more than 32 levels"),
        ("a: " + "7" * 5_000, "config_general.yaml: expected plain YAML"),
        ("a: " + "x" * 10**6, "config_general.yaml: expected at most 1,000,000 bytes"),
        ("trainer~APPLY~999: {a: 1}", "trainer~APPLY~999: expected mappings at depth 999"),
        ("trainer: 3", "expected entries as the original writes them"),
        ("trainer: [3]", "expected"),
        ("trainer~MERGE~: {}", "trainer~MERGE~: expected one of the original's keywords, ~OVERRIDE~, "),
        ("trainer~APPLY~5: {a: 1}", "trainer~APPLY~5: expected mappings at depth 5"),
        ("a: {b: 1, c: 2}\na~SWAP~1: {New: {}}\n", "a~SWAP~1: expected one key to rename, found b, c"),
        ("a: {b: 1, c: 2}\na~SWAP~1: {d: e}\n", "a~SWAP~1: expected keys among b, c, found d"),
    ],
)
def test_files_that_are_not_the_original_s_are_refused(write, capsys, text, message):
    folder = write(old_configs() | {"config_general": text})
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_original(folder)
    assert not capsys.readouterr().out


# the command


@pytest.mark.parametrize("arguments", [["trainer=cpu", "--print"], ["--print", "trainer=cpu"]], ids=" ".join)
def test_print_gives_the_command_on_stdout_and_the_rest_on_stderr(write, capsys, settings_of, arguments):
    folder = write(published("Contrastive", "cars196"))
    cli.main(["reproduce", str(folder), *arguments])
    printed = capsys.readouterr()
    words = shlex.split(printed.out)
    assert words[:2] == ["python", "train.py"]
    assert tuple(words[2:]) == read_original(folder, ["trainer=cpu"]).overrides
    assert "not mapped: loss_funcs/metric_loss/ContrastiveLoss/avg_non_zero_only: True: losses average" in printed.err
    assert settings_of(folder, "trainer=cpu").trainer.accelerator == "cpu"


def test_an_unknown_option_is_refused(write, capsys):
    for arguments in (["reproduce", str(write(old_configs())), "--prnt"], ["status", "x", "y"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    assert not is_original(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["reproduce", str(tmp_path)])
    assert ended.value.code == 2
    assert "expected configs/*.yaml of the original" in capsys.readouterr().err


SMALL = [
    "experiment=smoke",
    "trainer=cpu",
    "dataset=glyphs",
    "trunk=small_cnn",
    "transform=characters",
    "schedule.max_epochs=2",
    "schedule.save_interval=1",
    "schedule.iterations_per_epoch=2",
    "evaluation.baselines=false",
]


@pytest.mark.slow
def test_a_folder_is_run_as_a_trial_and_its_origin_kept(write, tmp_path):
    folder = write(published("Multi Similarity + Miner", "cub200"))
    places = [f"output_root={tmp_path / 'out'}", f"data_root={tmp_path / 'data'}"]
    experiment = read_original(folder, [*SMALL, *places])
    record, run_folder = reproduce(experiment)
    assert (record.status, record.loss, record.setting) == ("complete", "multi_similarity_miner", "glyphs")
    assert record.settings["loss"]["miner"]["epsilon"] == optimum("Multi Similarity + Miner", "cub200")["epsilon"]
    assert record.settings["optimizer"]["lr"] == 1e-6
    assert read_json(run_folder / "record.json", TrialRecord) == record
    source = json.loads((run_folder / "original.json").read_text())
    assert source["folder"] == str(folder)
    assert source["overrides"] == list(experiment.overrides)
    assert {entry["key"] for entry in source["unmapped"]} == set(notes(experiment))
    assert reproduce(experiment)[0] == record  # finished: not run again


@pytest.mark.slow
def test_the_printed_command_finds_the_reproduced_trial(write, tmp_path):
    root = Path(__file__).parents[2]
    places = [f"output_root={tmp_path / 'out'}", f"data_root={tmp_path / 'data'}"]
    arguments = [str(write(published("ArcFace", "cub200"))), *SMALL, *places]

    def run(*command):
        return subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, cwd=root, timeout=300, check=True
        )

    printed = run("-m", "mlrc_lightning", "reproduce", *arguments, "--print")
    done = run("-m", "mlrc_lightning", "reproduce", *arguments)
    assert "not mapped: configs/config_dataset.yaml" in done.stderr
    again = run(*shlex.split(printed.stdout)[1:])
    assert "is finished already" in again.stdout
    assert again.stdout.split("Record:")[1] == done.stdout.split("Record:")[1]


def test_printing_a_command_imports_no_torch(write):
    folder = write(published("Triplet", "sop"))
    code = "import sys; from mlrc_lightning.__main__ import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "reproduce", str(folder), "--print"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "loss=triplet" in done.stdout


# models


class MLP(nn.Module):
    """The names of the original's embedder: its last layer has two (architectures/misc_models.py)."""

    def __init__(self, layer_sizes):
        super().__init__()
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(layer_sizes)]
        self.net = nn.Sequential(*[part for layer in layers for part in (nn.ReLU(), layer)][1:])
        self.last_linear = self.net[-1]

    def forward(self, x):
        return self.net(x)


@pytest.fixture(scope="module")
def original():
    """The original's two networks, with random weights and statistics that keep activations of one size."""
    reason = "pretrainedmodels and six, the original BN-Inception, are not installed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # its other models, written for Python 2
        pytest.importorskip("six", reason=reason)
        package = pytest.importorskip("pretrainedmodels.models.bninception", reason=reason)
    torch.manual_seed(0)
    trunk = package.bninception(pretrained=None)
    trunk.last_linear = nn.Identity()
    for name, tensor in trunk.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith(("running_var", "_bn.weight")):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
    return trunk.eval(), MLP([1024, 128]).eval()


@pytest.fixture
def ours():
    torch.manual_seed(1)
    trunk = BNInception(pretrained=False)
    for name, tensor in trunk.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
    return EmbeddingModule(trunk, nn.Linear(1024, 128)).eval()


def save(models, folder, prefix=""):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "trunk_best.pth", folder / "embedder_best.pth"]
    for model, path in zip(models, paths, strict=True):
        torch.save({f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}, path)
    return paths


def images():
    return torch.randint(0, 256, (2, 3, 227, 227), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def embeddings_of(trunk, embedder):
    """The original's pipeline: BGR, 0 to 255, minus the means; its tester normalises."""
    pixels = images().flip(1).float() - torch.tensor([104.0, 117.0, 128.0]).view(1, 3, 1, 1)
    with torch.no_grad():
        return nn.functional.normalize(embedder(trunk(pixels)), dim=1)


@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "DataParallel"])
@pytest.mark.slow
def test_a_model_of_the_original_embeds_as_there(original, tmp_path, prefix):
    module = load_original(*save(original, tmp_path, prefix))
    assert not module.training
    with torch.no_grad():
        found = module(images())
    expected = embeddings_of(*original)
    assert found.shape == (2, 128)
    assert (expected[0] - expected[1]).norm() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_exported_model_loads_strictly_into_the_original_and_embeds_the_same(original, ours, tmp_path):
    paths = export_original(ours, tmp_path)
    assert [path.name for path in paths] == ["trunk_best.pth", "embedder_best.pth"]
    trunk, embedder = copy.deepcopy(original)
    for model, path in ((trunk, paths[0]), (embedder, paths[1])):
        model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(embeddings_of(trunk, embedder), ours(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_model_goes_there_and_back_bit_for_bit(original, ours, tmp_path):
    back = load_original(*export_original(ours, tmp_path / "a"))
    assert list(back.state_dict()) == list(ours.state_dict())
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in back.state_dict().items())
    paths = save(original, tmp_path / "b")
    again = export_original(load_original(*paths), tmp_path / "c")
    for path, copied in zip(paths, again, strict=True):
        one, other = (torch.load(p, weights_only=True) for p in (path, copied))
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)


class Hostile:
    def __reduce__(self):
        return (print, ("this must not run",))


WEIGHT, BIAS = torch.zeros(128, 1024), torch.zeros(128)


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("trunk", None, "trunk_best.pth: expected a weight file of the original, found none"),
        ("trunk", "html", "trunk_best.pth: expected a state dict, found a file that cannot be read"),
        ("trunk", Hostile(), "trunk_best.pth: expected a state dict, found a file that cannot be read"),
        ("embedder", [1], "embedder_best.pth: expected a state dict of tensors, found something else"),
        ("trunk", {"conv1.weight": BIAS}, "expected weights of BN-Inception .*found others.*Is it a file of another"),
        ("trunk", {"last_linear.weight": BIAS}, "found others.*"),
        ("embedder", {}, "expected an embedder of one linear layer.*found nothing"),
        ("embedder", {"net.0.weight": WEIGHT}, "one linear layer, net.0.weight and net.0.bias, found net.0.weight"),
        ("embedder", {"net.0.weight": WEIGHT, "net.0.bias": BIAS, "net.2.weight": BIAS}, "Embedders of several layers"),
        ("embedder", {"net.0.weight": WEIGHT[:, :9], "net.0.bias": BIAS}, "of 1024 features.* found one of 9"),
        (
            "embedder",
            {"net.0.weight": WEIGHT, "net.0.bias": BIAS[:3]},
            "expected weights of a linear layer of 1024 x 128",
        ),
        (
            "embedder",
            {"net.0.weight": WEIGHT, "net.0.bias": BIAS, "last_linear.bias": BIAS + 1},
            "last_linear.bias to be net.0.bias under its second name",
        ),
    ],
)
def test_files_that_are_no_such_model_are_refused(ours, tmp_path, capsys, part, content, message):
    export_original(ours, tmp_path)
    path = tmp_path / f"{part}_best.pth"
    if content is None:
        path.unlink()
    elif content == "html":
        path.write_text("<html>")
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        load_original(tmp_path / "trunk_best.pth", tmp_path / "embedder_best.pth")
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_other_models_and_trials_without_models_have_no_such_form(settings, tmp_path):
    with pytest.raises(WeightsError, match="found SmallCNN and Linear"):
        export_original(EmbeddingModule(SmallCNN(width=8), nn.Linear(256, 8)), tmp_path / "x")
    with pytest.raises(RecordError, match="expected a result file, found none"):
        export_original(tmp_path, tmp_path / "x")
    quick = ["schedule.iterations_per_epoch=1", "evaluation.baselines=false", "fold=0"]
    run_trial(settings(*quick, "stage=search"), tmp_path / "search")
    with pytest.raises(WeightsError, match="expected a trial that kept the models"):
        export_original(tmp_path / "search", tmp_path / "x")
    run_trial(settings(*quick), tmp_path / "small")
    with pytest.raises(WeightsError, match="expected weights of BN-Inception, found others"):
        export_original(tmp_path / "small", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_trial_s_models_lie_where_the_original_has_those_of_its_folds(settings, tmp_path, capsys):
    small = ["trunk=bn_inception", "trunk.pretrained=false", "transform.crop=31", "evaluation.baselines=false"]
    s = settings(*small, "schedule.iterations_per_epoch=1", "schedule.max_epochs=1", "fold=[0,2]", "batch_size=8")
    record = run_trial(s, tmp_path / "run")
    cli.main(["export-original", str(tmp_path / "run"), str(tmp_path / "out")])
    files = [
        tmp_path / "out" / f"Test50_50_Partitions4_{fold}" / "saved_models" / f"{part}_best.pth"
        for fold in (0, 2)
        for part in ("trunk", "embedder")
    ]
    assert capsys.readouterr().out.split() == [str(path) for path in files]
    from mlrc_lightning.protocol.evaluation import load_module

    for fold, pair in zip(record.folds, (files[:2], files[2:]), strict=True):
        kept, back = load_module(s, fold, tmp_path / "run").state_dict(), load_original(*pair).state_dict()
        assert all(torch.equal(kept[name], tensor) for name, tensor in back.items())
        assert len(kept) == len(back)
