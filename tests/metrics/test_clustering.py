"""NMI and AMI, against pytorch-metric-learning's calculator."""

import importlib.util

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import FaissKMeans
from sklearn.cluster import KMeans

from mlrc_lightning.errors import NonFiniteError
from mlrc_lightning.metrics import clustering_metrics
from mlrc_lightning.metrics.clustering import kmeans

HAS_FAISS = importlib.util.find_spec("faiss") is not None


@pytest.fixture(params=["faiss", "sklearn"])
def library(request, monkeypatch):
    """Runs a test with each of the two libraries."""
    if request.param == "faiss" and not HAS_FAISS:
        pytest.skip("faiss is not installed")
    if request.param == "sklearn" and HAS_FAISS:
        find = importlib.util.find_spec
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "faiss" else find(name))
    return request.param


def embeddings(noise, num_classes=8, per_class=25, size=16, seed=0):
    random = torch.Generator().manual_seed(seed)
    centers = torch.nn.functional.normalize(torch.randn(num_classes, size, generator=random), dim=1)
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    points = centers[labels] + noise * torch.randn(len(labels), size, generator=random)
    return torch.nn.functional.normalize(points, dim=1), labels


def of_pytorch_metric_learning(points, labels, kmeans_func):
    calculator = AccuracyCalculator(include=("NMI", "AMI"), kmeans_func=kmeans_func, knn_func=lambda *_: None)
    return calculator.get_accuracy(points, labels)


@pytest.mark.parametrize("noise", [0.05, 0.3, 3.0])
def test_they_are_pytorch_metric_learnings_of_the_same_clusters(library, noise):
    points, labels = embeddings(noise)
    clusters = torch.from_numpy(kmeans(points.numpy(), 8, seed=3))
    expected = of_pytorch_metric_learning(points, labels, lambda *_: clusters)
    assert clustering_metrics(points, labels, seed=3) == pytest.approx(expected, abs=1e-12)


def test_noisy_clusters_score_as_pytorch_metric_learnings_own_do(library):
    points, labels = embeddings(noise=0.3)
    if library == "faiss":
        # as the original called it, docs/protocol.md, §1.7
        theirs = [FaissKMeans(niter=20, seed=seed, min_points_per_centroid=1) for seed in range(8)]
    else:
        theirs = [
            lambda x, k, seed=seed: torch.from_numpy(
                KMeans(k, n_init=1, max_iter=20, init="random", random_state=seed).fit(x.numpy()).labels_
            )
            for seed in range(8)
        ]
    expected = [of_pytorch_metric_learning(points, labels, function) for function in theirs]
    ours = [clustering_metrics(points, labels, seed) for seed in range(8)]
    for name in ("NMI", "AMI"):
        mean, spread = np.mean([e[name] for e in expected]), np.std([e[name] for e in expected])
        assert 0.3 < mean < 0.95
        assert np.mean([o[name] for o in ours]) == pytest.approx(mean, abs=3 * spread + 0.02)


def test_one_seed_is_what_pytorch_metric_learning_gives_with_it():
    if not HAS_FAISS:
        pytest.skip("faiss is not installed")
    points, labels = embeddings(noise=0.3)
    function = FaissKMeans(niter=20, seed=5, min_points_per_centroid=1)
    assert clustering_metrics(points, labels, seed=5) == pytest.approx(
        of_pytorch_metric_learning(points, labels, function), abs=1e-6
    )


def test_two_pairs_of_points_far_apart_are_found_and_labelled_across_them_share_nothing(library):
    points = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
    right = clustering_metrics(points, torch.tensor([4, 4, 9, 9]), seed=0)
    assert right == pytest.approx({"NMI": 1.0, "AMI": 1.0})
    across = clustering_metrics(points, torch.tensor([4, 9, 4, 9]), seed=0)
    # each cluster holds both classes equally: no information; AMI subtracts 1/3 of the entropy, what chance gives
    assert across == pytest.approx({"NMI": 0.0, "AMI": -0.5})


def test_the_length_of_embeddings_changes_nothing(library):
    points, labels = embeddings(noise=0.3)
    lengths = torch.linspace(0.5, 20, len(points)).unsqueeze(1)
    assert clustering_metrics(points * lengths, labels, 0) == pytest.approx(clustering_metrics(points, labels, 0))


def test_the_same_seed_gives_the_same_clusters(library):
    points, _ = embeddings(noise=1.0)
    assert np.array_equal(kmeans(points.numpy(), 8, 7), kmeans(points.numpy(), 8, 7))


def test_collapsed_embeddings_share_nothing_with_the_classes(library):
    assert clustering_metrics(torch.ones(40, 8), torch.arange(8).repeat(5), 0) == pytest.approx({"NMI": 0, "AMI": 0})


def test_embeddings_that_are_not_finite_are_refused():
    with pytest.raises(NonFiniteError, match="expected finite embeddings|Expected finite embeddings"):
        clustering_metrics(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), torch.tensor([0, 1]), 0)
