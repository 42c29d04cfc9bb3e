"""What a reader of figures must know of the run behind them."""

import dataclasses

import pytest

from mlrc_lightning.names import METRICS, RECORD_FILE
from mlrc_lightning.reporting.doubts import doubts_of_run, training_doubts
from mlrc_lightning.reporting.tables.trial import render_trial
from mlrc_lightning.results.records import EpochResult, TrialRecord, read_json


def epochs(losses, scores, collapsed=()):
    """Epoch 0 and those after it."""
    return tuple(
        EpochResult(number, loss, dict.fromkeys(METRICS, score), number in collapsed, 1.0)
        for number, (loss, score) in enumerate(zip([None, *losses], scores, strict=True))
    )


@pytest.mark.parametrize(
    ("history", "selected", "expected"),
    [
        (epochs([1.0, 0.9], [0.1, 0.2, 0.3]), 2, []),
        (epochs([0.0, 0.0], [0.1, 0.2, 0.3]), 2, ["the loss was 0 in every epoch"]),
        (epochs([0.5, 0.5], [0.1, 0.2, 0.3]), 1, ["the loss was the same in every epoch"]),
        (epochs([0.5], [0.1, 0.2]), 1, []),
        (epochs([0.5, 0.4], [0.1, 0.1, 0.1]), 0, [
            "validation never changed, as if the weights had not",
            "no epoch was better than the untrained model, which was selected",
        ]),
        (epochs([0.5, 0.4], [0.3, 0.1, 0.2]), 0, ["no epoch was better than the untrained model, which was selected"]),
        (epochs([0.5, 0.4], [0.0, 0.1, 0.05], collapsed=[1]), 1, ["all validation embeddings lie in one point"]),
        (epochs([0.5, 0.4], [0.0, 0.1, 0.05], collapsed=[2]), 1, []),
    ],
)  # fmt: skip
def test_a_training_that_learned_nothing_is_told(history, selected, expected):
    assert training_doubts(history, selected) == expected


def test_a_loss_that_gives_no_gradient_is_in_log_record_and_table(settings, tmp_path, caplog):
    """Margins beyond every distance: Contrastive is 0 for any batch."""
    from mlrc_lightning.protocol.trial import run_trial

    margins = ["loss.function.pos_margin=5", "loss.function.neg_margin=0"]
    run_trial(settings("loss=contrastive", *margins), tmp_path / "run")
    record = read_json(tmp_path / "run" / RECORD_FILE, TrialRecord)
    assert "fold 0 learned little or nothing: the loss was 0 in every epoch" in caplog.text
    assert "fold 0: the loss was 0 in every epoch" in record.test.notes
    assert render_trial(record).count("Note: fold 0: the loss was 0 in every epoch.") == 1


def test_copies_and_weights_in_part_are_told(trained, tmp_path):
    record = trained(tmp_path / "run", "loss=triplet", "fold=0")
    assert not [note for note in doubts_of_run(record) if not note.startswith("fold")]
    trunk = {**record.settings["trunk"], "strict": False}
    doubtful = dataclasses.replace(
        record,
        dataset={**record.dataset, "copies": {"in its class": 3}},
        settings={**record.settings, "trunk": trunk},
    )
    assert doubts_of_run(doubtful)[-2:] == [
        "images with the pixels of an earlier one: 3 in its class",
        "trunk.strict=false: of the weight file what fitted was taken",
    ]
    assert "Note: trunk.strict=false" in render_trial(doubtful)
