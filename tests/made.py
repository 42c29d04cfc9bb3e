"""Records as trials leave them, without training: what a test is about is given, the rest is filled in."""

from mlrc_lightning.results.records import EpochResult, EvaluationResult, FoldResult, TrialRecord

METRICS = ("precision_at_1", "r_precision", "mean_average_precision_at_r")


def accuracies(*values):
    """Precision at 1, R-Precision and MAP@R; one value stands for all three."""
    return dict(zip(METRICS, values * 3 if len(values) == 1 else values, strict=True))


def epochs(val, losses=None, seconds=1.0):
    """Epochs from 0 on with these accuracies, and from 1 on with these losses."""
    losses = [None] * len(val) if losses is None else [None, *losses]
    return tuple(
        EpochResult(epoch=number, train_loss=losses[number], val=accuracies(value), collapsed=False, seconds=seconds)
        for number, value in enumerate(val)
    )


def fold(number, **given):
    """A fold."""
    made = {
        "fold": number, "seed": number, "train_classes": (0,), "val_classes": (1,), "num_train_images": 75,
        "num_val_queries": 25, "num_val_without_relevant": 0, "selected_epoch": 1, "val": accuracies(0.1),
        "beats_untrained": True, "untrained_trunk_val": None, "epochs": epochs([0.1]), "stopped_because": "patience",
        "weights": {}, "seconds": 10.0,
    }  # fmt: skip
    return FoldResult(**made | given)


def evaluation(**given):
    """A use of the test classes."""
    made = {
        "opened_at": "2026-01-01T00:00:00+00:00", "num_queries": 4, "num_without_relevant": 0, "separated": {},
        "separated_folds": {}, "concatenated": None, "baselines": {}, "notes": (),
    }  # fmt: skip
    return EvaluationResult(**made | given)


def trial(**given):
    """A trial that is complete, or failed where a failure is given."""
    failure = given.get("failure")
    made = {
        "schema_version": 1, "status": "complete" if failure is None else "failed", "failure": None,
        "stage": "reproduce", "seed": 0, "settings": {}, "dataset": {}, "val": None, "folds": (), "test": None,
        "environment": {}, "started_at": "2026-01-01T00:00:00+00:00", "seconds": 40.0,
    }  # fmt: skip
    return TrialRecord(**made | given)


def environment(**given):
    made = {
        "python": "3.11.7", "packages": {"torch": "2.13.0"}, "code": {"commit": "c0", "has_changes": False},
        "platform": "Linux", "processor": "CPU", "num_cpus": 2, "gpus": [],
    }  # fmt: skip
    return made | given
