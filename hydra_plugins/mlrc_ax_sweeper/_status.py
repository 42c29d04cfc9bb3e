"""Reads searches from their ledgers alone, also while they run: where they stand, trial by trial."""

import json
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from mlrc_sweeper.errors import SweepError
from mlrc_sweeper.ledger import LEDGER_NAME, read
from mlrc_sweeper.state import SearchState, Trial

from ._ledger import LOCK_NAME
from ._problem import problem_from_header

# of a header with valid checksum and fields that no sweeper writes together
_HOSTILE = (KeyError, TypeError, ValueError, IndexError, AttributeError, OmegaConfBaseException)


def find_searches(root: Path) -> Iterator[Path]:
    """Directories at or below `root` that hold a ledger."""
    for path in sorted(root.rglob(LEDGER_NAME)):
        yield path.parent


def describe(directory: Path) -> str:
    """A few lines on one search."""
    try:
        content = read(directory / LEDGER_NAME)
        problem = None if content.state.header is None else problem_from_header(content.state.header)
    except SweepError as damage:
        return f"{directory}\n  damaged: {damage}"
    except _HOSTILE as error:
        return f"{directory}\n  damaged: the header of {directory / LEDGER_NAME} describes no search: {error!r}"
    state = content.state
    if state.header is None or problem is None:
        return f"{directory}\n  just begun"
    lines = [
        str(directory),
        f"  {state.num_completed} of {state.max_trials} trials done, {state.num_failed} failed, "
        f"{_standing(state, directory)}",
    ]
    best = problem.best(state.trials)
    if best is not None and not problem.is_multi_objective:
        value = best.measurements[problem.objective].mean
        lines.append(f"  best {problem.objective}: {value:.6g}, trial {best.index}: {_short(best)}")
    lines += [f"  running: trial {trial.index}, {_short(trial)}{_ids(trial)}" for trial in state.with_status("open")]
    lines += [f"  failed: trial {t.index}, {_short(t)}: {t.reason}" for t in state.with_status("failed")]
    times = [record.payload["time"] for record in content.records if "time" in record.payload]
    done = state.num_completed
    if times and done and state.finished is None:
        begun = datetime.fromisoformat(state.header["created"])
        seconds = (datetime.fromisoformat(times[-1]) - begun).total_seconds()
        lines.append(f"  last record {times[-1]}; {seconds / done:.0f} s a trial since the beginning")
    return "\n".join(lines)


def _standing(state: SearchState, directory: Path) -> str:
    if state.finished is not None:
        return f"finished ({state.finished['cause']})"
    try:
        holder = json.loads((directory / LOCK_NAME).read_text())
        host, pid, since = holder["host"], int(holder["pid"]), holder["since"]
    except (OSError, ValueError, KeyError, TypeError):
        return "no sweeper at work; repeat its command to go on"
    if host == socket.gethostname() and not _is_alive(pid):
        return "its sweeper was killed; repeat its command to go on"
    return f"sweeper at work: host {host}, pid {pid}, since {since}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _ids(trial: Trial) -> str:
    return f", as job {', '.join(trial.ids.values())}" if trial.ids else ""


def _short(trial: Trial) -> str:
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in trial.parameters.items()
    )
