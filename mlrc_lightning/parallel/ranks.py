"""One trial on several processes of this machine: starts the ranks, watches them, and ends all when one fails.

They are started here and not by Lightning, whose DDP runs the whole command line again: under `-m` that would be the
whole search, once a rank.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlrc_lightning import errors
from mlrc_lightning.errors import MlrcError, RankError
from mlrc_lightning.files import write_json
from mlrc_lightning.parallel.signals import STOP_SIGNALS, STOPPED, StopSignals, TrialStopped, exit_text
from mlrc_lightning.results.records import read_json
from mlrc_lightning.settings.types import TrialSettings

log = logging.getLogger(__name__)

RANKS_FOLDER = ".ranks"
SETTINGS_FILE = "settings.json"
TEST_FILE = "test.json"
LOG_FILES = "MLRC_RANK_LOG_FILES"
STORE_DESCRIPTOR = "MLRC_RANK_STORE"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_WORKERS_SHARE = "MLRC_LOCAL_THREADS"  # set by our launchers, with the variables above
_POLL_SECONDS = 0.1
_SETTLE_SECONDS = 1.0  # for the failures of the others, which follow the first within milliseconds
_GRACE_SECONDS = 50.0  # for the last rank to end once the first has


@dataclass(frozen=True)
class RankFailure:
    """Why a rank failed, as it wrote it down itself.

    Attributes:
        kind: Name of the exception's class.
        message: Its text.
        traceback: Lines of it.
        moment: Seconds of the machine's monotonic clock.
    """

    kind: str
    message: str
    traceback: str
    moment: float


def failure_file(folder: Path, number: int) -> Path:
    """Returns where rank `number` of a trial in `folder` leaves its failure."""
    return folder / RANKS_FOLDER / f"failure_{number}.json"


def remove_ranks_folder(folder: Path) -> None:
    """Removes what the ranks of a trial left for the parent."""
    shutil.rmtree(folder / RANKS_FOLDER, ignore_errors=True)


def run_ranks(settings: TrialSettings, folder: Path, stop: StopSignals) -> Path:
    """Runs the folds and the test of a trial on its ranks, and returns when all of them have ended.

    A rank that raises or dies ends the others within seconds. When this process ends, however it does, so do they:
    each waits for the end of its standard input.

    Args:
        settings: Of the trial.
        folder: Of the trial; the ranks' own files are in `RANKS_FOLDER` there.
        stop: A signal that arrives there is passed on to rank 0, which tells the others at the next step.

    Returns:
        The file with the test's result; there is none where the test classes stay closed.

    Raises:
        MlrcError: What the first failing rank raised, with its number.
        RankError: It died, or raised anything else.
        TrialStopped: A signal stopped all ranks.
    """
    scratch = folder / RANKS_FOLDER
    remove_ranks_folder(folder)
    scratch.mkdir()
    write_json(scratch / SETTINGS_FILE, settings)
    num_ranks = settings.trainer.num_ranks
    log.info("Starting %d ranks", num_ranks)
    # the ranks meet at a socket that is open already: no other process can take its port
    with socket.create_server(("127.0.0.1", 0)) as meeting:
        ranks = _start(scratch / SETTINGS_FILE, folder, num_ranks, meeting)
    try:
        _wait(ranks, stop)
        codes = [rank.poll() for rank in ranks]
        if all(code == STOPPED for code in codes):
            raise TrialStopped(stop.received or signal.SIGTERM, "the ranks' last checkpoint")
        if any(codes) or None in codes:
            raise _first_failure(folder, codes)
    finally:
        _end(ranks)
    return scratch / TEST_FILE


def _start(settings_file: Path, folder: Path, num_ranks: int, meeting: socket.socket) -> list[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "mlrc_lightning.protocol.rank", str(settings_file), str(folder)]
    ranks: list[subprocess.Popen[bytes]] = []
    # a signal that comes while a rank imports torch waits until it has its handlers
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        for number in range(num_ranks):
            environment = rank_environment(os.environ, number, num_ranks, meeting.getsockname()[1])
            if number == 0:
                environment[STORE_DESCRIPTOR] = str(meeting.fileno())
            ranks.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    pass_fds=[meeting.fileno()] if number == 0 else [],
                    start_new_session=True,  # with the processes that read its images, to be ended as one
                )
            )
    except BaseException:
        _end(ranks)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return ranks


def rank_environment(given: Mapping[str, str], number: int, num_ranks: int, port: int) -> dict[str, str]:
    """Returns the environment of one rank: its place, this process's modules, and its share of the cores."""
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # a warning of each rank that this batch left no parameter without gradient
        **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
        **given,
        **_threads(given, num_ranks),
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(num_ranks),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        LOG_FILES: os.pathsep.join(handler.baseFilename for handler in handlers),
    }


