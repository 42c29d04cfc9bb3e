"""What benchmarks share: a side in a process of its own, its memory, the photos, and how figures are shown and kept."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def in_a_process(script: str, arguments: list[str], num_threads: int) -> dict[str, Any]:
    """Runs a script, and returns the JSON that it prints last."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, script, *arguments]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


def resident_megabytes() -> float:
    """Returns the memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def shared_data() -> Path:
    """Returns the folder of photos and weights.

    Where there is none it says so and ends, which is no failure to `make bench`.
    """
    shared = Path(os.environ.get("MLRC_SHARED", ROOT.parent / "shared"))
    if not (shared / "data" / "grocery_128.tar").is_file():
        print(f"MLRC_SHARED: expected {shared / 'data' / 'grocery_128.tar'}, found none.")
        sys.exit(0)
    return shared


def print_row(figures: list[dict[str, Any]]) -> None:
    """Prints the last of some figures as a row of a Markdown table, the first with its head."""
    shown = {key: value for key, value in figures[-1].items() if key != "goals"}
    if len(figures) == 1:
        print("| " + " | ".join(shown) + " |\n|" + ":--|" * len(shown))
    print("| " + " | ".join(str(value) for value in shown.values()) + " |", flush=True)


def keep(figures: list[dict[str, Any]], file: Path | None) -> None:
    """Writes figures where a file was asked for."""
    if file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
