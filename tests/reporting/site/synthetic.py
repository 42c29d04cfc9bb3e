"""Writes results as searches, runs and evaluations leave them, nothing trained.

By hand: python -m tests.reporting.site.synthetic FOLDER.

By default the paper's whole study: 14 losses on 4 settings, searches of 50 trials, 10 runs of 4 folds each.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np

from mlrc_lightning.files import write_json
from mlrc_lightning.protocol.figure_inputs import store_neighbors
from mlrc_lightning.reference import PAPER_SETTINGS
from mlrc_lightning.reporting.tables.catalog import LOSSES
from mlrc_lightning.results.records import append_evaluation
from tests import made
from tests.made import METRICS, accuracies
from tests.reporting.tables.fakes import PER_QUERY, write_ledger

SPACE = {
    "loss.function.margin": {"type": "range", "value_type": "float", "bounds": [0.0, 90.0]},
    "loss.function.scale": {"type": "range", "value_type": "float", "bounds": [0.01, 100.0], "log_scale": True},
    "loss.samples": {"type": "fixed", "value": 4},
}


def write_study(
    outputs,
    protocol,
    *,
    losses=tuple(row.name for row in LOSSES),
    settings=tuple(PAPER_SETTINGS),
    trials=50,
    runs=10,
    epochs=60,
    classes=20,
    per_class=10,
    figures=True,
):
    """Writes finished searches and runs of all losses on all settings."""
    for number, loss in enumerate(losses):
        for place, setting in enumerate(settings):
            random = np.random.default_rng([number, place])
            level = 0.2 + 0.02 * number + 0.03 * place
            best = write_search(outputs, protocol, setting, loss, random, level, trials)
            for run in range(runs):
                write_run(
                    outputs, protocol, setting, loss, run, random, level, parameters=best, epochs=epochs,
                    classes=classes, per_class=per_class, figures=figures and run == 0,
                )  # fmt: skip


def write_search(
    outputs, protocol, setting, loss, random, level, trials, *, name="search", finished="max_trials", budget=None
):
    """Writes a search of so many completed trials and a failed one, the third; returns the best trial's parameters."""
    found = []
    for trial in range(trials + 1):
        parameters = {"loss.function.margin": 1.5 * trial, "loss.function.scale": 0.1 + trial, "loss.samples": 4}
        folds = np.clip(level + 0.05 * random.standard_normal() + 0.02 * random.standard_normal(4), 0.01, 0.99)
        found.append((parameters, "out of memory" if trial == 2 else [float(value) for value in folds]))
    folder = outputs / protocol / setting / loss / name
    write_ledger(folder, trials if budget is None else budget, found, finished, space=SPACE)
    return max((trial for trial in found if not isinstance(trial[1], str)), key=lambda trial: sum(trial[1]))[0]


