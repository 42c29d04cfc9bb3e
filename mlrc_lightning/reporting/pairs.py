"""The file that keeps the comparisons of every two losses of a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from mlrc_lightning.errors import RecordError


@dataclass(frozen=True)
class Pair:
    """One comparison, as it is stored: differences are fractions. It is None where there are too few runs or classes.

    Attributes:
        loss_a: As the tables call it.
        loss_b: As the tables call it.
        effect: Accuracy of a minus that of b.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: p-value.
        p_holm: p-value after Holm's correction over all pairs of the table.
        effect_size: The effect in standard deviations of the classes' differences.
        effect_size_low: Lower end of its interval.
        effect_size_high: Upper end.
        runs_a: Runs of a.
        runs_b: Runs of b.
        classes: Test classes.
        queries: Test queries.
    """

    loss_a: str
    loss_b: str
    effect: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    effect_size: float | None
    effect_size_low: float | None
    effect_size_high: float | None
    runs_a: int
    runs_b: int
    classes: int
    queries: int


def as_csv(pairs: Sequence[Pair], metric: str, embedding: str) -> str:
    """Returns comparisons as the text of their file."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in fields(Pair)]
    writer.writerow([*names, "metric", "embedding"])
    for pair in pairs:
        values = [getattr(pair, name) for name in names]
        writer.writerow([*("" if value is None else value for value in values), metric, embedding])
    return buffer.getvalue()


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """Returns the comparisons of a file.

    Raises:
        RecordError: A column is missing or not a number.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    pairs = []
    try:
        for line in lines:
            texts = [line[name] for name in (field.name for field in fields(Pair))]
            numbers = [None if text == "" else float(text) for text in texts[2:10]]
            counts = [int(text) for text in texts[10:]]
            pairs.append(Pair(texts[0], texts[1], *numbers, *counts))  # type: ignore[arg-type]
    except (KeyError, ValueError, TypeError) as error:
        raise RecordError(
            f"{path}: expected the columns {', '.join(field.name for field in fields(Pair))} with numbers, found"
            f" {error!r}. Remove it and run the tests again."
        ) from error
    return tuple(pairs)
