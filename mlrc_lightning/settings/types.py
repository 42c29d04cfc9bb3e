"""The types of the configuration, its cross-field checks, and the strict reading of mappings into them.

Values live in `conf/`; nothing here has a default. The same reader takes a composed configuration and a stored
record, so that a result folder is data like any other.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.names import UNTRAINED
from mlrc_lightning.reading import leaves, require_name, suggestion

ALL_FOLDS = "all"
STAGES = ("train", "search", "reproduce", UNTRAINED)
RUN_STAGES = ("reproduce", UNTRAINED)
"""Stages of numbered runs, each with a seed of its own."""
FROZEN_PROXY = "frozen_proxy"
"""In the name of the protocol of all that has a frozen trunk: no such result is one of the protocol."""
EXIF = ("ignore", "apply")
COPIES = ("refuse", "report")
STRATEGIES = ("auto", "ddp")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
CUDA_GRAPHS = "cudagraphs"
"""Of `trainer.compile`."""
AUGMENTATIONS = ("pil", "torch", "device")
"""What crops and flips training images: Pillow, torch on the CPU, or the device that trains."""
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
INTERVALS = ("iteration", "epoch", "plateau")
"""When a scheduler is stepped: after a batch, after an epoch, or after a validation, with its MAP@R."""
Target = dict[str, Any]
"""A `_target_` with its arguments: the open part of the configuration, checked by the class it names."""
_COUNTS = {"seed": 0, "length_before_new_list": 1, "step_size": 1, "T_max": 1, "total_iters": 1, "num_classes": 1}
_COUNTS |= {"images_per_class": 1}
"""Arguments of classes that are whole numbers, with the least."""
_NUMBERS = ("alpha", "eps", "momentum", "weight_decay", "gamma", "factor", "start_factor", "end_factor")
"""Arguments of classes that are numbers and not negative."""


@dataclass(frozen=True)
class DatasetSettings:
    """One dataset: which images, and the protocol's numbers that depend on it (§1.3).

    `exif` says whether images in files are rotated as their EXIF orientation says, `copies` whether the same pixels in
    two classes, or in two of train, val and test, are refused or only reported.
    """

    name: str
    images: Target
    min_images_per_class: int
    max_epochs: int
    save_interval: int
    patience: int | None
    paper_setting: str
    exif: str = EXIF[0]
    copies: str = COPIES[0]

    def __post_init__(self) -> None:
        require_name("dataset.name", self.name)
        _require_target("dataset.images", self.images)
        _require_one_of("dataset.exif", EXIF, self.exif)
        _require_one_of("dataset.copies", COPIES, self.copies)
        _require(self.min_images_per_class >= 1, "dataset.min_images_per_class", ">= 1", self.min_images_per_class)


@dataclass(frozen=True)
class SplitSettings:
    """Which images are trained on, validated on and tested on (§1.6)."""

    name: str
    num_folds: int
    splitter: Target

    def __post_init__(self) -> None:
        require_name("split.name", self.name)
        _require_target("split.splitter", self.splitter)
        _require(self.num_folds >= 1, "split.num_folds", ">= 1", self.num_folds)


@dataclass(frozen=True)
class LossSettings:
    """One loss: function, miner, the optimizer of its own parameters, and the sampling rule that goes with it.

    Arguments in angle brackets are filled in when the fold is known: `<num_train_classes>`, `<embedding_size>`.
    `parameter_names` gives the configuration key of each hyperparameter as the reference data calls it;
    `search_space` is used where the reference data has none. A loss that the paper does not have has no `paper_name`.
    """

    name: str
    paper_name: str | None
    function: Target
    miner: Target | None
    samples_per_class: int
    optimizer: dict[str, Any]
    parameter_names: dict[str, str]
    search_space: dict[str, Any] | None

    def __post_init__(self) -> None:
        require_name("loss.name", self.name)
        _require_target("loss.function", self.function)
        if self.miner is not None:
            _require_target("loss.miner", self.miner)
        _require(self.samples_per_class >= 1, "loss.samples_per_class", ">= 1", self.samples_per_class)


@dataclass(frozen=True)
class HyperparameterSettings:
    """Where the loss's hyperparameters come from. The values themselves are in `loss`.

    Attributes:
        name: default, paper or search.
        source: How exactly the paper's values are known, or the search they are from; the losses' defaults otherwise.
        published: The paper's or the search's values by configuration key.
        replaced: Keys whose value is not the paper's, because another was given.
    """

    name: str
    source: str
    published: dict[str, Any]
    replaced: tuple[str, ...]


@dataclass(frozen=True)
class TrunkSettings:
    """The network before the embedder (§1.1).

    Attributes:
        name: Of the trunk.
        pretrained: Whether it has weights to begin with, or their file.
        freeze_batchnorm: Keep its BatchNorm in eval mode.
        learning_rate: Of trunk and embedder.
        model: Its class.
        frozen: Compute its features once, and train embedder and loss alone: a proxy of the protocol, not the protocol.
        views: With `frozen`, augmented views of an image to train on.
        strict: Whether a weight file must be the network's: every tensor, and nothing else but a head.
    """

    name: str
    pretrained: bool | str
    freeze_batchnorm: bool
    learning_rate: float
    model: Target
    frozen: bool = False  # older records have neither
    views: int = 8
    strict: bool = True

    def __post_init__(self) -> None:
        _require_target("trunk.model", self.model)
        _require(self.views >= 1, "trunk.views", ">= 1", self.views)
        if self.frozen:
            expected = "weights with trunk.frozen=true, whose features they give: true, or a file"
            _require(self.pretrained is not False, "trunk.pretrained", expected, self.pretrained)


@dataclass(frozen=True)
class TransformSettings:
    """Sizes in pixels and distributions of the image transform (§1.5)."""

    resize: int
    crop: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip_probability: float

    def __post_init__(self) -> None:
        _require(1 <= self.crop <= self.resize, "transform.crop", f"1 to transform.resize={self.resize}", self.crop)
        _require(0 < self.scale[0] <= self.scale[1] <= 1, "transform.scale", "0 < low <= high <= 1", self.scale)
        _require(0 < self.ratio[0] <= self.ratio[1], "transform.ratio", "0 < low <= high", self.ratio)
        _require(0 <= self.flip_probability <= 1, "transform.flip_probability", "0 to 1", self.flip_probability)


@dataclass(frozen=True)
class EmbedderSettings:
    """The layer after the trunk (§1.1)."""

    embedding_size: int

    def __post_init__(self) -> None:
        _require(self.embedding_size >= 2, "embedder.embedding_size", ">= 2", self.embedding_size)


@dataclass(frozen=True)
class ScheduleSettings:
    """How long to train, how often to validate, when to stop (§1.2, §1.3)."""

    iterations_per_epoch: int
    max_epochs: int
    save_interval: int
    patience: int | None

    def __post_init__(self) -> None:
        for name in ("iterations_per_epoch", "max_epochs", "save_interval"):
            _require(getattr(self, name) >= 1, f"schedule.{name}", ">= 1", getattr(self, name))
        _require(
            self.max_epochs >= self.save_interval,
            "schedule.max_epochs",
            f">= schedule.save_interval={self.save_interval}, so that at least one model is validated",
            self.max_epochs,
        )
        if self.patience is not None:
            _require(self.patience >= 0, "schedule.patience", ">= 0, or null for no early stopping", self.patience)


@dataclass(frozen=True)
class SchedulerSettings:
    """Learning-rate schedulers: of trunk and embedder, and of the loss's own parameters. None means constant rates.

    Each is a class of `torch.optim.lr_scheduler` with its arguments, and `interval`: when it is stepped.
    """

    model: Target | None
    loss: Target | None

    def __post_init__(self) -> None:
        for name in ("model", "loss"):
            target = getattr(self, name)
            if target is not None:
                _require_target(f"scheduler.{name}", target)
                _require_one_of(f"scheduler.{name}.interval", INTERVALS, str(target.get("interval")))


@dataclass(frozen=True)
class GradientClipSettings:
    """Largest norm of the gradient of trunk and embedder, and of the loss's own parameters. None means no limit."""

    model: float | None
    loss: float | None

    def __post_init__(self) -> None:
        for name in ("model", "loss"):
            norm = getattr(self, name)
            _require(norm is None or norm > 0, f"gradient_clip.{name}", "a number > 0, or null for no limit", norm)


