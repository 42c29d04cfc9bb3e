import numpy as np
import pytest

from mlrc_lightning.errors import RecordError
from mlrc_lightning.reporting.statistics import holm


def test_holm_by_hand():
    # sorted: .005 x 4 = .02, .01 x 3 = .03, .03 x 2 = .06, .04 x 1 = .04, raised to .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_ends_at_one_and_takes_ties_and_nothing():
    assert holm([0.5, 0.9, 0.9]) == [1.0, 1.0, 1.0]
    assert holm([0.02, 0.02]) == [0.04, 0.04]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_lies_between_the_value_and_bonferroni_and_keeps_the_order():
    p = np.random.default_rng(0).uniform(0, 0.1, 91)
    adjusted = np.array(holm(p))
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, 91 * p)).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


def test_holm_rejects_as_the_step_down_procedure_does():
    generator = np.random.default_rng(1)
    for _ in range(50):
        p = generator.uniform(0, 1, 8) ** 4
        rejected = set()
        for step, which in enumerate(np.argsort(p)):
            if p[which] > 0.05 / (8 - step):
                break
            rejected.add(which)
        assert {i for i, value in enumerate(holm(p)) if value <= 0.05} == rejected


@pytest.mark.parametrize("p", [[-0.1], [1.1], [float("nan")]])
def test_holm_refuses_what_is_no_probability(p):
    with pytest.raises(RecordError, match=r"\[0, 1\]"):
        holm(p)
