import random

import pytest

from hydra_plugins.mlrc_ax_sweeper._racing import cannot_win, replicate_effects


def test_effects_and_residual_of_a_table_worked_by_hand() -> None:
    # means 2 and 4; effects -1, +1; residuals +-0.5, one degree of freedom, four cells: variance 1
    effects = replicate_effects([[0.5, 3.5], [3.5, 4.5]])
    assert effects is not None
    assert effects.effects == (-1.0, 1.0)
    assert effects.residual_deviation == pytest.approx(1.0)
    forecast = effects.forecast([7.0])
    assert forecast.mean == 8.0
    assert forecast.standard_error == pytest.approx((1.0 * (1 - 1 / 2) * (1 + 1 / 2)) ** 0.5)


def test_a_hard_replicate_is_not_held_against_a_trial() -> None:
    table = [[0.1, 0.5, 0.5], [0.2, 0.6, 0.6], [0.15, 0.551, 0.549]]
    assert cannot_win([0.21], table, 0.466, z=2.0, minimize=False) is None
    assert cannot_win([0.11], table, 0.466, z=2.0, minimize=False) is not None
    assert cannot_win([0.21], table, 0.366, z=2.0, minimize=True) is not None
    assert cannot_win([0.09], table, 0.366, z=2.0, minimize=True) is None


def test_without_enough_completed_trials_nobody_is_ruled_out() -> None:
    assert cannot_win([0.0], [[1.0, 1.0]], 1.0, z=2.0, minimize=False) is None
    assert cannot_win([0.0], [], 1.0, z=2.0, minimize=False) is None


def test_a_forecast_covers_the_later_mean_as_often_as_it_says() -> None:
    generator = random.Random(0)
    inside = 0
    for _ in range(2000):
        folds = [generator.gauss(0.0, 0.05) for _ in range(4)]
        table = [[mean + f + generator.gauss(0.0, 0.006) for f in folds] for mean in (0.3, 0.35, 0.2, 0.31, 0.33, 0.1)]
        values = [0.3 + f + generator.gauss(0.0, 0.006) for f in folds]
        effects = replicate_effects(table)
        assert effects is not None
        forecast = effects.forecast(values[:2])
        inside += abs(forecast.mean - sum(values) / 4) < 2.0 * forecast.standard_error
    assert 0.91 < inside / 2000 < 0.97
