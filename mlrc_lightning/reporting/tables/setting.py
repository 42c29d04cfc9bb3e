"""The table of one setting: every loss's reproductions beside the paper's cell, and what is still missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.names import EMBEDDINGS, METRICS, NOT_READ, SEARCH, SOURCES, UNTRAINED, setting_name
from mlrc_lightning.reference import rows as reference_rows
from mlrc_lightning.reporting.doubts import MARK, doubts_of_run
from mlrc_lightning.reporting.intervals import t_interval
from mlrc_lightning.reporting.tables.catalog import BASELINES, LOSSES, BaselineRow, LossRow
from mlrc_lightning.reporting.tables.cells import (
    Accuracy,
    Cell,
    Column,
    Missing,
    Page,
    Provenance,
    Row,
    Table,
    Text,
    difference,
    with_best,
)
from mlrc_lightning.results.choice import Choice, furthest
from mlrc_lightning.results.records import TrialRecord
from mlrc_lightning.results.runs import ABSENT, UNFINISHED, Run, RunSet, has_best_hyperparameters
from mlrc_lightning.results.searches import SearchResult
from mlrc_lightning.settings.composition import Composition
from mlrc_lightning.settings.types import FROZEN_PROXY


def setting_page(
    name: str,
    composition: Composition,
    source: str,
    outputs: Path,
    sets: Sequence[RunSet],
    searches: Sequence[SearchResult],
) -> Page:
    """Returns the table of a setting from all results that were found.

    Args:
        name: Of the table.
        composition: What the table is of, and what it asks for.
        source: One of `SOURCES`.
        outputs: Where the results lie, whose names are given relative to it.
        sets: All sets of runs under `outputs`.
        searches: All searches under `outputs`.

    Raises:
        ConfigError: The source is none.
    """
    if source not in SOURCES:
        raise ConfigError(f"--source {source}: expected one of {', '.join(SOURCES)}.")
    here = [run_set for run_set in sets if run_set.setting == composition.setting]
    own = [run_set for run_set in here if run_set.protocol == composition.protocol]
    choice = Choice(composition.protocol, composition.setting, source, sets, searches)
    content = _Content(composition, choice, outputs)
    rows = [content.baseline_row(row) for row in BASELINES]
    for loss in LOSSES:
        if loss.is_of_the_paper or loss.name in choice.searches or choice.of(loss.name) is not None:
            rows.append(content.loss_row(loss))
    paper = _paper_cells(composition.paper_setting)
    tables = tuple(_table(embedding, composition, rows, paper) for embedding in EMBEDDINGS)
    notes = [*_about(composition, source, paper), *content.notes, *_others(composition, source, own, here, searches)]
    folders = tuple(
        str(choice.searches[loss.name].folder.relative_to(outputs)) for loss in LOSSES if loss.name in choice.searches
    )
    arguments = {"protocol": composition.protocol, "setting": composition.setting, "source": source}
    return Page(name, f"{composition.setting} ({composition.protocol})", tables, tuple(notes), arguments, folders)


@dataclass(frozen=True)
class _RowContent:
    """A row before it is laid out: accuracies by embedding and metric, and how many runs they are of."""

    name: str
    title: str
    paper_name: str
    standing: str
    cells: Mapping[tuple[str, str], Cell]


class _Content:
    """Fills each row with the runs that count, and says what is lacking."""

    def __init__(self, composition: Composition, choice: Choice, outputs: Path) -> None:
        self.composition = composition
        self.choice = choice
        self.source = choice.source
        self.outputs = outputs
        self.notes: list[str] = []

    def loss_row(self, loss: LossRow) -> _RowContent:
        """Returns the row of a loss, of the one set of runs that counts."""
        chosen, search = self.choice.of(loss.name), self.choice.searches.get(loss.name)
        standing = self._standing(chosen, search)
        cells: dict[tuple[str, str], Cell] = {}
        runs = self._comparable(loss.title, chosen)
        for embedding in EMBEDDINGS:
            for metric in METRICS:
                key = f"{embedding}/{loss.name}/{metric}"
                cells[embedding, metric] = self._cell(key, f"test.{embedding}.{metric}", runs, standing)
        self._note_of_choice(loss, chosen, search)
        doubts = [f"run {run.number}, {doubt}" for run in runs if run.outcome for doubt in doubts_of_run(run.outcome)]
        if doubts:
            more = f" (and {len(doubts) - 1:,} more notes on its runs)" if len(doubts) > 1 else ""
            self.notes.append(f"{loss.title} {MARK}: {doubts[0]}{more}.")
        title = f"{loss.title} {MARK}" if doubts else loss.title
        return _RowContent(loss.name, title, loss.title, standing, cells)

    def baseline_row(self, row: BaselineRow) -> _RowContent:
        """Returns a row without training."""
        chosen = furthest(self.choice.baselines)
        standing = self._standing_of_runs(chosen) if chosen is not None else "no run yet"
        runs = self._comparable(row.title, chosen)
        is_random = any(run.outcome is not None and not run.outcome.settings["trunk"]["pretrained"] for run in runs)
        cells: dict[tuple[str, str], Cell] = {}
        for embedding, baseline in row.keys.items():
            for metric in METRICS:
                key = f"{embedding}/{row.name}/{metric}"
                cell = self._cell(key, f"test.baselines.{baseline}.{metric}", runs, standing)
                # what no seed decides, as the features of a pretrained trunk, has no spread to tell of
                cells[embedding, metric] = replace(cell, half_width=None) if _is_constant(cell) else cell
        title = row.title_of_random_trunk if is_random else row.title
        return _RowContent(row.name, title, row.title, standing, cells)

    def _comparable(self, title: str, chosen: RunSet | None) -> list[Run]:
        """Returns the finished runs on the table's own data. The others are named."""
        if chosen is None:
            return []
        runs = self.choice.comparable(chosen)
        others = len(chosen.complete) - len(runs)
        if others:
            self.notes.append(f"{title}: {_count(others, 'run')} on other data or in another precision left out.")
        return runs

    def _cell(self, key: str, field: str, runs: Sequence[Run], standing: str) -> Cell:
        values, used = [], []
        for run in runs:
            value = value_at(run.outcome, field)
            if value is not None:
                values.append(value)
                used.append(str(run.folder.relative_to(self.outputs)))
        if not values:
            if not runs:
                return Missing(standing)
            outcome = runs[0].outcome
            assert outcome is not None
            assert outcome.test is not None
            return Missing("; ".join(outcome.test.notes) or "not measured by these runs")
        interval = t_interval(values)
        return Accuracy(interval.mean, interval.half_width, interval.n, Provenance(key, tuple(used), field))

    def _standing(self, chosen: RunSet | None, search: SearchResult | None) -> str:
        """Returns how far a loss is: runs, or what has to come before them."""
        if chosen is not None and any(run.state != ABSENT for run in chosen.runs):
            return self._standing_of_runs(chosen)
        if self.source != SEARCH:
            return "no run yet"
        if search is None:
            return "no search yet"
        wanted = search.trials_wanted(self.composition.max_trials)
        failed = f", {search.num_failed} failed" if search.num_failed else ""
        if search.finished is None or search.max_trials < wanted:
            return f"search: {search.num_done} of {wanted} trials{failed}"
        if search.best is None:
            return f"search: no trial succeeded{failed}"
        return f"search finished{failed}; no run yet"

    def _standing_of_runs(self, chosen: RunSet) -> str:
        planned = max(self.composition.num_runs, len(chosen.runs))
        done = len(chosen.complete)
        parts = [str(done) if done == planned else f"{done} of {planned}"]
        if chosen.failed:
            parts.append(f"{len(chosen.failed)} failed")
        if chosen.damaged:
            parts.append(f"{len(chosen.damaged)} {NOT_READ}")
        parts += [
            f"run {run.number}: {run.num_finished_folds} of {self.composition.num_folds} folds"
            for run in chosen.runs
            if run.state == UNFINISHED
        ]
        return ", ".join(parts)

    def _note_of_choice(self, loss: LossRow, chosen: RunSet | None, search: SearchResult | None) -> None:
        if chosen is None:
            return
        others = [s for s in self.choice.sets if s.loss == loss.name and s is not chosen]
        if others:
            names = ", ".join(run_set.folder.name for run_set in others)
            self.notes.append(f"{loss.title}: runs of {chosen.folder.name}; there are others of {names}.")
        if self.source == SEARCH and search is not None and search.best is not None:
            if has_best_hyperparameters(chosen, search) is False:
                self.notes.append(
                    f"{loss.title}: the runs are not of trial {search.best.index}, which is the search's best now."
                )
            wanted = search.trials_wanted(self.composition.max_trials)
            if search.num_done < wanted:
                self.notes.append(f"{loss.title}: the best of {search.num_done} of {wanted} trials.")
        for run in chosen.failed:
            assert run.outcome is not None
            reason = (run.outcome.failure or "no reason given").splitlines()[0]
            self.notes.append(f"{loss.title}, run {run.number} failed: {reason}")
        for run in chosen.damaged:
            self.notes.append(f"{loss.title}, run {run.number} {NOT_READ}: {run.damage}")


