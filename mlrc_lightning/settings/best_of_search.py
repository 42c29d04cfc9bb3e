"""The best hyperparameters of a search of our own, read from its folder as data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlrc_lightning.errors import ConfigError, RecordError
from mlrc_lightning.settings.paper import Optimum

_RESULTS = "optimization_results.yaml"
_LEDGER = "ledger.jsonl"


def search_optimum(folder: Path, allow_unfinished: bool, command: str) -> Optimum:
    """Returns the setting of the best trial of a search: the one with the highest validation MAP@R.

    Args:
        folder: Of the search.
        allow_unfinished: Take the best so far of a search that is still to go on.
        command: The command of the search, for messages.

    Returns:
        The values of the tuned parameters and of what all trials of the search share, by override path.

    Raises:
        ConfigError: There is no finished search; the message names the command to run.
        RecordError: The results are damaged.
    """
    to_do = f"Search first: {command}"
    if not (folder / _LEDGER).exists():
        raise ConfigError(f"hyperparameters=search: expected a finished search in {folder}, found none. {to_do}")
    steps = _steps(folder / _LEDGER)
    # a search that was prolonged has gone on after "finished", and its results are of before
    if steps and steps[-1][0] == "finished" and (folder / _RESULTS).exists():
        results = _read(folder / _RESULTS)
        best, num_completed = results["search"]["best_trial"], results["search"]["num_completed"]
        values, standing = dict(results["ax"]), "finished"
    elif allow_unfinished:
        best, num_completed, values = _best_so_far(steps)
        standing = "unfinished"
    else:
        raise ConfigError(
            f"hyperparameters=search: expected a finished search in {folder}, found an unfinished one. Finish it:"
            f" {command}\nor take its best setting so far: hyperparameters.allow_unfinished=true"
        )
    if best is None:
        raise ConfigError(f"hyperparameters=search: no trial of the search in {folder} has succeeded. {to_do}")
    return Optimum(f"{folder.name}: trial {best}, best of {num_completed}, {standing}", values)


def _best_so_far(steps: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[int | None, int, dict[str, Any]]:
    """Returns the best completed trial, how many there are, and its values with those that all trials share."""
    space: Mapping[str, Any] = {}
    parameters: dict[int, Mapping[str, Any]] = {}
    scores: dict[int, float] = {}
    for kind, payload in steps:
        if kind == "search":
            space = payload["signature"]["search space"]
        elif kind == "proposed":
            parameters[payload["trial"]] = payload["parameters"]
        elif kind == "completed":
            scores[payload["trial"]] = payload["values"]["mean_average_precision_at_r"]
    if not scores:
        return None, 0, {}
    best = max(scores, key=lambda trial: scores[trial])
    shared = {name: entry["values"][0] for name, entry in space.items() if _is_shared(entry)}
    return best, len(scores), {**shared, **parameters[best]}


def _is_shared(entry: Any) -> bool:
    return isinstance(entry, Mapping) and len(entry.get("values") or ()) == 1


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        search = content["search"]
        assert isinstance(content["ax"], dict)
        assert {"finished", "best_trial", "num_completed"} <= search.keys()
    except (yaml.YAMLError, OSError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise RecordError(
            f"{path}: expected the results of a search, found something else ({type(error).__name__}: {error})."
            " The command of the search writes it anew."
        ) from error
    assert isinstance(content, dict)
    return content


def _steps(ledger: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns type and content of each line; one that a crash cut off is left out, as the sweeper does."""
    steps = []
    for line in ledger.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            step = json.loads(line)
            steps.append((str(step["type"]), step["payload"]))
        except (ValueError, KeyError, TypeError):
            continue
    return steps
