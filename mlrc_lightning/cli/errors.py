"""How every entry point ends: a user's error is one message and exit code 2, anything else a traceback."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

from mlrc_lightning.files import config_folder
from mlrc_lightning.parallel.signals import TrialStopped, end_on_stop_signals
from mlrc_lightning.reading import suggestion

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Set to 1, it shows the traceback of a usage error as well."""
_ASKED = "MLRC_FULL_ERROR"
USAGE_ERROR = 2
_OF_THE_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG, errno.ENOTDIR,
)  # fmt: skip
"""What a full, read-only or broken disk answers, or a place that cannot be one."""


def run(command: Callable[[], Any]) -> Any:
    """Calls a Hydra main function, or any other, and turns its errors into messages and exit codes.

    Usage errors are those that say so (`is_usage_error`), and Hydra's and OmegaConf's about the configuration. They
    print one message and exit with 2; HYDRA_FULL_ERROR=1 shows their traceback as well. What a signal stopped exits
    with `parallel.signals.STOPPED`: a training between two steps, anything else at once.
    """
    # torch's threads spin while they wait; where two processes share the cores, both then take many times as long
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault(_ASKED, os.environ.get(FULL_ERROR, "0"))
    os.environ[FULL_ERROR] = "1"  # else Hydra prints and exits by itself, before its errors can be told apart
    taken: list[signal.Signals] = []
    try:
        taken = end_on_stop_signals()
        return _call(command)
    except TrialStopped as stopped:
        sys.stderr.write(f"\n{stopped}\n")
        raise
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. The same command goes on from here.\n")
        sys.exit(130)
    except BrokenPipeError:
        # whoever read the output, as `head` does, has what it wanted; flushing at the end would fail once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if wants_traceback():
            raise
        exit_if_usage_error(error)
        raise
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _call(command: Callable[[], Any]) -> Any:
    try:
        result = command()
        sys.stdout.flush()
        return result
    except Exception:
        end_on_stop_signals()  # the error that a signal has become on its way out is none
        raise


def wants_traceback() -> bool:
    """Returns whether the user set HYDRA_FULL_ERROR=1, as seen before `run` set it for Hydra."""
    return os.environ.get(_ASKED, "0") == "1"


def exit_if_usage_error(error: BaseException) -> None:
    """Prints the message of a usage error and exits with 2. Returns where it is none.

    A Hydra job calls it too: as an exception, its error would come out of Hydra with a second line of its own.
    """
    if is_usage_error(error):
        sys.stderr.write(f"{message(error)}\n")
        sys.exit(USAGE_ERROR)


def is_usage_error(error: BaseException) -> bool:
    """Returns whether a change of the command, the configuration or the data cures the error."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    declared = getattr(error, "is_usage_error", None)
    if declared is not None:
        return bool(declared)
    # some of Hydra's errors are OSErrors too
    if isinstance(error, HydraException | OmegaConfBaseException):
        return True
    return error.errno in _OF_THE_DISK if isinstance(error, OSError) else _is_of_composing(error)


def _is_of_composing(error: BaseException) -> bool:
    """Returns whether Hydra raised it itself while it read overrides, as a ValueError for `=1`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return isinstance(error, ValueError | TypeError) and module.startswith("hydra._internal.")


def message(error: BaseException) -> str:
    """Returns the error's message, with the nearest known name where Hydra could not find one."""
    from mlrc_lightning.settings.plain import error_of_a_resolver  # OmegaConf: a table does without it

    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        place = error.filename2 or error.filename or "a file"
        what = error.strerror or str(error)
        return (
            f"Cannot write to {place}: {what}. All earlier results are safe; make room, or choose another"
            " output_root, and repeat the command."
        )
    own = error_of_a_resolver(error)
    if own is not None:
        return str(own)
    cause = error.__cause__
    text = str(error).strip()
    if cause is not None and is_usage_error(cause) and str(cause) not in text:
        text = f"{text}\n{str(cause).strip()}"
    group = re.search(r"Could not find '([\w./-]+)/([^/']+)'", text)
    listed = re.search(r"Available options in '[^']+':\n((?:\t\S+\n)+)", text)
    options = [] if listed is None else listed[1].split()
    if group is not None and options:
        return f"{group[1]}={group[2]}: unknown.{suggestion(group[2], options)}"
    key = re.search(r"Could not override '([^']+)'", text) or re.search(r"full_key: (\S+)", text)
    if key is not None and ("not in struct" in text or "Could not override" in text):
        return f"{key[1]}: unknown key.{_nearest_key(key[1])}\nSee all keys: python train.py --cfg job"
    return text


def _nearest_key(key: str) -> str:
    """Suggests full keys that end like the misspelt one, else the nearest in spelling."""
    import difflib

    import yaml

    known: set[str] = set()

    def collect(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                collect(child, f"{path}.{name}" if path else str(name))
        known.add(path)

    for path in config_folder().rglob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        content.pop("defaults", None)
        group = path.parent.relative_to(config_folder()).as_posix()
        is_global = "@package _global_" in path.read_text(encoding="utf-8")
        collect(content, "" if group == "." or is_global else group.replace("/", "."))
    last = key.rsplit(".", 1)[-1]
    same_end = sorted(name for name in known if name.rsplit(".", 1)[-1] == last and name != key)
    near = same_end or difflib.get_close_matches(key, known - {""}, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(near[:3])}?" if near else ""
