"""What of this project works on a GPU, and how fast, in at most eight minutes.

    python benchmarks/gpu_check.py                        on a machine with one NVIDIA GPU
    python benchmarks/gpu_check.py --device cpu --tiny    every part with small models, on a CPU

Each part is a process of its own with a time limit, so that one that hangs or crashes ends no other. The limits and
the imports add up to the whole: what a part leaves unused goes to those after it. After each part three files are
written anew: `gpu_check.json` (the form of `benchmarks/results/`), `gpu_check.md` (one table) and `gpu_check.log` (what
the parts printed). Goals that are not met are reported; only a part that failed or ran out of time makes the exit code
1.

Needs no Ax. docs/gpu_check.md says how to install it without a network.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench import circumstances
from render import table

from mlrc_lightning.files import write_bytes, write_json
from mlrc_lightning.results.environment import environment

MINUTES = 8.0
LIMITS = {
    "trial": 50,
    "synthetic": 45,
    "data_paths": 80,
    "losses": 50,
    "retrieval": 30,
    "crops": 15,
    "options": 35,
    "compiled": 60,
    "folds": 45,
    "resume": 25,
    "ddp": 25,
}
"""Seconds of each part of `gpu_parts.py`, in the order in which they run."""
TITLES = {
    "trial": "glyphs trial",
    "synthetic": "synthetic input",
    "data_paths": "data paths",
    "losses": "losses in 16 bits",
    "retrieval": "retrieval metrics",
    "crops": "augmentation=device",
    "options": "options",
    "compiled": "torch.compile",
    "folds": "folds at once",
    "resume": "stop and resume",
    "ddp": "DDP",
}
PROBE_SECONDS = 60
"""How long a process may take to say whether it can use the device."""
OK, FAILED, TIMED_OUT, SKIPPED = "ok", "failed", "timed out", "skipped"


@dataclass
class Outcome:
    """How a part ended.

    Attributes:
        part: Its name.
        status: ok, failed, timed out or skipped.
        reason: Why it is not ok.
        seconds: How long it took.
        limit_seconds: How long it might have taken.
        rows: What it had measured by then.
    """

    part: str
    status: str
    reason: str | None
    seconds: float
    limit_seconds: float
    rows: list[dict[str, Any]]


def run(name: str, process: BaseProcess, limit_seconds: float, rows: Path, log: Path) -> Outcome:
    """Runs one part, and ends what it started with it.

    Args:
        name: Name of the part.
        process: Leads a process group of its own, and writes a line of JSON for each row to `rows`.
        limit_seconds: The group is killed after so long.
        rows: A file that is not there yet.
        log: Takes what the part prints.
    """
    began = time.monotonic()
    start = log.stat().st_size
    try:
        process.start()
        process.join(limit_seconds)
        code = process.exitcode
    finally:
        if process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()  # one that does not lead its group yet
            process.join()
    seconds = time.monotonic() - began
    found = _rows(rows)
    skipped = [row["skipped"] for row in found if row.keys() == {"skipped"}]
    if code is None:
        status, reason = TIMED_OUT, f"its limit of {limit_seconds:.0f} s was over"
    elif code < 0:
        status, reason = FAILED, f"it was killed by {signal.Signals(-code).name}"
    elif code > 0:
        failures = [f"{row['of']}: {row['failed']}" for row in found if "failed" in row]
        status, reason = FAILED, failures[0] if failures else _last_line(log, start)
    elif skipped:
        status, reason = SKIPPED, skipped[0]
    else:
        status, reason = OK, None
    rest = [row for row in found if row.keys() != {"skipped"}]
    return Outcome(name, status, reason, round(seconds, 1), round(limit_seconds, 1), rest)


def run_in_child(module: str, part: str, arguments: tuple[str, bool, Path], rows: Path, log: Path) -> None:
    """Runs a part in the process that was started for it, and ends that process.

    Args:
        module: Has `run_part`.
        part: Name of the part.
        arguments: The device, whether it is tiny, the shared folder.
        rows: Takes the rows.
        log: Takes what is printed.
    """
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with log.open("ab", buffering=0) as file:
        file.write(f"\n== {part}\n".encode())
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.exit(importlib.import_module(module).run_part(part, *arguments, rows))


def _use(module: str, device: str) -> None:
    sys.exit(0 if importlib.import_module(module).uses(device) else 1)


def way_to_start(module: str, device: str) -> str | None:
    """Returns how parts are started: forked from this process, which has imported everything, or spawned.

    A fork can use a GPU as long as no import has asked the driver for anything. Where one has, each part is an
    interpreter of its own that imports everything again.

    Returns:
        fork, spawn, or None where no process can use the device.
    """
    for way in ("fork", "spawn"):
        process = multiprocessing.get_context(way).Process(target=_use, args=(module, device))
        process.start()
        process.join(PROBE_SECONDS)
        if process.exitcode == 0:
            return way
        process.kill()
        process.join()
    return None


def _rows(file: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of a file of rows. A part that was killed may have left a piece of one."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def _last_line(log: Path, start: int) -> str:
    lines = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def as_result(outcomes: list[Outcome], known: dict[str, Any]) -> dict[str, Any]:
    """Returns what is stored: rows in the form of `benchmarks/results/`, and how each part ended.

    Args:
        outcomes: The parts that have run.
        known: What the figures depend on, of `bench.circumstances`.
    """
    missing = [f"{outcome.part} {outcome.status} ({outcome.reason})" for outcome in outcomes if outcome.reason]
    return {
        "rows": [{"part": TITLES[outcome.part], **row} for outcome in outcomes for row in outcome.rows],
        "reason": "; ".join(missing) or None,
        **known,
        "parts": [{k: v for k, v in asdict(outcome).items() if k != "rows"} for outcome in outcomes],
    }


def as_markdown(outcomes: list[Outcome]) -> str:
    """Returns one table: a row for how each part ended, and one for each thing that it measured."""
    lines: list[dict[str, str]] = []
    for outcome in outcomes:
        ended = f"{outcome.status} in {outcome.seconds:.0f} of {outcome.limit_seconds:.0f} s"
        reason = f": {outcome.reason}" if outcome.reason else ""
        lines.append({"part": TITLES[outcome.part], "of": "", "figures": f"**{ended}**{reason}", "goals": ""})
        for row in outcome.rows:
            values = {name: value for name, value in row.items() if name not in ("of", "goals")}
            figures = [f"{name}{':' if isinstance(v, str) else ''} {_shown(v)}" for name, v in values.items()]
            goals = [f"{goal}: {'met' if is_met else '**not met**'}" for goal, is_met in row.get("goals", {}).items()]
            lines.append({"part": "", "of": row["of"], "figures": "; ".join(figures), "goals": "; ".join(goals)})
    return "\n".join(table(lines)) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return (
            f"{value:.1e}" if value != 0 and abs(value) < 1e-3 else f"{value:,.5g}" if value < 1e4 else f"{value:,.0f}"
        )
    return str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models and few steps: whether it runs, not how fast")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="in all; the parts' limits are shares of it")
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check"), help="folder of the three files")
    parser.add_argument("--module", default="gpu_parts", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the running part ends as well
    began, load = time.monotonic(), os.getloadavg()[0]
    # asked for a GPU, torch then asks NVML and not the driver, which would be of no use to a fork afterwards
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # idle threads otherwise spin, and take the cores from the processes beside them
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if arguments.tiny:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # cached while torch is not imported: with torch it asks CUDA, and then no fork of this process could use the GPU
    environment()
    importlib.import_module(arguments.module)
    way = way_to_start(arguments.module, arguments.device)
    if way is None:
        print(
            f"--device {arguments.device}: no process can use it. Without a GPU: --device cpu --tiny.", file=sys.stderr
        )
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / "gpu_check.log"
    log.write_bytes(b"")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for position, part in enumerate(arguments.parts):
            left = 60 * arguments.minutes - (time.monotonic() - began)
            scale = arguments.minutes / MINUTES
            unused = left - scale * sum(LIMITS[later] for later in arguments.parts[position + 1 :])
            limit = min(left, max(unused, scale * LIMITS[part]))
            rows = folder / f"{part}.jsonl"
            of_part = (arguments.device, arguments.tiny, folder)
            process = multiprocessing.get_context(way).Process(
                target=run_in_child, args=(arguments.module, part, of_part, rows, log), name=part
            )
            if limit > 0:
                outcomes.append(run(part, process, limit, rows, log))
            else:
                reason = f"the {arguments.minutes:g} minutes were over"
                outcomes.append(Outcome(part, SKIPPED, reason, 0.0, 0.0, []))
            known = circumstances([" ".join(sys.argv[1:])], [load, os.getloadavg()[0]], time.monotonic() - began)
            write_json(arguments.out / "gpu_check.json", as_result(outcomes, {**known, "start of a part": way}))
            write_bytes(arguments.out / "gpu_check.md", as_markdown(outcomes).encode())
            last = outcomes[-1]
            why = f": {last.reason}" if last.reason else ""
            print(f"{part}: {last.status} in {last.seconds:.0f} s{why}", flush=True)
    print("\n" + as_markdown(outcomes))
    print(f"{time.monotonic() - began:.0f} s; written: {arguments.out}/gpu_check.json, .md and .log")
    return int(any(outcome.status in (FAILED, TIMED_OUT) for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