@dataclass(frozen=True)
class EvaluationSettings:
    """How embeddings are extracted, and what is evaluated beside the trained models.

    Attributes:
        batch_size: Images of a batch.
        baselines: Whether the test shows the untrained models as well.
        check_untrained_accuracy: Whether validation begins before training, with the trunk alone and with the random
            embedder, which is epoch 0 of patience (§1.3). None: epoch 0 always, the trunk alone only where
            baselines are shown.
        clustering: Whether NMI and AMI are computed beside the accuracies (§1.7).
        figure_inputs: Whether the test stores a projection of its embeddings and a sheet of nearest neighbours; None:
            only in the first run of a setting.
    """

    batch_size: int
    baselines: bool
    check_untrained_accuracy: bool | None
    clustering: bool
    figure_inputs: bool | None = None  # older records have none

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "evaluation.batch_size", ">= 1", self.batch_size)


@dataclass(frozen=True)
class TrainerSettings:
    """The hardware: changes speed, not the protocol.

    Attributes:
        accelerator: As Lightning names it: auto, cpu, gpu.
        devices: One, or with strategy=ddp as many as there are to be ranks.
        strategy: auto, or ddp.
        precision: Of trunk and embedder.
        num_workers: Processes that read images, of each rank.
        deterministic: Use deterministic algorithms where there are any.
        channels_last: Order of the trunk's weights and images in memory.
        compile: Whether the trunk goes through torch.compile; or `cudagraphs`, which captures its launches and compiles
            none of its kernels.
        checkpoint_every_n_iterations: How often the state of a training is saved between validations; None: never.
        parallel_folds: How many folds of a trial are trained at once, each in a process of its own.
        augmentation: What crops and flips training images: one of `AUGMENTATIONS`.
        resident_cache: Keep the decoded images on the device; with augmentation=device alone.
    """

    accelerator: str
    devices: int | str
    strategy: str
    precision: str
    num_workers: int
    deterministic: bool
    channels_last: bool
    compile: bool | str
    checkpoint_every_n_iterations: int | None
    parallel_folds: int
    augmentation: str = "pil"  # older records have neither
    resident_cache: bool = False

    def __post_init__(self) -> None:
        _require_one_of("trainer.accelerator", ACCELERATORS, self.accelerator)
        _require_one_of("trainer.precision", PRECISIONS, self.precision)
        _require_one_of("trainer.augmentation", AUGMENTATIONS, self.augmentation)
        if self.resident_cache:
            expected = "device with trainer.resident_cache=true, because a processor has no use for images elsewhere"
            _require(self.augmentation == "device", "trainer.augmentation", expected, self.augmentation)
        _require(
            self.compile in (False, True, CUDA_GRAPHS), "trainer.compile", f"false, true or {CUDA_GRAPHS}", self.compile
        )
        is_one_or_the_other = self.compile != CUDA_GRAPHS or self.num_ranks == 1
        _require(is_one_or_the_other, "trainer.compile", "false or true with several ranks", self.compile)
        _require_one_of("trainer.strategy", STRATEGIES, self.strategy)
        _require(self.num_workers >= 0, "trainer.num_workers", ">= 0", self.num_workers)
        every = self.checkpoint_every_n_iterations
        _require(every is None or every >= 1, "trainer.checkpoint_every_n_iterations", ">= 1, or null", every)
        _require(self.parallel_folds >= 1, "trainer.parallel_folds", ">= 1", self.parallel_folds)
        is_one_or_the_other = self.parallel_folds == 1 or self.num_ranks == 1
        _require(is_one_or_the_other, "trainer.parallel_folds", "1 with several ranks", self.parallel_folds)
        if self.strategy == "ddp":
            is_number = isinstance(self.devices, int) and self.devices >= 1
            _require(is_number, "trainer.devices", "with trainer=ddp the number of ranks, >= 1", self.devices)
        else:
            _require(
                self.devices in (1, "auto") or (isinstance(self.devices, str) and self.devices.strip(",").isdigit()),
                "trainer.devices",
                'one, or the number of a GPU as in "3,"; for several take trainer=ddp',
                self.devices,
            )

    @property
    def num_ranks(self) -> int:
        """Processes that share a trial."""
        return self.devices if self.strategy == "ddp" and isinstance(self.devices, int) else 1


