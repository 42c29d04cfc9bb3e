import pytest

from hydra_plugins.mlrc_ax_sweeper._constraints import parse_constraint
from hydra_plugins.mlrc_ax_sweeper._errors import SweepError

from .problems import make_problem


@pytest.mark.parametrize(
    ("text", "means", "holds"),
    [
        ("cost <= 5", {"cost": 5.0}, True),
        ("cost<=5", {"cost": 5.1}, False),
        ("val/acc >= -1e-2", {"val/acc": -0.02}, False),
        ("0.5*a + 0.5 * b >= 0.9", {"a": 1.0, "b": 0.8}, True),
        ("a - 2*b <= 0.0", {"a": 1.0, "b": 0.4}, False),
        ("acc >= 0.95 * baseline", {"acc": 0.76}, True),
        ("acc >= baseline", {"acc": 0.76}, False),
    ],
)
def test_a_constraint_holds_or_not(text: str, means: dict[str, float], holds: bool) -> None:
    assert parse_constraint(text).holds(means, {"acc": 0.8}) is holds


def test_a_relative_constraint_is_not_met_before_the_baseline_is_known() -> None:
    assert not parse_constraint("acc >= 0.5 * baseline").holds({"acc": 1.0}, None)


@pytest.mark.parametrize("text", ["cost", "cost < 5", "cost <= five", "5 >= cost", "a b <= 1", "cost == 5", "cost <= "])
def test_what_is_no_constraint_is_refused(text: str) -> None:
    with pytest.raises(SweepError, match="Outcome constraint"):
        parse_constraint(text)


def test_a_relative_constraint_needs_a_status_quo() -> None:
    experiment = {"outcome_constraints": ["acc >= 0.9 * baseline"]}
    with pytest.raises(SweepError, match="status_quo"):
        make_problem("x=interval(0,1)", ax_config={"experiment": experiment})
