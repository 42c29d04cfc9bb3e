"""Paired comparison of losses on the same test queries: bootstrap of classes, with training runs as a second factor.

**The question.** Which loss has the higher accuracy on average over training runs *and* over classes such as the test
classes. Three things vary: a loss is trained again (run), other classes could have been drawn (class), and a run does
better on some classes than on others (run by class). Queries are nested in classes and need no draw of their own: a
class is drawn with all its queries, so whatever varies between queries varies between class sums (Davison & Hinkley
1997, section 3.8; Field & Welsh 2007).

**Estimate.** With S_lrc the sum of scores of loss l, run r over the n_c queries of class c, N = sum of n_c, and a dot
for a mean over runs: D = sum_c (S_a.c - S_b.c) / N, the difference of the means in the table.

**Its variance**, V = max(0, V_class - I) + V_run, as in two-way clustering (Cameron, Gelbach & Miller 2011):

- V_class = C/(C-1) * sum_c z_c^2 / N^2 with z_c = S_a.c - S_b.c - D n_c. It holds classes, queries, *and* run by class.
- V_run = s_a^2 / R_a + s_b^2 / R_b, s_l^2 the variance of loss l's run means. It holds runs, *and* run by class.
- I is what run by class contributes to either: for each loss C/(C-1) * sum_c sum_r e_rc^2 / (R (R-1) N^2), e_rc the
  residuals of S_lrc after class and run means. Counted twice it would widen intervals, the known excess of resampling
  both factors (Owen 2007; McCullagh 2000: no plain bootstrap of two crossed factors is exact).

**Distribution of the error.** The class part C* of a replicate comes from drawing classes again, whole and with
replacement: C* = (D* - D) sqrt(max(0, V_class - I) / V_class), and V*_class with it. The run part is Student's t, the
assumption of the table's own interval, as Z* sqrt(V_run) normal and G* chi-square over its degrees of freedom: three or
ten runs are too few to resample (of three, one replicate in nine draws a single run). The degrees of freedom are
Satterthwaite's at equal variances, 2 (R - 1) for equal R; Welch's, from two variances of three runs each, mostly
follow noise. There are 50 to 11,000 classes of unequal sizes and skewed differences, a few of which can weigh much:
dividing by each replicate's own error (bootstrap-t) is what holds the level with few clusters (Cameron, Gelbach &
Miller 2008). Two parts can be studentised in two ways, which agree where one part is all there is:

- apart, C* / sqrt(V*_class / V_class) + Z* sqrt(V_run / G*), as generalised confidence intervals add them (Weerahandi
  1993), and nowhere closer to 0 than the classes alone, (D* - D) sqrt(V_class / V*_class): V_run below I is chance;
- together, (C* + Z* sqrt(V_run)) sqrt(V / V*), as the parametric bootstrap does (Krishnamoorthy, Lu & Mathew 2007).

With 3 runs the first covers 95 to 98 %; the second 92 to 96 %, and it rejects true null hypotheses up to 10 times too
often at 0.05 / 91, where Holm's method looks. So the quantile of |E*| with probability u beyond it is the second's for
u >= 1/15, and goes over to the first's in the far tail with the weight 1 - 15 u: a quarter at 5 %, 0.99 at 0.05 / 91.
(Half of each throughout makes a false difference in 10 % of tables of 3 runs; the first without its bound, in 6 %.) The
two differ little with 10 runs. I is taken from the class part, not from the run part: with 3 runs V_run - I is mostly
noise, and the interval then covers 92 to 99 %, as runs differ more or less.

The interval is D plus and minus the 95 % quantile of |E*|, the p-value the share of |E*| >= |D| (symmetric, Hall 1988),
so that the interval excludes 0 exactly when p <= 0.05.

Where one loss's runs vary far more than the other's, 2 (R - 1) degrees of freedom are too many: with 3 runs, the
interval covers 93 % at 4 times the standard deviation and 90 % where only one loss varies, with 10 runs 94 %.

A replicate costs O(C): queries enter through class sums. Two losses' runs are taken as independent; where they share
seeds, that errs on the wide side.

Coverage is measured in `simulation.py`; the figures are in docs/statistics.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlrc_lightning.errors import RecordError
from mlrc_lightning.reporting.statistics.holm import holm
from mlrc_lightning.reporting.statistics.queries import QueryResults

Array = NDArray[np.float64]

REPLICATES = 9_999
"""With 91 pairs Holm's first threshold is 0.05 / 91; the smallest p-value, 1 / (replicates + 1), must be below it."""
_CLASS_DRAWS_AT_A_TIME = 2_000_000
_STUDENTISED_TOGETHER = 1 / 15
"""Tail probability above which |E*| is that of both parts studentised together; below, it goes over to apart."""
# the error of a replicate whose classes have no spread: larger than any difference
_UNBOUNDED = 1e100
# scores lie in [0, 1]; a standard error below this is rounding
_ZERO = 1e-12


