"""All 56 combinations of 14 losses and 4 settings, against the reference data cell by cell, and one step of each.

The CSVs are read here by themselves and their names translated by rules of their own, not by conf/loss.
"""

import csv
import dataclasses
import sys
import time
from decimal import Decimal

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from hydra_plugins.mlrc_ax_sweeper._errors import SpaceExhaustedError
from hydra_plugins.mlrc_ax_sweeper._problem import build_problem
from hydra_plugins.mlrc_ax_sweeper._suggest import suggest
from mlrc_lightning.errors import ConfigError
from mlrc_lightning.files import as_json, config_folder
from mlrc_lightning.protocol.build import build_module
from mlrc_lightning.settings import paper as optima
from mlrc_lightning.settings.compose import trial_settings
from mlrc_lightning.settings.identity import identity
from mlrc_lightning.settings.paper import published_optimum
from mlrc_lightning.settings.types import LossSettings
from mlrc_sweeper.state import Trial
from tests.training.losses.cases import LOSSES, composed

REFERENCE = config_folder().parent / "mlrc_lightning" / "reference"
EXPERIMENTS = {"cub200": 75, "cars196": 74, "sop": 8488, "cub200_batch256": 75}  # and their training classes, §1.6
COMBINATIONS = [pytest.param(loss, setting, id=f"{loss}-{setting}") for loss in LOSSES for setting in EXPERIMENTS]
CLASSIFICATION = {"proxy_nca", "normalized_softmax", "cosface", "arcface", "soft_triple"}  # §1.4
WITH_PARAMETERS = CLASSIFICATION | {"margin", "margin_per_class"}


@pytest.fixture(scope="module", autouse=True)
def _run_time():
    began = time.perf_counter()
    yield
    sys.stdout.write(f"\n56 combinations: {time.perf_counter() - began:.1f} s\n")


def rows(file):
    with (REFERENCE / file).open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


SPACES, FULL = rows("search_spaces.csv"), rows("optimal_hyperparameters_full_precision.csv")
PRINTED = rows("optimal_hyperparameters.csv")


def key_of(parameter):
    """Where a parameter of the CSVs is in the configuration."""
    if parameter == "lr" or parameter.endswith(" lr"):
        return "loss.optimizer.lr"
    if parameter == "epsilon":
        return "loss.miner.epsilon"
    renamed = {"init beta": "beta", "regularizer_weight": "embedding_reg_weight"}
    return f"loss.function.{renamed.get(parameter, parameter)}"


def of(table, cfg, setting):
    return [row for row in table if (row["loss"], row["setting"]) == (cfg.loss.paper_name, setting)]


def is_truncated(text, value):
    """Whether the page's text is the value cut off; the values themselves are rounded to six digits."""
    printed, found = abs(Decimal(text)), abs(Decimal(repr(value)))
    last_digit, rounding = Decimal(1).scaleb(printed.as_tuple().exponent), found * Decimal("5e-6")
    return -rounding <= found - printed < last_digit + rounding


def test_the_losses_are_the_paper_s_14():
    names = {composed(loss, "cub200").loss.paper_name for loss in LOSSES}
    assert names == {row["loss"] for row in PRINTED}
    assert len(LOSSES) == len(names) == 14


@pytest.mark.parametrize(("loss", "setting"), COMBINATIONS)
def test_the_search_space_is_the_paper_s(loss, setting):
    cfg = composed(loss, setting)
    space = OmegaConf.to_container(cfg.hydra.sweeper.ax_config.params, resolve=True)
    expected = of(SPACES, cfg, setting)
    if not expected:
        assert (loss, cfg.batch_size) == ("fastap", 32)
        assert space == {"loss.function.num_bins": {"type": "choice", "values": list(range(2, 33))}}
        return
    assert set(space) == {key_of(row["parameter"]) for row in expected}
    for row in expected:
        entry = space[key_of(row["parameter"])]
        assert entry["type"] == "range"
        assert entry["bounds"] == [float(row["low"]), float(row["high"])]
        assert {type(bound) for bound in entry["bounds"]} == {int if row["type"] == "int" else float}
        assert entry["log_scale"] == (row["scale"] == "log")
    assert cfg.hydra.sweeper.ax_config.max_trials == 50
    assert cfg.hydra.sweeper.generation.method == "fast"


