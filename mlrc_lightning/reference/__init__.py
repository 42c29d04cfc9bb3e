"""The paper's numbers as data: search spaces, optima, tables. Each file's source is in README.md beside it."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources

PAPER_DATASETS = {"cub200": "CUB200", "cars196": "Cars196", "sop": "SOP"}
"""Titles of the paper's three datasets."""
PAPER_SETTINGS = {**PAPER_DATASETS, "cub200_batch256": "CUB200, batch 256"}
"""Titles of the paper's four settings by their names in folders and files."""


@cache
def rows(file: str) -> tuple[dict[str, str], ...]:
    """Returns the rows of one of the CSV files, as text. Do not change them."""
    text = resources.files(__name__).joinpath(file).read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))
