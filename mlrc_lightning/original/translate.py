"""Experiment folders of powerful-benchmarker, the paper's own program, as overrides of this configuration.

A folder is data: its YAML is read with `yaml.safe_load`, looked up in the tables below, and nothing in it is
instantiated. Everything that is read is taken out of the nested mapping; what is left over at the end is told as
unmapped, so that nothing can get lost in silence.

Source of names, defaults and meanings: powerful-benchmarker up to 0.9.33 with its docs (cl_syntax.md, hyperparams.md,
papers/mlrc.md), and the losses of pytorch-metric-learning up to 0.9.86 (docs/protocol.md, §1, §2, §5).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.files import config_folder
from mlrc_lightning.original.folder import (
    _MISSING,
    CATEGORIES,
    NUM_FOLDS,
    Unmapped,
    _configs,
    _defaults,
    _fill_in_defaults,
    _Mapping,
    _merged,
    _number,
    _plain,
    _same,
    _to_new_keys,
)
from mlrc_lightning.reading import leaves

_DATASETS = {"CUB200": "cub200", "Cars196": "cars196", "StanfordOnlineProducts": "sop"}
_OPTIMIZERS = ("RMSprop", "SGD", "Adam", "AdamW")
_MINER = "MultiSimilarityMiner"
_TORCH_DEFAULTS = {"momentum": 0.0, "weight_decay": 0.0}
"""What torch takes where an optimizer of the original gives none."""


@dataclass(frozen=True)
class _Loss:
    """A loss class of the original.

    Attributes:
        name: Ours.
        arguments: Those with a counterpart: their name, and ours in `loss.function`.
        defaults: What the library of that time took, where our default is another value.
        owns_parameters: Whether it learns weights, and so needs `metric_loss_optimizer`.
    """

    name: str
    arguments: dict[str, str]
    defaults: dict[str, float]
    owns_parameters: bool = False


_LOSSES = {
    "ContrastiveLoss": _Loss("contrastive", _same("pos_margin", "neg_margin"), {}),
    "TripletMarginLoss": _Loss("triplet", _same("margin"), {}),
    "NTXentLoss": _Loss("ntxent", _same("temperature"), {}),
    "ProxyNCALoss": _Loss("proxy_nca", _same("softmax_scale"), {"softmax_scale": 1.0}, owns_parameters=True),
    "MarginLoss": _Loss("margin", _same("margin", "beta", "nu"), {}),
    "NormalizedSoftmaxLoss": _Loss("normalized_softmax", _same("temperature"), {}, owns_parameters=True),
    "CosFaceLoss": _Loss("cosface", _same("margin", "scale"), {}, owns_parameters=True),
    "ArcFaceLoss": _Loss("arcface", _same("margin", "scale"), {}, owns_parameters=True),
    "FastAPLoss": _Loss("fastap", _same("num_bins"), {}),
    "SignalToNoiseRatioContrastiveLoss": _Loss(
        "snr_contrastive",
        {**_same("pos_margin", "neg_margin"), "regularizer_weight": "embedding_reg_weight"},
        {},
    ),
    "MultiSimilarityLoss": _Loss("multi_similarity", _same("alpha", "beta", "base"), {}),
    "SoftTripleLoss": _Loss(
        "soft_triple",
        _same("centers_per_class", "la", "gamma", "margin", "reg_weight"),
        {"reg_weight": 0.2},
        owns_parameters=True,
    ),
}
"""12 classes for 14 losses: MarginLoss has a version with a beta a class, MultiSimilarityLoss one with its miner."""
_FILLED_IN = ("num_classes", "num_labels", "num_class_per_param", "embedding_size")
_AVERAGE = "losses average over the terms that are not zero, as under true; the paper's page has it deleted"
_EUCLIDEAN = "Euclidean distance, as under false; the paper's page has it deleted"


@dataclass(frozen=True)
class OriginalExperiment:
    """A folder of the original, translated.

    Attributes:
        folder: Where it is.
        overrides: Of train.py, those given by the user last.
        unmapped: What these do not say.
    """

    folder: Path
    overrides: tuple[str, ...]
    unmapped: tuple[Unmapped, ...]

    @property
    def command(self) -> str:
        """The command that runs it."""
        return shlex.join(["python", "train.py", *self.overrides])


def is_original(folder: Path) -> bool:
    """Returns whether a folder holds an experiment of the original: `configs/*.yaml`."""
    return _configs(folder) is not None


def read_original(folder: Path, given: Sequence[str] = ()) -> OriginalExperiment:
    """Translates an experiment folder of the original.

    Args:
        folder: With `configs/`, and `bayes_opt_parameters.yaml` or `best_parameters.yaml` beside where it is a trial
            of a search, or a whole search.
        given: Overrides by the user. They win over the folder's, and take the place of what has no counterpart.

    Raises:
        ConfigError: There is no such folder; a file is no YAML; or something that decides the results has no
            counterpart: the message names it, and the override that would take its place.
    """
    configs = _configs(folder)
    if configs is None:
        raise ConfigError(f"{folder}: expected an experiment of the original, configs/*.yaml, found none.")
    mapping = _Mapping(folder, given)
    try:
        mapping.config = _merged(configs, mapping)
        files = [category for category in CATEGORIES if (configs / f"{category}.yaml").is_file()]
        mapping.fill_search_parameters()
        _to_new_keys(mapping.config)
        _fill_in_defaults(mapping, files)
        for translate in _TRANSLATIONS:
            translate(mapping)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        # each entry may be text, a number, a list or a mapping, and the original takes one of them
        raise ConfigError(
            f"{folder}: expected entries as the original writes them, found another kind of value ({error!r})."
        ) from error
    for key, value in leaves(mapping.config):
        mapping.drop(key.replace(".", "/"), _plain(value), "not known here, left out")
    return OriginalExperiment(folder, (*mapping.overrides.values(), *given), tuple(mapping.unmapped))


# translations, each of one or two top-level keys


def _dataset(mapping: _Mapping) -> None:
    known = f"one of {', '.join(_DATASETS)}"
    found = mapping.single(mapping.config.pop("dataset"), "dataset", known, "dataset")
    if found is not None:
        name, arguments = found
        where = f"dataset/{name}"
        if mapping.require(name in _DATASETS, "dataset", name, known, "dataset"):
            mapping.set("dataset", _DATASETS[name])
        if arguments.pop("download", False):
            mapping.drop(f"{where}/download", True, "a folder starts no download, give dataset.images.download=true")
        for key in ("root", "dataset_root"):
            mapping.neutral(arguments, where, key, (None,), "data_root, or dataset.images.root=…")
        mapping.rest(arguments, where)
    mapping.neutral(mapping.config, "", "multi_dataset", (None,), "one dataset trains, validates and tests")


def _split(mapping: _Mapping) -> None:
    known = "MLRCSplitManager, or ClassDisjointSplitManager in its place"
    manager = mapping.config.pop("split_manager")
    found = mapping.single(manager, "split_manager", known, "fold")
    if found is not None:
        name, arguments = found
        where = f"split_manager/{name}"
        mapping.require(name in ("MLRCSplitManager", "ClassDisjointSplitManager"), "split_manager", name, known, "fold")
        if name == "ClassDisjointSplitManager":
            mapping.drop(
                "split_manager", name, "the folds of MLRCSplitManager, to which the paper's page has it changed"
            )
        for key in ("test_size", "test_start_idx"):
            value = arguments.pop(key, _MISSING)
            is_half = value is _MISSING or _number(value) == 1 / 2
            mapping.require(is_half, f"{where}/{key}", value, "0.5: the second half of the classes is the test", "fold")
        partitions = arguments.pop("num_training_partitions", NUM_FOLDS)
        mapping.require(partitions == NUM_FOLDS, f"{where}/num_training_partitions", partitions, f"{NUM_FOLDS}", "fold")
        folds = arguments.pop("num_training_sets", NUM_FOLDS)
        is_count = isinstance(folds, int) and 1 <= folds <= NUM_FOLDS
        if mapping.require(is_count, f"{where}/num_training_sets", folds, f"1 to {NUM_FOLDS}", "fold") and (
            folds < NUM_FOLDS
        ):
            mapping.set("fold", list(range(folds)) if folds > 1 else 0)
        mapping.neutral(arguments, where, "hierarchy_level", (0,), "images have one label")
        arguments.pop("data_and_label_getter_keys", None)  # how its datasets return an image
        mapping.rest(arguments, where)
    special = mapping.config.pop("special_split_scheme_name", None)
    mapping.require(special is None, "special_split_scheme_name", special, "null", "fold")
    names = (["train", "val", "test"],)
    mapping.neutral(mapping.config, "", "split_names", names, "train, val and test")


def _trainer(mapping: _Mapping) -> None:
    found = mapping.single(mapping.config.pop("trainer"), "trainer", "MetricLossOnly", "batch_size")
    if found is None:
        return
    name, arguments = found
    where = f"trainer/{name}"
    if name != "MetricLossOnly":
        raise ConfigError(
            f"{mapping.folder}: trainer: {name!r} has no counterpart here: expected MetricLossOnly, the only way of"
            " training that the paper's experiments use."
        )
    arguments = {**_defaults()["config_general"]["trainer"][name], **arguments}
    for key, ours in (("batch_size", "batch_size"), ("iterations_per_epoch", "schedule.iterations_per_epoch")):
        if key in arguments:
            mapping.number(f"{where}/{key}", arguments.pop(key), ours)
    frozen = arguments.pop("freeze_trunk_batchnorm", _MISSING)
    if frozen is not _MISSING:
        mapping.set("trunk.freeze_batchnorm", bool(frozen))
    arguments.pop("dataloader_num_workers", None)  # hardware: trainer.num_workers
    mapping.neutral(arguments, where, "loss_weights", (None, {"metric_loss": 1}), "the loss has weight 1")
    mapping.neutral(arguments, where, "set_min_label_to_zero", (True,), "labels are counted from 0")
    mapping.neutral(arguments, where, "label_hierarchy_level", (0,), "images have one label")
    mapping.rest(arguments, where)


def _schedule(mapping: _Mapping) -> None:
    for key, ours in (("num_epochs_train", "schedule.max_epochs"), ("save_interval", "schedule.save_interval")):
        if key in mapping.config:
            mapping.number(key, mapping.config.pop(key), ours)
    if "patience" in mapping.config:
        patience = mapping.config.pop("patience")
        if patience is None:
            mapping.set("schedule.patience", None)
        else:
            mapping.number("patience", patience, "schedule.patience")


def _models(mapping: _Mapping) -> None:
    models = dict(mapping.config.pop("models") or {})
    trunk = mapping.single(models.pop("trunk", None), "models/trunk", "bninception", "trunk")
    if trunk is not None and mapping.require(
        trunk[0] == "bninception", "models/trunk", trunk[0], "bninception", "trunk"
    ):
        mapping.set("trunk", "bn_inception")
        pretrained = trunk[1].pop("pretrained", "imagenet")
        is_known = pretrained in ("imagenet", None, False, "None")
        if mapping.require(is_known, "models/trunk/bninception/pretrained", pretrained, "imagenet", "trunk.pretrained"):
            mapping.set("trunk.pretrained", pretrained == "imagenet")
        mapping.rest(trunk[1], "models/trunk/bninception")
    key, cure = "models/embedder", "embedder.embedding_size"
    expected = "MLP with one layer, as {MLP: {layer_sizes: [128]}}"
    embedder = mapping.single(models.pop("embedder", None), key, expected, cure)
    if embedder is not None:
        name, arguments = embedder
        sizes = arguments.pop("layer_sizes", None)
        is_linear = name == "MLP" and isinstance(sizes, list) and len(sizes) == 1
        if mapping.require(is_linear, key, {name: {"layer_sizes": sizes}}, expected, cure):
            assert isinstance(sizes, list)
            mapping.number(f"{key}/MLP/layer_sizes", sizes[0], cure)
        mapping.neutral(arguments, f"{key}/{name}", "final_relu", (False,), "no activation after the embedder")
        mapping.rest(arguments, f"{key}/{name}")
    mapping.rest(models, "models")


def _transforms(mapping: _Mapping) -> None:
    transforms = dict(mapping.config.pop("transforms") or {})
    found = {
        part: {k: dict(v or {}) for k, v in (transforms.pop(part, None) or {}).items()} for part in ("train", "eval")
    }
    train, test = found["train"], found["eval"]
    crop, center = train.pop("RandomResizedCrop", {}), test.pop("CenterCrop", {})
    resizes = [part.pop("Resize", {}).pop("size", None) for part in (train, test)]
    sizes = [crop.pop("size", None), center.pop("size", None)]
    for what, pair, place, ours in (
        ("sizes of RandomResizedCrop and CenterCrop", sizes, "train/RandomResizedCrop/size", "transform.crop"),
        ("sizes of Resize", resizes, "train/Resize/size", "transform.resize"),
    ):
        is_one = None not in pair and pair[0] == pair[1]
        if mapping.require(is_one, f"transforms: {what}", pair, "the same in train and eval", ours):
            mapping.number(f"transforms/{place}", pair[0], ours)
    for key in ("scale", "ratio"):
        value = crop.pop(key, _MISSING)
        if value is not _MISSING:
            items = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
            pair = [float(number) for number in map(_number, items) if number is not None]
            where, ours = f"transforms/train/RandomResizedCrop/{key}", f"transform.{key}"
            if mapping.require(len(pair) == len(items) == 2, where, value, "two numbers", ours):
                mapping.set(ours, pair)
    flip = train.pop("RandomHorizontalFlip", None)
    mapping.number("transforms/train/RandomHorizontalFlip/p", 0.0 if flip is None else flip.pop("p", 0.5),
                   "transform.flip_probability")  # fmt: skip
    mapping.rest(crop, "transforms/train/RandomResizedCrop")
    mapping.rest(train, "transforms/train")
    mapping.rest(test, "transforms/eval")
    mapping.rest(transforms, "transforms")


def _loss(mapping: _Mapping) -> None:
    """Translates loss, miner and sampler."""
    known = f"one of {', '.join(_LOSSES)}"
    functions = mapping.config.pop("loss_funcs")
    is_one = isinstance(functions, dict) and list(functions) == ["metric_loss"]
    miner = _tuple_miner(mapping)
    found = None
    if mapping.require(is_one, "loss_funcs", _plain(functions), "one loss, metric_loss", "loss"):
        found = mapping.single(functions["metric_loss"], "loss_funcs/metric_loss", known, "loss")
    if found is not None:
        name, arguments = found
        if mapping.require(name in _LOSSES, "loss_funcs/metric_loss", name, known, "loss"):
            _loss_function(mapping, name, arguments, has_miner=miner is not None)
    if miner is not None:
        _miner(mapping, miner, has_own_loss=found is not None and found[0] == "MultiSimilarityLoss")
    expected = "MPerClassSampler, as {MPerClassSampler: {m: 4}}"
    sampler = mapping.single(mapping.config.pop("sampler"), "sampler", expected, "loss.samples_per_class")
    if sampler is not None:
        is_known = sampler[0] == "MPerClassSampler" and "m" in sampler[1]
        if mapping.require(is_known, "sampler", {sampler[0]: sampler[1]}, expected, "loss.samples_per_class"):
            mapping.number("sampler/MPerClassSampler/m", sampler[1].pop("m"), "loss.samples_per_class")
            if "length_before_new_iter" in sampler[1]:
                value = sampler[1].pop("length_before_new_iter")
                key = "sampler/MPerClassSampler/length_before_new_iter"
                mapping.drop(key, value, "passes over the classes follow each other without end")
            mapping.rest(sampler[1], "sampler/MPerClassSampler")


def _tuple_miner(mapping: _Mapping) -> tuple[str, dict[str, Any]] | None:
    miners = {key: node for key, node in (mapping.config.pop("mining_funcs") or {}).items() if node}
    place = next((key for key in ("tuple_miner", "post_gradient_miner") if key in miners), None)
    miner = None
    if place is not None:
        where = f"mining_funcs/{place}"
        miner = mapping.single(miners.pop(place), where, _MINER, "loss.miner")
        if miner is not None and not mapping.require(miner[0] == _MINER, where, miner[0], _MINER, "loss.miner"):
            miner = None
    for key, node in miners.items():
        mapping.require(False, f"mining_funcs/{key}", _plain(node), f"a tuple_miner, {_MINER}", "loss.miner")
    return miner


def _miner(mapping: _Mapping, miner: tuple[str, dict[str, Any]], has_own_loss: bool) -> None:
    name, arguments = miner
    where = f"mining_funcs/tuple_miner/{name}"
    epsilon = arguments.pop("epsilon", _MISSING)
    if not has_own_loss and not mapping.is_given("loss.miner"):
        # any loss takes a miner: only Multi Similarity has a file of its own for the two
        mapping.require(_number(epsilon) is not None, f"{where}/epsilon", _plain(epsilon), "a number", "loss.miner")
        target = f"_target_:pytorch_metric_learning.miners.{name},epsilon:{_number(epsilon)}"
        mapping.overrides["loss.miner"] = f"loss.miner={{{target}}}"
    elif epsilon is not _MISSING:
        mapping.number(f"{where}/epsilon", epsilon, "loss.miner.epsilon")
    mapping.rest(arguments, where)


def _loss_function(mapping: _Mapping, name: str, arguments: dict[str, Any], has_miner: bool) -> None:
    loss = _LOSSES[name]
    where = f"loss_funcs/metric_loss/{name}"
    if mapping.is_given("loss"):
        mapping.drop(where, _plain(arguments), "loss as given")
        return
    ours = loss.name
    if name == "MarginLoss":
        ours = _margin(mapping, arguments, where)
    elif name == "MultiSimilarityLoss" and has_miner:
        ours = "multi_similarity_miner"
    mapping.set("loss", ours)
    if name == "SoftTripleLoss":
        _soft_triple(mapping, arguments, where)
    elif name == "SignalToNoiseRatioContrastiveLoss" and "embedding_reg_weight" in arguments:  # since 0.9.90
        arguments["regularizer_weight"] = arguments.pop("embedding_reg_weight")
        arguments.pop("embedding_regularizer", None)
    for theirs, argument in loss.arguments.items():
        value = arguments.pop(theirs, _MISSING)
        if value is _MISSING and theirs in loss.defaults:
            value = loss.defaults[theirs]
            mapping.drop(f"{where}/{theirs}", None, f"not given: {value}, the library's default of that time")
        if value is None and theirs == "reg_weight":
            mapping.set(f"loss.function.{argument}", None)
        elif value is not _MISSING:
            mapping.number(f"{where}/{theirs}", value, f"loss.function.{argument}")
        elif theirs != "nu":  # which the authors of the library made optional, and 0
            mapping.drop(f"{where}/{theirs}", None, f"not given: the value in conf/loss/{ours}.yaml")
    for key in _FILLED_IN:
        arguments.pop(key, None)
    if "avg_non_zero_only" in arguments:
        mapping.drop(f"{where}/avg_non_zero_only", arguments.pop("avg_non_zero_only"), _AVERAGE)
    if "use_similarity" in arguments:
        mapping.drop(f"{where}/use_similarity", arguments.pop("use_similarity"), _EUCLIDEAN)
    for key, value, instead in (
        ("normalize_embeddings", True, "embeddings have length 1"),
        ("power", 1, "terms are not raised to a power"),
        ("distance_norm", 2, "Euclidean distance"),
        ("swap", False, "the anchor's distances count"),
        ("smooth_loss", False, "a hinge"),
        ("triplets_per_anchor", "all", "all triplets of the batch"),
        ("learnable_param_names", None, "only the weights of the loss are learned"),
        ("reducer", None, "the loss's own average"),
        ("distance", None, "the loss's own distance"),
        ("regularizer", None, "no regulariser of weights"),
        ("weight_regularizer", None, "no regulariser of weights"),
    ):
        mapping.neutral(arguments, where, key, (value, *([[], {}] if value is None else [])), instead)
    mapping.rest(arguments, where)


def _margin(mapping: _Mapping, arguments: dict[str, Any], where: str) -> str:
    """Returns which of both Margin losses it is. It reads the old arguments (until 0.9.86) and the new ones."""
    # the original fills num_classes in where it is not given, and the new MarginLoss then has a beta a class
    is_new = "learn_beta" in arguments
    per_class = bool(arguments.pop("num_class_per_param", None) or arguments.pop("num_classes", is_new or None))
    learned = arguments.pop("learnable_param_names", None) or []
    if learned not in ([], ["beta"]):
        mapping.drop(f"{where}/learnable_param_names", learned, "beta is learned, or nothing")
    learns_beta = bool(arguments.pop("learn_beta", "beta" in learned))
    mapping.set("loss.function.learn_beta", learns_beta)
    return "margin_per_class" if per_class else "margin"


def _soft_triple(mapping: _Mapping, arguments: dict[str, Any], where: str) -> None:
    """Reads the regulariser: of several centres only, and halved by the library since 0.9.87 under its new name."""
    new = arguments.pop("weight_reg_weight", None)
    if new is not None:
        arguments.pop("weight_regularizer", None)
        arguments["reg_weight"] = None if _number(new) is None else _number(new) / 2  # type: ignore[operator]
    if _number(arguments.get("centers_per_class")) == 1:
        if arguments.get("reg_weight") is not None:
            value = _plain(arguments["reg_weight"])
            mapping.drop(f"{where}/reg_weight", value, "none: the regulariser is of several centres of a class")
        arguments["reg_weight"] = None


def _optimizers(mapping: _Mapping) -> None:
    """Translates the optimizers of trunk, embedder and loss into one with two groups."""
    optimizers = dict(mapping.config.pop("optimizers") or {})
    trunk, embedder = optimizers.pop("trunk_optimizer", None), optimizers.pop("embedder_optimizer", None)
    is_same = trunk is not None and trunk == embedder
    both = {"trunk_optimizer": _plain(trunk), "embedder_optimizer": _plain(embedder)}
    known = f"the same for both, one of {', '.join(_OPTIMIZERS)}"
    main: dict[str, Any] = {}
    name: str | None = None
    if mapping.require(is_same, "optimizers", both, known, "optimizer"):
        found = mapping.single(trunk, "optimizers/trunk_optimizer", known, "optimizer")
        if found is not None and mapping.require(found[0] in _OPTIMIZERS, "optimizers", found[0], known, "optimizer"):
            name, main = found
            _optimizer(mapping, found[0], main)
    _loss_optimizer(mapping, optimizers.pop("metric_loss_optimizer", None), name, main)
    mapping.rest(optimizers, "optimizers")


def _optimizer(mapping: _Mapping, name: str, values: dict[str, Any]) -> None:
    where = f"optimizers/trunk_optimizer/{name}"
    ours = yaml.safe_load((config_folder() / "optimizer" / "rmsprop.yaml").read_text(encoding="utf-8"))
    if ours["_target_"] != f"torch.optim.{name}":
        mapping.set("optimizer._target_", f"torch.optim.{name}")
    _training_options(mapping, values, where)
    for key, value in values.items():
        if isinstance(value, bool):
            mapping.set(f"optimizer.{key}", value, "" if key in ours else "++")
        else:
            mapping.number(f"{where}/{key}", value, f"optimizer.{key}", "" if key in ours else "++")
    for key in ours.keys() - values.keys() - {"_target_"}:
        mapping.remove(f"optimizer.{key}")  # torch's own default, as in the original


def _loss_optimizer(mapping: _Mapping, node: Any, main_name: str | None, main: Mapping[str, Any]) -> None:
    """Translates the optimizer of the loss's own parameters, where the loss has any."""
    if "loss" not in mapping.overrides or mapping.is_given("loss"):
        return
    loss = mapping.overrides["loss"].removeprefix("loss=")
    learns_beta = mapping.overrides.get("loss.function.learn_beta", "").endswith("true")
    owns = learns_beta or any(row.name == loss and row.owns_parameters for row in _LOSSES.values())
    where, cure = "optimizers/metric_loss_optimizer", "loss.optimizer.lr"
    if not owns:
        if node is not None:
            mapping.drop(where, _plain(node), f"{loss} has no parameters of its own to optimize")
        return
    expected = f"an entry for the parameters that {loss} learns, which nothing would train else"
    if not mapping.require(node is not None, where, node, expected, cure):
        return
    found = mapping.single(node, where, main_name or "one optimizer", cure)
    is_main = found is not None and main_name in (found[0], None)
    if found is None or not mapping.require(is_main, where, found[0], f"{main_name}, as of the trunk", cure):
        return
    name, values = found
    if not mapping.require("lr" in values, f"{where}/{name}", values, "a learning rate lr", cure):
        return
    _training_options(mapping, values, f"{where}/{name}")
    ours = yaml.safe_load((config_folder() / "loss" / f"{loss}.yaml").read_text(encoding="utf-8"))["optimizer"]
    wanted = {key: values.get(key, _TORCH_DEFAULTS.get(key)) for key in main.keys() | values.keys()}
    for key in sorted(wanted, key=lambda key: (key != "lr", key)):
        holds = ours.get(key, main.get(key))
        if key != "lr" and holds is not None and _number(holds) == _number(wanted[key]):
            continue  # the group takes it over from the optimizer, or conf/loss has it
        if key not in values and key not in _TORCH_DEFAULTS:
            mapping.drop(f"{where}/{name}/{key}", None, f"not given: {main[key]!r}, as of the trunk")
            continue
        mapping.number(f"{where}/{name}/{key}", wanted[key], f"loss.optimizer.{key}", "" if key in ours else "++")


