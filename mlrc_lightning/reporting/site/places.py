"""Where the page of each thing is, as paths below the report."""

from __future__ import annotations

from pathlib import PurePosixPath

from mlrc_lightning.reporting.tables.cells import Provenance


def search_page(folder: str) -> str:
    """Returns the page of a search by its folder below `outputs`."""
    return f"searches/{folder}.html"


def set_page(folder: str) -> str:
    """Returns the page of a set of runs by its folder below `outputs`."""
    return f"runs/{folder}.html"


def run_page(folder: str) -> str:
    """Returns the page of a run, or of a single trial, by its folder below `outputs`."""
    return f"runs/{folder}.html"


def provenance_page(provenance: Provenance) -> str:
    """Returns the page that shows what a table's cell was made from: its set of runs, or its search."""
    folder = PurePosixPath(provenance.folders[0])
    return set_page(str(folder.parent)) if folder.parent.parent.name == "reproduce" else search_page(str(folder))
