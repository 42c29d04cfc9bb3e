"""A table of image files and labels."""

from __future__ import annotations

import csv as csv_module
from pathlib import Path

from mlrc_lightning.data.images import ImageFiles
from mlrc_lightning.data.labels import as_integers
from mlrc_lightning.errors import DatasetError


class ImageCsv(ImageFiles):
    """Reads a CSV with the columns path and label; other columns are left alone, but for two.

    `split` says what `split=predefined` does with an image, `class_name` what figures and lists call its class. Labels
    that are all written as integers are (`10`, not `010` or `10.0`) sort numerically, others are text and sort
    alphabetically.

    Args:
        csv: The table, UTF-8.
        root: Folder of relative paths; None: the folder of the table.

    Raises:
        DatasetError: The table is missing, has no such columns or has one twice, a row has an empty cell or one too
            many, there is no row, or a file is in two classes.
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
        names: list[str] = []
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv_module.DictReader(file)
            columns = rows.fieldnames or []
            if not {"path", "label"} <= set(columns):
                raise DatasetError(
                    f"{table}: expected the columns path and label in the first line, found {', '.join(columns)}."
                )
            twice = [name for name in ("path", "label", "split", "class_name") if columns.count(name) > 1]
            if twice:
                raise DatasetError(f"{table}: expected one column {twice[0]}, found {columns.count(twice[0])}.")
            for row in rows:
                if not row["path"] or not (row["label"] or "").strip():
                    raise DatasetError(f"{table}, line {rows.line_num}: expected a path and a label, found {row}.")
                if None in row:
                    raise DatasetError(
                        f"{table}, line {rows.line_num}: expected {len(columns)} cells, found"
                        f" {len(columns) + len(row[None])}. Put a cell with a comma into quotes."
                    )
                if "class_name" in columns and not (row["class_name"] or "").strip():
                    raise DatasetError(f"{table}, line {rows.line_num}: expected a name of the class, found {row}.")
                paths.append(folder / row["path"])
                labels.append(row["label"])
                own_split.append(row.get("split") or "")
                names.append(row.get("class_name") or "")
        if not paths:
            raise DatasetError(f"{table}: expected at least one row, found none.")
        numbers = as_integers(labels)
        super().__init__(
            paths,
            labels if numbers is None else numbers,
            folder,
            own_split if "split" in columns else None,
            names if "class_name" in columns else None,
        )