def rank_threads(given: Mapping[str, str], num_ranks: int) -> int | None:
    """Returns the CPU threads of each rank that is started with such an environment.

    It is None where that is unclear.
    """
    wanted = {**given, **_threads(given, num_ranks)}["OMP_NUM_THREADS"].strip()
    return int(wanted) if wanted.isdecimal() else None


def _threads(given: Mapping[str, str], num_ranks: int) -> dict[str, str]:
    """Returns the variables that divide the cores between the ranks.

    It is None where the user said how many threads.
    """
    if _WORKERS_SHARE in given:
        share = str(max(1, int(given[_WORKERS_SHARE]) // num_ranks))
        # those that the launcher set have the worker's whole share; another value is the user's
        return {name: share for name in _THREAD_VARIABLES if given.get(name) == given[_WORKERS_SHARE]}
    if "OMP_NUM_THREADS" in given:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # a cluster that binds no job to its processors lets each see all of the node's
    cores = min(cores, int(given.get("SLURM_CPUS_PER_TASK", cores)))
    return {"OMP_NUM_THREADS": str(max(1, cores // num_ranks))}


def _wait(ranks: Sequence[subprocess.Popen[bytes]], stop: StopSignals) -> None:
    """Returns once all ranks ended, or one failed, or the first ended long before the last."""
    deadline = float("inf")
    is_told = False
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        ended = [rank.returncode for rank in ranks if rank.returncode is not None]
        if any(code not in (0, STOPPED) for code in ended):
            time.sleep(_SETTLE_SECONDS)
            return
        if ended and deadline == float("inf"):
            deadline = time.monotonic() + _GRACE_SECONDS
        if stop.received and not is_told:
            ranks[0].send_signal(stop.received)
            is_told = True
        time.sleep(_POLL_SECONDS)


def _first_failure(folder: Path, codes: Sequence[int | None]) -> MlrcError:
    """Returns the error of the rank that failed first. The others then fail because it is gone."""
    failures: dict[int, RankFailure] = {}
    for number in range(len(codes)):
        if failure_file(folder, number).exists():
            failures[number] = read_json(failure_file(folder, number), RankFailure)
    # a rank whose peer failed may be aborted for that by the library that they talk through
    consequences = (None, 0, STOPPED, -signal.SIGABRT) if failures else (None, 0, STOPPED)
    died = [number for number, code in enumerate(codes) if code not in consequences and number not in failures]
    if died:
        code = codes[died[0]]
        assert code is not None
        return RankError(f"Rank {died[0]} of {len(codes)} ended without a word: {exit_text(code)}.")
    if not failures:
        late = [number for number, code in enumerate(codes) if code is None]
        return RankError(f"Rank {late} of {len(codes)} did not end {_GRACE_SECONDS:.0f} s after the first one did.")
    number = min(failures, key=lambda n: failures[n].moment)
    failure = failures[number]
    log.error("Rank %d of %d failed:\n%s", number, len(codes), failure.traceback)
    known = errors.named(failure.kind)
    if known is not None:
        return known(f"{failure.message} (rank {number} of {len(codes)})")
    return RankError(f"Rank {number} of {len(codes)} raised {failure.kind}: {failure.message}")


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kills what is left of the ranks and of the processes that read their images."""
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, signal.SIGKILL)
        rank.wait()
        assert rank.stdin is not None
        rank.stdin.close()
