"""What a trial leaves on disk: one JSON, complete in itself, and how files are written so that a kill loses nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mlrc_lightning.errors import ConfigError, RecordError
from mlrc_lightning.files import as_json, read_bytes, read_plain_json
from mlrc_lightning.names import EVALUATIONS_FILE, MAP_AT_R, RECORD_FILE
from mlrc_lightning.reading import read

T = TypeVar("T")

SCHEMA_VERSION = 1
"""Of a run's folder: every later use of one of its splits, a line each."""
Accuracies = dict[str, float]
"""precision_at_1, r_precision, mean_average_precision_at_r, as fractions in [0, 1]; on request NMI and AMI."""
Problem = tuple[str, object, str]
"""Key, value, and what was expected."""
_ROUNDING = 1e-9
_COMPARED = (
    ("dataset", "min_images_per_class", int),
    ("trainer", "precision", str),
    ("trunk", "pretrained", bool | str),
)


def _accuracies(key: str, values: Accuracies | None, *, selects: bool = True) -> Iterator[Problem]:
    for name, value in (values or {}).items():
        lowest = -1 if name == "AMI" else 0
        if not lowest - _ROUNDING <= value <= 1 + _ROUNDING:
            yield f"{key}.{name}", value, f"an accuracy from {lowest} to 1"
    if selects and values is not None and MAP_AT_R not in values:
        yield key, values, f"accuracies with {MAP_AT_R}"


@dataclass(frozen=True)
class EpochResult:
    """One epoch of one fold. It has validation figures where the epoch was validated.

    Attributes:
        epoch: From 1; 0 is the untrained model.
        train_loss: Mean loss of the epoch's batches; None for epoch 0.
        val: Accuracies on the validation classes.
        collapsed: Whether the validation embeddings lay in one point.
        seconds: Wall time of training and validation.
    """

    epoch: int
    train_loss: float | None
    val: Accuracies | None
    collapsed: bool
    seconds: float

    def problems(self) -> Iterator[Problem]:
        """Yields every accuracy that is none."""
        yield from _accuracies("val", self.val)


@dataclass(frozen=True)
class FoldResult:
    """One finished fold.

    Attributes:
        fold: Number of the fold.
        seed: Root of its random streams.
        train_classes: Class positions trained on.
        val_classes: Class positions validated on.
        num_train_images: Images of the training classes.
        num_val_queries: Validation images that were queries.
        num_val_without_relevant: Validation images alone in their class.
        selected_epoch: Epoch of the model that is kept and tested.
        val: Its accuracies on the validation classes.
        beats_untrained: Whether its MAP@R is above the untrained model's; None where that was not evaluated.
        untrained_trunk_val: Accuracies of the trunk's features before training; None where not asked for.
        epochs: All epochs, 0 first where the untrained model was evaluated.
        stopped_because: Patience or the last epoch.
        weights: Files of trunk and embedder, relative to the trial's folder; empty where not kept.
        seconds: Wall time.
        weight_digests: SHA-256 of the selected weights' files, also of those not kept; empty in older records.
    """

    fold: int
    seed: int
    train_classes: tuple[int, ...]
    val_classes: tuple[int, ...]
    num_train_images: int
    num_val_queries: int
    num_val_without_relevant: int
    selected_epoch: int
    val: Accuracies
    beats_untrained: bool | None
    untrained_trunk_val: Accuracies | None
    epochs: tuple[EpochResult, ...]
    stopped_because: str
    weights: dict[str, str]
    seconds: float
    weight_digests: dict[str, str] = field(default_factory=dict)

    def problems(self) -> Iterator[Problem]:
        """Yields every value out of range."""
        yield from _accuracies("val", self.val)
        yield from _accuracies("untrained_trunk_val", self.untrained_trunk_val)
        for part, name in self.weights.items():
            if name.startswith(("/", "~")) or ".." in name.split("/") or not name.isprintable():
                yield f"weights.{part}", name, "a file inside of this folder"


