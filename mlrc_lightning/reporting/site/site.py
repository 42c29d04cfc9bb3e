"""Builds the report: every page from stored results alone, the same bytes for the same results."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mlrc_lightning.errors import RecordError
from mlrc_lightning.files import as_json, config_folder, read_plain_json, write_bytes, write_json
from mlrc_lightning.names import NOT_READ, RECORD_FILE
from mlrc_lightning.reporting.figures import style
from mlrc_lightning.reporting.figures.save import color_variable, color_variables
from mlrc_lightning.reporting.site import figure_pages
from mlrc_lightning.reporting.site.comparisons import DEFAULT_METRIC, Comparisons, compare
from mlrc_lightning.reporting.site.contents import Contents, SettingTable, contents
from mlrc_lightning.reporting.site.index_page import index_page
from mlrc_lightning.reporting.site.layout import FOLDER, INDEX, SCRIPT, STYLE, document, text
from mlrc_lightning.reporting.site.places import run_page, search_page, set_page
from mlrc_lightning.reporting.site.run_pages import run_document, set_document
from mlrc_lightning.reporting.site.search_pages import search_document
from mlrc_lightning.reporting.site.spread import spreads
from mlrc_lightning.reporting.site.table_pages import LIST, list_document, plain_document, setting_document
from mlrc_lightning.reporting.tables.cited import reported_page, toy_page
from mlrc_lightning.reporting.tables.hyperparameters import hyperparameters_page, paper_values
from mlrc_lightning.reporting.tables.make import parameter_keys
from mlrc_lightning.reporting.tables.manifest import manifest
from mlrc_lightning.results.damaged import listed
from mlrc_lightning.results.records import TrialRecord, read_json

log = logging.getLogger(__name__)

MARKER = ".made_by_report.json"
"""In the folder of a report: names of all files that it made."""
_DRAWN = ".drawn"
_ASSETS = Path(__file__).parent / "assets"


def build(outputs: Path) -> tuple[Path, list[str]]:
    """Writes the report of all results so far.

    Args:
        outputs: Folder of results.

    Returns:
        Its first page, and a line for each result that could not be read, which that page lists too.

    Raises:
        RecordError: The folder of the report is not one, is a link, has links in it, or has no marker of a report.
    """
    folder = outputs / FOLDER
    made_before = _claim(folder)
    projections = figure_pages.Projections(folder / _DRAWN)
    written = set()
    found = contents(outputs)
    for name, content in _files(found, projections):
        path = folder / name
        _write(folder, path, content.encode())
        written.add(path)
    made = written | projections.used
    for path in made_before - made:
        if path.is_file() and not path.is_symlink() and _is_inside(folder, path):
            path.unlink()
            _remove_empty(folder, path.parent)
    _remember(folder, made)
    log.info("%d pages", sum(path.suffix == ".html" for path in written))
    return folder / INDEX, listed(found.damaged)


def _files(found: Contents, projections: figure_pages.Projections) -> Iterator[tuple[str, str]]:
    """Yields name and content of each file, below the report's folder."""
    outputs = found.outputs
    yield STYLE, _colors() + (_ASSETS / STYLE).read_text(encoding="utf-8")
    yield SCRIPT, (_ASSETS / SCRIPT).read_text(encoding="utf-8")
    yield LIST, list_document(found)
    keys = parameter_keys(config_folder())
    ours = hyperparameters_page(found.protocol, outputs, found.searches, keys, found.max_trials)
    yield "hyperparameters.html", plain_document(ours, "hyperparameters.html", "Ours beside the paper’s")
    yield "reported.html", plain_document(reported_page(), "reported.html", "Precision@1 by paper")
    yield "toy.html", plain_document(toy_page(), "toy.html", "Computed and cited")
    yield figure_pages.PAGE, figure_pages.figures_document(outputs, found.sets)
    for entry in found.tables:
        yield from _table(found, entry)
    theirs = paper_values()
    budgets = {(c.protocol, c.setting): c for grid in found.grids for c in grid.compositions}
    for search in found.searches:
        names = {key: name for name, key in keys.get(search.loss, {}).items()}
        wanted = budgets[search.protocol, search.setting].max_trials
        yield search_page(found.relative(search.folder)), search_document(found, search, names, theirs, wanted)
    for run_set in found.sets:
        composed = budgets[run_set.protocol, run_set.setting]
        yield set_page(found.relative(run_set.folder)), set_document(found, run_set, composed)
    runs = [
        path.parent.relative_to(outputs).as_posix()
        for run_set in found.sets
        for path in sorted(run_set.folder.glob(f"*/{RECORD_FILE}"))
    ]
    for run in [*runs, *found.singles]:
        try:
            record = read_json(outputs / run / RECORD_FILE, TrialRecord)
            yield run_page(run), run_document(found, run, record, projections.draw)
        except RecordError as error:
            found.damaged.setdefault(run, str(error))
            yield run_page(run), document(run_page(run), f"{run} {NOT_READ}", [f"<p>{text(str(error))}</p>"])
    yield INDEX, index_page(found)