def value_at(outcome: TrialRecord | None, field: str) -> float | None:
    """Returns an accuracy of a record by its dotted key, `test.separated.precision_at_1`.

    It is None where it has none.
    """
    assert outcome is not None
    _, *keys = field.split(".")
    assert outcome.test is not None
    node: Any = {
        "separated": outcome.test.separated,
        "concatenated": outcome.test.concatenated,
        "baselines": outcome.test.baselines,
    }
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return None if node is None else float(node)


def _is_constant(cell: Cell) -> TypeGuard[Accuracy]:
    return isinstance(cell, Accuracy) and cell.half_width == 0


def _paper_cells(setting: str | None) -> dict[tuple[str, str, str], Accuracy]:
    """Returns the paper's cells of a setting by embedding, title of the row, and metric."""
    cells = {}
    for row in reference_rows("paper_tables.csv"):
        name = setting_name(row["dataset"], int(row["batch_size"]))
        if name == setting:
            half_width = float(row["ci95"]) / 100 if row["ci95"] else None
            embedding = row["embedding"].partition("_")[0]
            cells[embedding, row["loss"], row["metric"]] = Accuracy(float(row["mean"]) / 100, half_width)
    return cells


def _table(
    embedding: str,
    composition: Composition,
    rows: Sequence[_RowContent],
    paper: Mapping[tuple[str, str, str], Accuracy],
) -> Table:
    size = composition.embedding_size * (composition.num_folds if embedding == "concatenated" else 1)
    columns: list[Column] = []
    for title in METRICS.values():
        columns.append(Column("", title, "ours"))
        if paper:
            columns += [Column("paper", title, "paper"), Column("Δ", title, "difference")]
    columns.append(Column("runs", "runs", "runs"))
    laid_out = []
    for row in rows:
        cells: list[Cell] = []
        for metric in METRICS:
            ours = row.cells[embedding, metric]
            cells.append(ours)
            if paper:
                theirs = paper.get((embedding, row.paper_name, metric))
                cells.append(Missing("not in the paper") if theirs is None else theirs)
                is_pair = isinstance(ours, Accuracy) and theirs is not None
                cells.append(difference(ours, theirs) if is_pair else Missing(_lacking(ours)))  # type: ignore[arg-type]
        laid_out.append(Row(row.name, row.title, (*cells, Text(row.standing))))
    title = f"{EMBEDDINGS[embedding]}, {size}"
    return Table(f"{embedding}_{size}", title, "%", tuple(columns), with_best(columns, laid_out))


