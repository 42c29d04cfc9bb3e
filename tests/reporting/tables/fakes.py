"""Results as searches and reproductions leave them, written without training anything."""

import hashlib

import numpy as np

from mlrc_lightning.files import write_json
from mlrc_sweeper import Record, encode
from tests import made
from tests.made import METRICS, accuracies

__all__ = ["METRICS", "accuracies"]  # for the tests of tables

PER_QUERY = ("correct_at_1", "r_precision", "average_precision_at_r")
PROTOCOL, SETTING = "mlrc-fake-00000000", "cub200"


def settings(loss, parameters=None, pretrained=True, num_folds=4):
    function = {"_target_": "some.Loss", **(parameters or {})}
    return {
        "stage": "reproduce",
        "loss": {"name": loss, "function": function, "optimizer": {}},
        "hyperparameters": {"name": "search"},
        "dataset": {"name": "cub200", "min_images_per_class": 2},
        "trunk": {"name": "bn_inception", "pretrained": pretrained},
        "trainer": {"precision": "32-true"},
        "split": {"num_folds": num_folds},
    }


def write_run(
    outputs, loss, number, separated=None, concatenated=None, *, source="search", digest="11111111", failure=None,
    parameters=None, baselines=None, protocol=PROTOCOL, setting=SETTING, fingerprint="f0", started="2026-01-01",
    with_queries=False, pretrained=True, epochs=1, num_folds=4,
):  # fmt: skip
    """Writes one run of `num_folds` folds (or none, with baselines) and its weights; returns its folder."""
    folder = outputs / protocol / setting / loss / "reproduce" / f"{source}-{digest}" / str(number)
    folder.mkdir(parents=True)
    folds = []
    if baselines is None:
        for fold in range(num_folds):
            (folder / f"fold_{fold}").mkdir()
            weights = folder / f"fold_{fold}" / "trunk.safetensors"
            weights.write_bytes(f"{loss} {number} {fold}".encode())
            (folder / f"fold_{fold}" / "fold.json").write_text("{}")
            folds.append(_fold(fold, hashlib.sha256(weights.read_bytes()).hexdigest(), epochs))
    test = None
    if failure is None:
        test = made.evaluation(separated=separated or {}, concatenated=concatenated, baselines=baselines or {})
    record = made.trial(
        failure=failure, protocol=protocol, setting=setting, loss=loss, seed=number,
        settings=settings(loss, parameters, pretrained, num_folds),
        dataset={"name": "cub200", "num_classes": 200, "trainval_fingerprint": fingerprint},
        folds=tuple(folds), test=test, environment=made.environment(), started_at=started,
    )  # fmt: skip
    write_json(folder / "record.json", record)
    if with_queries:
        _write_queries(folder, separated, concatenated)
    return folder


def write_ledger(folder, max_trials, trials, finished=None, space=None):
    """Writes a search's ledger; a trial is (parameters, values of the folds), or (parameters, reason) of a failure."""
    folder.mkdir(parents=True, exist_ok=True)
    tuned = space or {"loss.function.margin": {"type": "range", "value_type": "float", "bounds": [0.0, 90.0]}}
    header = {"created": "2026-01-01T00:00:00+00:00", "max_trials": max_trials, "seed": 0}
    lines = [("search", {**header, "signature": signature(tuned), "versions": {"torch": "2.13.0"}})]
    for index, (parameters, outcome) in enumerate(trials):
        at = {"trial": index}
        job = {**at, "replicate": 0, "job": index}
        lines.append(("proposed", {**at, "parameters": parameters, "generator": "Sobol"}))
        lines.append(("started", job))
        if isinstance(outcome, str):
            lines.append(("job_failed", {**job, "seconds": 1.0, "reason": outcome}))
            lines.append(("failed", {**at, "reason": outcome}))
        elif outcome is not None:
            mean = sum(outcome) / len(outcome)
            metrics = {METRICS[2]: {"mean": mean, "sem": 0.0, "replicates": list(outcome)}}
            lines.append(("result", {**job, "seconds": 80.0, "metrics": metrics}))
            lines.append(("completed", {**at, "values": {METRICS[2]: mean}}))
    if finished is not None:
        lines.append(("finished", {"cause": finished}))
    (folder / "ledger.jsonl").write_bytes(ledger_of(*lines))
    return folder


def write_search(outputs, loss, max_trials, trials, finished=None, *, protocol=PROTOCOL, setting=SETTING, **more):
    return write_ledger(outputs / protocol / setting / loss / "search", max_trials, trials, finished, **more)


def signature(space):
    """Returns the signature of a search over a space, as the sweeper writes it."""
    return {
        "search space": space, "objective": {METRICS[2]: "maximize"}, "parameter constraints": [],
        "outcome constraints": [], "status quo": None, "is_noisy": True, "noise": None,
        "generation": {"method": "fast", "initialization_budget": 5, "initialize_with_center": False},
    }  # fmt: skip


def ledger_of(*steps):
    """Returns the content of a ledger with these steps, each a type and a payload."""
    return b"".join(encode(Record(seq, *step)) for seq, step in enumerate(steps))


def _fold(fold, digest, epochs):
    start = 25 * fold
    return made.fold(
        fold, train_classes=tuple((start + i) % 100 for i in range(75)),
        val_classes=tuple((start + 75 + i) % 100 for i in range(25)),
        epochs=made.epochs([0.1] * epochs, [None] * (epochs - 1), seconds=0.1),
        weights={"trunk": f"fold_{fold}/trunk.safetensors"}, weight_digests={"trunk": digest},
    )  # fmt: skip


def _write_queries(folder, separated, concatenated):
    """Per-query results of four queries whose means are the run's accuracies, which must be quarters."""
    arrays = {"index": np.arange(4), "label": np.array([0, 0, 1, 1]), "folds": np.arange(4)}
    for metric, name in zip(METRICS, PER_QUERY, strict=True):
        for accuracy, key in ((separated, name), (concatenated, f"concatenated_{name}")):
            one_model = (np.arange(4) < round(4 * accuracy[metric])).astype(np.float32)
            arrays[key] = one_model if key.startswith("concatenated") else np.tile(one_model, (4, 1))
    np.savez_compressed(folder / "queries_test.npz", **arrays)
