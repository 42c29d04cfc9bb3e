"""The pieces of a trial, built from its settings: data, module, trainer. The last place that sees a `_target_`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import random
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlrc_lightning._torchvision  # noqa: F401

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from pytorch_lightning.loggers import Logger
from pytorch_lightning.loops.progress import _ProcessedTracker
from pytorch_lightning.strategies import DDPStrategy
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import nn
from torch.nn.functional import normalize

from mlrc_lightning.data.augment import TrainTransform
from mlrc_lightning.data.cache import CachedImages, Half, ResizedImages, cached_images, stored_digests, uncached_images
from mlrc_lightning.data.contents import check_contents
from mlrc_lightning.data.images import ImageFiles, LabeledImages, check_classes
from mlrc_lightning.data.sampling import Batches
from mlrc_lightning.data.splits import FoldSplit, Indices, Splitter, checked_folds, trainval_images
from mlrc_lightning.errors import ConfigError, DiskFullError, MlrcError
from mlrc_lightning.models.folder import file_digest
from mlrc_lightning.models.frozen import FrozenTrunk
from mlrc_lightning.models.trunk import Trunk
from mlrc_lightning.names import UNTRAINED
from mlrc_lightning.parallel.collectives import is_distributed, world_size
from mlrc_lightning.settings.identity import dataset_deviations, is_the_papers_split
from mlrc_lightning.settings.types import CUDA_GRAPHS, Target, TrialSettings
from mlrc_lightning.training.datamodule import FoldDataModule, Pixels, ResidentPixels
from mlrc_lightning.training.features import CachedFeatures, cached_features
from mlrc_lightning.training.module import LOSS, MODEL, EmbeddingModule, Schedule, Scheduler
from mlrc_lightning.training.objective import Objective

log = logging.getLogger(__name__)

_ORIGINS = ("archive", "download", "mirrors")
"""Arguments of a dataset that say how its files come to be there, and not which they are."""


class TrialData:
    """The images of one trial: labels of all, pixels of those to train and validate on, and of test where allowed.

    Both halves are decoded before training, so that a broken file is found before hours of it, and not after. Where the
    disk has no room for them, they are decoded once to see that they can be, and then again whenever they are needed.

    Args:
        settings: Of the trial; its stage decides whether test images can be reached at all.
        needs_cache: Whether a disk without room is an error.
        checks_all: Whether every decoded image is compared with its digest, and not some.

    Attributes:
        images: The dataset.
        splits: Of the folds of this trial.
        trainval: Pixels of the images that some fold trains or validates on.
        resident: Those pixels on the training device; None where they are not to be there.
        test_queries: Dataset indices of the test images that query the others; None: all query each other.
        description: Of the dataset, for the record.
        data_path: How its pixels come to the trunk, for the record.

    Raises:
        DatasetError: The dataset is missing, broken, or cannot be split so.
        ConfigError: The augmentation is not installed, or there is nothing to keep on the device.
    """

    def __init__(self, settings: TrialSettings, *, needs_cache: bool = False, checks_all: bool = False) -> None:
        self._settings = settings
        self._needs_cache, self._checks_all = needs_cache, checks_all
        self.images: LabeledImages = build(settings.dataset.images, "dataset.images")
        if settings.dataset.exif != "ignore":
            if not isinstance(self.images, ImageFiles):
                raise ConfigError(f"dataset.exif={settings.dataset.exif}: expected a dataset of image files.")
            self.images.exif = settings.dataset.exif
        self.num_classes = len(self.images.class_names)
        check_classes(self.images, settings.dataset.min_images_per_class)
        splitter: Splitter = build(settings.split.splitter, "split.splitter")
        all_folds = splitter.folds(self.images.labels, getattr(self.images, "own_split", None))
        all_folds = checked_folds(all_folds, settings.split.num_folds)
        self.splits = {fold: all_folds[fold] for fold in settings.folds}
        self.test_queries = all_folds[0].queries
        self._checks = [] if needs_cache else [lambda: self._build_once(all_folds[0])]
        self.trainval = self._pixels("trainval", trainval_images(all_folds))
        self._test = self._pixels("test", all_folds[0].test) if settings.opens_test_classes else None
        copies = self._copies(all_folds)
        self.resident = self._on_the_device() if settings.trainer.resident_cache else None
        self.description = {
            "name": settings.dataset.name,
            "num_classes": self.num_classes,
            "num_images": len(self.images.labels),
            "num_trainval_images": len(self.trainval.cache.indices),
            "trainval_fingerprint": self.images.fingerprint(self.trainval.cache.indices),
        }
        self.description.update(copies)
        if self.trainval.features is not None:
            self.description["frozen_features"] = self.trainval.features.description()
        halves = {"trainval": self.trainval, **({} if self._test is None else {"test": self._test})}
        self.data_path = {
            "augmentation": settings.trainer.augmentation,
            "resident_cache": settings.trainer.resident_cache,
            "pixels": {
                half: "cached" if isinstance(pixels.cache, CachedImages) else "decoded on the fly"
                for half, pixels in halves.items()
            },
        }

    @cached_property
    def trunk(self) -> Trunk:
        """The trunk itself, also where its features are all that is trained on."""
        trunk: Trunk = build(self._settings.trunk.model, "trunk.model")
        return trunk

    @property
    def num_features(self) -> int | None:
        """Width of the features of a frozen trunk. It is None for a trunk that trains."""
        return None if self.trainval.features is None else self.trainval.features.num_features

    @property
    def test(self) -> Pixels:
        """Pixels of the test images.

        Raises:
            ConfigError: The stage is one that may not read them.
        """
        if self._test is None:
            raise ConfigError(
                f"stage={self._settings.stage}: expected no use of the test images, found one: a search picks by"
                " validation alone. Test what it found with stage=train."
            )
        return self._test

    def _copies(self, folds: Sequence[FoldSplit]) -> dict[str, dict[str, int]]:
        """Counts images with the same pixels. In a search those of test by their digests alone, where there are any.

        The name of the counts says whether test was compared, so that they differ between runs where that did.
        """
        indices, digests = self.trainval.cache.indices, list(self.trainval.cache.digests)
        test = folds[0].test
        if self._test is None:
            found = stored_digests(
                self.images, test, self._settings.transform.resize, self._cache_folder, "test"
            )  # by an earlier `prepare` or test
        else:
            test, found = self._test.cache.indices, self._test.cache.digests
        if found is not None:
            indices, digests = np.concatenate([indices, test]), [*digests, *found]
        counts = check_contents(self.images, folds, indices, digests, self._settings.dataset.copies == "refuse")
        left_out = getattr(self.images, "num_left_out", 0)
        counts |= {"listed again and left out": left_out} if left_out else {}
        return {"copies_in_trainval" if found is None else "copies": counts} if counts else {}

    def _check_pieces(self) -> None:
        """Builds once what needs no pixels: what cannot be built is known before hours of decoding."""
        while self._checks:
            self._checks.pop()()

    def _build_once(self, split: FoldSplit) -> None:
        settings = self._settings
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()
        train_transform(settings)
        num_features = self.trunk.num_features if settings.trunk.frozen else None
        num_classes = None if settings.stage == UNTRAINED else len(split.classes("train"))
        module = build_module(settings, split.fold, num_classes, num_features)
        if num_classes is not None:
            _try_a_step(settings, module, split)
        with TemporaryDirectory() as folder:
            build_logger(settings, Path(folder) / "logs")
            build_trainer(settings, Path(folder))
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])

    @property
    def _cache_folder(self) -> Path:
        # other arguments of the same dataset, and another split, are another cache: two runs never replace each
        # other's, and no trainval cache of one split can hold what another tests on
        settings = self._settings
        images = {name: value for name, value in settings.dataset.images.items() if name not in _ORIGINS}
        images |= dataset_deviations(dataclasses.asdict(settings.dataset))
        decides = (
            images if is_the_papers_split(dataclasses.asdict(settings.split)) else [images, settings.split.splitter]
        )
        arguments = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
        return Path(settings.data_root) / "cache" / settings.dataset.name / f"{settings.transform.resize}-{arguments}"

    def _pixels(self, half: Half, indices: Indices) -> Pixels:
        settings, resize, folder = self._settings, self._settings.transform.resize, self._cache_folder
        cache: ResizedImages
        try:
            needs_cache = self._needs_cache or settings.trunk.frozen
            cache = cached_images(
                self.images, indices, resize, folder, half,
                tries_again=needs_cache, checks_all=self._checks_all, before=self._check_pieces,
            )  # fmt: skip
        except DiskFullError as error:
            if needs_cache:
                raise
            log.warning("%s Until then images are decoded whenever they are needed: same pixels, more time.", error)
            cache = uncached_images(self.images, indices, resize, folder, half, self._check_pieces)
        features = None
        if settings.trunk.frozen:
            assert isinstance(cache, CachedImages)
            features = self._features(half, cache)
        return Pixels(cache, self.images.labels, features)

    def _features(self, half: Half, cache: CachedImages) -> CachedFeatures:
        settings = self._settings
        num_views = settings.trunk.views if half == "trainval" else 0
        device = torch.device("cpu")
        if settings.trainer.accelerator != "cpu" and torch.cuda.is_available():
            asked = settings.trainer.devices
            # "3," is GPU 3, and 3 as many ranks
            is_one = isinstance(asked, str) and asked.strip(",").isdigit()
            device = torch.device("cuda", int(str(asked).strip(",")) if is_one else 0)
        return cached_features(
            cache, train_transform(settings), num_views, lambda: self.trunk, trunk_key(settings), device, half
        )

    def _on_the_device(self) -> ResidentPixels:
        cache = self.trainval.cache
        if not isinstance(cache, CachedImages):
            raise ConfigError(
                "trainer.resident_cache=true: expected decoded images on disk, found no room for them there. Free some"
                " space, name another folder with data_root=FOLDER, or leave trainer.resident_cache=false."
            )
        return ResidentPixels(cache)


def build(target: Target, path: str, *arguments: Any, **facts: Any) -> Any:
    """Instantiates a `_target_` of the configuration, with `<name>` arguments replaced by facts of the fold.

    Args:
        target: The node.
        path: Its key, for messages.
        arguments: Positional arguments of the class.
        facts: Values of `<name>` arguments.

    Raises:
        ConfigError: The class is unknown, an argument is misspelt or missing, or a `<name>` is not a known fact.
    """

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(value) for key, value in node.items()}
        if isinstance(node, list):
            return [filled(value) for value in node]
        if isinstance(node, str) and node.startswith("<") and node.endswith(">"):
            if node[1:-1] not in facts:
                raise ConfigError(f"{path}: {node} is not known here. Known: {', '.join(f'<{f}>' for f in facts)}.")
            return facts[node[1:-1]]
        return node

    try:
        return instantiate(filled(target), *arguments, _convert_="all")
    except MlrcError:
        raise
    except Exception as error:
        # Hydra wraps the class's own error, which is the one that tells what is wrong
        cause = error.__cause__ or error
        if isinstance(cause, MlrcError):
            raise cause from None
        raise ConfigError(f"{path}: cannot build {target['_target_']}: {cause}") from error


def trunk_key(settings: TrialSettings) -> dict[str, Any]:
    """Returns what a pretrained trunk is, as JSON. A weight file is what is in it, wherever it lies."""
    pretrained = settings.trunk.pretrained
    is_file = isinstance(pretrained, str) and Path(pretrained).is_file()
    model = {
        name: file_digest(Path(value)) if is_file and value == pretrained else value
        for name, value in settings.trunk.model.items()
        if (name, value) != ("strict", True)
    }
    return {"name": settings.trunk.name, "model": model}


_TRIED_BATCHES = 8
"""Batches among which a loss of pairs must find one with both kinds of pairs."""


def _try_a_step(settings: TrialSettings, module: EmbeddingModule, split: FoldSplit) -> None:
    """Takes loss, optimizer and schedulers of a module through one step on random embeddings.

    Args:
        settings: Of the trial.
        module: Is changed, and of no use any more.
        split: Of the fold.

    Raises:
        ConfigError: One of them cannot be computed, or no batch has what the loss compares.
    """
    batches = build_sampler(settings, split.fold)(split.labels[split.train], split.train)
    position = {label: number for number, label in enumerate(split.classes("train"))}
    labels = [
        torch.tensor([position[int(split.labels[index])] for index in batches.batch(number)])
        for number in range(_TRIED_BATCHES)
    ]
    objective = module.objective
    assert objective is not None
    of_classes = any(parameter.ndim > 1 for parameter in objective.loss.parameters())
    compares_images = isinstance(objective.loss, BaseMetricLossFunction) and not of_classes
    if compares_images and not any(1 < len(set(of_batch.tolist())) < len(of_batch) for of_batch in labels):
        raise ConfigError(
            f"loss={settings.loss.name}: expected batches with images of one class and of others, which the loss"
            f" compares, found none with batch_size={settings.batch_size}, loss.samples_per_class="
            f"{settings.loss.samples_per_class} and {len(position)} training classes. Such a training learns"
            " nothing: change one of them."
        )
    embeddings = torch.randn(len(labels[0]), settings.embedder.embedding_size).requires_grad_()
    path = "loss"
    try:
        objective(normalize(embeddings, dim=1), labels[0]).backward()
        path = "optimizer or scheduler"
        module.configure_optimizers().step()
        for name, scheduler in module.schedulers.items():
            is_plateau = (getattr(settings.scheduler, name) or {}).get("interval") == "plateau"
            scheduler.step(*([0.0] if is_plateau else []))
    except MlrcError:
        raise
    except Exception as error:  # whatever a class makes of a value that it did not expect
        raise ConfigError(f"{path}: cannot take a step with these settings: {error}") from error


def train_transform(settings: TrialSettings) -> TrainTransform:
    """Builds crop and flip of training images."""
    transform = settings.transform
    return TrainTransform(transform.crop, transform.scale, transform.ratio, transform.flip_probability)


def build_module(
    settings: TrialSettings, fold: int, num_train_classes: int | None, num_features: int | None = None
) -> EmbeddingModule:
    """Builds the untrained module of a fold. Its random weights depend on (seed, fold) alone.

    Args:
        settings: Of the trial.
        fold: Number of the fold.
        num_train_classes: C of the loss; None for a module that only embeds.
        num_features: F of a frozen trunk, whose features are what the module is then given instead of images.
    """
    seed = _stream(settings.seed, fold, "weights")
    torch.manual_seed(seed)
    random.seed(seed)  # torch draws the weights; a miner may draw from any of the three
    np.random.seed(seed % 2**32)
    trunk = build(settings.trunk.model, "trunk.model") if num_features is None else FrozenTrunk(num_features)
    if settings.trainer.compile == CUDA_GRAPHS:
        trunk.compile(backend=CUDA_GRAPHS, dynamic=False)  # a graph has one shape: a last, smaller batch gets its own
    elif settings.trainer.compile:
        trunk.compile()
    embedder = nn.Linear(trunk.num_features, settings.embedder.embedding_size)
    channels_last = settings.trainer.channels_last
    if num_train_classes is None:
        return EmbeddingModule(
            trunk, embedder, frozen_batchnorm=settings.trunk.freeze_batchnorm, channels_last=channels_last
        )
    facts = {"num_train_classes": num_train_classes, "embedding_size": settings.embedder.embedding_size}
    miner = settings.loss.miner
    objective = Objective(
        loss=build(settings.loss.function, "loss.function", **facts),
        miner=None if miner is None else build(miner, "loss.miner", **facts),
    )

    def optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = build(settings.optimizer, "optimizer", groups)
        return made

    clip = settings.gradient_clip
    return EmbeddingModule(
        trunk,
        embedder,
        objective,
        optimizer,
        settings.loss.optimizer,
        settings.trunk.freeze_batchnorm,
        schedules={
            name: _schedule(target, f"scheduler.{name}")
            for name, target in ((MODEL, settings.scheduler.model), (LOSS, settings.scheduler.loss))
            if target is not None
        },
        clip_norms={name: norm for name, norm in ((MODEL, clip.model), (LOSS, clip.loss)) if norm is not None},
        clustering_seed=clustering_seed(settings) if settings.evaluation.clustering else None,
        channels_last=channels_last,
    )


def build_logger(settings: TrialSettings, folder: Path) -> Logger | None:
    """Builds the logger of a fold, which writes to `folder`. It is None where none is asked for.

    What an interrupted training wrote there is removed: it is logged again from the fold's own state.

    Raises:
        ConfigError: The package of the logger is not installed.
    """
    if settings.logger is None:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    try:
        logger: Logger = build(settings.logger, "logger", folder=str(folder))
    except ConfigError as error:
        cause = error.__cause__ if error.__cause__ is None else error.__cause__.__cause__ or error.__cause__
        if isinstance(cause, ModuleNotFoundError):
            raise ConfigError(
                f"logger: {settings.logger['_target_']} needs a package that is not installed"
                f" ({str(cause).splitlines()[0]}) Install it (tensorboard: pip install 'mlrc-lightning[tensorboard]'),"
                " or choose logger=csv or logger=none."
            ) from error
        raise
    return logger


def _schedule(target: Target, path: str) -> Schedule:
    arguments = {name: value for name, value in target.items() if name != "interval"}

    def make(optimizer: torch.optim.Optimizer) -> Scheduler:
        made: Scheduler = build(arguments, path, optimizer)
        return made

    return Schedule(target["interval"], make)


def build_trainer(settings: TrialSettings, folder: Path, **arguments: Any) -> pl.Trainer:
    """Builds a Lightning Trainer that writes nothing by itself. In a rank of several it is one of all of them.

    Raises:
        ConfigError: The hardware is not there, or cannot do what it should.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its lines on devices, once a fold
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # images come decoded
    warnings.filterwarnings("ignore", message=".*`dataloader_iter`.*")  # EmbeddingModule takes it as meant
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")  # Lightning 2.6.6's own, 2026-11
    warnings.filterwarnings("ignore", message=".*The `srun` command is available.*")
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # ranks agree on accuracies before they are logged
    warnings.filterwarnings("ignore", message=".*broadcast_buffers. is deprecated.*")  # torch 2.13; older have no other
    hardware = settings.trainer
    strategy: str | DDPStrategy = "auto"
    if is_distributed():
        # the process group is there already. No buffers are exchanged: the only ones that change are BatchNorm's, which
        # is frozen; and a rank with fewer batches to validate would wait. A batch without pairs leaves loss
        # parameters without gradient.
        strategy = DDPStrategy(broadcast_buffers=False, find_unused_parameters=True)
    try:
        trainer = pl.Trainer(
            accelerator=hardware.accelerator,
            # a trial of several ranks may be evaluated by one process
            devices=hardware.devices if world_size() == hardware.num_ranks else 1,
            strategy=strategy,
            # else Lightning asks SLURM, and takes the tasks of the job for ranks of this trial
            plugins=[LightningEnvironment()],
            precision=hardware.precision,  # type: ignore[arg-type]
            deterministic="warn" if hardware.deterministic else False,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            **arguments,
        )
        # signals are StopSignals' own: on SIGTERM Lightning would drop the running epoch, and of several ranks the one
        # that got it would wait in the handler for the others
        trainer._signal_connector.register_signal_handlers = _take_no_signals  # type: ignore[method-assign]
        if trainer.precision != hardware.precision:
            raise ValueError(f"precision={hardware.precision} would become {trainer.precision}")
        if hardware.compile == CUDA_GRAPHS and trainer.strategy.root_device.type != "cuda":
            raise ValueError(f"compile={CUDA_GRAPHS} captures what a CUDA device does; take false or true")
        return trainer
    except (MisconfigurationException, ValueError, ImportError) as error:
        raise ConfigError(f"trainer: this machine cannot run {dataclasses.asdict(hardware)}: {error}") from error


