"""A search on SLURM to which everything happens: 12 trials of 4 replicates, on a running cluster.

    export SLURM_CONF=$(.ci/slurm start)
    python benchmarks/slurm_search.py FOLDER

The driver is killed twice. One job is cancelled, one is killed, one reaches its time limit, one is requeued. At the end
the ledger must be complete, each job must have run once for each submission, what was cut off must have gone on in its
folder, and the best must be that of the same search in one process to which nothing happened. Prints what it found, as
JSON; exit status 1 where a claim does not hold.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlrc_sweeper import LEDGER_NAME, Record, read

ROOT = Path(__file__).parents[1]
APP = ROOT / "tests" / "launchers" / "app" / "search.py"
CANCELLED, KILLED, HANGING, REQUEUED = 3, 7, 10, 14
DRIVER_DIES_AFTER = (10, 26)  # results in the ledger
LIMIT_SECONDS = 1500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new one, on a disk that the nodes share")
    folder = parser.parse_args().folder.absolute()
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    begin = time.monotonic()
    reference = folder / "undisturbed"
    subprocess.run([*_command(reference), "seconds=0"], check=True, env=_environment(), stdout=subprocess.DEVNULL)
    found = _disturbed_search(folder / "search", begin + LIMIT_SECONDS)
    found["minutes"] = round((time.monotonic() - begin) / 60, 1)
    claims = _claims(folder / "search", reference, found)
    print(json.dumps({**found, "claims": claims}, indent=2))
    return 0 if all(claims.values()) else 1


def _command(directory: Path, *overrides: str) -> list[str]:
    return [sys.executable, str(APP), "-m", f"hydra.sweep.dir={directory}", *overrides]


def _environment() -> dict[str, str]:
    path = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def _disturbed_search(directory: Path, limit: float) -> dict[str, Any]:
    command = _command(
        directory,
        "hydra/launcher=mlrc_slurm",
        "hydra.sweeper.n_parallel=6",
        "hydra.launcher.timeout_min=1",
        "hydra.launcher.signal_delay_s=10",
        "hydra.launcher.poll_seconds=2",
        "hydra.launcher.settle_seconds=5",
        f"slow=[{CANCELLED},{KILLED},{REQUEUED}]",
        f"hang=[{HANGING}]",
    )
    disturbances: dict[int, Callable[[int, str], None]] = {
        CANCELLED: lambda number, job_id: _call("scancel", job_id),
        KILLED: lambda number, job_id: _kill_step(directory, number),
        REQUEUED: lambda number, job_id: _call("scontrol", "requeue", job_id),
    }
    kills = list(DRIVER_DIES_AFTER)
    in_flight_at_kill = []
    log = (directory.parent / "driver.log").open("w")
    driver = _start(command, log)
    while True:
        if time.monotonic() > limit:
            driver.kill()
            raise SystemExit("the search did not end in time")
        if kills and len(_payloads(directory, "result")) >= kills[0]:
            kills.pop(0)
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            in_flight_at_kill.append(len(_open_jobs(directory)))
            time.sleep(6)  # some jobs end while nobody waits for them
            driver = _start(command, log)
        for number in list(disturbances):
            # well under way
            if _num_lines(directory / str(number) / "steps.txt") >= 2:
                disturbances.pop(number)(number, (directory / str(number) / "runs.txt").read_text().split()[0])
        if driver.poll() is not None:
            break
        time.sleep(0.3)
    assert not disturbances, f"not reached: {disturbances}"
    assert not kills, "the driver was done before it could be killed"
    return {"driver_status": driver.returncode, "drivers_killed": 2, "jobs_in_flight_at_kill": in_flight_at_kill}


def _start(command: list[str], log: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(command, env=_environment(), stdout=log, stderr=log, text=True)


def _call(*arguments: str) -> None:
    subprocess.run(arguments, check=True)


def _kill_step(directory: Path, number: int) -> None:
    """SIGKILL to the job's python, as the kernel does where memory runs out."""
    attempt = json.loads((directory / ".slurm" / str(number) / "job.json").read_text())["token"]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "submitit.core._submit" in words and "srun" not in Path(words[0]).name and words[-2].endswith(attempt):
            os.kill(int(path.parent.name), signal.SIGKILL)
            return
    raise SystemExit(f"job {number} has no process")