@pytest.mark.parametrize(("loss", "setting"), COMBINATIONS)
def test_the_optimum_is_the_paper_s(loss, setting):
    cfg = composed(loss, setting)
    full = {key_of(row["parameter"]): float(row["value"]) for row in of(FULL, cfg, setting)}
    printed = {key_of(r["parameter"]): r["value"] for r in of(PRINTED, cfg, setting) if r["value"] != "N/A"}
    expected = full or {key: float(text) for key, text in printed.items()}
    assert set(expected) == set(printed)
    for key, value in expected.items():
        assert OmegaConf.select(cfg, key) == value, key
        assert is_truncated(printed[key], value), key
    block = OmegaConf.to_container(cfg.hyperparameters, resolve=True)
    assert block["published"] == expected
    assert block["source"] == ("paper, full precision" if full else "paper, as printed")
    assert block["replaced"] == []


@pytest.mark.slow
def test_every_cell_of_the_reference_data_is_used_once():
    pairs = [(loss, setting) for loss in LOSSES for setting in EXPERIMENTS]
    assert sum(len(of(SPACES, composed(*pair), pair[1])) for pair in pairs) == len(SPACES) == 140
    assert sum(len(of(FULL, composed(*pair), pair[1])) for pair in pairs) == len(FULL) == 140
    assert sum(len(of(PRINTED, composed(*pair), pair[1])) for pair in pairs) == len(PRINTED) == 144
    assert sum(not of(SPACES, composed(*pair), pair[1]) for pair in pairs) == 3