def write_run(
    outputs, protocol, setting, loss, run, random, level, *, source="search", digest="11111111", epochs=6, classes=4,
    per_class=4, failure=None, figures=False, queries=True, parameters=None,
):  # fmt: skip
    """Writes a tested run of four folds with its per-query results, or a failed one; returns its folder."""
    folder = outputs / protocol / setting / loss / "reproduce" / f"{source}-{digest}" / str(run)
    folder.mkdir(parents=True)
    labels = np.repeat(np.arange(classes), per_class)
    easy = np.random.default_rng(7).standard_normal(classes)[labels]  # of a class, alike for all losses

    def scores(shape):
        return np.clip(level + 0.1 * easy + 0.02 * random.standard_normal() + 0.2 * random.random(shape), 0, 1)

    arrays = {"index": np.arange(len(labels)), "label": labels, "folds": np.arange(4)}
    for name in PER_QUERY:
        one, four = scores(len(labels)), scores((4, len(labels)))
        kind = np.uint8 if name == "correct_at_1" else np.float32
        arrays[f"concatenated_{name}"] = (one > 0.5).astype(kind) if kind is np.uint8 else one.astype(kind)
        arrays[name] = (four > 0.5).astype(kind) if kind is np.uint8 else four.astype(kind)
    test = None
    if failure is None:
        folds = {
            str(fold): accuracies(*(float(arrays[name][fold].mean(dtype=np.float64)) for name in PER_QUERY))
            for fold in range(4)
        }
        test = made.evaluation(
            opened_at="2026-01-02T03:04:05+00:00", num_queries=len(labels),
            separated={metric: float(np.mean([fold[metric] for fold in folds.values()])) for metric in METRICS},
            separated_folds=folds,
            concatenated=accuracies(
                *(float(arrays[f"concatenated_{name}"].mean(dtype=np.float64)) for name in PER_QUERY)
            ),
        )  # fmt: skip
        if queries:
            np.savez_compressed(folder / "queries_test.npz", **arrays)
    for fold in range(4):
        (folder / f"fold_{fold}").mkdir()
        (folder / f"fold_{fold}" / "trunk.safetensors").write_bytes(b"weights")
    record = made.trial(
        failure=failure, protocol=protocol, setting=setting, loss=loss, seed=run, run=run, root_seed=0,
        settings={
            "stage": "reproduce", "dataset": {"name": setting, "min_images_per_class": 2},
            "loss": {"name": loss, "samples": 4, "function": {"_target_": "some.Loss", **_function(parameters)}},
            "hyperparameters": {"name": source}, "trunk": {"name": "bn_inception", "pretrained": True},
            "embedder": {"embedding_size": 128}, "trainer": {"precision": "32-true"},
        },
        dataset={"name": setting, "num_classes": 2 * classes, "trainval_fingerprint": "f0"},
        val=accuracies(level, level, level), folds=tuple(_fold(fold, level, epochs, random) for fold in range(4)),
        test=test,
        environment=made.environment(
            packages={"torch": "2.13.0", "numpy": "2.1.0"}, processor="A processor",
            code={"commit": "0123456789abcdef", "has_changes": False},
        ),
        started_at=f"2026-01-01T00:00:{run:02d}+00:00", seconds=400.0,
    )  # fmt: skip
    write_json(folder / "record.json", record)
    if figures:
        write_figure_inputs(folder)
        append_evaluation(folder, {"evaluated_at": "2026-01-03T00:00:00+00:00", "split": "test", "embedding": "both"})
    return folder


def write_figure_inputs(folder):
    """Writes a projection and a sheet of neighbours of 60 gray images of 6 classes."""
    from PIL import Image

    random = np.random.default_rng(3)
    labels = np.repeat(np.arange(6), 10)
    centres = random.standard_normal((6, 8))
    embeddings = centres[labels] + 0.8 * random.standard_normal((60, 8))
    names = [f"{number:03d}.A bird <no. {number}>" for number in range(6)]
    np.savez_compressed(
        folder / "projection_test.npz",
        points=embeddings[:, :2].astype(np.float32), labels=labels, class_names=np.array(names),
    )  # fmt: skip

    def read(index):
        return Image.new("RGB", (90, 64), (40 * int(labels[index]), 90, 255 - 4 * index))

    store_neighbors(folder / "neighbors_test.npz", embeddings, labels, names, read, num_queries=3, num_neighbors=4)


def _function(parameters):
    return {key.rpartition(".")[2]: value for key, value in (parameters or {}).items() if ".function." in key}


def _fold(fold, level, epochs, random):
    values = level * (1 - np.exp(-np.arange(epochs + 1) / 8)) + 0.01 * random.standard_normal(epochs + 1)
    values = np.clip(values, 0.01, 1)
    selected = int(values.argmax())
    history = made.epochs([float(value) for value in values], [2 / (epoch + 1) for epoch in range(epochs)], seconds=4.0)
    return made.fold(
        fold, train_classes=tuple(range(75)), val_classes=tuple(range(75, 100)), selected_epoch=selected,
        val=history[selected].val, epochs=history, weights={"trunk": f"fold_{fold}/trunk.safetensors"}, seconds=100.0,
        weight_digests={"trunk": hashlib.sha256(b"weights").hexdigest()},
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--protocol", required=True)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--per-class", type=int, default=58)
    given = parser.parse_args()
    write_study(given.folder, given.protocol, classes=given.classes, per_class=given.per_class)
