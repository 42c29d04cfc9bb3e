"""Texts of labels: which are integers, and which look alike although they are different classes."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Hashable, Sequence

log = logging.getLogger(__name__)

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,3999}", re.ASCII)


def is_integer(text: str) -> bool:
    """Returns whether a text is the one way to write an integer: no +, leading zero, point, blank or underscore."""
    return _INTEGER.fullmatch(text) is not None


def as_integers(labels: Sequence[str]) -> list[int] | None:
    """Returns labels as integers. It is None where one of them is another text, and all therefore are text.

    Different texts never become the same integer.
    """
    others = sorted({label for label in labels if not is_integer(label)})
    if not others:
        return [int(label) for label in labels]
    if any(is_integer(label) for label in labels):
        log.warning(
            "Labels sort as text, because %s of them are not written as integers are (first: %r)",
            f"{len(others):,}", others[0],
        )  # fmt: skip
    return None


def report_lookalikes(labels: Sequence[str]) -> None:
    """Reports different labels that look alike, and labels with blanks around them. Each text is a class of its own.

    Args:
        labels: The different texts.
    """
    blank = [label for label in labels if label != label.strip()]
    if blank:
        log.warning("%s labels begin or end with blanks, which count (first: %r)", f"{len(blank):,}", blank[0])
    first: dict[Hashable, str] = {}
    alike = [pair for label in labels if (pair := (first.setdefault(_look(label), label), label))[0] != label]
    if alike:
        log.warning(
            "%s labels look like another one and are classes of their own (first: %s and %s)",
            f"{len(alike):,}", ascii(alike[0][0]), ascii(alike[0][1]),
        )  # fmt: skip


def _look(label: str) -> Hashable:
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return unicodedata.normalize("NFKC", "".join(label.split())).casefold() if math.isnan(number) else number
