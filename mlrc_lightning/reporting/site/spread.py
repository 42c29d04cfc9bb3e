"""Where the spread of a table's scores comes from: runs, folds, and searches where there are several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlrc_lightning.errors import RecordError
from mlrc_lightning.names import MAP_AT_R
from mlrc_lightning.reporting.doubts import without_mark
from mlrc_lightning.reporting.statistics import search_variance, variance_components
from mlrc_lightning.reporting.tables.catalog import BASELINES
from mlrc_lightning.reporting.tables.cells import Accuracy, Page
from mlrc_lightning.reporting.tables.setting import value_at
from mlrc_lightning.results.choice import Choice
from mlrc_lightning.results.runs import RunSet
from mlrc_lightning.results.searches import SearchResult


@dataclass(frozen=True)
class Spread:
    """Standard deviations of one loss's MAP@R on the test classes, as fractions.

    Attributes:
        loss: As the tables call it.
        run: Between training runs; None, as the next two, where `lacking` says why.
        fold: Between folds.
        residual: What is left.
        search: Between searches; None for fewer than two searches with runs.
        num_runs: R.
        num_searches: Searches with runs.
        truncated: Components whose estimate came out negative, and is 0.
        lacking: Why there are no components; empty where there are.
    """

    loss: str
    run: float | None
    fold: float | None
    residual: float | None
    search: float | None
    num_runs: int
    num_searches: int
    truncated: tuple[str, ...]
    lacking: str


def spreads(page: Page, outputs: Path, sets: Sequence[RunSet], searches: Sequence[SearchResult]) -> list[Spread]:
    """Returns the spread of each loss of a setting's table that has runs, over the runs that its cells are of."""
    choice = Choice(page.arguments["protocol"], page.arguments["setting"], page.arguments["source"], sets, searches)
    runs = {str(run.folder.relative_to(outputs)): run for run_set in sets for run in run_set.runs}
    baselines = {row.name for row in BASELINES}
    found = []
    for table in page.tables:
        for row in table.rows:
            for cell in row.cells:
                is_wanted = isinstance(cell, Accuracy) and cell.provenance is not None and row.name not in baselines
                if not is_wanted or cell.provenance.field != f"test.separated.{MAP_AT_R}":  # type: ignore[union-attr]
                    continue
                folders = cell.provenance.folders  # type: ignore[union-attr]
                scores = []
                for folder in folders:
                    outcome = runs[folder].outcome
                    assert outcome is not None
                    assert outcome.test is not None
                    folds = outcome.test.separated_folds
                    scores.append([float(folds[fold][MAP_AT_R]) for fold in sorted(folds, key=int)])
                found.append(_spread(without_mark(row.title), scores, _scores_of_searches(choice, row.name)))
    return found


def _scores_of_searches(choice: Choice, loss: str) -> list[list[float]]:
    """Returns the scores of the runs of each search's best trial."""
    scores = [
        [value_at(run.outcome, f"test.separated.{MAP_AT_R}") for run in choice.comparable(run_set)]
        for run_set in choice.of_each_search(loss)
    ]
    return [[score for score in of_search if score is not None] for of_search in scores]


def _spread(loss: str, scores: Sequence[Sequence[float]], searches: Sequence[Sequence[float]]) -> Spread:
    between = None
    if len(searches) > 1 and sum(map(len, searches)) > len(searches) and all(searches):
        between = math.sqrt(search_variance(searches).between_searches)
    try:
        parts = variance_components(scores)
    except RecordError as error:
        return Spread(loss, None, None, None, between, len(scores), len(searches), (), str(error))
    return Spread(
        loss, math.sqrt(parts.run), math.sqrt(parts.fold), math.sqrt(parts.residual), between, parts.num_runs,
        len(searches), parts.truncated, "",
    )  # fmt: skip
