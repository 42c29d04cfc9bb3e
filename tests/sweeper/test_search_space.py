from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from hydra_plugins.mlrc_ax_sweeper._errors import SweepError
from hydra_plugins.mlrc_ax_sweeper._search_space import SearchSpace, build_search_space, to_override_text


def space(*lines: str, params: dict[str, Any] | None = None, refused: dict[str, str] | None = None) -> SearchSpace:
    overrides = OverridesParser.create().parse_overrides(list(lines))
    return build_search_space(params or {}, overrides, refused or {})


@pytest.mark.parametrize(
    ("line", "described"),
    [
        ("p.y=choice(-1, 0, 1)", "p.y: choice=[-1, 0, 1]"),
        ("p.y=-1,0,1", "p.y: choice=[-1, 0, 1]"),
        ("p.y=range(-1, 2)", "p.y: choice=[-1, 0, 1]"),
        ("p.y=range(-1, 3, 1)", "p.y: choice=[-1, 0, 1, 2]"),
        ("p.y=range(-1, 2, 0.5)", "p.y: choice=[-1.0, -0.5, 0.0, 0.5, 1.0, 1.5]"),
        ("p.y=int(interval(-1, 2))", "p.y: range=[-1, 2]"),
        ("p.y=interval(-1, 2)", "p.y: range=[-1.0, 2.0]"),
        ("p.y=tag(log, interval(1, 2))", "p.y: range=[1.0, 2.0], log_scale = True"),
        ("p.y=2", "p.y: fixed=2"),
        ("p.y=2.0", "p.y: fixed=2.0"),
        ("p.c=[-1, 0, 1],[2, 3, 4]", "p.c: choice=['[-1,0,1]', '[2,3,4]']"),
        ("+p.c=choice({x:-1, y:0},{x:2, y:3})", "+p.c: choice=['{x:-1,y:0}', '{x:2,y:3}']"),
        ("p.y=1,2.5", "p.y: choice=[1.0, 2.5]"),
        ("p.y=true,false", "p.y: choice=[True, False]"),
    ],
)
def test_command_line_syntax_is_described_as_upstream_does(line: str, described: str) -> None:
    assert space(line).describe() == "\n" + described


@pytest.mark.parametrize(
    ("line", "value", "override"),
    [
        ("p.c=[-1, 0, 1],[2, 3, 4]", "[-1,0,1]", "p.c=[-1,0,1]"),
        ("+p.c=choice({x:-1},{x:2})", "{x:-1}", "+p.c={x:-1}"),
        ("p.x=interval(0,1)", 1e-07, "p.x=1e-07"),
        ("p.x=int(interval(0,5))", 3, "p.x=3"),
        ("db=mysql,postgres", "mysql", "db=mysql"),
        ("p.x='a b','c,d'", "'a b'", "p.x='a b'"),
        ("p.x=1,abc", "1", "p.x=1"),
        ("p.x=null,abc", "null", "p.x=null"),
        ("p.x=true,false", False, "p.x=false"),
    ],
)
def test_a_trial_sets_its_value_in_the_override_grammar(line: str, value: Any, override: str) -> None:
    (parameter,) = space(line).parameters
    assert parameter.contains(value)
    assert parameter.override(value) == override


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 1e-12, -2.5, "plain", "1", "null", "a b", "it's", "x=y", "", [1, "a b"], {"k": 1.5}],
)
def test_override_text_reads_back_as_the_same_value(value: Any) -> None:
    parsed = OverridesParser.create().parse_override(f"key={to_override_text(value)}")
    assert not parsed.is_sweep_override()
    assert parsed.value() == value
    assert type(parsed.value()) is type(value)


def test_command_line_is_merged_over_the_config() -> None:
    params = {
        "x": {"type": "range", "bounds": [1.0, 9.0], "log_scale": True},
        "y": {"type": "fixed", "value": 4},
    }
    merged = space("x=interval(2, 3)", "y=5,6", "z=7", params=params)
    assert merged.describe() == "\nx: range=[2.0, 3.0], log_scale = True\ny: choice=[5, 6]\nz: fixed=7"
    assert space("x=2.5", params=params).describe().startswith("\nx: fixed=2.5")


