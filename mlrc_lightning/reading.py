"""Reads mappings into dataclasses, strictly. A message names the key and the nearest known name."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

from mlrc_lightning.errors import ConfigError

T = TypeVar("T")
LONGEST_NAME = 128


def read(cls: type[T], values: object, path: str = "") -> T:
    """Reads a mapping into a dataclass, refusing what does not fit.

    Args:
        cls: A dataclass whose fields are plain types, other such dataclasses, tuples, dicts or unions of these. A
            method `problems` yields key, value and what was expected of each value out of range.
        values: A mapping with exactly the fields of `cls`; those that have a default may be missing.
        path: Dotted key of `values`, for messages.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type or range; the message names the key.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or cls.__name__}: expected a mapping, found {values!r}.")
    hints = _type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise ConfigError(f"{_join(path, key)}: unknown key.{suggestion(str(key), names)}")
    required = [field.name for field in dataclasses.fields(cls) if _has_no_default(field)]  # type: ignore[arg-type]
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(f"{_join(path, missing[0])}: expected a value, found none.")
    found = cls(**{name: _convert(hints[name], values[name], _join(path, name)) for name in names if name in values})
    for key, value, expected in getattr(found, "problems", tuple)():
        raise ConfigError(f"{_join(path, key)}={shortened(value)}: expected {expected}.")
    return found


# a record of many epochs asks thousands of times
_type_hints: Callable[[type], dict[str, Any]] = cache(typing.get_type_hints)


def suggestion(word: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean x? Known: …' for a misspelt word."""
    known = sorted(known)
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    did_you_mean = f" Did you mean {nearest[0]}?" if nearest else ""
    return f"{did_you_mean} Known: {', '.join(known)}."


def leaves(values: object, path: str = "") -> Iterable[tuple[str, object]]:
    """Yields the dotted key and the value of every leaf of nested mappings and sequences."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from leaves(value, _join(path, key))
    elif isinstance(values, list | tuple):
        for position, value in enumerate(values):
            yield from leaves(value, f"{path}[{position}]")
    else:
        yield path, values


def require_name(path: str, value: object) -> str:
    """Returns a name that can be that of a file or a folder.

    Raises:
        ConfigError: The value is no text, is empty, begins with a dot, is longer than 128 bytes, or has a
            separator or an unprintable character.
    """
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or not 0 < len(value.encode()) <= LONGEST_NAME
        or value[0] in ". "
        or any(character in r'/\:*?"<>|' for character in value)
    ):
        raise ConfigError(
            f"{path}={shortened(value)}: expected a name of at most {LONGEST_NAME} bytes without a separator and"
            " without a dot in front, because folders are named after it."
        )
    return value


def shortened(value: object) -> str:
    """Returns how Python writes a value, cut to what fits into a message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(expected: Any, value: object, path: str) -> Any:
    if dataclasses.is_dataclass(expected) and isinstance(expected, type):
        return read(expected, value, path)
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        for candidate in arguments:
            if _has_form_of(candidate, value):
                return _convert(candidate, value, path)
    elif _has_form_of(expected, value):
        if origin is tuple:
            assert isinstance(value, list | tuple)
            items = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
            if len(items) == len(value):
                return tuple(_convert(items[i], item, f"{path}[{i}]") for i, item in enumerate(value))
        elif origin is dict:
            assert isinstance(value, Mapping)
            if arguments[-1] is Any:
                return {str(key): item for key, item in value.items()}
            return {str(key): _convert(arguments[-1], item, _join(path, key)) for key, item in value.items()}
        elif expected is float:
            return _finite(value, path)
        else:
            return value
    name = expected.__name__ if isinstance(expected, type) and origin is None else str(expected)
    raise ConfigError(f"{path}={shortened(value)}: expected {name}.")


def _finite(value: Any, path: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"{path}={shortened(value)}: expected a finite number.")
    return number


def _has_form_of(expected: Any, value: object) -> bool:
    """Returns whether a value is of the outer type: a YAML bool is no number, a YAML integer is a float too."""
    if dataclasses.is_dataclass(expected) or typing.get_origin(expected) is dict:
        return isinstance(value, Mapping)
    if typing.get_origin(expected) is tuple:
        return isinstance(value, list | tuple)
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, int | float if expected is float else expected)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
