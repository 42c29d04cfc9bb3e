"""What is searched: parameters from the config and the command line, checked and turned into overrides."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    Transformer,
)

from mlrc_sweeper.state import Value

from ._errors import SweepError

ValueType = Literal["bool", "int", "float", "str"]

_PLAIN_TEXT = re.compile(r"[A-Za-z_][\w./@-]*")
_RESERVED_TEXT = {"null", "true", "false", "nan", "inf"}
_PARAMETER_KEYS = {
    "range": {"bounds", "log_scale", "step_size"},
    "choice": {"values", "is_ordered", "sort_values", "dependents"},
    "fixed": {"value"},
}
_COMMON_KEYS = {"name", "type", "value_type", "parameter_type"}


@dataclass(frozen=True)
class Parameter:
    """One dimension of the search space, or one value that all trials share."""

    # Hydra override path, with its `+` where it has one
    name: str
    kind: Literal["range", "choice", "fixed"]
    value_type: ValueType
    bounds: tuple[float, float] | None = None
    log_scale: bool = False
    step_size: float | None = None
    values: tuple[Value, ...] = ()
    is_ordered: bool = False
    # parameters that exist only under a value of this choice
    dependents: Mapping[Value, tuple[str, ...]] = field(default_factory=dict)
    # strings among the values are text of the override grammar already, not plain strings
    verbatim: bool = False
    # the whole override as the user wrote it, for fixed parameters of the command line
    text: str | None = None

    @property
    def is_tuned(self) -> bool:
        """Whether trials can differ in it."""
        return self.kind == "range" or (self.kind == "choice" and len(self.values) > 1)

    def grid(self) -> Sequence[Value] | None:
        """All values, or None for a continuous range. Integers are a `range`, however wide."""
        if self.kind != "range":
            return self.values
        assert self.bounds is not None
        lower, upper = self.bounds
        if self.step_size is not None:
            return _stepped_values(lower, upper, self.step_size, self.value_type)
        if self.value_type == "int":
            return range(int(lower), int(upper) + 1)
        return None

    def contains(self, value: Any) -> bool:
        """Whether a trial may have this value."""
        grid = self.grid()
        if isinstance(grid, range):
            return isinstance(value, int) and not isinstance(value, bool) and value in grid
        if grid is not None:
            return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in grid)
        assert self.bounds is not None
        return isinstance(value, int | float) and self.bounds[0] <= value <= self.bounds[1]

    def override(self, value: Value) -> str:
        """The Hydra override that sets the value."""
        if self.text is not None:
            return self.text
        if isinstance(value, str) and self.verbatim:
            return f"{self.name}={value}"
        return f"{self.name}={to_override_text(value)}"

    def describe(self) -> str:
        """Upstream's log line of the parameter."""
        if self.kind == "range":
            assert self.bounds is not None
            shown = f"{self.name}: range={list(self.bounds)}"
        elif self.kind == "choice":
            shown = f"{self.name}: choice={list(self.values)}"
        else:
            shown = f"{self.name}: fixed={self.values[0]}"
        extras = {"log_scale": self.log_scale, "step_size": self.step_size}
        return shown + "".join(f", {key} = {value}" for key, value in extras.items() if value)

    def signature(self) -> dict[str, Any]:
        """What must be the same when a search is resumed, as JSON."""
        fields: dict[str, Any] = {"type": self.kind, "value_type": self.value_type}
        if self.bounds is not None:
            fields["bounds"] = list(self.bounds)
        if self.kind != "range":
            fields["values"] = list(self.values)
        if self.kind == "choice":
            fields["is_ordered"] = self.is_ordered
        if self.log_scale:
            fields["log_scale"] = True
        if self.step_size is not None:
            fields["step_size"] = self.step_size
        if self.dependents:
            fields["dependents"] = {str(value): list(names) for value, names in self.dependents.items()}
        return fields