@pytest.mark.parametrize(("loss", "setting"), COMBINATIONS)
@pytest.mark.slow
def test_one_training_step_is_finite_and_moves_the_loss_s_parameters(loss, setting):
    settings = trial_settings(composed(loss, setting), is_sweep_job=False)
    m = settings.loss.samples_per_class
    assert m == (1 if loss in CLASSIFICATION else 4)
    num_classes = EXPERIMENTS[setting]
    module = build_module(settings, fold=0, num_train_classes=num_classes)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (settings.batch_size, 3, 16, 16), dtype=torch.uint8, generator=generator)
    # passes of the sampler follow each other: at 256 a class of 75 comes up again
    classes = torch.cat([torch.randperm(num_classes, generator=generator) for _ in range(4)])
    labels = classes[: settings.batch_size // m].repeat_interleave(m)
    optimizer = module.configure_optimizers()
    own = list(module.objective.parameters())
    before = [parameter.clone() for parameter in own]
    value = module.batch_loss((images, labels))
    value.backward()
    optimizer.step()
    assert torch.isfinite(value)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    groups = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert (groups[0]["momentum"], groups[0]["weight_decay"]) == (0.9, 1e-4)  # §1.2
    assert len(groups) == 1 + (loss in WITH_PARAMETERS)
    if loss in WITH_PARAMETERS:
        (row,) = [row for row in of(FULL, composed(loss, setting), setting) if row["parameter"].endswith("lr")]
        assert {id(parameter) for parameter in groups[1]["params"]} == {id(parameter) for parameter in own}
        assert groups[1]["lr"] == float(row["value"])
        assert groups[1]["momentum"] == 0.9
        assert groups[1]["weight_decay"] == (0.0 if loss.startswith("margin") else 1e-4)
        assert all(not torch.equal(p, q) for p, q in zip(own, before, strict=True))


def test_an_experiment_is_the_paper_s_configuration(compose_config):
    expected = {
        "cub200": ("cub200", 32, 2, 9), "cars196": ("cars196", 32, 5, 14), "sop": ("sop", 32, 20, 39),
        "cub200_batch256": ("cub200", 256, 2, 9),
    }  # fmt: skip
    for name, (dataset, batch_size, save_interval, patience) in expected.items():
        cfg = compose_config(f"experiment=mlrc/{name}", "loss=arcface")
        assert cfg.setting == name
        assert (cfg.dataset.name, cfg.batch_size) == (dataset, batch_size)
        assert (cfg.schedule.save_interval, cfg.schedule.patience) == (save_interval, patience)
        assert (cfg.schedule.max_epochs, cfg.schedule.iterations_per_epoch) == (1000, 100)
        assert (cfg.trunk.name, cfg.optimizer.lr, cfg.transform.crop) == ("bn_inception", 1e-6, 227)
        assert cfg.hyperparameters.name == "default"


def test_an_experiment_s_figures_are_those_of_the_paper():
    """What the header of each says to expect is in the tables, to the digit."""
    tables = rows("paper_tables.csv")
    searches = [row for row in rows("original_searches.csv") if row["loss"] == "ArcFace"]
    for name in EXPERIMENTS:
        text = (config_folder() / "experiment" / "mlrc" / f"{name}.yaml").read_text(encoding="utf-8")
        assert f"experiment=mlrc/{name}" in text
        batch_size = "256" if name.endswith("256") else "32"
        cells = {
            (row["embedding"], row["metric"]): f"{row['mean']} ± {row['ci95']}"
            for row in tables
            if (row["dataset"], row["batch_size"], row["loss"]) == (name.split("_")[0], batch_size, "ArcFace")
        }
        assert all(cell in text for cell in cells.values()), name
        assert bool(cells) == (name != "cub200_batch256")
        best = max(float(row["best_so_far_val_map_at_r"]) for row in searches if row["setting"] == name)
        assert f"validation MAP@R of the best trial {best:.4f}" in text


# hyperparameters=paper beside other ways to the same values


def settings_of(compose_config, *overrides):
    return trial_settings(compose_config(*overrides), is_sweep_job=False)


@pytest.mark.slow
def test_a_value_on_the_command_line_wins_over_the_paper_s(compose_config):
    chosen = ["loss=arcface", "hyperparameters=paper"]
    for order in ([*chosen, "loss.function.margin=28.6"], ["loss.function.margin=28.6", *chosen]):
        settings = settings_of(compose_config, *order)
        assert settings.loss.function["margin"] == 28.6  # also where it is the default's value
        assert settings.loss.function["scale"] == 100.0
        assert settings.hyperparameters.replaced == ("loss.function.margin",)
        assert settings.hyperparameters.published["loss.function.margin"] == 23.2259


@pytest.mark.slow
def test_the_record_says_how_exactly_the_paper_s_values_are_known(compose_config):
    sources = {
        overrides: as_json(settings_of(compose_config, *overrides))["hyperparameters"]["source"]
        for overrides in [
            ("loss=fastap",),
            ("loss=fastap", "hyperparameters=paper"),
            ("loss=fastap", "hyperparameters=paper", "batch_size=256"),
        ]
    }
    assert list(sources.values()) == ["conf/loss", "paper, as printed", "paper, full precision"]


@pytest.mark.slow
def test_two_ways_to_the_same_values_are_the_same_trial(compose_config):
    def folder(*overrides):
        return compose_config("loss=cosface", *overrides, return_hydra_config=True).hydra.run.dir

    by_hand = ["loss.optimizer.lr=0.00253466", "loss.function.margin=0.618227", "loss.function.scale=100"]
    assert folder("hyperparameters=paper") == folder(*by_hand)
    assert folder("hyperparameters=paper") != folder()
    one, other = (
        as_json(settings_of(compose_config, "loss=cosface", *how)) for how in (["hyperparameters=paper"], by_hand)
    )
    assert identity(one) == identity(other)
    assert one["hyperparameters"] != other["hyperparameters"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=64"], r"no optimum of the loss 'ArcFace' at 'cub200_batch64' .*batch_size=64.* each at cars196,"),
        (["batch_size=256", "dataset.paper_setting=sop"], "'ArcFace' at 'sop_batch256'"),
        (["dataset.paper_setting=glyphs"], "'ArcFace' at 'glyphs'"),
        (["loss.paper_name=null"], "loss None at 'cub200' .*It has those of ArcFace, Contrastive, CosFace"),
    ],
)
def test_an_optimum_that_the_paper_does_not_have_is_refused_with_those_it_has(compose_config, overrides, message):
    with pytest.raises(ConfigError, match=f"hyperparameters=paper: .*{message}"):
        settings_of(compose_config, "loss=arcface", "hyperparameters=paper", *overrides)


