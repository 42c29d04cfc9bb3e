"""Our searches' best settings beside those that the paper published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlrc_lightning.names import SEARCH
from mlrc_lightning.reference import PAPER_SETTINGS
from mlrc_lightning.reference import rows as reference_rows
from mlrc_lightning.reporting.tables.catalog import LOSSES
from mlrc_lightning.reporting.tables.cells import Cell, Column, Missing, Number, Page, Provenance, Row, Table, Text
from mlrc_lightning.results.searches import SearchResult


def hyperparameters_page(
    protocol: str,
    outputs: Path,
    searches: Sequence[SearchResult],
    parameter_keys: Mapping[str, Mapping[str, str]],
    max_trials: int,
) -> Page:
    """Returns the optima of all losses on the paper's four settings.

    Args:
        protocol: Whose searches count.
        outputs: Where the results lie.
        searches: All searches under `outputs`.
        parameter_keys: Of each loss, the configuration key of each of the reference data's parameter names.
        max_trials: Trials wanted of a search.
    """
    paper = paper_values()
    own = {
        (search.loss, search.setting): search
        for search in searches
        if search.protocol == protocol and search.name == SEARCH
    }
    columns: list[Column] = []
    for title in PAPER_SETTINGS.values():
        columns += [Column("", title, "ours"), Column("paper", title, "paper")]
    rows = []
    for loss in LOSSES:
        for parameter in dict.fromkeys(name for title, _, name in paper if title == loss.title):
            cells: list[Cell] = []
            for setting in PAPER_SETTINGS:
                search = own.get((loss.name, setting))
                key = parameter_keys[loss.name][parameter]
                cells.append(_best(search, f"{setting}/{loss.name}/{parameter}", key, outputs, max_trials))
                cells.append(paper.get((loss.title, setting, parameter), Missing("not published")))
            rows.append(Row(f"{loss.name}/{parameter}", f"{loss.title}: {parameter}", tuple(cells)))
    table = Table("optima", "Best trial of each search", "loss: parameter", tuple(columns), tuple(rows))
    standing = [
        f"{loss.title}: {', '.join(found)}."
        for loss in LOSSES
        if (found := [text for setting in PAPER_SETTINGS if (text := _standing(own, loss.name, setting, max_trials))])
    ]
    notes = [
        "The paper's values have the six digits of its optimisation plots where these are known, otherwise those"
        " printed on its page.",
        *standing,
    ]
    folders = tuple(
        str(search.folder.relative_to(outputs)) for search in own.values() if search.setting in PAPER_SETTINGS
    )
    title = f"Hyperparameters ({protocol})"
    return Page("hyperparameters", title, (table,), tuple(notes), {"protocol": protocol}, folders)


def _best(search: SearchResult | None, key: str, parameter: str, outputs: Path, max_trials: int) -> Cell:
    if search is None:
        return Missing("no search yet")
    if search.best is None:
        return Missing(f"search: {search.num_done} of {search.trials_wanted(max_trials)} trials")
    value = search.best.parameters.get(parameter)
    if value is None:
        return Missing("not searched")
    return Number(float(value), Provenance(key, (str(search.folder.relative_to(outputs)),), parameter))


def _standing(own: Mapping[tuple[str, str], SearchResult], loss: str, setting: str, max_trials: int) -> str:
    """Returns what an unfinished search's best values rest on. It is empty for a finished one, or none."""
    search = own.get((loss, setting))
    if search is None or search.num_done >= search.trials_wanted(max_trials):
        return ""
    return f"{PAPER_SETTINGS[setting]} after {search.num_done} of {search.trials_wanted(max_trials)} trials"


def paper_values() -> dict[tuple[str, str, str], Cell]:
    """Returns the paper's values by loss, setting and parameter: full precision where known, as printed elsewhere."""
    exact = {
        (row["loss"], row["setting"], row["parameter"]): row["value"]
        for row in reference_rows("optimal_hyperparameters_full_precision.csv")
    }
    cells: dict[tuple[str, str, str], Cell] = {}
    for row in reference_rows("optimal_hyperparameters.csv"):
        key = (row["loss"], row["setting"], row["parameter"])
        text = exact.get(key, row["value"])
        cells[key] = Text(text) if text == "N/A" else Number(float(text), text=text)
    return cells
