"""The best hyperparameters of a search of our own, read from its ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.results.searches import search_state
from mlrc_lightning.settings.paper import Optimum
from mlrc_sweeper import LEDGER_NAME, SearchState, Trial


def search_optimum(folder: Path, allow_unfinished: bool, command: str) -> Optimum:
    """Returns the setting of the best trial of a search: the one with the highest validation MAP@R.

    Args:
        folder: The folder of the search.
        allow_unfinished: Whether the best so far of an unfinished search is taken.
        command: The command of the search, for messages.

    Returns:
        The values of the tuned parameters and of what all trials of the search share, by override path.

    Raises:
        ConfigError: There is no finished search; the message names the command to run.
        RecordError: The ledger was changed or damaged after it was written.
    """
    to_do = f"Search first: {command}"
    ledger = folder / LEDGER_NAME
    if not ledger.exists():
        raise ConfigError(f"hyperparameters=search: expected a finished search in {folder}, found none. {to_do}")
    state = search_state(ledger)
    if state.finished is None and not allow_unfinished:
        raise ConfigError(
            f"hyperparameters=search: expected a finished search in {folder}, found an unfinished one. Finish it:"
            f" {command}\nor take its best setting so far: hyperparameters.allow_unfinished=true"
        )
    best = _best(state)
    if best is None:
        raise ConfigError(f"hyperparameters=search: no trial of the search in {folder} has succeeded. {to_do}")
    standing = "unfinished" if state.finished is None else "finished"
    source = f"{folder.name}: trial {best.index}, best of {state.num_completed}, {standing}"
    values: dict[str, Any] = {**state.shared, **best.parameters}
    return Optimum(source, values)


def _best(state: SearchState) -> Trial | None:
    completed = state.with_status("completed")
    return max(completed, key=lambda trial: trial.measurements[state.objective].mean) if completed else None
