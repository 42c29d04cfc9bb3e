"""Outcome constraints: limits on metrics, such as "latency <= 5.0" or "accuracy >= 0.95 * baseline"."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ._errors import SweepError

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RELATION = re.compile(r"(?P<left>[^<>=]+)(?P<relation><=|>=)(?P<right>[^<>=]+)")
_TERM = re.compile(rf"\s*(?P<sign>[+-])?\s*(?:(?P<factor>{_NUMBER})\s*\*\s*)?(?P<name>[A-Za-z_][\w./]*)\s*")
_BOUND = re.compile(rf"\s*(?P<sign>[+-])?\s*(?P<factor>{_NUMBER})?\s*(?P<baseline>\*?\s*baseline)?\s*")


@dataclass(frozen=True)
class OutcomeConstraint:
    """`sum of factor * metric <= bound`, or >=. A relative bound is times the baseline's own value."""

    text: str
    terms: tuple[tuple[float, str], ...]
    is_upper: bool
    bound: float
    is_relative: bool

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it names."""
        return tuple(name for _, name in self.terms)

    def holds(self, means: Mapping[str, float], baseline: Mapping[str, float] | None) -> bool:
        """Whether a trial's means meet it. A relative one is not met before the baseline is known."""
        value = self._value(means)
        bound = self.bound
        if self.is_relative:
            if baseline is None:
                return False
            bound *= self._value(baseline)
        return value <= bound if self.is_upper else value >= bound

    def _value(self, means: Mapping[str, float]) -> float:
        return math.fsum(factor * means[name] for factor, name in self.terms)


def parse_constraint(text: str) -> OutcomeConstraint:
    """Read a constraint.

    Raises:
        SweepError: It is not of a form that is understood.
    """
    error = SweepError(
        f"Outcome constraint {text!r}: expected metrics on the left and a number on the right, e.g. "
        '"latency <= 5.0", "0.5*a + 0.5*b >= 0.9" or, with a status_quo, "accuracy >= 0.95 * baseline".'
    )
    relation = _RELATION.fullmatch(text)
    if relation is None:
        raise error
    terms: list[tuple[float, str]] = []
    position, left = 0, relation["left"]
    while position < len(left):
        term = _TERM.match(left, position)
        if term is None or (terms and term["sign"] is None):
            raise error
        factor = float(term["factor"] or 1.0)
        terms.append((-factor if term["sign"] == "-" else factor, term["name"]))
        position = term.end()
    bound = _BOUND.fullmatch(relation["right"])
    if bound is None or (bound["factor"] is None and bound["baseline"] is None):
        raise error
    factor = float(bound["factor"] or 1.0)
    return OutcomeConstraint(
        text=text,
        terms=tuple(terms),
        is_upper=relation["relation"] == "<=",
        bound=-factor if bound["sign"] == "-" else factor,
        is_relative=bound["baseline"] is not None,
    )
