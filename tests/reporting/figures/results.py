"""Results made by hand, for figures to be drawn from."""

from mlrc_lightning.files import write_json
from mlrc_lightning.results.records import EpochResult, EvaluationResult, FoldResult, TrialRecord

METRIC = "mean_average_precision_at_r"


def accuracies(value):
    """All three accuracies at one value."""
    return dict.fromkeys(("precision_at_1", "r_precision", METRIC), value)


def fold_result(fold, val, losses, selected, epochs=None):
    """A fold with validation values from epoch 0 on and losses from epoch 1 on."""
    made = tuple(
        EpochResult(epoch, None if epoch == 0 else losses[epoch - 1], accuracies(value), False, 1.0)
        for epoch, value in enumerate(val)
    )
    return FoldResult(
        fold=fold, seed=0, train_classes=(0,), val_classes=(1,), num_train_images=8, num_val_queries=8,
        num_val_without_relevant=0, selected_epoch=selected, val=accuracies(val[selected]), beats_untrained=True,
        untrained_trunk_val=None, epochs=made if epochs is None else epochs, stopped_because="last epoch", weights={},
        seconds=1.0,
    )  # fmt: skip


def record(stage, protocol, benchmark, loss, *, val=0.3, separated=None, concatenated=None, failure=None):
    """A trial of two folds; a tested one where `separated` is given."""
    test = None
    if separated is not None:
        test = EvaluationResult(
            opened_at="2026-01-01T00:00:00+00:00", num_queries=10, num_without_relevant=0,
            separated=accuracies(separated), separated_folds={},
            concatenated=None if concatenated is None else accuracies(concatenated), baselines={}, notes=(),
        )  # fmt: skip
    folds = (fold_result(0, [0.1, val - 0.1], [1.0], 1), fold_result(1, [0.1, val + 0.1], [1.0], 1))
    return TrialRecord(
        schema_version=1, status="complete" if failure is None else "failed", failure=failure, stage=stage,
        protocol=protocol, benchmark=benchmark, loss=loss, seed=0,
        settings={"loss": {"name": loss}}, dataset={},
        val=None if failure else accuracies(val), folds=() if failure else folds, test=test, environment={},
        started_at="2026-01-01T00:00:00+00:00", seconds=1.0,
    )  # fmt: skip


def put(outputs, relative, content):
    """Writes a record at its place below a folder of results."""
    folder = outputs / relative
    folder.mkdir(parents=True)
    write_json(folder / "record.json", content)
    return folder
