"""Whether the intervals cover and the tests hold their level: synthetic results whose truth is known.

They are of losses with known means, drawn effects, and per-query scores as real ones are: in [0, 1], skewed
towards 0 or binary, and alike for the same query under different runs and losses. The expected score of loss l, run r,
class c is

    p = mean_l + class_c + class-by-loss_cl + run_lr + run-by-class_lrc,

each effect normal, clipped at 2.5 standard deviations (so that its mean is exactly 0 and p stays within (0, 1)). With u
uniform, correlated between runs and losses of a query by a Gaussian copula, average precision is u^((1 - p) / p), whose
mean is exactly p, and correct-at-1 is u < p. So the true difference of two losses is that of their means, whatever the
scenario.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from mlrc_lightning.reporting.intervals import t_interval
from mlrc_lightning.reporting.statistics.comparison import paired_comparison, pairwise
from mlrc_lightning.reporting.statistics.queries import QueryResults

Array = NDArray[np.float64]
log = logging.getLogger(__name__)

_CLIP = 2.5
# Monte Carlo error of the quantile is far below that of 1,000 draws; family-wise rates take the default number
_PAIR_REPLICATES = 1_999


@dataclass(frozen=True)
class Scenario:
    """A kind of synthetic results. Standard deviations are those before clipping, as fractions.

    Attributes:
        name: For the table.
        question: What is measured: `interval` of one loss's mean on these test classes, the `pair` of two losses, or
            the `family` of all pairs.
        means: True mean of each loss.
        num_runs: R of each loss.
        num_classes: C.
        queries_per_class: The same for every class, or, where `skewed`, the median of a log-normal size.
        skewed: Whether class sizes differ: log-normal with sigma 0.9, between 2 and 20 times the median.
        binary: Correct at 1 instead of average precision.
        class_sd: Between classes.
        class_by_loss_sd: Classes on which one loss does better.
        run_sd: Between runs of each loss; a single value for all, or one for each loss.
        run_by_class_sd: Classes on which one run does better.
        query_correlation: Between the scores of one query, on the normal scale.
    """

    name: str
    question: str
    means: tuple[float, ...]
    num_runs: int
    num_classes: int
    queries_per_class: int
    skewed: bool = False
    binary: bool = False
    class_sd: float = 0.06
    class_by_loss_sd: float = 0.02
    run_sd: tuple[float, ...] = (0.005,)
    run_by_class_sd: float = 0.01
    query_correlation: float = 0.5


_EQUAL = (0.3, 0.3)
_APART = (0.3, 0.31)
SCENARIOS = (
    # a query's own difficulty is left out here: its mean over runs would have no closed form
    Scenario("t-interval", "interval", (0.3,), 10, 50, 20, query_correlation=0.0),
    Scenario("t-interval", "interval", (0.3,), 3, 50, 20, query_correlation=0.0),
    Scenario("t-interval, P@1", "interval", (0.3,), 10, 50, 20, binary=True, query_correlation=0.0),
    Scenario("equal losses", "pair", _EQUAL, 10, 100, 20),
    Scenario("small difference", "pair", _APART, 10, 100, 20),
    Scenario("small difference", "pair", _APART, 3, 50, 20),
    Scenario("few classes", "pair", _APART, 10, 25, 20),
    Scenario("many small classes", "pair", _APART, 10, 500, 5),
    Scenario("runs differ much", "pair", _APART, 10, 50, 20, run_sd=(0.02,)),
    Scenario("runs differ much", "pair", _APART, 3, 50, 20, run_sd=(0.02,)),
    Scenario("runs differ for one loss", "pair", _APART, 10, 50, 20, run_sd=(0.02, 0.005)),
    Scenario("runs differ by class only", "pair", _APART, 3, 50, 20, run_sd=(0.0,), run_by_class_sd=0.03),
    Scenario("skewed class sizes", "pair", _APART, 10, 50, 20, skewed=True),
    Scenario("skewed class sizes", "pair", _APART, 3, 50, 20, skewed=True),
    Scenario("P@1", "pair", _APART, 10, 100, 20, binary=True),
    Scenario("14 equal losses", "family", (0.3,) * 14, 10, 100, 10),
    Scenario("14 equal losses", "family", (0.3,) * 14, 3, 50, 10),
    Scenario("14 equal losses, runs differ much", "family", (0.3,) * 14, 3, 50, 10, run_sd=(0.02,)),
)


@dataclass(frozen=True)
class Draw:
    """The results of one draw.

    Attributes:
        losses: Per-query results of each loss.
        on_these_classes: Each loss's true mean over runs on these very classes; (L,). Exact where queries have no
            difficulty of their own.
    """

    losses: list[QueryResults]
    on_these_classes: Array


@dataclass(frozen=True)
class Calibration:
    """What one scenario showed. All shares are fractions of the draws.

    Attributes:
        scenario: The scenario.
        draws: How many were drawn.
        covered: Share whose 95 % interval holds the truth; None for a family.
        effect_size_covered: The same of the effect size; None but for pairs.
        found: Share with p (Holm's, for a family: of any pair) at most 0.05; None for an interval. Where losses are
            equal it is the rate of false positives.
        half_width: Mean half width of the interval; None for a family.
        seconds: Wall time.
    """

    scenario: Scenario
    draws: int
    covered: float | None
    effect_size_covered: float | None
    found: float | None
    half_width: float | None
    seconds: float = field(compare=False)


def draw(scenario: Scenario, generator: np.random.Generator) -> Draw:
    """Draws results of a scenario."""

    def effect(sd: float, *shape: int) -> Array:
        return sd * np.clip(generator.standard_normal(shape), -_CLIP, _CLIP)

    sizes = np.full(scenario.num_classes, scenario.queries_per_class)
    if scenario.skewed:
        drawn = scenario.queries_per_class * np.exp(0.9 * generator.standard_normal(scenario.num_classes))
        sizes = np.clip(np.round(drawn), 2, 20 * scenario.queries_per_class).astype(np.int64)
    labels = np.repeat(np.arange(scenario.num_classes), sizes)
    index = np.arange(len(labels))
    runs, classes = scenario.num_runs, scenario.num_classes
    class_effect = effect(scenario.class_sd, classes)
    shared = np.sqrt(scenario.query_correlation) * generator.standard_normal(len(labels))
    losses, expected = [], []
    for number, mean in enumerate(scenario.means):
        of_class = mean + class_effect + effect(scenario.class_by_loss_sd, classes)
        run_sd = scenario.run_sd[number % len(scenario.run_sd)]
        p = of_class + effect(run_sd, runs, 1) + effect(scenario.run_by_class_sd, runs, classes)
        assert 0 < p.min() <= p.max() < 1, "the scenario's effects leave (0, 1)"
        p = p[:, labels]
        own = np.sqrt(1 - scenario.query_correlation) * generator.standard_normal((runs, len(labels)))
        uniform = ndtr(shared + own)
        scores = (uniform < p).astype(np.float64) if scenario.binary else uniform ** ((1 - p) / p)
        losses.append(QueryResults(f"loss {number + 1}", scores, labels, index))
        expected.append(of_class[labels].mean())
    return Draw(losses, np.array(expected))


def calibration(
    draws: int = 1_000, seed: int = 0, scenarios: tuple[Scenario, ...] | None = None
) -> Iterator[Calibration]:
    """Measures the scenarios one after the other.

    Args:
        draws: How many of each scenario.
        seed: Every draw has its own random numbers from it.
        scenarios: Which; all where None.
    """
    for number, scenario in enumerate(SCENARIOS if scenarios is None else scenarios):
        start = time.monotonic()
        true_size = _true_effect_size(scenario, seed, number) if scenario.question == "pair" else 0.0
        covered, size_covered, found, half_widths = 0, 0, 0, 0.0
        for place in range(draws):
            drawn = draw(scenario, np.random.default_rng([seed, number, place]))
            if scenario.question == "interval":
                interval = t_interval(list(drawn.losses[0].scores.mean(axis=1)))
                assert interval.half_width is not None
                covered += abs(interval.mean - float(drawn.on_these_classes[0])) <= interval.half_width
                half_widths += interval.half_width
            elif scenario.question == "pair":
                row = paired_comparison(*drawn.losses, replicates=_PAIR_REPLICATES, seed=place)
                # several runs and classes: nothing is None
                assert row.low is not None
                assert row.high is not None
                assert row.p_value is not None
                assert row.effect_size_low is not None
                assert row.effect_size_high is not None
                covered += row.low <= scenario.means[0] - scenario.means[1] <= row.high
                size_covered += row.effect_size_low <= true_size <= row.effect_size_high
                found += row.p_value <= 0.05
                half_widths += (row.high - row.low) / 2
            else:
                found += any(row.different for row in pairwise(drawn.losses, seed=place))
        result = Calibration(
            scenario,
            draws,
            None if scenario.question == "family" else covered / draws,
            size_covered / draws if scenario.question == "pair" else None,
            None if scenario.question == "interval" else found / draws,
            None if scenario.question == "family" else half_widths / draws,
            time.monotonic() - start,
        )
        log.info("%s, %d runs: %d draws in %.0f s", scenario.name, scenario.num_runs, draws, result.seconds)
        yield result


def _true_effect_size(scenario: Scenario, seed: int, number: int) -> float:
    """Returns the true difference over the standard deviation of class differences, the latter from 5,000 classes."""
    many = replace(scenario, num_classes=5_000)
    a, b = draw(many, np.random.default_rng([seed, number, 2**31])).losses
    difference = a.scores.mean(axis=0) - b.scores.mean(axis=0)
    sizes = np.bincount(a.labels)
    residuals = np.bincount(a.labels, weights=difference - difference.mean())
    deviation = np.sqrt((residuals**2 / sizes).sum() / sizes.sum())
    return (scenario.means[0] - scenario.means[1]) / float(deviation)


def render(results: list[Calibration]) -> str:
    """Returns the results as a Markdown table, in per cent."""

    def percent(share: float | None, digits: int = 1) -> str:
        return "" if share is None else f"{100 * share:.{digits}f}"

    lines = [
        "| scenario | losses | runs | classes | queries | covered | effect size covered | p <= 0.05 | half width |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        scenario = result.scenario
        cells = [
            scenario.name,
            str(len(scenario.means)),
            str(scenario.num_runs),
            str(scenario.num_classes),
            f"median {scenario.queries_per_class}" if scenario.skewed else str(scenario.queries_per_class),
            percent(result.covered),
            percent(result.effect_size_covered),
            percent(result.found),
            percent(result.half_width, 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