@dataclass(frozen=True)
class PairedComparison:
    """Loss a against loss b. Differences and errors are fractions, as accuracies are.

    Attributes:
        loss_a: Its name.
        loss_b: Its name.
        effect: Mean of a minus mean of b.
        low: Lower end of the effect's interval; None, as is all that needs a variance, where a loss has fewer than
            two runs or there are fewer than two classes. With two or three classes too many draws are of one class
            alone: the standard error and the effect size stand by themselves.
        high: Upper end.
        p_value: Two-sided, of equal means; at least 1 / (replicates + 1).
        standard_error: sqrt(V) of the module's docstring.
        effect_size: The effect in standard deviations of the classes' differences (each class weighed by its
            queries): Cohen's d for paired samples, classes being the pairs. None where classes do not differ.
        effect_size_low: Lower end of its interval (delta method, in the effect's own half widths per standard error).
        effect_size_high: Upper end.
        num_runs_a: R of loss a.
        num_runs_b: R of loss b.
        num_classes: C.
        num_queries: Q.
    """

    loss_a: str
    loss_b: str
    effect: float
    low: float | None
    high: float | None
    p_value: float | None
    standard_error: float | None
    effect_size: float | None
    effect_size_low: float | None
    effect_size_high: float | None
    num_runs_a: int
    num_runs_b: int
    num_classes: int
    num_queries: int


@dataclass(frozen=True)
class PairwiseRow:
    """A comparison as one row of all pairs of a table.

    Attributes:
        comparison: The pair by itself.
        p_adjusted: Holm's p-value over the pairs of the table that have one; None where the pair has none.
        different: Whether `p_adjusted` is at most the level; None where there is none.
    """

    comparison: PairedComparison
    p_adjusted: float | None
    different: bool | None


def paired_comparison(
    a: QueryResults, b: QueryResults, *, confidence: float = 0.95, replicates: int = REPLICATES, seed: int = 0
) -> PairedComparison:
    """Compares two losses on the same test queries. See the module's docstring for the method.

    Args:
        a: Runs of one loss.
        b: Runs of the other; as many runs or not.
        confidence: Coverage of the intervals.
        replicates: Number of bootstrap replicates; one less than a multiple of 20 makes quantiles exact.
        seed: Of the draws; the same seed gives the same digits.

    Raises:
        RecordError: The two were tested on different queries or with different labels.
    """
    return _compare([a, b], confidence, replicates, seed)[0]


