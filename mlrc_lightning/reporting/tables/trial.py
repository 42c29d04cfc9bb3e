"""The result of one trial as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlrc_lightning.names import (
    METRICS,
    UNTRAINED,
    UNTRAINED_EMBEDDER,
    UNTRAINED_EMBEDDER_CONCATENATED,
    UNTRAINED_TRUNK,
    UNTRAINED_TRUNK_PCA,
    UNTRAINED_TRUNK_PCA_CONCATENATED,
)
from mlrc_lightning.reporting.doubts import doubts_of_run
from mlrc_lightning.results.records import TrialRecord

_MISSING = "–"


def render_trial(record: TrialRecord) -> str:
    """Renders validation and test accuracies of one trial, in per cent. What is missing is shown as missing."""
    folds = ", ".join(str(fold.fold) for fold in record.folds)
    title = f"{record.loss} on {record.setting} ({record.protocol})"
    title += f", run {record.run}" if record.run is not None else ""
    title += f", {'folds' if len(record.folds) > 1 else 'fold'} {folds}" if record.folds else ""
    title += f", seed {record.seed}"
    is_trained = record.stage != UNTRAINED
    rows: list[tuple[str, Mapping[str, Any] | None]] = (
        [("validation, mean over folds", record.val)] if is_trained else []
    )
    trunk_val = [fold.untrained_trunk_val for fold in record.folds if fold.untrained_trunk_val is not None]
    if trunk_val:
        mean = {name: sum(values[name] for values in trunk_val) / len(trunk_val) for name in METRICS}
        rows.insert(0, ("validation, untrained trunk", mean))
    if record.test is not None:
        size = record.settings["embedder"]["embedding_size"]
        width = size * len(record.test.separated_folds)
        names = {
            UNTRAINED_TRUNK: "test, untrained trunk, full width",
            UNTRAINED_TRUNK_PCA: f"test, untrained trunk, PCA to {size}",
            UNTRAINED_TRUNK_PCA_CONCATENATED: f"test, untrained trunk, PCA to {width}",
            UNTRAINED_EMBEDDER: f"test, untrained embedder, {size}",
            UNTRAINED_EMBEDDER_CONCATENATED: f"test, untrained embedders, concatenated, {width}",
        }
        rows += [(text, record.test.baselines[key]) for key, text in names.items() if key in record.test.baselines]
        if is_trained:
            rows.append((f"test, separated, {size}", record.test.separated))
            total = "" if record.test.concatenated is None else f", {width}"
            rows.append((f"test, concatenated{total}", record.test.concatenated))
    noted = [*doubts_of_run(record), *(record.test.notes if record.test is not None else ())]
    notes = [f"Note: {note}." for note in dict.fromkeys(noted)]
    return "\n".join([title, "", accuracy_table(rows), *([""] if notes else []), *notes])


def comparison_table(rows: Sequence[tuple[str, Mapping[str, Any] | None, Mapping[str, Any] | None]], other: str) -> str:
    """Renders accuracies beside others of the same kind, with the difference in points: 0 where no bit differs.

    Args:
        rows: Name, accuracies, and the others where there are any.
        other: What the others are called.
    """
    lines: list[tuple[str, Mapping[str, Any] | None]] = []
    for name, values, others in rows:
        lines.append((name, values))
        if others is not None and values is not None:
            lines.append((f"{name}, {other}", others))
            lines.append(("difference", {column: _difference(values[column], others[column]) for column in METRICS}))
    return accuracy_table(lines)


def _difference(value: float, other: float) -> str:
    return "0" if value == other else f"{100 * (value - other):+.1e}"


def accuracy_table(rows: Sequence[tuple[str, Mapping[str, Any] | None]]) -> str:
    """Renders named accuracies in per cent as a Markdown table. What is None is shown as missing."""
    lines = ["| accuracy in % | " + " | ".join(METRICS.values()) + " |", "|:--|" + "--:|" * len(METRICS)]
    lines += [
        f"| {name} | " + " | ".join(_percent(values, column) for column in METRICS) + " |" for name, values in rows
    ]
    width = [
        max(len(cell) for cell in column) for column in zip(*(line.split("|")[1:-1] for line in lines), strict=True)
    ]
    padded = [
        "|" + "|".join(_pad(cell, width[i], i) for i, cell in enumerate(line.split("|")[1:-1])) + "|" for line in lines
    ]
    return "\n".join(padded)


def _percent(values: Mapping[str, Any] | None, column: str) -> str:
    if values is None:
        return _MISSING
    value = values[column]
    return value if isinstance(value, str) else f"{100 * value:.2f}"


def _pad(cell: str, width: int, position: int) -> str:
    if set(cell) <= {"-", ":"}:
        return f":{'-' * (width - 1)}" if position == 0 else f"{'-' * (width - 1)}:"
    return cell.ljust(width) if position == 0 else cell.rjust(width)
