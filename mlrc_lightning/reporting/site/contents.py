"""What the report is of: protocols, settings, searches, runs and tables found among the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlrc_lightning.files import config_folder
from mlrc_lightning.names import NOT_READ, SEARCH, SOURCES, UNTRAINED
from mlrc_lightning.reference import PAPER_SETTINGS
from mlrc_lightning.reporting.tables.catalog import LOSSES, title_of
from mlrc_lightning.reporting.tables.cells import Page
from mlrc_lightning.reporting.tables.setting import composition_of_results, setting_page
from mlrc_lightning.results.damaged import damaged_results, single_trials
from mlrc_lightning.results.runs import UNFINISHED, Run, RunSet, run_sets
from mlrc_lightning.results.searches import SearchResult, searches
from mlrc_lightning.settings.composition import Composition, compose, overrides_of


@dataclass(frozen=True)
class SettingTable:
    """The table of one setting under one protocol, of runs from one source of hyperparameters.

    Attributes:
        path: Of its page, below the report.
        composition: What it is of, and what it asks for.
        source: search, paper or given.
        content: Before it is rendered.
    """

    path: str
    composition: Composition
    source: str
    content: Page

    @property
    def title(self) -> str:
        """Name of the setting, and of the source where it is not the search."""
        name = setting_title(self.composition.setting)
        return name if self.source == SEARCH else f"{name}, {SOURCES.get(self.source, self.source)}"


@dataclass(frozen=True)
class Grid:
    """Losses by settings of one protocol.

    Attributes:
        protocol: Name and hash.
        is_papers: Whether it is the paper's own, all of whose losses and settings are shown.
        compositions: Columns, one a setting.
        losses: Rows, by name.
        absent: The paper's losses that nothing is there of, where these are left out.
    """

    protocol: str
    is_papers: bool
    compositions: tuple[Composition, ...]
    losses: tuple[str, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """All that the report shows.

    Attributes:
        outputs: Where the results lie.
        sets: All sets of runs.
        searches: All searches.
        grids: One a protocol, the paper's first.
        tables: By grid and setting.
        singles: Folders of trials that are neither of a search nor of a set of runs, relative to `outputs`.
        protocol: The paper's.
        max_trials: Trials of a search that the paper's protocol asks for.
        damaged: Why a result cannot be read, by its folder relative to `outputs`.
    """

    outputs: Path
    sets: tuple[RunSet, ...]
    searches: tuple[SearchResult, ...]
    grids: tuple[Grid, ...]
    tables: tuple[SettingTable, ...]
    singles: tuple[str, ...]
    protocol: str
    max_trials: int
    damaged: dict[str, str]

    def relative(self, folder: Path) -> str:
        """Returns a folder's name below `outputs`."""
        return folder.relative_to(self.outputs).as_posix()


def contents(outputs: Path) -> Contents:
    """Finds everything below a folder of results."""
    sets, found = run_sets(outputs), searches(outputs)
    papers = [(name, compose(overrides_of(name), outputs)) for name in PAPER_SETTINGS]
    first = papers[0][1]
    everything: list[RunSet | SearchResult] = [*sets, *found]
    protocols = sorted({entry.protocol for entry in everything} - {first.protocol})
    known = {(entry.protocol, entry.setting): entry for _, entry in papers}
    if protocols:
        known = _experiments(outputs) | known
    grids = [_grid(protocol, first, known, sets, found) for protocol in (first.protocol, *protocols)]
    tables = []
    for grid in grids:
        for composition in grid.compositions:
            own = [s for s in sets if (s.protocol, s.setting) == (grid.protocol, composition.setting)]
            for source in sorted({s.source for s in own if s.loss != UNTRAINED} | {SEARCH}, key=source_order):
                content = setting_page(composition.setting, composition, source, outputs, sets, found)
                path = f"tables/{grid.protocol}/{composition.setting}-{source}.html"
                tables.append(SettingTable(path, composition, source, content))
    damaged = damaged_results(outputs, sets)
    singles = tuple(folder for folder in single_trials(outputs) if folder not in damaged)
    return Contents(
        outputs, tuple(sets), tuple(found), tuple(grids), tuple(tables), singles, first.protocol, first.max_trials,
        damaged,
    )  # fmt: skip