def _table(found: Contents, entry: SettingTable) -> Iterator[tuple[str, str]]:
    content = json.dumps(as_json(manifest(entry.content, found.outputs, found.sets, found.searches, {})), indent=1)
    name = f"{entry.path.removesuffix('.html')}.manifest.json"
    yield name, content + "\n"
    try:
        comparisons = compare(entry.content, found.outputs)
    except RecordError as error:
        # a table says more than its tests: what keeps them from being made is said in their place
        comparisons = Comparisons(DEFAULT_METRIC, "concatenated", (), (), (str(error),))
    drawn = figure_pages.heat_map(comparisons, f"{entry.title}, {entry.composition.protocol}")
    own = spreads(entry.content, found.outputs, found.sets, found.searches)
    yield entry.path, setting_document(entry, name, comparisons, drawn, own)


def _colors() -> str:
    """Returns the colours of the pages and of the figures in them as CSS variables: light, dark, and by choice."""
    light, dark = color_variables()
    names = {"ink": style.INK, "muted": style.MUTED, "rule": style.RULE, "band": style.BAND, "surface": style.SURFACE,
             "blue": style.BLUE, "orange": style.ORANGE}  # fmt: skip
    aliases = " ".join(f"--{name}: var({color_variable(color)});" for name, color in names.items())
    # darker or lighter than in the figures: these are text, which needs a contrast of 4.5
    own_light = "--link: #0a58a3; --focus: #0a58a3; --good: #0b6b4f; --bad: #a63c00; --control: #767e87;"
    own_light += " --paper-line: #a86200;"
    own_dark = "--link: #7cc0f2; --focus: #7cc0f2; --good: #55cfa8; --bad: #ff9a66; --control: #8b949e;"
    own_dark += " --paper-line: #e9a820;"
    return (
        f":root {{ {light} {aliases} {own_light} color-scheme: light; }}\n"
        "@media (prefers-color-scheme: dark) { "
        f":root:not([data-theme=light]) {{ {dark} {own_dark} color-scheme: dark; }} }}\n"
        f":root[data-theme=dark] {{ {dark} {own_dark} color-scheme: dark; }}\n"
    )


def _claim(folder: Path) -> set[Path]:
    """Marks a folder as that of a report, and returns the files of the last one: no other is ever removed."""
    if folder.is_symlink() or (os.path.lexists(folder) and not folder.is_dir()):
        raise RecordError(f"{folder}: expected the folder of a report or nothing, found another file or a link.")
    marker = folder / MARKER
    if not os.path.lexists(marker):
        if folder.is_dir() and any(folder.iterdir()):
            raise RecordError(
                f"{folder}: expected the folder of a report, found one without its marker {MARKER}, and left it as it"
                " is. Move or rename it, or give other --outputs."
            )
        folder.mkdir(parents=True, exist_ok=True)
        _remember(folder, set())
    names = read_plain_json(marker)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecordError(f"{marker}: expected a list of files, found something else. Remove {folder}.")
    return {folder / name for name in names}


def _remember(folder: Path, made: set[Path]) -> None:
    write_json(folder / MARKER, sorted(path.relative_to(folder).as_posix() for path in made))


def _is_inside(folder: Path, path: Path) -> bool:
    return path.parent.resolve().is_relative_to(folder.resolve())


def _write(folder: Path, path: Path, content: bytes) -> None:
    """Writes a file of the report unless it is so already. A build that was cut off is simply repeated."""
    if not _is_inside(folder, path) or path.is_symlink():
        raise RecordError(f"{path}: expected a file of the report, found a link. Remove it.")
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)


def _remove_empty(folder: Path, parent: Path) -> None:
    while parent != folder and not any(parent.iterdir()):
        parent.rmdir()
        parent = parent.parent