@dataclass(frozen=True)
class TrialSettings:
    """Everything that defines one trial: one loss with its hyperparameters, on some or all folds of one setting.

    `run` is the number among the runs of one setting, None outside of `RUN_STAGES`. `seed` follows from it and
    `root_seed`; elsewhere the two seeds are the same.
    """

    stage: str
    protocol: str
    setting: str
    seed: int
    root_seed: int
    run: int | None
    fold: int | str | tuple[int, ...]
    batch_size: int
    dataset: DatasetSettings
    split: SplitSettings
    loss: LossSettings
    hyperparameters: HyperparameterSettings
    trunk: TrunkSettings
    transform: TransformSettings
    embedder: EmbedderSettings
    optimizer: Target
    scheduler: SchedulerSettings
    gradient_clip: GradientClipSettings
    sampler: Target
    schedule: ScheduleSettings
    evaluation: EvaluationSettings
    logger: Target | None
    trainer: TrainerSettings
    keep_models: bool | None
    data_root: str

    def __post_init__(self) -> None:
        _require_one_of("stage", STAGES, self.stage)
        for name in ("protocol", "setting"):
            require_name(name, getattr(self, name))
        _require_target("optimizer", self.optimizer)
        _require_target("sampler", self.sampler)
        if self.logger is not None:
            _require_target("logger", self.logger)
        _require(self.seed >= 0, "seed", ">= 0", self.seed)
        if self.stage in RUN_STAGES:
            expected = (
                f"the number of a run, from 0, with stage={self.stage}; all of them: train.py -m stage={self.stage}"
            )
            _require(self.run is not None and self.run >= 0, "run", expected, self.run)
        else:
            _require(self.run is None, "run", f"null with stage={self.stage}: only {RUN_STAGES} have runs", self.run)
        all_folds = range(self.split.num_folds)
        allowed = f"{ALL_FOLDS}, one of 0 to {all_folds[-1]}, or a list of different ones"
        is_allowed = len(self.folds) == len(set(self.folds)) > 0 and set(self.folds) <= set(all_folds)
        _require(is_allowed, "fold", allowed, self.fold)
        _require(self.batch_size >= 2, "batch_size", ">= 2", self.batch_size)
        _require(
            self.batch_size % self.loss.samples_per_class == 0,
            "batch_size",
            f"a multiple of loss.samples_per_class={self.loss.samples_per_class}",
            self.batch_size,
        )
        augmentation = self.trainer.augmentation
        expected = "pil with trunk.frozen=true: crops are drawn once, and not in training"
        _require(not self.trunk.frozen or augmentation == "pil", "trainer.augmentation", expected, augmentation)
        for name in ("channels_last", "compile"):
            is_asked = self.trunk.frozen and getattr(self.trainer, name)
            expected = "false with trunk.frozen=true, where the trunk is run once and not in training"
            _require(not is_asked, f"trainer.{name}", expected, getattr(self.trainer, name))
        if self.trainer.num_ranks > 1:
            _require(
                self.trunk.freeze_batchnorm,
                "trunk.freeze_batchnorm",
                f"true with trainer.devices={self.trainer.num_ranks}: BatchNorm would take its statistics from the"
                " images of one rank, which no single process does; or trainer.devices=1",
                self.trunk.freeze_batchnorm,
            )
            _require(
                self.trainer.num_ranks <= self.batch_size,
                "trainer.devices",
                f"at most batch_size={self.batch_size}, so that every rank has an image",
                self.trainer.num_ranks,
            )
        # a rate or margin that is not finite would train for hours before it shows
        for path, value in leaves(dataclasses.asdict(self)):
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{path}={value}: expected a finite number.")
        # what no type describes, and fails hours later or in every trial
        parts = {"optimizer": self.optimizer, "loss.optimizer": self.loss.optimizer, "sampler": self.sampler}
        parts |= {"scheduler.model": self.scheduler.model or {}, "scheduler.loss": self.scheduler.loss or {}}
        parts |= {"dataset.images": self.dataset.images, "split.splitter": self.split.splitter}
        for path, value in leaves(parts):
            name = path.rpartition(".")[2]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            is_filled_in = isinstance(value, str) and value.startswith("<")
            if name == "lr":
                _require(is_number and value > 0, path, "a number > 0", value)  # type: ignore[operator]
            elif name in _COUNTS and not is_filled_in:
                is_count = is_number and isinstance(value, int) and value >= _COUNTS[name]
                _require(is_count, path, f"a whole number >= {_COUNTS[name]}", value)
            elif name in _NUMBERS:
                _require(is_number and value >= 0, path, "a number >= 0", value)  # type: ignore[operator]

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds to run, ascending. It is empty where `fold` names none."""
        if isinstance(self.fold, str):
            return tuple(range(self.split.num_folds)) if self.fold == ALL_FOLDS else ()
        return tuple(sorted(self.fold)) if isinstance(self.fold, tuple) else (self.fold,)

    @property
    def opens_test_classes(self) -> bool:
        """Whether the trial may read test images: never in a search."""
        return self.stage != "search"

    @property
    def stores_figure_inputs(self) -> bool:
        """Whether the test leaves what figures of embeddings need."""
        if self.evaluation.figure_inputs is None:
            return self.stage == "reproduce" and self.run == 0
        return self.evaluation.figure_inputs

    @property
    def keeps_models(self) -> bool:
        """Whether the best weights of each fold stay on disk."""
        return self.stage != "search" if self.keep_models is None else self.keep_models


def _require(holds: bool, path: str, expected: str, found: object) -> None:
    if not holds:
        raise ConfigError(f"{path}={found!r}: expected {expected}.")


def _require_one_of(path: str, known: tuple[str, ...], found: str) -> None:
    if found not in known:
        raise ConfigError(f"{path}={found}: unknown.{suggestion(found, known)}")


def _require_target(path: str, node: Target) -> None:
    if not isinstance(node.get("_target_"), str):
        raise ConfigError(f"{path}: expected a _target_ (the dotted name of a class), found keys {sorted(node)}.")
