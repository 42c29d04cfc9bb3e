"""Renders the stored figures of the benchmarks as one page: python benchmarks/render.py [FOLDER PAGE]."""

import ast
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

BENCHMARKS = {
    "metrics": "Retrieval metrics",
    "data": "Data path",
    "step": "Training step",
    "search": "Search",
    "startup": "Start-up",
    "end_to_end": "End to end",
    "folds": "Folds at once",
    "frozen_search": "A search with a frozen trunk",
    "gpu_check": "On a GPU",
}
"""In the order of the page; each is a script beside this file."""
ON_ANOTHER_MACHINE = ("gpu_check",)
"""Benchmarks that `bench.py` does not run; their figures are copied to `benchmarks/results/`."""
RESULTS = Path("benchmarks/results")
PAGE = Path("benchmarks/RESULTS.md")
HEADING = """# Benchmarks

Written by `make bench`, which runs every script of `benchmarks/` named here and takes the medians of its rounds;
`make bench BENCH="metrics data"` runs some of them, and leaves the others' figures as they are.

Ratios are of two sides that took turns in one run: they are what carries over to another machine. Seconds do not.

Not measured here: pytorch-metric-learning's default `k` at 60,000 samples (it asks for 29 GB). What a GPU does is
measured by `benchmarks/gpu_check.py` on a machine that has one (docs/gpu_check.md); its section is the last.
A peer that was not installed when a benchmark ran (OML, kornia, OpenCV) has no row there; `make bench` installs them.
"""


def render(results: Mapping[str, Mapping[str, Any]], about: Mapping[str, str]) -> str:
    """Returns the page as Markdown.

    Args:
        results: By benchmark, what `bench.py` stored: machine, date, load, seconds, arguments, rows; or a reason why
            there are none.
        about: By benchmark, what it measures.
    """
    lines = [HEADING, *_goals(results)]
    for name, title in BENCHMARKS.items():
        lines += [f"## {title}", "", f"`benchmarks/{name}.py`: {about.get(name, '')}", ""]
        if name not in results:
            lines += ["Not run yet.", ""]
            continue
        result = results[name]
        if result.get("reason"):
            lines += [f"Not run: {result['reason']}", ""]
        if not result["rows"]:
            continue
        lines += _tables(result["rows"])
        lines += [_circumstances(result), ""]
    return "\n".join(lines).rstrip() + "\n"


def _goals(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [
        {"benchmark": name, "of": _label(row), "goal": goal, "": "met" if is_met else "**not met**"}
        for name in BENCHMARKS
        for row in results.get(name, {}).get("rows", [])
        for goal, is_met in row.get("goals", {}).items()
    ]
    if not rows:
        return []
    num_met = sum(row[""] == "met" for row in rows)
    return ["## Goals", "", f"{num_met} of {len(rows)} are met.", "", *table(rows), ""]


def _label(row: Mapping[str, Any]) -> str:
    """What a row is of: its words, and the numbers before its first word's measurements."""
    parts = []
    for key, value in row.items():
        if isinstance(value, str):
            parts.append(value)
        elif isinstance(value, int) and not isinstance(value, bool) and key in _NUMBERS_THAT_NAME:
            parts.append(f"{value:,} {key}")
    return ", ".join(parts)


SHOWN = (
    "torch", "pytorch-lightning", "pytorch-metric-learning", "faiss-cpu", "timm", "ax-platform", "hydra-core", "pillow",
    "opencv-python-headless", "optuna",
)  # fmt: skip
"""Of the packages whose versions are stored, those that the page shows."""
_NUMBERS_THAT_NAME = ("samples", "threads", "workers", "trials", "models", "batch size")
"""Keys whose numbers say what was measured, not what came out."""


def _tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a table for each part, and without parts for each run of rows that have the same columns."""
    lines: list[str] = []
    for kind, group in groupby(rows, key=lambda row: row.get("part") or _columns(row)):
        if isinstance(kind, str):
            lines += [f"### {kind.capitalize()}", ""]
        own = [{key: row[key] for key in _columns(row)} for row in group]
        lines += [*table(own), ""]
    return lines


def _columns(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(key for key in row if key not in ("part", "goals"))


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns rows as a Markdown table: a column for each key, in order of first appearance.

    Numbers are flush right.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    is_number = {c: all(isinstance(row.get(c), int | float | None) for row in rows) for c in columns}
    head = [f"| {' | '.join(columns)} |", "|" + "|".join("--:" if is_number[c] else "---" for c in columns) + "|"]
    return [*head, *(f"| {' | '.join(_cell(row.get(c)) for c in columns)} |" for row in rows)]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return (
            f"{value:.1e}"
            if value != 0 and abs(value) < 1e-4
            else f"{value:,.4g}"
            if abs(value) < 1e4
            else f"{value:,.0f}"
        )
    return str(value).replace("|", "\\|")


def _circumstances(result: Mapping[str, Any]) -> str:
    machine, code = result["machine"], result["code"]
    packages = ", ".join(f"{name} {result['packages'][name]}" for name in SHOWN if name in result["packages"])
    changed = ", changed" if code["has_changes"] else ""
    load = " to ".join(f"{value:.1f}" for value in result["load"])
    arguments = "".join(f"`{words}`; " for words in result["arguments"])
    return (
        f"{result['date']}, {result['seconds'] / 60:.1f} minutes; {arguments}{machine['cores']} cores of"
        f" {machine['processor']}, {machine['memory, GB']} GB, {', '.join(machine['gpus']) or 'no GPU'}; load {load}"
        f" (a process at work adds 1); Python {result['python']}, {packages}; code"
        f" {str(code['commit'])[:10]}{changed}."
    )


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the stored results of each benchmark that has any."""
    return {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in BENCHMARKS
        if (folder / f"{name}.json").exists()
    }


def about(scripts: Path) -> dict[str, str]:
    """Returns the first sentence of each script's own description."""
    found = {}
    for name in BENCHMARKS:
        path = scripts / f"{name}.py"
        if path.exists():
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[name] = " ".join(text.partition("\n\n")[0].split())
    return found


def main() -> None:
    folder, page = map(Path, sys.argv[1:]) if len(sys.argv) > 1 else (RESULTS, PAGE)
    page.write_text(render(read(folder), about(Path(__file__).parent)), encoding="utf-8")


if __name__ == "__main__":
    main()
