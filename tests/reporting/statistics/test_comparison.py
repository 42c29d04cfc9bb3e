import math
from dataclasses import replace

import numpy as np
import pytest

from mlrc_lightning.errors import RecordError
from mlrc_lightning.reporting.statistics import QueryResults, holm, paired_comparison, pairwise
from mlrc_lightning.reporting.statistics.comparison import REPLICATES, _class_counts, _run_replicates


def two_losses(runs=(4, 3), sizes=(3, 1, 5, 2, 4, 2), shift=0.05, seed=0):
    """Losses with run, class and query effects; labels out of order, with gaps between them."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(10 * np.arange(len(sizes)), sizes))
    of_class = generator.normal(0, 0.1, 10 * len(sizes))[labels]
    losses = []
    for number, r in enumerate(runs):
        scores = 0.4 + shift * number + of_class + generator.normal(0, 0.02, (r, 1))
        scores = scores + generator.normal(0, 0.1, 10 * len(sizes))[labels] + generator.normal(0, 0.1, (r, len(labels)))
        losses.append(QueryResults(f"loss {number}", scores, labels, 7 + 2 * np.arange(len(labels))))
    return losses


def class_variance(chosen):
    """V_class and the mean of a list of classes, each a list of its queries' differences."""
    total = sum(len(queries) for queries in chosen)
    mean = sum(sum(queries) for queries in chosen) / total
    squares = sum(sum(query - mean for query in queries) ** 2 for queries in chosen)
    return len(chosen) / (len(chosen) - 1) * squares / total**2, mean


def run_by_class(loss, classes):
    runs, queries = loss.scores.shape
    total = 0.0
    for label in classes:
        members = np.flatnonzero(loss.labels == label)
        for run in range(runs):
            residual = 0.0
            for query in members:
                residual += loss.scores[run, query] - loss.scores[:, query].mean()
                residual -= loss.scores[run].mean() - loss.scores.mean()
            total += residual**2
    return len(classes) / (len(classes) - 1) * total / (runs * (runs - 1) * queries**2)


@pytest.mark.parametrize("runs", [(4, 3), (10, 10), (2, 2)])
def test_bootstrap_equals_explicit_resampling_of_queries_with_the_same_draws(runs):
    a, b = two_losses(runs)
    replicates = 199
    result = paired_comparison(a, b, replicates=replicates, seed=5)

    classes = sorted(set(a.labels.tolist()))
    difference = a.scores.mean(axis=0) - b.scores.mean(axis=0)
    by_class = [[float(difference[q]) for q in np.flatnonzero(a.labels == label)] for label in classes]
    whole, effect = class_variance(by_class)
    v_run = sum(float(np.var(loss.scores.mean(axis=1), ddof=1)) / len(loss.scores) for loss in (a, b))
    v_class = max(0.0, whole - run_by_class(a, classes) - run_by_class(b, classes))

    class_stream, run_stream = np.random.SeedSequence(5).spawn(2)
    counts = np.concatenate(list(_class_counts(len(classes), replicates, class_stream)))
    apart, together, classes_alone = [], [], []
    for count, normal, spread in zip(counts, *_run_replicates(*runs, replicates, run_stream), strict=True):
        drawn = [queries for queries, times in zip(by_class, count, strict=True) for _ in range(int(times))]
        variance, mean = class_variance(drawn)
        class_part, class_spread = math.sqrt(v_class / whole) * (mean - effect), variance / whole
        run_part = math.sqrt(v_run) * normal
        apart.append(abs(class_part / math.sqrt(class_spread) + run_part / math.sqrt(spread)))
        classes_alone.append(abs(mean - effect) / math.sqrt(class_spread))
        drawn_variance = v_class * class_spread + v_run * spread
        together.append(abs((class_part + run_part) * math.sqrt((v_class + v_run) / drawn_variance)))
    errors = []
    for rank, (one, alone, other) in enumerate(
        zip(sorted(apart), sorted(classes_alone), sorted(together), strict=True)
    ):
        weight = max(0.0, 1 - 15 * (replicates - rank) / (replicates + 1))
        errors.append(max([weight * max(one, alone) + (1 - weight) * other, *errors[-1:]]))
    half_width = errors[math.ceil(0.95 * (replicates + 1)) - 1]

    assert result.effect == pytest.approx(effect, rel=1e-9)
    assert result.standard_error == pytest.approx(math.sqrt(v_class + v_run), rel=1e-9)
    assert (result.low, result.high) == pytest.approx((effect - half_width, effect + half_width), rel=1e-9)
    assert result.p_value == (1 + sum(error >= abs(effect) for error in errors)) / (replicates + 1)
    assert (result.num_runs_a, result.num_runs_b, result.num_classes, result.num_queries) == (*runs, 6, 17)


def test_class_draws_are_with_replacement_and_uniform():
    counts = np.concatenate(list(_class_counts(7, 20_000, np.random.SeedSequence(0))))
    assert counts.shape == (20_000, 7)
    assert (counts.sum(axis=1) == 7).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.03)
    np.testing.assert_allclose(counts.var(axis=0), 6 / 7, atol=0.04)