def _take_no_signals() -> None:
    pass


def go_on_at(trainer: pl.Trainer, datamodule: FoldDataModule, epoch: int, batch: int) -> None:
    """Lets a trainer begin with batch `batch` of epoch `epoch`, both counted from 0."""
    # as its own checkpoints do: validations then come at the same epochs
    progress = trainer.fit_loop.epoch_progress.current
    assert isinstance(progress, _ProcessedTracker)
    progress.ready = progress.started = progress.processed = progress.completed = epoch
    datamodule.batches.start_at(epoch, batch)


def build_sampler(settings: TrialSettings, fold: int) -> Callable[[NDArray[np.int64], NDArray[np.int64]], Batches]:
    """Returns what makes the batches of a fold from (labels, indices) of its training images, both (N,), int64."""
    facts = {
        "samples_per_class": settings.loss.samples_per_class,
        "batch_size": settings.batch_size,
        "seed": _stream(settings.seed, fold, "batches"),
    }

    def sampler(labels: NDArray[np.int64], indices: NDArray[np.int64]) -> Batches:
        made: Batches = build(settings.sampler, "sampler", labels, indices, **facts)
        return made

    return sampler


def build_datamodule(settings: TrialSettings, data: TrialData, split: FoldSplit) -> FoldDataModule:
    """Builds the batches of one fold."""
    return FoldDataModule(
        pixels=data.trainval,
        split=split,
        transform=train_transform(settings),
        sampler=build_sampler(settings, split.fold),
        iterations_per_epoch=settings.schedule.iterations_per_epoch,
        evaluation_batch_size=settings.evaluation.batch_size,
        seed=_stream(settings.seed, split.fold, "batches"),
        num_workers=settings.trainer.num_workers,
        augmentation=settings.trainer.augmentation,
        resident=data.resident,
    )


def clustering_seed(settings: TrialSettings) -> int:
    """Returns the seed of the k-means for NMI and AMI, the same for all folds.

    It is below 2^31, as both libraries want.
    """
    return _stream(settings.seed, 0, "clustering") % 2**31


def _stream(seed: int, fold: int, purpose: str) -> int:
    """Returns an independent seed for each purpose of each fold."""
    return int(np.random.SeedSequence([seed, fold, *purpose.encode()]).generate_state(1, np.uint64)[0] >> np.uint64(1))
