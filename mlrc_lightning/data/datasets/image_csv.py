"""A table of image files and labels."""

from __future__ import annotations

import csv as csv_module
import io
import unicodedata
from pathlib import Path

from mlrc_lightning.data.images import ImageFiles
from mlrc_lightning.data.labels import as_integers, is_integer
from mlrc_lightning.errors import DatasetError
from mlrc_lightning.reading import shortened


class ImageCsv(ImageFiles):
    """Reads a CSV with the columns path and label. Other columns are left alone, but for two.

    `split` says what `split=predefined` does with an image, `class_name` what figures and lists call its class. Labels
    that are all written as integers are (`10`, not `010` or `10.0`) sort numerically, others are text and sort
    alphabetically.

    Args:
        csv: The table, UTF-8.
        root: Folder of relative paths; None: the folder of the table.

    Raises:
        DatasetError: The table is missing, is no UTF-8, has no such columns or has one twice, a row has an empty cell
            or one too many, a name that no file can have, or a label that is no name and no number from 0, there is
            no row, or a file is in two classes.
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
        rows = csv_module.DictReader(_lines(table))
        try:
            columns = rows.fieldnames or []
            if not {"path", "label"} <= set(columns):
                raise DatasetError(
                    f"{table}: expected the columns path and label in the first line, found {', '.join(columns)}."
                )
            twice = [name for name in ("path", "label", "split", "class_name") if columns.count(name) > 1]
            if twice:
                raise DatasetError(f"{table}: expected one column {twice[0]}, found {columns.count(twice[0])}.")
            for row in rows:
                problem = _problem(row["path"], row["label"])
                if problem is not None:
                    raise DatasetError(f"{table}, line {rows.line_num}: expected {problem}.")
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
        except csv_module.Error as error:
            raise DatasetError(f"{table}, line {rows.line_num + 1}: expected a row of a CSV, found: {error}.") from None
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


def _lines(table: Path) -> io.StringIO:
    content = table.read_bytes()
    try:
        return io.StringIO(content.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{table}, line {line}: expected UTF-8, found the byte {content[error.start]:#04x}."
            " Save the table as UTF-8."
        ) from None


def _problem(path: str | None, label: str | None) -> str | None:
    """Returns what was expected of a row and what was found. It is None where it is right."""
    if not path or not label or not label.strip():
        return f"a path and a label, found {shortened(path)} and {shortened(label)}"
    for name, text in (("path", path), ("label", label)):
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
            return f"a {name} of printable characters, found {shortened(text)}"
    if any(len(part.encode()) > _LONGEST for part in (*path.split("/"), label)):
        return f"names of at most {_LONGEST} bytes, found a longer one in {shortened(path)} or {shortened(label)}"
    if label.strip().lower() in ("nan", "inf", "-inf"):
        return f"a label, found {label}"
    if is_integer(label) and (label.startswith("-") or len(label) > _DIGITS):
        return f"a name, or a number from 0 with at most {_DIGITS} digits, as label, found {shortened(label)}"
    return None


_LONGEST = 255
"""Bytes of a file name on the file systems in use."""
_DIGITS = 18