def test_plus_on_the_command_line_refers_to_the_same_parameter() -> None:
    params = {"x": {"type": "range", "bounds": [1.0, 9.0]}}
    assert space("+x=interval(2,3)", params=params).describe() == "\n+x: range=[2.0, 3.0]"


def test_integer_bounds_stay_integers_and_mixed_ones_become_floats() -> None:
    params = {"a": {"type": "range", "bounds": [1, 9]}, "b": {"type": "range", "bounds": [1, 9.5]}}
    a, b = space(params=params).parameters
    assert (a.value_type, a.bounds) == ("int", (1, 9))
    assert (b.value_type, b.bounds) == ("float", (1.0, 9.5))


def test_config_entries_may_use_the_command_line_syntax() -> None:
    assert space(params={"x": "tag(log, interval(1, 10))"}).describe() == "\nx: range=[1.0, 10.0], log_scale = True"


def test_steps_are_decimal() -> None:
    (parameter,) = space(params={"x": {"type": "range", "bounds": [0.0, 0.3], "step_size": 0.1}}).parameters
    assert parameter.grid() == (0.0, 0.1, 0.2, 0.3)


def test_deletions_are_passed_on_to_jobs_and_hydra_overrides_are_not() -> None:
    found = space("~db", "x=1,2", "hydra.verbose=true")
    assert found.overrides({"x": 1}) == ["~db", "x=1"]


def test_a_conditional_parameter_exists_only_under_its_value() -> None:
    params = {
        "kind": {
            "type": "choice",
            "values": ["sgd", "adam"],
            "dependents": {"sgd": ["momentum"], "adam": ["beta"]},
        },
        "momentum": {"type": "range", "bounds": [0.0, 1.0]},
        "beta": {"type": "fixed", "value": 0.9},
    }
    found = space(params=params)
    assert found.overrides({"kind": "sgd", "momentum": 0.5}) == ["kind=sgd", "momentum=0.5"]
    assert found.overrides({"kind": "adam"}) == ["kind=adam", "beta=0.9"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "range", "bounds": [1.0, 1.0]}, "lower one first"),
        ({"type": "range", "bounds": [0.0, float("inf")]}, "finite"),
        ({"type": "range", "bounds": [0.0, 1.0], "log_scale": True}, "above 0"),
        ({"type": "range", "bounds": [0.0, 1.0], "step_size": 0.3}, "evenly"),
        ({"type": "range", "bound": [0.0, 1.0]}, "not a key of a range parameter"),
        ({"type": "choice", "values": []}, "non-empty"),
        ({"type": "choice", "values": [1, 1]}, "twice"),
        ({"type": "spread", "bounds": [0.0, 1.0]}, "expected a mapping with `type"),
        ({"margin": {"type": "range", "bounds": [0.0, 1.0]}}, "A key with dots is one key"),
        ({"type": "choice", "values": ["a"], "dependents": {"a": ["nowhere"]}}, "no other parameter"),
    ],
)
def test_a_mistake_in_the_search_space_is_named(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(SweepError, match=r"`loss(\.margin)?`") as raised:
        space(params={"loss": entry})
    assert message in str(raised.value)


@pytest.mark.parametrize("line", ["fold=0,1,2", "+fold=int(interval(0, 3))"])
def test_a_refused_dimension_is_refused_with_its_message(line: str) -> None:
    with pytest.raises(SweepError, match="use replicates"):
        space(line, refused={"fold": "use replicates"})
    assert space("fold=1", refused={"fold": "use replicates"}).shared == {"fold": 1}


NOT_FINITE = ["x=nan", "x=inf", "+x=-inf", "x=choice(1.0, nan)", "x=1,inf", "x=[1,nan]", "x={a:inf}"]


@pytest.mark.parametrize("line", NOT_FINITE)
def test_numbers_that_are_not_finite_are_refused(line: str) -> None:
    with pytest.raises(SweepError, match="expected finite numbers, found (nan|inf|-inf)"):
        space(line)


def test_a_wide_range_of_integers_costs_nothing() -> None:
    found = space("n=int(interval(1, 1000000000000))")
    (parameter,) = found.parameters
    assert parameter.contains(999_999_999_999)
    assert not parameter.contains(0)
    assert not parameter.contains(1.5)
    assert found.num_points() == 10**12