@dataclass(frozen=True)
class EvaluationResult:
    """One use of the test classes.

    Attributes:
        opened_at: When, UTC.
        num_queries: Test images that were queries.
        num_without_relevant: Test images alone in their class.
        separated: Mean over the fold models of their accuracies.
        separated_folds: Accuracies of each fold model, by fold.
        concatenated: Accuracies of all fold models' embeddings concatenated; None unless all folds were trained.
        baselines: Accuracies without training, by name; None for one that could not be computed, with the reason
            in `notes`.
        notes: What a reader of the figures must know.
    """

    opened_at: str
    num_queries: int
    num_without_relevant: int
    separated: Accuracies
    separated_folds: dict[str, Accuracies]
    concatenated: Accuracies | None
    baselines: dict[str, Accuracies | None]
    notes: tuple[str, ...]

    def problems(self) -> Iterator[Problem]:
        """Yields every accuracy that is none."""
        yield from _accuracies("separated", self.separated, selects=False)
        yield from _accuracies("concatenated", self.concatenated, selects=False)
        for name, values in (*self.separated_folds.items(), *self.baselines.items()):
            yield from _accuracies(name, values, selects=False)


@dataclass(frozen=True)
class TrialRecord:
    """Everything about one trial: what was asked, what came out, where and with what.

    Attributes:
        stage: train, search, reproduce or untrained.
        loss: Its name; "untrained" where nothing was trained.
        seed: Root of all random streams of this trial.
        status: "complete" or "failed".
        failure: Why it failed; None if it did not.
        settings: The full configuration, as data.
        dataset: Name, counts, digest of files and class names.
        val: Mean over folds of the selected models' accuracies.
        folds: The finished folds.
        test: None in a search.
        environment: Versions, hardware, code revision.
        run: Number among the runs of one setting; None for a single trial and in a search.
        root_seed: From which `seed` follows with `run`; None in older records.
        data_path: What augmented the images, and whether they were decoded beforehand; empty in older records.
    """

    schema_version: int
    status: str
    failure: str | None
    stage: str
    protocol: str
    setting: str
    loss: str
    seed: int
    settings: dict[str, Any]
    dataset: dict[str, Any]
    val: Accuracies | None
    folds: tuple[FoldResult, ...]
    test: EvaluationResult | None
    environment: dict[str, Any]
    started_at: str
    seconds: float
    run: int | None = None
    root_seed: int | None = None
    data_path: dict[str, Any] = field(default_factory=dict)

    def problems(self) -> Iterator[Problem]:
        """Yields every value out of range, and settings that lack what decides whether two runs are compared."""
        yield from _accuracies("val", self.val)
        if self.status not in ("complete", "failed"):
            yield "status", self.status, "complete or failed"
        for group, name, kinds in _COMPARED:
            values = self.settings.get(group)
            if not isinstance(values, Mapping) or not isinstance(values.get(name), kinds):
                yield f"settings.{group}", values, f"a mapping with {name}"


def read_json(path: Path, cls: type[T]) -> T:
    """Reads a dataclass from JSON, as data: nothing in it is instantiated.

    Raises:
        RecordError: The file is not there, not JSON, or not of this schema.
    """
    content = read_plain_json(path)
    version = content.get("schema_version", SCHEMA_VERSION) if isinstance(content, Mapping) else None
    if version != SCHEMA_VERSION:
        raise RecordError(f"{path}: expected schema version {SCHEMA_VERSION}, found {version}.")
    try:
        return read(cls, content)
    except ConfigError as error:
        raise RecordError(f"{path}: {error}") from error


def read_run(path: Path) -> tuple[Path, TrialRecord]:
    """Reads the record of a run. Returns its folder too.

    Args:
        path: Of the folder, or of the record in it.
    """
    file = path / RECORD_FILE if path.is_dir() else path
    return file.parent, read_json(file, TrialRecord)


def append_evaluation(folder: Path, evaluation: Mapping[str, Any]) -> None:
    """Adds a line to the evaluations of a run, and waits until it is on disk."""
    path = folder / EVALUATIONS_FILE
    if path.is_symlink() or not (path.is_file() or not path.exists()):
        raise RecordError(f"{path}: expected a file or nothing, found a link or another kind of file. Remove it.")
    was_cut_off = path.exists() and not path.read_bytes().endswith(b"\n")
    line = json.dumps(as_json(evaluation), separators=(",", ":")) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * was_cut_off + line)
        file.flush()
        os.fsync(file.fileno())


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Returns every later use of the splits of a run, oldest first. A line that a crash cut off is no use."""
    path = folder / EVALUATIONS_FILE
    if not path.exists():
        return []
    evaluations = []
    for line in read_bytes(path).splitlines():
        try:
            evaluations.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [evaluation for evaluation in evaluations if isinstance(evaluation, dict)]