def pairwise(
    losses: Sequence[QueryResults],
    *,
    level: float = 0.05,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> list[PairwiseRow]:
    """Compares every two losses of a table, in their order, and adjusts the p-values by Holm's method.

    A pair's own numbers are those of `paired_comparison` with the same seed, whichever other losses are there.

    Args:
        losses: Two or more, of one setting and protocol.
        level: Family-wise level of `different`; the intervals cover 1 - level each, pair by pair.
        replicates: As for `paired_comparison`.
        seed: As for `paired_comparison`.

    Raises:
        RecordError: Losses were tested on different queries, or two have the same name.
    """
    names = [loss.loss for loss in losses]
    if len(set(names)) < len(names):
        raise RecordError(f"Every loss of a table once, found {', '.join(names)}; merge the runs or rename one.")
    comparisons = _compare(losses, 1 - level, replicates, seed)
    tested = [row.p_value for row in comparisons if row.p_value is not None]
    adjusted = iter(holm(tested))
    rows = []
    for comparison in comparisons:
        p = None if comparison.p_value is None else next(adjusted)
        rows.append(PairwiseRow(comparison, p, None if p is None else p <= level))
    return rows


def _compare(losses: Sequence[QueryResults], confidence: float, replicates: int, seed: int) -> list[PairedComparison]:
    pairs = list(itertools.combinations(range(len(losses)), 2))
    if not pairs:
        return []
    _refuse_different_queries(losses)
    _, labels = np.unique(losses[0].labels, return_inverse=True)
    summaries = [_summary(loss, labels) for loss in losses]
    sizes = np.bincount(labels).astype(np.float64)
    means = np.array([summary.class_sums.sum() for summary in summaries]) / sizes.sum()
    # a pair's z is the difference of its losses' rows
    centred = np.stack([s.class_sums for s in summaries]) - np.outer(means, sizes)
    tested = [(i, j) for i, j in pairs if min(summaries[i].num_runs, summaries[j].num_runs, len(sizes)) > 1]
    if tested:
        class_stream, run_stream = np.random.SeedSequence(seed).spawn(2)
        class_draws = _class_replicates(centred, tested, sizes, replicates, class_stream)
        draws = {
            runs: _run_replicates(*runs, replicates, run_stream)
            for runs in {(summaries[i].num_runs, summaries[j].num_runs) for i, j in tested}
        }
    rows = []
    for i, j in pairs:
        a, b = summaries[i], summaries[j]
        numbers: dict[str, float] = {}
        if (i, j) in tested:
            numbers = _inference(
                float(means[i] - means[j]),
                centred[i] - centred[j],
                sizes,
                a.run_variance + b.run_variance,
                a.interaction + b.interaction,
                next(class_draws),
                draws[a.num_runs, b.num_runs],
                confidence,
            )
        rows.append(
            PairedComparison(
                loss_a=losses[i].loss,
                loss_b=losses[j].loss,
                effect=float(means[i] - means[j]),
                low=numbers.get("low"),
                high=numbers.get("high"),
                p_value=numbers.get("p_value"),
                standard_error=numbers.get("standard_error"),
                effect_size=numbers.get("effect_size"),
                effect_size_low=numbers.get("effect_size_low"),
                effect_size_high=numbers.get("effect_size_high"),
                num_runs_a=losses[i].scores.shape[0],
                num_runs_b=losses[j].scores.shape[0],
                num_classes=len(sizes),
                num_queries=len(labels),
            )
        )
    return rows


def _refuse_different_queries(losses: Sequence[QueryResults]) -> None:
    first = losses[0]
    for other in losses[1:]:
        if not np.array_equal(first.index, other.index):
            common = np.intersect1d(first.index, other.index).size
            raise RecordError(
                f"{first.loss} and {other.loss} were tested on different queries ({first.index.size} and "
                f"{other.index.size}, {common} in common); a paired comparison needs the same. "
                "Test both again on the same split."
            )
        if not np.array_equal(first.labels, other.labels):
            raise RecordError(
                f"{first.loss} and {other.loss} have different class labels for the same queries; "
                "test both again with the same dataset index."
            )


@dataclass(frozen=True)
class _Summary:
    """What a comparison needs of a loss. Both variances are 0 with a single run.

    Attributes:
        class_sums: Mean over runs of the scores' sum in each class; (C,).
        num_runs: R.
        run_variance: s^2 / R.
        interaction: The part of it that is run by class.
    """

    class_sums: Array
    num_runs: int
    run_variance: float
    interaction: float


def _summary(loss: QueryResults, labels: NDArray[np.intp]) -> _Summary:
    num_runs, num_queries = loss.scores.shape
    sizes = np.bincount(labels)
    num_classes = len(sizes)
    order = np.argsort(labels, kind="stable")
    sums = np.add.reduceat(loss.scores[:, order], np.cumsum(sizes) - sizes, axis=1)  # (R, C)
    class_sums = sums.mean(axis=0)
    if num_runs < 2:
        return _Summary(class_sums, num_runs, 0.0, 0.0)
    run_means = sums.sum(axis=1) / num_queries
    residuals = sums - class_sums - np.outer(run_means - run_means.mean(), sizes)
    interaction = float((residuals**2).sum()) / (num_runs * (num_runs - 1) * num_queries**2)
    return _Summary(
        class_sums,
        num_runs,
        float(run_means.var(ddof=1)) / num_runs,
        interaction * num_classes / max(1, num_classes - 1),
    )


def _class_replicates(
    centred: Array,
    pairs: Sequence[tuple[int, int]],
    sizes: Array,
    replicates: int,
    stream: np.random.SeedSequence,
) -> Iterator[tuple[Array, Array]]:
    """Draws classes anew, the same for all pairs, from class sums less their expectation (L, C).

    Yields:
        D* - D and V*_class of each replicate, (replicates,) both, pair by pair.
    """
    num_losses, num_classes = centred.shape
    squares = np.stack([(centred[i] - centred[j]) ** 2 for i, j in pairs])
    # queries enter through their class's sums: the rest is one product of columns and draws
    columns = np.concatenate([[sizes, sizes**2], centred, centred * sizes, squares])
    totals = np.empty((len(columns), replicates))
    start = 0
    for counts in _class_counts(num_classes, replicates, stream):
        totals[:, start : start + len(counts)] = columns @ counts.T
        start += len(counts)
    n, n2, sums, weighted, squares = np.split(totals, [1, 2, 2 + num_losses, 2 + 2 * num_losses])
    n, n2 = n[0], n2[0]
    for (i, j), square in zip(pairs, squares, strict=True):
        deviations = (sums[i] - sums[j]) / n
        # sum over the classes drawn of (z_c - deviation * n_c)^2
        left = square - deviations * (2 * (weighted[i] - weighted[j]) - deviations * n2)
        yield deviations, num_classes / (num_classes - 1) * np.maximum(left, 0.0) / n**2


def _class_counts(num_classes: int, replicates: int, stream: np.random.SeedSequence) -> Iterator[Array]:
    """Draws classes with replacement: how often each is in each replicate, in chunks (b, C)."""
    generator = np.random.default_rng(stream)
    chunk = max(1, _CLASS_DRAWS_AT_A_TIME // num_classes)
    for start in range(0, replicates, chunk):
        rows = min(chunk, replicates - start)
        drawn = generator.integers(0, num_classes, size=(rows, num_classes))
        drawn += np.arange(rows)[:, None] * num_classes
        yield np.bincount(drawn.ravel(), minlength=rows * num_classes).reshape(rows, num_classes).astype(np.float64)


def _run_replicates(runs_a: int, runs_b: int, replicates: int, stream: np.random.SeedSequence) -> tuple[Array, Array]:
    """Draws runs anew: Z* and G* of each replicate, (replicates,)."""
    degrees = (1 / runs_a + 1 / runs_b) ** 2 / sum(1 / (runs**2 * (runs - 1)) for runs in (runs_a, runs_b))
    # a fresh generator: a pair's numbers do not depend on which other pairs there are
    generator = np.random.default_rng(stream)
    return generator.standard_normal(replicates), generator.chisquare(degrees, replicates) / degrees


def _errors(
    v_class: float,
    class_variance: float,
    run_variance: float,
    class_replicates: tuple[Array, Array],
    run_replicates: tuple[Array, Array],
) -> Array:
    """Returns |E*|, ascending, (replicates,), from V_class, max(0, V_class - I), V_run and the parts drawn."""
    normal, run_spread = run_replicates
    run_deviations = np.sqrt(run_variance) * normal
    if v_class < _ZERO**2:
        return np.sort(np.abs(run_deviations) / np.sqrt(run_spread))
    class_deviations = np.sqrt(class_variance / v_class) * class_replicates[0]
    class_spread = class_replicates[1] / v_class
    # one class drawn C times has no spread: such a replicate counts against a difference
    without = class_spread < 1e-12
    class_spread[without] = 1.0
    classes_alone = np.abs(class_replicates[0]) / np.sqrt(class_spread)
    classes_alone[without] = _UNBOUNDED
    variance = class_variance + run_variance
    if variance < _ZERO**2:
        return np.sort(classes_alone)
    apart = class_deviations / np.sqrt(class_spread) + run_deviations / np.sqrt(run_spread)
    drawn_variance = class_variance * class_spread + run_variance * run_spread
    together = (class_deviations + run_deviations) * np.sqrt(variance / drawn_variance)
    apart[without] = together[without] = _UNBOUNDED
    apart, together = np.sort(np.abs(apart)), np.sort(np.abs(together))
    tail = np.arange(len(apart), 0, -1) / (len(apart) + 1)
    weight = np.maximum(0.0, 1 - tail / _STUDENTISED_TOGETHER)
    # runs cannot make the error smaller than classes alone do: V_run below I is chance
    apart = np.maximum(apart, np.sort(classes_alone))
    return np.maximum.accumulate(weight * apart + (1 - weight) * together)


def _inference(
    effect: float,
    z: Array,
    sizes: Array,
    run_variance: float,
    interaction: float,
    class_replicates: tuple[Array, Array],
    run_replicates: tuple[Array, Array],
    confidence: float,
) -> dict[str, float]:
    """Interval, p-value and effect size of one pair, from V_run, I, residuals z (C,) and its replicates' parts."""
    replicates = len(run_replicates[0])
    correction = len(z) / (len(z) - 1)
    v_class = correction * float((z**2).sum()) / sizes.sum() ** 2
    class_variance = max(0.0, v_class - interaction)
    standard_error = float(np.sqrt(class_variance + run_variance))
    errors = _errors(v_class, class_variance, run_variance, class_replicates, run_replicates)
    if abs(effect) < _ZERO and standard_error < _ZERO:
        p = 1.0  # equal scores: rounding must not decide
    else:
        p = (1 + int((errors >= abs(effect)).sum())) / (replicates + 1)
    position = min(replicates, int(np.ceil(confidence * (replicates + 1) - 1e-9))) - 1
    half_width = float(errors[position])
    bounded = half_width < _UNBOUNDED / 2
    numbers = {"standard_error": standard_error}
    if bounded:
        numbers |= {"low": effect - half_width, "high": effect + half_width, "p_value": p}
    between = correction * float((z**2 / sizes).sum() / sizes.sum())
    if between > _ZERO**2 and standard_error > _ZERO:
        deviation = np.sqrt(between)
        size = effect / deviation
        # a class's influence on effect / deviation: on the effect, and on the deviation that divides it
        influence = z - size / 2 * (z**2 / sizes - between * sizes) / deviation
        variance = max(0.0, correction * float((influence**2).sum()) / sizes.sum() ** 2 - interaction) + run_variance
        numbers["effect_size"] = float(size)
        if bounded:
            size_half_width = float(half_width / standard_error * np.sqrt(variance) / deviation)
            numbers |= {
                "effect_size_low": float(size) - size_half_width,
                "effect_size_high": float(size) + size_half_width,
            }
    return numbers