@dataclass(frozen=True)
class SearchSpace:
    """All parameters of a search, and the overrides of jobs that are not parameters (deletions)."""

    parameters: tuple[Parameter, ...]
    other_overrides: tuple[str, ...] = ()

    @property
    def tuned(self) -> tuple[Parameter, ...]:
        """Parameters in which trials differ."""
        return tuple(parameter for parameter in self.parameters if parameter.is_tuned)

    @property
    def shared(self) -> dict[str, Value]:
        """Name and value of what all trials have in common."""
        return {p.name: p.values[0] for p in self.parameters if not p.is_tuned}

    @property
    def parents(self) -> dict[str, tuple[str, tuple[Value, ...]]]:
        """For each conditional parameter: the choice it depends on, and the values under which it exists."""
        found: dict[str, tuple[str, tuple[Value, ...]]] = {}
        for parameter in self.parameters:
            for name in {name for names in parameter.dependents.values() for name in names}:
                values = tuple(value for value, names in parameter.dependents.items() if name in names)
                found[name] = (parameter.name, values)
        return found

    def active(self, values: Mapping[str, Value]) -> list[Parameter]:
        """The tuned parameters that exist in a trial with these values."""
        parents = self.parents

        def exists(name: str) -> bool:
            if name not in parents:
                return True
            parent, allowed = parents[name]
            return exists(parent) and values.get(parent, self.shared.get(parent)) in allowed

        return [parameter for parameter in self.tuned if exists(parameter.name)]

    def num_points(self) -> int | None:
        """Number of different trials, or None where a parameter is continuous or conditional."""
        grids = [parameter.grid() for parameter in self.tuned]
        if self.parents or any(grid is None for grid in grids):
            return None
        return math.prod(len(grid) for grid in grids if grid is not None)

    def overrides(self, values: Mapping[str, Value]) -> list[str]:
        """Overrides of a job that runs these values."""
        parents = self.parents
        active = {parameter.name for parameter in self.active(values)}
        found = list(self.other_overrides)
        for parameter in self.parameters:
            if parameter.is_tuned:
                if parameter.name in active:
                    found.append(parameter.override(values[parameter.name]))
            elif parameter.name not in parents or self._exists(parameter.name, values):
                found.append(parameter.override(parameter.values[0]))
        return found

    def _exists(self, name: str, values: Mapping[str, Value]) -> bool:
        parent, allowed = self.parents[name]
        return values.get(parent, self.shared.get(parent)) in allowed

    def describe(self) -> str:
        """Upstream's log text: one line a parameter, each after a line break."""
        return "".join(f"\n{parameter.describe()}" for parameter in self.parameters)

    def signature(self) -> dict[str, Any]:
        """What must be the same when a search is resumed, as JSON."""
        fields: dict[str, Any] = {p.name: p.signature() for p in self.parameters}
        if self.other_overrides:
            fields["(other overrides)"] = list(self.other_overrides)
        return fields


def to_override_text(value: Any) -> str:
    """A value in Hydra's override grammar. Strings are quoted where they would be read as something else."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{to_override_text(k)}:{to_override_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(to_override_text(item) for item in value) + "]"
    text = str(value)
    if _PLAIN_TEXT.fullmatch(text) and text.lower() not in _RESERVED_TEXT:
        return text
    return QuotedString(text, Quote.single).with_quotes()


def bare_name(name: str) -> str:
    """The override path without the `+` that adds it."""
    return name.lstrip("+~")


def build_search_space(
    params: Mapping[str, Any], overrides: Sequence[Override], refused: Mapping[str, str]
) -> SearchSpace:
    """The search space of a config's `params`, with the command line merged over it.

    Args:
        params: Entries as upstream reads them; an entry may also be a string in the command line's syntax.
        overrides: The command line, parsed; sweeps that make searches or replicates are gone from it.
        refused: Names that may not be searched over, with the message for who tries.

    Raises:
        SweepError: An entry that cannot be understood, or a refused one.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name, entry in params.items():
        entries[bare_name(str(name))] = _entry_of_config(str(name), entry)
    other = []
    for override in overrides:
        if override.is_hydra_override():
            continue
        if override.is_delete():
            other.append(str(override.input_line))
            continue
        entry = _entry_of_override(override)
        key = bare_name(entry["name"])
        merged = {**entries.get(key, {}), **entry}
        allowed = _COMMON_KEYS | _PARAMETER_KEYS[entry["type"]] | {"verbatim", "text"}
        entries[key] = {k: v for k, v in merged.items() if k in allowed}

    parameters = [_parameter(entry) for entry in entries.values()]
    for parameter in parameters:
        message = refused.get(bare_name(parameter.name))
        if message is not None and parameter.kind != "fixed":
            raise SweepError(f"`{bare_name(parameter.name)}` may not be searched over: {message}")
    _check_dependents(parameters)
    return SearchSpace(tuple(parameters), tuple(other))


def _entry_of_config(name: str, entry: Any) -> dict[str, Any]:
    if isinstance(entry, str):
        parsed = OverridesParser.create().parse_override(f"{name}={entry}")
        return _entry_of_override(parsed)
    if not isinstance(entry, Mapping) or entry.get("type") not in _PARAMETER_KEYS:
        raise SweepError(
            f"Search space, `{name}`: expected a mapping with `type: range`, `choice` or `fixed`, found "
            f"{entry!r}. "
            'Example: {type: range, bounds: [0.0, 1.0]}. A key with dots is one key: write "a.b": {...}.'
        )
    unknown = set(entry) - _COMMON_KEYS - _PARAMETER_KEYS[entry["type"]]
    if unknown:
        raise SweepError(
            f"Search space, `{name}`: {', '.join(sorted(map(str, unknown)))} is not a key of a "
            f"{entry['type']} "
            f"parameter; it takes {', '.join(sorted(_PARAMETER_KEYS[entry['type']]))}."
        )
    return {**entry, "name": name}


def _entry_of_override(override: Override) -> dict[str, Any]:
    name = override.get_key_element()
    if override.is_interval_sweep():
        interval = override.value()
        assert isinstance(interval, IntervalSweep)
        entry: dict[str, Any] = {"name": name, "type": "range", "bounds": [interval.start, interval.end]}
        if "log" in interval.tags:
            entry["log_scale"] = True
        return entry
    if override.is_discrete_sweep():
        values = [
            value if isinstance(value, bool | int | float) else Transformer.str(value)
            for value in override.sweep_iterator()
        ]
        return {"name": name, "type": "choice", "values": values, "verbatim": True}
    return {"name": name, "type": "fixed", "value": override.value(), "text": override.input_line}