def setting_title(name: str) -> str:
    """Returns a setting's name as the paper writes it, or its own."""
    return PAPER_SETTINGS.get(name, name)


def loss_title(name: str) -> str:
    """Returns a loss's name as the tables have it. What needs no training is called so."""
    return "Without training" if name == UNTRAINED else title_of(name)


def search_status(search: SearchResult, max_trials: int) -> str:
    """Returns how far a search is: 12 of 50 trials, 1 failed."""
    wanted = search.trials_wanted(max(max_trials, search.max_trials) if search.finished is None else search.max_trials)
    is_done = search.finished is not None or search.num_done >= wanted
    done = f"{search.num_done} trials" if is_done else f"{search.num_done} of {wanted} trials"
    return ", ".join([done, *([f"{search.num_failed} failed"] if search.num_failed else [])])


def runs_status(run_set: RunSet, composed: Composition) -> str:
    """Returns how far a set of runs is: 3 of 10 runs, 1 failed, run 3: 2 of 4 folds."""
    planned = max(composed.num_runs, len(run_set.runs))
    done = len(run_set.complete)
    parts = [f"{done} runs" if done == planned else f"{done} of {planned} runs"]
    if run_set.failed:
        parts.append(f"{len(run_set.failed)} failed")
    if run_set.damaged:
        parts.append(f"{len(run_set.damaged)} {NOT_READ}")
    parts += [folds_status(run, composed.num_folds) for run in run_set.runs if run.state == UNFINISHED]
    return ", ".join(parts)


def folds_status(run: Run, num_folds: int) -> str:
    """Returns how far an unfinished run is."""
    return f"run {run.number}: {run.num_finished_folds} of {num_folds} folds"


def source_order(source: str) -> tuple[int, str]:
    """Returns what orders sources of hyperparameters: searched ones, the paper's, given ones, others by name."""
    order = list(SOURCES)
    return (order.index(source) if source in order else len(order), source)


def _grid(
    protocol: str,
    papers: Composition,
    known: dict[tuple[str, str], Composition],
    sets: Sequence[RunSet],
    found: Sequence[SearchResult],
) -> Grid:
    everything: list[RunSet | SearchResult] = [*sets, *found]
    own = [entry for entry in everything if entry.protocol == protocol]
    is_papers = protocol == papers.protocol
    names = dict.fromkeys([*(PAPER_SETTINGS if is_papers else ()), *sorted({entry.setting for entry in own})])
    compositions = []
    for name in names:
        composed = known.get((protocol, name))
        compositions.append(_composition(name, protocol, papers, composed, sets, found))
    there = {entry.loss for entry in own}
    of_the_paper = [row.name for row in LOSSES if row.is_of_the_paper]
    catalogued = [row.name for row in LOSSES if row.name in there or (is_papers and row.is_of_the_paper)]
    losses = [*catalogued, *sorted(there - set(catalogued) - {UNTRAINED}), *([UNTRAINED] if UNTRAINED in there else [])]
    absent = tuple(loss_title(name) for name in of_the_paper if name not in losses)
    return Grid(protocol, is_papers, tuple(compositions), tuple(losses), absent)


def _composition(
    name: str,
    protocol: str,
    papers: Composition,
    composed: Composition | None,
    sets: Sequence[RunSet],
    found: Sequence[SearchResult],
) -> Composition:
    """Returns what a table asks for: by an experiment's configuration, or as much as was begun."""
    if composed is not None:
        return composed
    return composition_of_results(name, protocol, sets, found, papers)


def _experiments(outputs: Path) -> dict[tuple[str, str], Composition]:
    """Returns the configured experiments outside the paper by protocol and setting.

    Of two, the larger budget counts.
    """
    found: dict[tuple[str, str], Composition] = {}
    for path in sorted((config_folder() / "experiment").glob("*.yaml")):
        composed = compose(overrides_of(path.stem), outputs)
        key = composed.protocol, composed.setting
        if key not in found or composed.num_runs > found[key].num_runs:
            found[key] = composed
    return found
