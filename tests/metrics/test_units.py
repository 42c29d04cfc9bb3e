"""Embeddings of any length have the figures of their directions."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from mlrc_lightning.metrics import clustering_metrics, retrieval_metrics
from mlrc_lightning.metrics.units import unit_rows
from mlrc_lightning.models.frozen import FrozenTrunk
from mlrc_lightning.training.module import EmbeddingModule

LENGTHS = {torch.float32: [1e-38, 1e-30, 1e-20, 1e-12, 1e-9, 1.0, 1e15, 1e20, 1e37],
           torch.float64: [1e-300, 1e-200, 1e-20, 1.0, 1e100, 1e200, 1e300]}  # fmt: skip


def directions(dtype):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat_interleave(4)
    centers = torch.randn(6, 8, generator=generator)
    return (centers[labels] + 0.9 * torch.randn(24, 8, generator=generator)).to(dtype), labels


@pytest.mark.parametrize(("dtype", "length"), [(dtype, length) for dtype in LENGTHS for length in LENGTHS[dtype]])
def test_figures_are_those_of_the_directions(dtype, length):
    x, labels = directions(dtype)
    expected = retrieval_metrics(x, labels)
    found = retrieval_metrics(x * length, labels)
    assert found.as_dict() == pytest.approx(expected.as_dict(), abs=1e-9)
    assert not found.collapsed
    assert 0.0 < expected.precision_at_1 < 1.0
    assert clustering_metrics(x * length, labels, 0) == pytest.approx(clustering_metrics(x, labels, 0), abs=1e-6)


@pytest.mark.parametrize("length", LENGTHS[torch.float32])
def test_a_module_embeds_and_learns_at_any_length(length):
    x, _ = directions(torch.float32)
    module = EmbeddingModule(FrozenTrunk(8), nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        module.embedder.weight.copy_(torch.eye(8) * length)
    embeddings = module(x)
    torch.testing.assert_close(embeddings, normalize(x, dim=1), rtol=1e-4, atol=1e-5)
    embeddings[0, 0].backward()
    # the gradient of a direction is as much longer as the embedding is shorter
    assert (module.embedder.weight.grad.abs().max() > 0) or length > 1e30


def test_ordinary_rows_keep_every_bit_of_value_and_gradient():
    x, _ = directions(torch.float32)
    results = []
    for function in (lambda rows: normalize(rows, dim=1), unit_rows):
        leaf = x.clone().requires_grad_()
        value = function(leaf)
        results.append((value.detach(), torch.autograd.grad(value.square().sum(0)[0] + value[3, 2], leaf)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_lengths_may_be_mixed_and_zeros_stay():
    x, _ = directions(torch.float64)
    lengths = torch.tensor([1e-200, 1.0, 1e200, 0.0], dtype=torch.float64).repeat(6)[:, None]
    found = unit_rows(x * lengths)
    torch.testing.assert_close(found, torch.where(lengths > 0, normalize(x, dim=1), 0.0))