def _training_options(mapping: _Mapping, values: dict[str, Any], where: str) -> None:
    """Takes out what is no number of the optimizer."""
    for key in list(values):
        if key == "clip_grad_norm" or str(key).startswith("scheduler"):
            mapping.drop(f"{where}/{key}", _plain(values.pop(key)), "left out; 0.9.32 and 0.9.33 fail on it (issue 72)")
        elif not str(key).isidentifier() or str(key).startswith("_"):
            mapping.drop(f"{where}/{key}", _plain(values.pop(key)), "no argument of an optimizer, left out")


def _evaluation(mapping: _Mapping) -> None:
    """Takes out what says how accuracies are computed, which is one way here."""
    config = mapping.config
    for key, allowed, instead in (
        ("aggregator", "MeanAggregator", "the mean over folds"),
        ("ensemble", "ConcatenateEmbeddings", "concatenated embeddings"),
        ("tester", "GlobalEmbeddingSpaceTester", "all images query all others"),
        ("hook_container", "HookContainer", "models are selected by MAP@R of val"),
    ):
        objects = config.pop(key, None) or {}
        for name, arguments in (objects if isinstance(objects, dict) else {str(objects): None}).items():
            if name not in (allowed, None):
                mapping.drop(key, name, instead)
                continue
            node, where = dict(arguments or {}), f"{key}/{name}"
            if "batch_size" in node:
                mapping.number(f"{where}/batch_size", node.pop("batch_size"), "evaluation.batch_size")
            for ignored in ("dataloader_num_workers", "visualizer", "visualizer_hook", "save_models", "size_of_tsne"):
                node.pop(ignored, None)  # speed, and what is drawn or kept
            for inner, values, what in (
                ("reference_set", ("compared_to_self",), "images query the others of their split"),
                ("normalize_embeddings", (True,), "embeddings have length 1"),
                ("use_trunk_output", (False,), "embeddings count"),
                ("pca", (None,), "none; evaluation.baselines has that of the trunk"),
                ("label_hierarchy_level", (0,), "images have one label"),
                ("accuracy_calculator", ({"AccuracyCalculator": None}, {"AccuracyCalculator": {}}),
                 "P@1, R-Precision and MAP@R of all images"),
                ("primary_metric", ("mean_average_precision_at_r",), "models are selected by MAP@R"),
                ("validation_split_name", ("val",), "val"),
                ("split_to_aggregate", ("val",), "val while training, then test"),
            ):  # fmt: skip
                mapping.neutral(node, where, inner, values, what)
            mapping.rest(node, where)
    mapping.neutral(config, "", "splits_to_eval", (["val"], None), "val while training, then test")
    mapping.neutral(config, "", "label_hierarchy_level", (0,), "images have one label")
    mapping.neutral(config, "", "check_untrained_accuracy", (True,), "the untrained model is validated as epoch 0")
    mapping.neutral(config, "", "api_parser", (None,), "MetricLossOnly's")
    mapping.neutral(config, "", "layers_to_extract", (None, []), "the last features of the trunk")
    for key, node in (config.pop("factories", None) or {}).items():
        usual = "".join(word.capitalize() for word in key.split("_")) + "Factory"
        if node not in ({usual: {}}, {usual: None}):
            mapping.drop(f"factories/{key}", node, "objects are built by conf/ alone")
    for key in (
        "skip_eval_if_already_done",
        "skip_meta_eval_if_already_done",
        "skip_ensemble_eval_if_already_done",
        "log_data_to_tensorboard",
        "save_figures_on_tensorboard",
        "save_lists_in_db",
        "override_required_compatible_factories",
    ):
        config.pop(key, None)  # logs, and what a second run does: no figure depends on them


_TRANSLATIONS: tuple[Callable[[_Mapping], None], ...] = (
    _dataset,
    _loss,
    _trainer,
    _split,
    _schedule,
    _models,
    _transforms,
    _optimizers,
    _evaluation,
)
