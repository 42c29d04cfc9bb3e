"""python -m mlrc_lightning figure: draws stored results into files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mlrc_lightning.errors import RecordError
from mlrc_lightning.names import NOT_READ
from mlrc_lightning.reporting.figures import NAMES
from mlrc_lightning.reporting.figures.collect import FOLDER, TOY_FILE, Lacking, collect
from mlrc_lightning.reporting.figures.save import FORMATS, save
from mlrc_lightning.results.damaged import damaged_results, listed
from mlrc_lightning.results.runs import run_sets

log = logging.getLogger(__name__)


def draw(names: Sequence[str], outputs: Path, file_format: str, damaged: list[str] | None = None) -> list[Path]:
    """Draws figures into `outputs/figures/`. It tells what is lacking as it goes.

    Args:
        names: Of `figures.NAMES`, or all.
        outputs: Folder of results.
        file_format: png, svg, html or all.
        damaged: Gets a line for each result that could not be read.

    Returns:
        The files.

    Raises:
        RecordError: Nothing could be drawn; the message says what is lacking.
    """
    chosen = list(NAMES) if "all" in names else list(dict.fromkeys(names))
    formats = FORMATS if file_format == "all" else (file_format,)
    if "figure_1" in chosen and not (outputs / TOY_FILE).exists():
        from mlrc_lightning.reporting.figures.toy_scores import store_toy

        store_toy(outputs / TOY_FILE)
    files: list[Path] = []
    lacking: list[str] = []
    damaged = [] if damaged is None else damaged
    sets = run_sets(outputs)
    for name in chosen:
        for found in collect(name, outputs, sets):
            if isinstance(found, Lacking) and found.is_damaged:
                damaged.append(f"{found.text} ({NOT_READ})")
            elif isinstance(found, Lacking):
                lacking.append(found.text)
            else:
                path = outputs / FOLDER / found.path
                files += save(found.figure, path, found.title, found.description, formats)
    damaged += listed(damaged_results(outputs, sets))
    if not files:
        raise RecordError("\n".join([*lacking, *damaged]))
    for text in lacking:
        log.warning(text)
    return files