def _records(directory: Path) -> list[Record]:
    path = directory / LEDGER_NAME
    return read(path).records if path.exists() else []


def _payloads(directory: Path, type_: str) -> list[dict[str, Any]]:
    return [record.payload for record in _records(directory) if record.type == type_]


def _open_jobs(directory: Path) -> set[int]:
    jobs: set[int] = set()
    for record in _records(directory):
        if record.type == "started":
            jobs.add(record.payload["job"])
        elif record.type in ("result", "job_failed"):
            jobs.discard(record.payload["job"])
    return jobs


def _num_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def _claims(directory: Path, reference: Path, found: dict[str, Any]) -> dict[str, bool]:
    numbers = {p["job"] for p in _payloads(directory, "started")}
    # a job that was cut off is tried again under its number; a resumed one is the same attempt
    attempts = Counter(job for job, _ in {(p["job"], p["attempt"]) for p in _payloads(directory, "started")})
    ended = Counter(p["job"] for type_ in ("result", "job_failed") for p in _payloads(directory, type_))
    failed = {p["job"]: p for p in _payloads(directory, "job_failed")}
    results = Counter((p["trial"], p["replicate"]) for p in _payloads(directory, "result"))
    ids: dict[int, list[str]] = {number: [] for number in numbers}
    for p in _payloads(directory, "submitted"):
        ids[p["job"]].append(p["id"])
    runs = {number: (directory / str(number) / "runs.txt").read_text().split() for number in numbers}
    values, expected = ({p["trial"]: p["values"] for p in _payloads(d, "completed")} for d in (directory, reference))
    best, expected_best = (_payloads(d, "finished")[-1]["best"] for d in (directory, reference))
    order = [p["trial"] for p in _payloads(directory, "completed")]
    # of one that a killed driver had only prepared, nothing bears a job id
    submissions = list((directory / ".slurm").glob("*/*/*_submitted.pkl"))
    found.update(
        trials=len(values),
        results=sum(results.values()),
        jobs=len(numbers),
        slurm_jobs=len(submissions),
        failed={number: p["reason"] for number, p in sorted(failed.items())},
        states={number: p.get("state") for number, p in sorted(failed.items())},
        resumed=sum(p["resumed"] for p in _payloads(directory, "started")),
        best={"trial": best, "value": values[best]["objective"]},
        order_of_completion=order,
        runs={number: len(runs[number]) for number in (CANCELLED, HANGING, REQUEUED)},
    )
    steps = {n: (directory / str(n) / "steps.txt").read_text().split() for n in (CANCELLED, REQUEUED)}
    return {
        "the search ended in order": found["driver_status"] == 0,
        "every trial has every replicate once": results == {(t, r): 1 for t in range(12) for r in range(4)},
        "every attempt has one end in the ledger": ended == attempts,
        "the cancelled job and the one at its time limit were tried again under their numbers": attempts
        == {n: 2 if n in (CANCELLED, HANGING) else 1 for n in numbers},
        "every attempt was submitted once, its id in the ledger": len(submissions) == attempts.total()
        and {number: len(set(of_job)) for number, of_job in ids.items()} == attempts,
        "every submission ran once, the requeued one twice": all(
            lines == (2 * ids[number] if number == REQUEUED else ids[number]) for number, lines in runs.items()
        ),
        "the requeued and the cancelled job went on from their checkpoints": all(
            [int(step) for step in of_job] == list(range(40)) for of_job in steps.values()
        ),
        "the failures are these three": set(failed) == {CANCELLED, KILLED, HANGING},
        "each failure has its state": [failed[n].get("state") for n in (CANCELLED, KILLED, HANGING)]
        == ["CANCELLED", "FAILED", "TIMEOUT"],
        "the trials and the best are those of an undisturbed search": values == expected and best == expected_best,
    }


if __name__ == "__main__":
    sys.exit(main())
