import math
import random
from typing import Any

import numpy as np
import pytest

from hydra_plugins.mlrc_ax_sweeper._errors import SweepError
from hydra_plugins.mlrc_ax_sweeper._measurements import observations, paired_sem, read_return_value
from mlrc_sweeper.measurements import Measurement, combine_replicates, over_replicates


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, Measurement(3.0)),
        (np.float32(0.5), Measurement(0.5)),
        ((1.0, 0.1), Measurement(1.0, 0.1)),
        ((1.0, None), Measurement(1.0)),
        ((1.0, float("nan")), Measurement(1.0)),
        ([2.0], Measurement(2.0, None, (2.0,))),
    ],
)
def test_every_form_of_a_value_is_understood(value: Any, expected: Measurement) -> None:
    assert read_return_value(value, "m") == {"m": expected}
    assert read_return_value({"m": value}, "other") == {"m": expected}


def test_a_list_is_replicates_and_a_tuple_is_mean_and_error() -> None:
    measured = read_return_value([1.0, 3.0], "m")["m"]
    assert (measured.mean, measured.sem, measured.replicates) == (2.0, 1.0, (1.0, 3.0))
    assert read_return_value((1.0, 3.0), "m")["m"].sem == 3.0


@pytest.mark.parametrize("value", [None, "0.5", True, (1.0, 2.0, 3.0), [], [None], {"m": None}])
def test_anything_else_is_a_usage_error(value: Any) -> None:
    with pytest.raises(SweepError, match="expected a number"):
        read_return_value(value, "m")


@pytest.mark.parametrize("value", [math.nan, math.inf, [1.0, math.nan], [1.0, -math.inf]])
def test_non_finite_values_are_known_as_such(value: Any) -> None:
    assert not read_return_value(value, "m")["m"].is_finite


def test_replicate_jobs_are_combined_value_by_value() -> None:
    jobs = [read_return_value({"m": 1.0, "n": 1.0}, ""), read_return_value({"m": [2.0, 3.0]}, "")]
    assert combine_replicates(jobs) == {"m": over_replicates([1.0, 2.0, 3.0])}


def test_json_keeps_a_measurement() -> None:
    for measured in (Measurement(1.5), Measurement(1.5, 0.1), over_replicates([1.0, 2.0])):
        assert Measurement.from_json(measured.to_json()) == measured


def test_paired_error_leaves_out_what_all_trials_share() -> None:
    # fold effects of any size, no residual
    table = [[trial + fold for fold in (0.0, 5.0, -3.0)] for trial in (0.1, 0.2, 0.7)]
    assert paired_sem(table) == pytest.approx(0.0, abs=1e-12)
    # by hand: means are equal, residuals +-1, one degree of freedom, two replicates
    assert paired_sem([[1.0, -1.0], [-1.0, 1.0]]) == pytest.approx(math.sqrt(4.0 / 2.0))
    assert paired_sem([[1.0, 2.0]]) is None
    assert paired_sem([[1.0], [2.0]]) is None


def test_paired_error_estimates_the_residual_noise() -> None:
    generator = random.Random(0)
    folds = [generator.gauss(0.0, 0.05) for _ in range(4)]
    table = [[t * 0.01 + fold + generator.gauss(0.0, 0.006) for fold in folds] for t in range(400)]
    assert paired_sem(table) == pytest.approx(0.006 / 2.0, rel=0.05)


def test_known_and_unknown_errors_are_never_mixed() -> None:
    measured = [Measurement(1.0, 0.1), Measurement(2.0)]
    assert observations(measured, "sem", is_noisy=True) == [(1.0, None), (2.0, None)]


@pytest.mark.parametrize(
    ("mode", "is_noisy", "expected"),
    [
        ("inferred", True, [None, None]),
        ("none", True, [0.0, 0.0]),
        ("sem", True, [1.0, 1.0]),
        ("paired", True, [0.0, 0.0]),
        (None, True, [None, None]),
        (None, False, [0.0, 0.0]),
    ],
)
def test_noise_mode_decides_what_ax_is_told(mode: Any, is_noisy: bool, expected: list[float | None]) -> None:
    measured = [over_replicates([1.0, 3.0]), over_replicates([2.0, 4.0])]
    assert [sem for _, sem in observations(measured, mode, is_noisy)] == expected


def test_by_default_a_tasks_own_standard_errors_are_used() -> None:
    assert observations([Measurement(1.0, 0.1)], None, is_noisy=True) == [(1.0, 0.1)]


def test_a_forecast_is_less_certain_than_a_whole_trial() -> None:
    whole = [over_replicates([1.0, 3.0]), over_replicates([2.0, 4.5])]
    shared = paired_sem([[1.0, 3.0], [2.0, 4.5]])
    assert shared is not None
    told = observations([*whole, Measurement(9.0, 0.3, is_forecast=True)], "paired", is_noisy=True)
    assert told[0] == (2.0, shared)
    assert told[2] == (9.0, pytest.approx(math.hypot(shared, 0.3)))