def test_effect_and_standard_error_by_hand():
    # 2 classes of 2 queries, 2 runs each. Class sums of a: runs (2, 1), (1, 1) -> means 1.5, 1; of b: (0, 0), (1, 1)
    labels, index = np.array([0, 0, 1, 1]), np.arange(4)
    a = QueryResults("a", np.array([[1, 1, 1, 0], [1, 0, 1, 0]], dtype=float), labels, index)
    b = QueryResults("b", np.array([[0, 0, 0, 1], [0, 0, 1, 0]], dtype=float), labels, index)
    result = paired_comparison(a, b, replicates=99)
    assert result.effect == pytest.approx((1.5 + 1 - 0 - 1) / 4)
    # z = 1.5 - 0.75, 0 - 0.75: V_class = 2 * (2 * 0.5625) / 16. Run means of a: 3/4, 2/4, of b: 1/4, 1/4:
    # V_run = (1/32) / 2. Residuals of a's sums: +-(0.5 - 0.25), +-(0 - 0.25): I = 2 * 4 * 0.0625 / (2 * 1 * 16)
    v_class, v_run, interaction = 2 * 1.125 / 16, 1 / 64, 2 * 0.25 / 32
    assert result.standard_error == pytest.approx(math.sqrt(v_class - interaction + v_run))
    # the classes' differences per query are 0.75 and 0: deviation sqrt(2 * (2 * 0.75^2 / 2) / 4 ...) by definition
    between = 2 * (0.75**2 / 2 + 0.75**2 / 2) / 4
    assert result.effect_size == pytest.approx(0.375 / math.sqrt(between))


def test_the_effect_sizes_error_is_that_of_the_delta_method():
    # leaving one class out at a time (jackknife) approximates the same variance, without run noise
    generator = np.random.default_rng(3)
    labels = np.repeat(np.arange(200), 5)
    base = generator.normal(0.1, 0.1, 200)[labels] + generator.normal(0, 0.1, 1000)
    a, b = (QueryResults(n, np.tile(s, (2, 1)), labels, np.arange(1000)) for n, s in (("a", base), ("b", 0 * base)))
    result = paired_comparison(a, b, replicates=999)

    def size(kept):
        means = base.reshape(200, 5)[kept].mean(axis=1)
        return means.mean() / means.std(ddof=1)

    left_out = np.array([size(np.arange(200) != c) for c in range(200)])
    jackknife = math.sqrt(199 / 200 * ((left_out - left_out.mean()) ** 2).sum())
    quantile = (result.high - result.effect) / result.standard_error
    assert result.effect_size == pytest.approx(size(np.arange(200)))
    assert (result.effect_size_high - result.effect_size) / quantile == pytest.approx(jackknife, rel=0.03)


def test_interval_excludes_zero_exactly_where_p_is_at_most_5_per_cent():
    results = [paired_comparison(*two_losses(seed=seed, shift=0.08), replicates=199) for seed in range(40)]
    excluded = [result.low > 0 or result.high < 0 for result in results]
    assert excluded == [result.p_value <= 0.05 for result in results]
    assert any(excluded)
    assert not all(excluded)


def test_exchanging_the_losses_turns_the_sign():
    a, b = two_losses()
    forth, back = paired_comparison(a, b), paired_comparison(b, a)
    assert back.effect == pytest.approx(-forth.effect)
    assert back.standard_error == pytest.approx(forth.standard_error)
    assert back.effect_size == pytest.approx(-forth.effect_size)
    assert back.p_value == pytest.approx(forth.p_value, abs=0.02)


def test_names_of_classes_and_scale_of_scores_change_nothing():
    a, b = two_losses()
    renamed = [replace(loss, labels=3 * loss.labels + 1) for loss in (a, b)]
    assert paired_comparison(*renamed) == paired_comparison(a, b)
    halved = paired_comparison(*(replace(loss, scores=loss.scores / 2) for loss in (a, b)))
    whole = paired_comparison(a, b)
    assert (halved.p_value, halved.effect_size) == (whole.p_value, pytest.approx(whole.effect_size))
    assert halved.low == pytest.approx(whole.low / 2)


def test_a_loss_does_not_differ_from_itself():
    a, _ = two_losses()
    result = paired_comparison(a, replace(a, loss="copy"))
    assert (result.effect, result.p_value) == (0, 1)
    constant = replace(a, scores=np.full_like(a.scores, 0.3))
    result = paired_comparison(constant, replace(constant, loss="copy"))
    assert (result.effect, result.low, result.high, result.p_value, result.effect_size) == (0, 0, 0, 1, None)


def test_a_difference_without_any_spread_is_certain():
    a, _ = two_losses()
    low, high = (replace(a, loss=name, scores=np.full_like(a.scores, s)) for name, s in (("low", 0.25), ("high", 0.5)))
    result = paired_comparison(low, high, replicates=99)
    assert (result.low, result.high, result.p_value) == (-0.25, -0.25, 0.01)


