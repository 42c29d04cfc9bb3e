"""The result of one trial as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlrc_lightning.records import TrialRecord

COLUMNS = {"precision_at_1": "P@1", "r_precision": "RP", "mean_average_precision_at_r": "MAP@R"}
_MISSING = "–"


def render_trial(record: TrialRecord) -> str:
    """Renders validation and test accuracies of one trial, in per cent; what is missing is shown as missing."""
    folds = ", ".join(str(fold.fold) for fold in record.folds)
    title = (
        f"{record.loss} on {record.benchmark} ({record.protocol}), "
        f"{'folds' if len(record.folds) > 1 else 'fold'} {folds}, seed {record.seed}"
    )
    rows: list[tuple[str, Mapping[str, Any] | None]] = [("validation, mean over folds", record.val)]
    trunk_val = [fold.untrained_trunk_val for fold in record.folds if fold.untrained_trunk_val is not None]
    if trunk_val:
        mean = {name: sum(values[name] for values in trunk_val) / len(trunk_val) for name in COLUMNS}
        rows.insert(0, ("validation, untrained trunk", mean))
    if record.test is not None:
        size = record.settings["embedder"]["embedding_size"]
        names = {
            "untrained_trunk": "test, untrained trunk, full width",
            "untrained_trunk_pca": f"test, untrained trunk, PCA to {size}",
            "untrained_embedder": f"test, untrained embedder, {size}",
        }
        rows += [(text, record.test.baselines[key]) for key, text in names.items() if key in record.test.baselines]
        rows.append((f"test, separated, {size}", record.test.separated))
        total = "" if record.test.concatenated is None else f", {size * len(record.test.separated_folds)}"
        rows.append((f"test, concatenated{total}", record.test.concatenated))
    lines = ["| accuracy in % | " + " | ".join(COLUMNS.values()) + " |", "|:--|" + "--:|" * len(COLUMNS)]
    lines += [
        f"| {name} | " + " | ".join(_percent(values, column) for column in COLUMNS) + " |" for name, values in rows
    ]
    width = [
        max(len(cell) for cell in column) for column in zip(*(line.split("|")[1:-1] for line in lines), strict=True)
    ]
    padded = [
        "|" + "|".join(_pad(cell, width[i], i) for i, cell in enumerate(line.split("|")[1:-1])) + "|" for line in lines
    ]
    notes = [f"Note: {note}." for note in (record.test.notes if record.test is not None else ())]
    return "\n".join([title, "", *padded, *([""] if notes else []), *notes])


def _percent(values: Mapping[str, Any] | None, column: str) -> str:
    return _MISSING if values is None else f"{100 * values[column]:.2f}"


def _pad(cell: str, width: int, position: int) -> str:
    if set(cell) <= {"-", ":"}:
        return f":{'-' * (width - 1)}" if position == 0 else f"{'-' * (width - 1)}:"
    return cell.ljust(width) if position == 0 else cell.rjust(width)