def _lacking(cell: Cell) -> str:
    return cell.lacking if isinstance(cell, Missing) else "not in the paper"


def _about(composition: Composition, source: str, paper: Mapping[Any, Any]) -> list[str]:
    notes = [
        "Per cent on the test classes: mean over training runs ± half width of its 95 % t-interval; none for fewer than"
        f" two runs. Hyperparameters: {SOURCES[source]}. Best of a column in bold."
    ]
    if f"-{FROZEN_PROXY}-" in composition.protocol:
        notes.append("A proxy: the trunk is frozen, embedder and loss alone are trained. No result of the protocol.")
    if paper:
        notes.append("Δ: ours minus the paper's, in percentage points.")
    elif composition.paper_setting is not None:
        notes.append("The paper's table of this setting is not in any public source that was found.")
    return notes


def _others(
    composition: Composition,
    source: str,
    own: Sequence[RunSet],
    here: Sequence[RunSet],
    searches: Sequence[SearchResult],
) -> list[str]:
    """Names the results that are not in this table."""
    notes = []
    known = {row.name for row in LOSSES} | {UNTRAINED}
    others = [s for s in own if s.source != source and s.loss != UNTRAINED and s.complete]
    for name in sorted({run_set.source for run_set in others}):
        losses = {run_set.loss for run_set in others if run_set.source == name}
        notes.append(f"Not shown: runs of {SOURCES.get(name, name)}, {_losses(losses)}: --source {name}.")
    unknown = sorted({run_set.loss for run_set in own} - known)
    if unknown:
        notes.append(
            f"Not shown: {', '.join(unknown)}, which have no row in mlrc_lightning/reporting/tables/catalog.py."
        )
    found = {(run_set.protocol, run_set.loss) for run_set in here}
    found |= {(search.protocol, search.loss) for search in searches if search.setting == composition.setting}
    for protocol in sorted({protocol for protocol, _ in found} - {composition.protocol}):
        losses = {loss for of, loss in found if of == protocol} - {UNTRAINED}
        notes.append(f"Not shown: another protocol, {protocol}, {_losses(losses)}: --protocol {protocol}.")
    return notes


def _losses(names: set[str]) -> str:
    return "1 loss" if len(names) == 1 else f"{len(names)} losses"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def composition_of_results(
    setting: str, protocol: str, sets: Sequence[RunSet], searches: Sequence[SearchResult], otherwise: Composition
) -> Composition:
    """Returns what the results of a protocol say of themselves, for a table without a configuration of its own.

    Args:
        setting: Of the results.
        protocol: Of the results.
        sets: All sets of runs that were found.
        searches: All searches that were found.
        otherwise: Where the results say nothing, its values stand.
    """
    own_sets = [entry for entry in sets if (entry.protocol, entry.setting) == (protocol, setting)]
    own_searches = [entry for entry in searches if (entry.protocol, entry.setting) == (protocol, setting)]
    outcomes = (run.outcome for entry in own_sets for run in entry.runs)
    settings = next((outcome.settings for outcome in outcomes if outcome is not None), {})
    return Composition(
        setting,
        protocol,
        int(settings.get("embedder", {}).get("embedding_size", otherwise.embedding_size)),
        int(settings.get("split", {}).get("num_folds", otherwise.num_folds)),
        max((len(entry.runs) for entry in own_sets), default=otherwise.num_runs),
        max((entry.max_trials for entry in own_searches), default=otherwise.max_trials),
    )