def test_runs_that_differ_by_class_alone_leave_the_classes_error():
    # each run is ahead on half of the classes: all run means are equal, and I exceeds V_class
    labels, index = np.arange(6), np.arange(6)
    swing = 0.2 * np.array([[1, 1, 1, -1, -1, -1], [-1, -1, -1, 1, 1, 1]])
    offset = 0.01 * np.array([1, -1, 1, -1, 1, -1])
    a = QueryResults("a", 0.5 + offset + swing, labels, index)
    b = QueryResults("b", np.full((2, 6), 0.45), labels, index)
    result = paired_comparison(a, b, replicates=999)
    alone = paired_comparison(replace(a, scores=np.stack([0.5 + offset] * 2)), b, replicates=999)
    assert result.standard_error == pytest.approx(0, abs=1e-12)
    assert (result.low, result.high) == pytest.approx((alone.low, alone.high), rel=0.1)
    assert result.high - result.low > 0.01


@pytest.mark.parametrize("runs", [(1, 10), (10, 1), (1, 1)])
def test_one_run_has_an_effect_but_no_interval(runs):
    result = paired_comparison(*two_losses(runs))
    assert math.isfinite(result.effect)
    assert (result.low, result.high, result.p_value, result.standard_error, result.effect_size) == (None,) * 5


def test_one_class_has_an_effect_but_no_interval():
    result = paired_comparison(*two_losses(sizes=(5,)))
    assert math.isfinite(result.effect)
    assert (result.low, result.p_value, result.num_classes) == (None, None, 1)


@pytest.mark.parametrize("sizes", [(3, 2), (3, 2, 4)])
def test_two_or_three_classes_have_a_standard_error_but_no_interval(sizes):
    # one draw in two, or in nine, repeats a single class: more than one in twenty
    result = paired_comparison(*two_losses(sizes=sizes))
    assert result.standard_error > 0
    assert math.isfinite(result.effect_size)
    assert (result.low, result.high, result.p_value, result.effect_size_low) == (None,) * 4
    row = pairwise(two_losses(sizes=sizes))[0]
    assert (row.p_adjusted, row.different) == (None, None)


def test_four_classes_have_an_interval():
    # one draw in 64
    result = paired_comparison(*two_losses(sizes=(3, 2, 4, 3)))
    assert -10 < result.low < result.effect < result.high < 10
    assert 0 < result.p_value < 1


def test_different_queries_are_refused_with_how_many_are_common():
    a, b = two_losses()
    with pytest.raises(RecordError, match=r"different queries \(17 and 16, 16 in common\)"):
        paired_comparison(a, QueryResults("b", b.scores[:, 1:], b.labels[1:], b.index[1:]))
    with pytest.raises(RecordError, match="16 in common"):
        paired_comparison(a, replace(b, index=np.concatenate([b.index[:-1], [99]])))
    with pytest.raises(RecordError, match="different class labels"):
        paired_comparison(a, replace(b, labels=b.labels + (b.index == b.index[0])))


def test_pairwise_is_every_pair_by_itself_with_holms_p_values():
    losses = two_losses(runs=(4, 3, 1, 5), shift=0.15)
    rows = pairwise(losses, replicates=999, seed=2)
    names = [(row.comparison.loss_a, row.comparison.loss_b) for row in rows]
    assert names == [(f"loss {i}", f"loss {j}") for i, j in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]]
    for row in rows:
        a, b = (
            next(loss for loss in losses if loss.loss == name)
            for name in (row.comparison.loss_a, row.comparison.loss_b)
        )
        alone = paired_comparison(a, b, replicates=999, seed=2)
        assert row.comparison.p_value == alone.p_value
        assert row.comparison.effect == pytest.approx(alone.effect)
        assert (
            (row.comparison.low is None) == (alone.low is None) == (row.p_adjusted is None) == (row.different is None)
        )
        if alone.low is not None:
            assert (row.comparison.low, row.comparison.high) == pytest.approx((alone.low, alone.high))
    tested = [row for row in rows if row.p_adjusted is not None]
    assert [row.p_adjusted for row in tested] == holm([row.comparison.p_value for row in tested])
    assert [row.different for row in tested] == [row.p_adjusted <= 0.05 for row in tested]
    assert any(row.different for row in tested)


def test_pairwise_needs_names_that_differ_and_takes_a_single_loss():
    a, _ = two_losses()
    with pytest.raises(RecordError, match="Every loss of a table once"):
        pairwise([a, a])
    assert pairwise([a]) == []


def test_the_default_replicates_can_tell_14_losses_apart():
    assert 91 / (REPLICATES + 1) < 0.05


def test_eleven_thousand_classes_as_of_sop():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(11_000), 5)
    losses = [
        QueryResults(name, generator.random((3, labels.size)) * scale, labels, np.arange(labels.size))
        for name, scale in (("a", 1.0), ("b", 0.99))
    ]
    result = paired_comparison(*losses, replicates=199)
    assert (result.num_classes, result.num_queries) == (11_000, 55_000)
    # scores are independent: the plain error of a mean of 165,000 uniform values, twice
    assert result.standard_error == pytest.approx(math.sqrt(2 / 12 / 165_000), rel=0.5)