def _parameter(entry: Mapping[str, Any]) -> Parameter:
    name = entry["name"]
    if entry["type"] == "range":
        return _range_parameter(name, entry)
    values = entry.get("values") if entry["type"] == "choice" else [entry.get("value")]
    if not isinstance(values, list | tuple) or not values:
        raise SweepError(f"Search space, `{name}`: a choice takes a non-empty list `values`, found {values!r}.")
    for path, value in _floats(values, name):
        if not math.isfinite(value):
            raise SweepError(f"Search space, `{path}`: expected finite numbers, found {value}.")
    values, value_type, as_text = _unify(list(values), bool(entry.get("verbatim")))
    if len(set(values)) != len(values):
        raise SweepError(f"Search space, `{name}`: the same value stands in the choice twice: {values}.")
    dependents = entry.get("dependents") or {}
    for value in dependents:
        if value not in values:
            raise SweepError(f"Search space, `{name}`: dependents of {value!r}, which is none of {values}.")
    return Parameter(
        name=name,
        kind=entry["type"],
        value_type=value_type,
        values=tuple(values),
        is_ordered=bool(entry.get("is_ordered", value_type in ("int", "float"))),
        dependents={value: tuple(names) for value, names in dependents.items()},
        verbatim=bool(entry.get("verbatim")) or as_text,
        text=entry.get("text"),
    )


def _floats(node: Any, path: str) -> Iterator[tuple[str, float]]:
    """Every float in nested values, with its place. Text of a sweep, as `[1,nan]`, is no number of the search."""
    if isinstance(node, float):
        yield path, node
    for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ():
        yield from _floats(child, path)


def _range_parameter(name: str, entry: Mapping[str, Any]) -> Parameter:
    bounds = entry.get("bounds")
    if (
        not isinstance(bounds, list | tuple)
        or len(bounds) != 2
        or not all(isinstance(b, int | float) and not isinstance(b, bool) and math.isfinite(b) for b in bounds)
        or not bounds[0] < bounds[1]
    ):
        raise SweepError(
            f"Search space, `{name}`: expected bounds of two finite numbers, the lower one first; found {bounds!r}."
        )
    declared = entry.get("value_type") or entry.get("parameter_type")
    if declared not in (None, "int", "float"):
        raise SweepError(f"Search space, `{name}`: a range is int or float, found value_type {declared!r}.")
    is_int = all(isinstance(bound, int) for bound in bounds) if declared is None else declared == "int"
    log_scale, step = bool(entry.get("log_scale")), entry.get("step_size")
    if log_scale and bounds[0] <= 0:
        raise SweepError(f"Search space, `{name}`: a log scale needs bounds above 0, found {list(bounds)}.")
    if step is not None:
        if log_scale or not _divides(step, bounds[1] - bounds[0]):
            raise SweepError(
                f"Search space, `{name}`: step_size must be positive, divide {list(bounds)} evenly and "
                "cannot be "
                f"combined with a log scale; found {step}."
            )
        is_int = is_int and isinstance(step, int)
    typed = (int(bounds[0]), int(bounds[1])) if is_int else (float(bounds[0]), float(bounds[1]))
    return Parameter(name, "range", "int" if is_int else "float", typed, log_scale, step)


def _divides(step: Any, width: float) -> bool:
    if not isinstance(step, int | float) or not 0 < step <= width:
        return False
    return math.isclose(width / step, round(width / step), rel_tol=0.0, abs_tol=1e-9)


def _unify(values: list[Any], verbatim: bool) -> tuple[list[Value], ValueType, bool]:
    """Values of one type, that type, and whether they had to become text of the override grammar."""
    if all(isinstance(value, bool) for value in values):
        return values, "bool", False
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        if all(isinstance(value, int) for value in values):
            return values, "int", False
        return [float(value) for value in values], "float", False
    if all(isinstance(value, str) for value in values):
        return values, "str", False
    return [v if verbatim and isinstance(v, str) else to_override_text(v) for v in values], "str", True


def _stepped_values(lower: float, upper: float, step: float, value_type: ValueType) -> tuple[Value, ...]:
    # decimals, so that 0.1 + 0.2 is written 0.3
    first, width = Decimal(repr(lower)), Decimal(repr(step))
    count = round((upper - lower) / step)
    kind = int if value_type == "int" else float
    return tuple(kind(first + index * width) for index in range(count + 1))


def _check_dependents(parameters: Sequence[Parameter]) -> None:
    names = {parameter.name for parameter in parameters}
    for parameter in parameters:
        for dependent in {name for group in parameter.dependents.values() for name in group}:
            if dependent not in names or dependent == parameter.name:
                raise SweepError(
                    f"Search space, `{parameter.name}`: its dependents name `{dependent}`, which is no other parameter."
                )
