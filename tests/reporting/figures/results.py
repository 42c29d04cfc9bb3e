"""Results made by hand, for figures to be drawn from."""

from mlrc_lightning.files import write_json
from tests import made
from tests.made import accuracies

METRIC = "mean_average_precision_at_r"


def fold_result(fold, val, losses, selected, epochs=None):
    """A fold with validation values from epoch 0 on and losses from epoch 1 on."""
    return made.fold(
        fold, seed=0, num_train_images=8, num_val_queries=8, selected_epoch=selected, val=accuracies(val[selected]),
        epochs=made.epochs(val, losses) if epochs is None else epochs, stopped_because="last epoch", seconds=1.0,
    )  # fmt: skip


def record(stage, protocol, setting, loss, *, val=0.3, separated=None, concatenated=None, failure=None):
    """A trial of two folds; a tested one where `separated` is given."""
    test = None
    if separated is not None:
        of_all = None if concatenated is None else accuracies(concatenated)
        test = made.evaluation(num_queries=10, separated=accuracies(separated), concatenated=of_all)
    folds = (fold_result(0, [0.1, val - 0.1], [1.0], 1), fold_result(1, [0.1, val + 0.1], [1.0], 1))
    return made.trial(
        failure=failure, stage=stage, protocol=protocol, setting=setting, loss=loss,
        settings={
            "loss": {"name": loss}, "dataset": {"min_images_per_class": 2}, "trainer": {"precision": "32-true"},
            "trunk": {"pretrained": True},
        },
        val=None if failure else accuracies(val), folds=() if failure else folds,
        test=test, seconds=1.0,
    )  # fmt: skip


def put(outputs, relative, content):
    """Writes a record at its place below a folder of results."""
    folder = outputs / relative
    folder.mkdir(parents=True)
    write_json(folder / "record.json", content)
    return folder
