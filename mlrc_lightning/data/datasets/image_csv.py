"""A table of image files and labels."""

from __future__ import annotations

import csv as csv_module
from pathlib import Path

from mlrc_lightning.data.images import ImageFiles
from mlrc_lightning.errors import DatasetError


class ImageCsv(ImageFiles):
    """Reads a CSV with the columns path and label, and split where `split=predefined` is wanted; others are left alone.

    Labels that are all integers sort numerically (2 before 10), others alphabetically.

    Args:
        csv: The table, UTF-8.
        root: Folder of relative paths; None: the folder of the table.

    Raises:
        DatasetError: The table is missing, has no such columns, an empty cell or no row.
    """

    def __init__(self, csv: str, root: str | None = None) -> None:
        table = Path(csv)
        if not table.is_file():
            raise DatasetError(
                f"dataset.images.csv: expected a table at {table}, found none."
                " Name a CSV with the columns path,label: dataset.images.csv=FILE."
            )
        folder = table.parent if root is None else Path(root)
        paths: list[Path] = []
        labels: list[str] = []
        own_split: list[str] = []
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv_module.DictReader(file)
            columns = rows.fieldnames or []
            if not {"path", "label"} <= set(columns):
                raise DatasetError(
                    f"{table}: expected the columns path and label in the first line, found {', '.join(columns)}."
                )
            for row in rows:
                if not row["path"] or not row["label"]:
                    raise DatasetError(f"{table}, line {rows.line_num}: expected a path and a label, found {row}.")
                paths.append(folder / row["path"])
                labels.append(row["label"])
                own_split.append(row.get("split") or "")
        if not paths:
            raise DatasetError(f"{table}: expected at least one row, found none.")
        numbers = _as_integers(labels)
        super().__init__(
            paths, labels if numbers is None else numbers, folder, own_split if "split" in columns else None
        )


def _as_integers(labels: list[str]) -> list[int] | None:
    try:
        return [int(label) for label in labels]
    except ValueError:
        return None
