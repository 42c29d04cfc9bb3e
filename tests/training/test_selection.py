"""Early stopping and model selection, §1.3 of the protocol."""

import pytest

from mlrc_lightning.training.selection import Selection


def evaluations_until_stop(save_interval, patience, score=lambda epoch: 0.4, max_epochs=1000):
    """Evaluations after training began, until patience runs out; the untrained model is evaluated first."""
    selection = Selection(patience)
    selection.update(0, score(0))
    for count, epoch in enumerate(range(save_interval, max_epochs + 1, save_interval), start=1):
        selection.update(epoch, score(epoch))
        if selection.should_stop(epoch):
            return count, selection
    return None, selection


@pytest.mark.parametrize(
    ("save_interval", "patience", "evaluations"),
    [pytest.param(2, 9, 5, id="cub200"), pytest.param(5, 14, 3, id="cars196"), pytest.param(20, 39, 2, id="sop")],
)
def test_a_constant_score_stops_after_the_protocols_number_of_evaluations(save_interval, patience, evaluations):
    assert evaluations_until_stop(save_interval, patience)[0] == evaluations


def test_a_late_best_buys_the_same_patience_again():
    count, selection = evaluations_until_stop(2, 9, score=lambda epoch: 1.0 if epoch == 8 else 0.0)
    assert count == 4 + 5
    assert (selection.best_epoch, selection.selected_epoch) == (8, 8)


def test_an_equal_score_is_no_new_best():
    selection = Selection(None)
    assert selection.update(2, 0.5)
    assert not selection.update(4, 0.5)
    assert selection.selected_epoch == 2


def test_the_untrained_model_counts_for_patience_and_is_never_selected():
    count, selection = evaluations_until_stop(2, 9, score=lambda epoch: 0.9 - epoch / 100)
    assert count == 5
    assert (selection.best_epoch, selection.selected_epoch) == (0, 2)


def test_no_patience_never_stops():
    assert evaluations_until_stop(2, None, max_epochs=100)[0] is None