def test_a_loss_without_a_key_for_a_published_parameter_is_refused():
    with pytest.raises(ConfigError, match="expected a key for 'neg_margin' of Contrastive"):
        published_optimum("Contrastive", "cub200", 32, {"pos_margin": "loss.function.pos_margin"})


def test_a_value_known_only_as_printed_is_taken_from_the_page(monkeypatch):
    full = "optimal_hyperparameters_full_precision.csv"
    everything = optima._by_parameter

    def without_the_scale(file):
        return {key: value for key, value in everything(file).items() if file != full or key[2] != "scale"}

    monkeypatch.setattr(optima, "_by_parameter", without_the_scale)
    names = {"weights lr": "lr", "margin": "margin", "scale": "scale"}
    optimum = published_optimum("CosFace", "cars196", 32, names)
    assert optimum.source == optima.AS_PRINTED
    assert optimum.values == {"lr": 0.00741299, "margin": 0.43244, "scale": 161.5}


# FastAP: a sweep at batch 32, a search at 256


def sweep_of(cfg):
    """Every point that the sweeper would run, with no result of any."""
    problem = build_problem(cfg, ())
    points, trials = [], []
    for index in range(problem.settings.ax_config.max_trials):
        try:
            points.append(suggest(problem, 0, trials).parameters)
        except SpaceExhaustedError:
            break
        trials.append(Trial(index=index, parameters=points[-1], generator="grid"))
    return points


@pytest.mark.parametrize("max_trials", [50, 31, 200])
def test_fastap_at_batch_32_tries_each_number_of_bins_once(compose_config, max_trials):
    overrides = ["experiment=mlrc/cars196", "loss=fastap", f"max_trials={max_trials}"]
    points = sweep_of(compose_config(*overrides, return_hydra_config=True))
    assert sorted(point["loss.function.num_bins"] for point in points) == list(range(2, 33))


@pytest.mark.parametrize("dataset", ["cub200", "cars196"])
def test_fastap_at_batch_256_is_searched(compose_config, dataset):
    cfg = compose_config(f"dataset={dataset}", "loss=fastap", "batch_size=256", return_hydra_config=True)
    assert cfg.search_space == {"loss.function.num_bins": {"type": "range", "bounds": [2, 250], "log_scale": False}}
    assert cfg.hydra.sweeper.generation.method == "fast"
    assert cfg.hydra.sweeper.ax_config.max_trials == 50


def test_a_list_of_values_beyond_the_budget_is_searched(compose_config):
    cfg = compose_config("loss=fastap", "max_trials=4", return_hydra_config=True)
    assert (cfg.hydra.sweeper.generation.method, cfg.hydra.sweeper.ax_config.max_trials) == ("fast", 4)


def test_a_loss_of_one_s_own_brings_its_search_space(compose_config):
    space = "{loss.function.margin:{type:range,bounds:[0.0,1.0]}}"
    cfg = compose_config("loss=triplet", "loss.paper_name=null", f"loss.search_space={space}")
    assert trial_settings(cfg, is_sweep_job=True).loss.paper_name is None
    assert cfg.search_space == {"loss.function.margin": {"type": "range", "bounds": [0.0, 1.0]}}


def test_a_loss_file_has_the_keys_of_the_schema_in_its_order():
    for loss in LOSSES:
        content = yaml.safe_load((config_folder() / "loss" / f"{loss}.yaml").read_text(encoding="utf-8"))
        assert list(content) == [field.name for field in dataclasses.fields(LossSettings)], loss
        assert content["name"] == loss
