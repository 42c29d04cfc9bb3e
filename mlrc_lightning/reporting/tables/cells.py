"""What a table is before it is rendered: one source for Markdown, LaTeX, CSV and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlrc_lightning.reporting.intervals import Interval

Role = Literal["ours", "paper", "difference", "runs", "text"]


@dataclass(frozen=True)
class Provenance:
    """Where a value comes from, so that it can be computed again.

    Attributes:
        key: Of the cell in the table's manifest.
        folders: Of the runs, or of the search, relative to `outputs`.
        field: Dotted key in a run's record; a parameter's key in a search's best trial.
    """

    key: str
    folders: tuple[str, ...]
    field: str


@dataclass(frozen=True)
class Accuracy(Interval):
    """A mean over runs, as a fraction in [0, 1], with the half width of its interval where there is one."""

    provenance: Provenance | None = None
    is_best: bool = False


@dataclass(frozen=True)
class Difference:
    """Ours minus the paper's, both as rendered, in percentage points."""

    points: float


@dataclass(frozen=True)
class Number:
    """A plain number, shown with six significant digits unless its text is given."""

    value: float
    provenance: Provenance | None = None
    text: str | None = None


@dataclass(frozen=True)
class Text:
    """Words, or what a source calls not applicable."""

    text: str


@dataclass(frozen=True)
class Missing:
    """A value that is not there yet, and what it lacks."""

    lacking: str


Cell = Accuracy | Difference | Number | Text | Missing


@dataclass(frozen=True)
class Column:
    """One column. Neighbours of the same group share a heading above theirs."""

    title: str
    group: str
    role: Role


@dataclass(frozen=True)
class Row:
    """One row. `name` is the key of its title."""

    name: str
    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Rows under one heading."""

    name: str
    title: str
    row_heading: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Page:
    """Tables that are rendered into one file.

    Attributes:
        name: Of the files.
        title: Heading.
        tables: In order.
        notes: What a reader must know, a sentence each.
        arguments: What the page was made from, for its manifest.
        searches: Folders of the searches behind it, relative to `outputs`.
    """

    name: str
    title: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    arguments: dict[str, Any]
    searches: tuple[str, ...] = ()


def percent(fraction: float) -> str:
    """Returns a fraction in per cent with two digits, the only place where accuracies are rounded."""
    return f"{100 * fraction:.2f}"


def with_best(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[Row, ...]:
    """Marks the highest accuracy of each column as rendered, and every one that equals it."""
    marked = [list(row.cells) for row in rows]
    for position in range(len(columns)):
        accuracies = [
            (number, cell) for number, cells in enumerate(marked) if isinstance(cell := cells[position], Accuracy)
        ]
        if not accuracies:
            continue
        best = max(float(percent(cell.mean)) for _, cell in accuracies)
        for number, cell in accuracies:
            marked[number][position] = replace(cell, is_best=float(percent(cell.mean)) == best)
    return tuple(replace(row, cells=tuple(cells)) for row, cells in zip(rows, marked, strict=True))


def difference(ours: Accuracy, paper: Accuracy) -> Difference:
    """Returns what a reader gets who subtracts the two rendered numbers."""
    return Difference(round(float(percent(ours.mean)) - float(percent(paper.mean)), 2))
