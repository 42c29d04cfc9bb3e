"""The three accuracies against cases worked by hand, a slow float64 loop, and pytorch-metric-learning."""

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from mlrc_lightning.errors import DatasetError, NonFiniteError
from mlrc_lightning.metrics import METRICS, average_precision_at_r, r_precision, retrieval_metrics
from mlrc_lightning.metrics import retrieval as retrieval_module
from tests.reference import retrieval_metrics_by_hand


def on_circle(*degrees):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def uneven_classes(seed, num_samples, num_classes, embedding_size, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(num_classes, generator=generator) ** 3 + 0.01
    labels = torch.multinomial(weights, num_samples, replacement=True, generator=generator)
    centers = torch.randn(num_classes, embedding_size, generator=generator)
    return centers[labels] + spread * torch.randn(num_samples, embedding_size, generator=generator), labels


# the paper's Table 3: R = 10, which of the ten nearest are correct -> R-Precision and MAP@R in per cent
TABLE_3 = [
    ("first only", {1}, 10, 10),
    ("first and tenth", {1, 10}, 20, 12),
    ("first and second", {1, 2}, 20, 20),
    ("all", set(range(1, 11)), 100, 100),
]


@pytest.mark.parametrize(("correct", "r_prec", "mapr"), [pytest.param(*row[1:], id=row[0]) for row in TABLE_3])
def test_toy_retrievals_score_as_in_the_papers_table_3(correct, r_prec, mapr):
    is_relevant = torch.tensor([[rank in correct for rank in range(1, 11)]])
    ten = torch.tensor([10])
    assert round(100 * r_precision(is_relevant, ten).item()) == r_prec
    assert round(100 * average_precision_at_r(is_relevant, ten).item()) == mapr


def test_a_case_worked_by_hand():
    # a: 0, 10, 60 degrees; b: 20, 90; c (alone): 65.
    # query 0 (a, R=2): neighbours 10 a, 20 b -> P@1 1, RP 1/2, AP@R (1)/2
    # query 10 (a): 0 and 20 both 10 away: tie, b first -> 0; then a -> P@1 0, RP 1/2, AP (1/2)/2
    # query 60 (a): 65 c, 90 b (30 away) -> 0, 0, 0
    # query 20 (b, R=1): 10 a -> 0 ; query 90 (b): 65 c -> 0
    embeddings, labels = on_circle(0, 10, 60, 20, 90, 65), torch.tensor([7, 7, 7, 3, 3, 5])
    metrics = retrieval_metrics(embeddings, labels)
    assert metrics.per_query.tolist() == [[1, 0.5, 0.5], [0, 0.5, 0.25], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert (metrics.num_queries, metrics.num_without_relevant, metrics.collapsed) == (5, 1, False)
    assert metrics.precision_at_1 == pytest.approx(1 / 5)
    assert metrics.mean_average_precision_at_r == pytest.approx(0.75 / 5)


def seeds(number, of):
    """All, of which only the first are not nightly."""
    return [*range(number), *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(number, of))]


@pytest.fixture(params=["faiss", "torch"])
def search(request, monkeypatch):
    """Each of the two ways to find neighbours."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr(retrieval_module._References, "_has_faiss", request.param == "faiss")
    return request.param


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("seed", seeds(3, of=8))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_slow_loop_on_uneven_classes(seed, dtype):
    embeddings, labels = uneven_classes(seed, num_samples=300, num_classes=25, embedding_size=8)
    metrics = retrieval_metrics(embeddings.to(dtype), labels)
    means, num_queries, lonely = retrieval_metrics_by_hand(embeddings.to(dtype).numpy(), labels.tolist())
    assert [getattr(metrics, name) for name in METRICS] == pytest.approx(means, abs=1e-12)
    assert (metrics.num_queries, metrics.num_without_relevant) == (num_queries, lonely)


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("seed", seeds(1, of=3))
@pytest.mark.parametrize("num_copies", [2, 7, 40])
@pytest.mark.slow
def test_equals_the_slow_loop_with_duplicates_across_classes(seed, num_copies):
    # 40 copies are more than the search finds beyond R
    num_samples, num_classes = (60, 9) if num_copies < 10 else (15, 5)
    embeddings, labels = uneven_classes(seed, num_samples, num_classes, embedding_size=3)
    embeddings = embeddings.repeat(num_copies, 1)
    labels = torch.cat([labels.roll(shift) for shift in range(num_copies)])
    metrics = retrieval_metrics(embeddings, labels)
    means, *_ = retrieval_metrics_by_hand(embeddings.numpy(), labels.tolist())
    assert [getattr(metrics, name) for name in METRICS] == pytest.approx(means, abs=1e-12)


@pytest.mark.usefixtures("search")
def test_near_ties_are_ranked_in_float64():
    # neighbours 3e-9 apart in cosine: float32 cannot tell them apart, float64 must
    offsets = torch.linspace(0, 2e-4, 41, dtype=torch.float64)
    embeddings = on_circle(0.0, *torch.rad2deg(0.5 + offsets).tolist())
    labels = torch.tensor([0] + [1 - position % 2 for position in range(41)])
    metrics = retrieval_metrics(embeddings, labels)
    means, *_ = retrieval_metrics_by_hand(embeddings.numpy(), labels.tolist())
    assert [getattr(metrics, name) for name in METRICS] == pytest.approx(means, abs=1e-12)


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize("num_queries", [1, 40, 200])
def test_queries_of_one_set_search_another(num_queries):
    embeddings, labels = uneven_classes(3, num_samples=300, num_classes=20, embedding_size=4)
    queries, query_labels = embeddings[:num_queries], labels[:num_queries]
    reference, reference_labels = embeddings[200:], labels[200:]
    # copies of a query among the references are found, not left out
    reference = torch.cat([reference, queries[:5]])
    reference_labels = torch.cat([reference_labels, query_labels[:5]])
    metrics = retrieval_metrics(queries, query_labels, reference, reference_labels)
    expected = []
    units = [torch.nn.functional.normalize(e.double()) for e in (queries, reference)]
    for unit, label in zip(units[0], query_labels.tolist(), strict=True):
        similarities = [round(float(value), 12) for value in units[1] @ unit]
        relevant = [int(other) == label for other in reference_labels]
        order = sorted(range(len(relevant)), key=lambda i: (-similarities[i], relevant[i]))
        hits = [relevant[i] for i in order[: sum(relevant)]]
        if hits:
            precision = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(len(hits))]
            expected.append(
                [
                    float(hits[0]),
                    sum(hits) / len(hits),
                    sum(p for p, h in zip(precision, hits, strict=True) if h) / len(hits),
                ]
            )
    torch.testing.assert_close(metrics.per_query, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert metrics.num_without_relevant == num_queries - len(expected)


@pytest.mark.parametrize(("spread", "num_classes"), [(0.0, 40), (1e-7, 40), (1e-3, 900), (1.0, 4)])
@pytest.mark.slow
def test_faiss_and_torch_find_the_same(monkeypatch, spread, num_classes):
    pytest.importorskip("faiss")
    # few classes have more members than faiss searches; a spread of 0 has copies, one of 1e-7 near ties
    embeddings, labels = uneven_classes(4, num_samples=3000, num_classes=num_classes, embedding_size=8, spread=spread)
    by_faiss = retrieval_metrics(embeddings, labels).per_query
    monkeypatch.setattr(retrieval_module._References, "_has_faiss", False)
    torch.testing.assert_close(retrieval_metrics(embeddings, labels).per_query, by_faiss, rtol=0, atol=1e-12)


def test_products_stay_in_float32_where_less_is_allowed():
    embeddings, labels = uneven_classes(7, num_samples=400, num_classes=30, embedding_size=64)
    expected = retrieval_metrics(embeddings, labels).per_query
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(retrieval_metrics(embeddings, labels).per_query, expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("seed", "num_samples", "num_classes"), [(0, 1500, 40), (1, 2000, 300), (2, 3000, 1500)])
def test_agrees_with_pytorch_metric_learning_within_1e_6(seed, num_samples, num_classes):
    # a class of one sample is left out by both; PML's own search is replaced by torch's, so that faiss is not needed
    embeddings, labels = uneven_classes(seed, num_samples, num_classes, embedding_size=32, spread=2.0)
    units = torch.nn.functional.normalize(embeddings.double())
    calculator = AccuracyCalculator(include=METRICS, k="max_bin_count", knn_func=CustomKNN(CosineSimilarity()))
    expected = calculator.get_accuracy(units, labels, units, labels, ref_includes_query=True)
    metrics = retrieval_metrics(embeddings, labels)
    for name in METRICS:
        assert getattr(metrics, name) == pytest.approx(expected[name], abs=1e-6), name


def test_order_of_samples_and_their_scale_change_nothing():
    embeddings, labels = uneven_classes(5, num_samples=400, num_classes=30, embedding_size=16)
    embeddings[100:140] = embeddings[:40]
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    # powers of two are exact in float32, so that only the lengths change
    scale = 2.0 ** torch.randint(-10, 10, (400, 1), generator=torch.Generator().manual_seed(2))
    expected = retrieval_metrics(embeddings, labels).as_dict()
    assert retrieval_metrics(embeddings[order], labels[order]).as_dict() == pytest.approx(expected, abs=1e-12)
    assert retrieval_metrics(embeddings * scale, labels).as_dict() == pytest.approx(expected, abs=1e-12)


def test_block_size_changes_nothing(monkeypatch):
    embeddings, labels = uneven_classes(6, num_samples=500, num_classes=30, embedding_size=16)
    expected = retrieval_metrics(embeddings, labels).per_query
    monkeypatch.setattr(retrieval_module, "_BLOCK_BYTES", 4 * 500 * 7)
    blocked = retrieval_metrics(embeddings, labels).per_query
    torch.testing.assert_close(blocked, expected, rtol=1e-14, atol=0)


def test_collapsed_embeddings_are_flagged_and_score_nothing():
    labels = torch.arange(200) % 10
    metrics = retrieval_metrics(torch.ones(200, 8), labels)
    assert metrics.collapsed
    assert metrics.as_dict() == dict.fromkeys(METRICS, 0.0)
    noisy = torch.ones(200, 8) + 1e-5 * torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    nearly = retrieval_metrics(noisy, labels)
    assert nearly.collapsed
    assert nearly.mean_average_precision_at_r < 0.1


def test_perfect_embeddings_score_one():
    labels = torch.arange(60) % 6
    embeddings = torch.eye(6)[labels] + 0.01 * torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
    assert retrieval_metrics(embeddings, labels).as_dict() == dict.fromkeys(METRICS, 1.0)


def test_two_exact_copies_in_one_class_find_each_other():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert retrieval_metrics(embeddings, torch.tensor([0, 0, 1, 1])).precision_at_1 == 1.0


def test_large_label_ids_are_kept_apart():
    # in float32 these three are one number
    embeddings = on_circle(0, 90, 180, 1, 91, 181)
    labels = torch.tensor([2**24, 2**24 + 1, 2**24 + 2, 2**24, 2**24 + 1, 2**24 + 2])
    assert retrieval_metrics(embeddings, labels).precision_at_1 == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_embeddings_are_refused_and_counted(value):
    embeddings = torch.randn(10, 4)
    embeddings[3, 1] = embeddings[7, 0] = value
    with pytest.raises(NonFiniteError, match="in 2 of 10"):
        retrieval_metrics(embeddings, torch.arange(10) % 2)


def test_nothing_to_retrieve_is_refused():
    with pytest.raises(DatasetError, match="5 classes of one sample each"):
        retrieval_metrics(torch.randn(5, 4), torch.arange(5))


def test_two_sets_without_a_common_class_are_refused():
    with pytest.raises(DatasetError, match="to share a class"):
        retrieval_metrics(torch.randn(5, 4), torch.zeros(5), torch.randn(3, 4), torch.ones(3))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(5, 4\) and \(4,\)"):
        retrieval_metrics(torch.randn(5, 4), torch.arange(4))


def test_bfloat16_embeddings_are_ranked_as_their_own_values():
    embeddings, labels = uneven_classes(8, num_samples=120, num_classes=12, embedding_size=6)
    rounded = embeddings.bfloat16()
    means, *_ = retrieval_metrics_by_hand(rounded.double().numpy(), labels.tolist())
    assert [getattr(retrieval_metrics(rounded, labels), name) for name in METRICS] == pytest.approx(means, abs=1e-12)


def test_references_without_labels_are_refused():
    embeddings, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    for given in ({"reference": embeddings}, {"reference_labels": labels}):
        with pytest.raises(ValueError, match="expected reference and reference_labels, or neither"):
            retrieval_metrics(embeddings, labels, **given)


def test_the_three_accuracies_are_a_mapping():
    metrics = retrieval_metrics(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) // 5)
    assert dict(metrics) == metrics.as_dict()
    assert list(dict(metrics)) == ["precision_at_1", "r_precision", "mean_average_precision_at_r"]
    assert metrics["r_precision"] == metrics.r_precision
    with pytest.raises(KeyError):
        metrics["per_query"]


def test_per_query_rows_follow_the_samples():
    embeddings, labels = uneven_classes(9, num_samples=80, num_classes=10, embedding_size=4)
    metrics = retrieval_metrics(embeddings, labels)
    assert metrics.per_query.shape == (metrics.num_queries, 3)
    np.testing.assert_allclose(metrics.per_query.mean(dim=0).numpy(), list(metrics.as_dict().values()))


def test_the_settings_of_faiss_are_as_they_were_after_a_search():
    faiss = pytest.importorskip("faiss")
    before = {name: getattr(faiss.cvar, name) for name in retrieval_module._FAISS_SETTINGS}
    assert before != retrieval_module._FAISS_SETTINGS
    retrieval_metrics(torch.randn(20, 4), torch.arange(20) % 4)
    assert {name: getattr(faiss.cvar, name) for name in retrieval_module._FAISS_SETTINGS} == before
