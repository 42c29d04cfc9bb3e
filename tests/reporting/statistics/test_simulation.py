from dataclasses import replace

import numpy as np
import pytest

from mlrc_lightning.__main__ import main
from mlrc_lightning.reporting.statistics.simulation import SCENARIOS, calibration, draw, render


def test_the_truth_of_a_draw_is_its_mean():
    # without any effect of run and class, average precision and correct-at-1 have mean p, in [0, 1]
    for binary in (False, True):
        scenario = replace(
            SCENARIOS[0],
            means=(0.2, 0.4),
            binary=binary,
            class_sd=0.0,
            class_by_loss_sd=0.0,
            run_sd=(0.0,),
            run_by_class_sd=0.0,
            num_classes=5_000,
        )
        drawn = draw(scenario, np.random.default_rng(0))
        for loss, mean in zip(drawn.losses, scenario.means, strict=True):
            assert loss.scores.min() >= 0
            assert loss.scores.max() <= 1
            assert loss.scores.mean() == pytest.approx(mean, abs=0.002)
        np.testing.assert_allclose(drawn.on_these_classes, scenario.means)


def test_truth_on_these_classes_is_what_many_runs_approach():
    scenario = replace(SCENARIOS[0], num_runs=2_000, num_classes=20)
    drawn = draw(scenario, np.random.default_rng(0))
    assert drawn.losses[0].scores.mean() == pytest.approx(drawn.on_these_classes[0], abs=0.001)
    assert abs(drawn.on_these_classes[0] - 0.3) > 0.003


def test_skewed_sizes_are_skewed_and_losses_share_queries():
    scenario = next(scenario for scenario in SCENARIOS if scenario.skewed)
    a, b = draw(scenario, np.random.default_rng(0)).losses
    sizes = np.bincount(a.labels)
    assert sizes.max() > 4 * np.median(sizes)
    assert np.corrcoef(a.scores.mean(axis=0), b.scores.mean(axis=0))[0, 1] > 0.4


def check(results, low, high, false_positives):
    assert {result.scenario.question for result in results} == {"interval", "pair", "family"}
    for result in results:
        name = f"{result.scenario.name}, {result.scenario.num_runs} runs: {result}"
        for share in (result.covered, result.effect_size_covered):
            assert share is None or low <= share <= high, name
        if result.scenario.question == "family":
            assert result.found <= false_positives, name


def test_intervals_cover_in_100_draws():
    # one of each kind, with 3 runs, the hardest; the nightly test has all
    family = replace(SCENARIOS[-1], means=(0.3,) * 4, num_classes=25)
    # 4 Monte Carlo errors of 100 draws: 0.087
    check(list(calibration(100, 1, (SCENARIOS[1], SCENARIOS[5], family))), 0.86, 1.0, 0.05 + 0.087)


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_intervals_cover_93_to_97_per_cent_of_1000_draws_and_families_err_in_5():
    # the method was settled while looking at seed 0, so another seed; 2 Monte Carlo errors of a rate of 5 % in 1,000
    check(list(calibration(1_000, 1)), 0.93, 0.97, 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1_000))


def test_equal_seeds_give_equal_results_and_others_others():
    scenarios = (SCENARIOS[5],)
    assert list(calibration(3, 0, scenarios)) == list(calibration(3, 0, scenarios))
    assert list(calibration(3, 0, scenarios)) != list(calibration(3, 1, scenarios))


def test_the_command_prints_a_row_for_each_scenario(capsys, monkeypatch):
    chosen = (SCENARIOS[1], SCENARIOS[5], replace(SCENARIOS[-1], means=(0.3,) * 3))
    monkeypatch.setattr("mlrc_lightning.reporting.statistics.simulation.SCENARIOS", chosen)
    main(["calibration", "--draws", "1", "--seed", "3"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 + 3
    assert {line.count("|") for line in lines} == {10}
    assert lines[-1].startswith(f"| {SCENARIOS[-1].name} | 3 | 3 | 50 |")


def test_rendered_shares_are_in_per_cent():
    result = next(iter(calibration(4, 0, (SCENARIOS[3],))))
    line = render([replace(result, covered=0.9545, effect_size_covered=None, found=0.05, half_width=0.00856)])
    assert line.splitlines()[-1] == "| equal losses | 2 | 10 | 100 | 20 | 95.5 |  | 5.0 | 0.86 |"
