"""The losses as trials build them, against the papers' formulas: values and gradients, float64 and float32.

Prints the table of errors: python -m pytest tests/training/losses -s -k table
"""

import functools
import math
import sys

import pytest
import torch
from torch.nn.functional import normalize

from tests.training.losses.cases import BATCHES, CASES, LOSSES, Case, batch, case

FLOAT64, FLOAT32 = 1e-9, 1e-5


def relative(found, expected):
    """Largest deviation, relative to the largest expected element; infinite where something is not finite."""
    size = float(expected.abs().max())
    deviation = float((found.double() - expected).abs().max())
    if not math.isfinite(size + deviation):
        return math.inf  # a NaN would be lost in a maximum
    return deviation / size if size > 0 else deviation


def value_and_gradients(loss, leaf, others):
    return loss.detach(), torch.autograd.grad(loss, [leaf, *others])


def of_library(objective, x, labels, number):
    """Through the objective itself in float32; in float64 past its cast to float32."""
    leaf = x.to(number).requires_grad_()
    embeddings = normalize(leaf, dim=1)
    if number == torch.float32:
        loss = objective(embeddings, labels)
    elif objective.miner is None:
        loss = objective.loss(embeddings, labels)
    else:
        loss = objective.loss(embeddings, labels, objective.miner(embeddings, labels))
    return value_and_gradients(loss, leaf, list(objective.parameters()))


def of_reference(one, objective, x, labels, number, computed_in=torch.float64):
    leaf = x.to(computed_in).requires_grad_()
    embeddings = leaf / leaf.square().sum(1, keepdim=True).sqrt()
    loss, own = one.reference(embeddings, labels, objective, number)
    return value_and_gradients(loss, leaf, list(own.values()))


@functools.cache
def errors(loss, name, kind, number):
    """Relative errors of value and gradients, and those of the formula itself where computed in this type."""
    one, (x, labels) = case(loss, name), batch(loss, kind)
    objective = one.objective(x.shape[1], number)
    value, gradients = of_library(objective, x, labels, number)
    expected, expected_gradients = of_reference(one, objective, x, labels, number)
    assert len(gradients) == len(expected_gradients)
    found = relative(value, expected), worst(gradients, expected_gradients)
    if number == torch.float64 or max(found) <= FLOAT32:
        return *found, 0.0
    _, own_gradients = of_reference(one, objective, x, labels, number, computed_in=number)
    return *found, worst(own_gradients, expected_gradients)


def worst(gradients, expected):
    return max(relative(g, e) for g, e in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradients_are_the_formulas(loss, name, kind):
    value, gradient, _ = errors(loss, name, kind, torch.float64)
    assert value <= FLOAT64
    assert gradient <= FLOAT64
    value, gradient, of_the_formula = errors(loss, name, kind, torch.float32)
    assert value <= FLOAT32
    # a temperature of 0.0002 or 86 bins lose more than five digits to the rounding of float32, whoever computes
    assert gradient <= max(FLOAT32, 2.0 * of_the_formula)


def test_what_float32_loses_beyond_1e_5_is_lost_by_the_formula_too():
    beyond = {
        (loss, name, kind)
        for loss in LOSSES
        for name in CASES
        for kind in BATCHES
        if errors(loss, name, kind, torch.float32)[1] > FLOAT32
    }
    assert beyond <= {
        ("fastap", "cub200_batch256", "crowded"),  # bins 0.047 wide
        ("fastap", "random 3", "crowded"),
        ("margin", "sop", "crowded"),  # beta's: pull and push nearly cancel
        ("ntxent", "sop", "wide"),  # temperature 0.00024
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_a_wrong_argument_would_be_noticed(loss):
    """The comparison is blind to no searched argument: a change of 1 % of each changes the reference."""
    one = case(loss, "cars196")
    x, labels = batch(loss, "crowded")
    objective = one.objective(x.shape[1], torch.float64)
    before, gradients = of_reference(one, objective, x, labels, torch.float64)
    for key, value in one.function.items():
        if isinstance(value, int | float) and key not in (
            "nu",
            "learn_beta",
            "centers_per_class",
            "beta",
        ):  # beta is where a parameter starts
            changed = value + 1 if isinstance(value, int) else 1.01 * value + (0.05 if abs(value) < 1e-6 else 0.0)
            other = Case(loss, one.name, {**one.function, key: changed}, one.miner)
            after, after_gradients = of_reference(other, objective, x, labels, torch.float64)
            assert max(relative(after, before), worst(after_gradients, gradients)) > 1e3 * FLOAT64, key


def table():
    lines = [
        "| loss | value, float64 | gradient, float64 | value, float32 | gradient, float32 |",
        "|:--|--:|--:|--:|--:|",
    ]
    for loss in LOSSES:
        cells = []
        for number in (torch.float64, torch.float32):
            compared = [(name, kind) for name in CASES for kind in BATCHES]
            found = [errors(loss, name, kind, number) for name, kind in compared]
            cells += [max(value for value, _, _ in found), max(gradient for _, gradient, _ in found)]
        lines.append(f"| {loss} | " + " | ".join(f"{cell:.0e}" for cell in cells) + " |")
    return "\n".join(lines)


def test_table_of_errors():
    text = table()
    sys.stdout.write(f"\nLargest relative error over {len(CASES)} settings and {len(BATCHES)} batches\n{text}\n")
    assert text.count("\n") == 1 + len(LOSSES)
    assert len(LOSSES) == 14
