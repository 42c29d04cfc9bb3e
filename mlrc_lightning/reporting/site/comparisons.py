"""Tests every two losses of a table on the same queries, and stores the result beside the setting's runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import mlrc_lightning.reporting.statistics.comparison
from mlrc_lightning.files import read_plain_json, write_bytes, write_json
from mlrc_lightning.names import MAP_AT_R, METRICS, PAIRWISE_FILE, QUERIES_FILE
from mlrc_lightning.reporting.doubts import without_mark
from mlrc_lightning.reporting.pairs import Pair, as_csv, read_pairs
from mlrc_lightning.reporting.statistics import Embedding, Metric, pairwise, read_query_results
from mlrc_lightning.reporting.tables.catalog import BASELINES
from mlrc_lightning.reporting.tables.cells import Accuracy, Page
from mlrc_lightning.reporting.tables.manifest import Digests

DEFAULT_METRIC: Metric = MAP_AT_R
_INPUTS_FILE = ".pairwise_tests.json"
LEVEL = 0.05


@dataclass(frozen=True)
class Comparisons:
    """All pairs of a table.

    Attributes:
        metric: What is compared.
        embedding: separated or concatenated.
        losses: Compared ones, in the table's order.
        pairs: Each pair once.
        lacking: Losses that are left out, with the reason; what else keeps the tests from being made.
    """

    metric: str
    embedding: str
    losses: tuple[str, ...]
    pairs: tuple[Pair, ...]
    lacking: tuple[str, ...]

    @property
    def num_different(self) -> int:
        """Pairs that differ after Holm's correction."""
        return sum(pair.p_holm is not None and pair.p_holm <= LEVEL for pair in self.pairs)


def place(page: Page, outputs: Path) -> Path:
    """Returns where the tests of a setting's table are stored: in its folder, or below it by source."""
    folder = outputs / str(page.arguments["protocol"]) / str(page.arguments["setting"])
    source = page.arguments["source"]
    return folder / PAIRWISE_FILE if source == "search" else folder / source / PAIRWISE_FILE


def compare(
    page: Page, outputs: Path, metric: Metric = DEFAULT_METRIC, embedding: Embedding | None = None
) -> Comparisons:
    """Tests every two losses of a setting's table over exactly the runs that its cells are of.

    The default comparison is stored, with the digests of what it was computed from, and computed again only where one
    of them has changed.

    Args:
        page: The table.
        outputs: Where the results lie.
        metric: What is compared.
        embedding: separated or concatenated; None for concatenated where the table has it, else separated.

    Raises:
        RecordError: A file of per-query results is damaged.
    """
    is_default = metric == DEFAULT_METRIC and embedding is None
    if embedding is None:
        embedding = "concatenated" if _runs(page, "concatenated", metric) else "separated"
    runs = _runs(page, embedding, metric)
    lacking, files = [], {}
    for loss, folders in runs.items():
        paths = [outputs / folder / QUERIES_FILE for folder in folders]
        missing = [path.parent.name for path in paths if not path.exists()]
        if missing:
            lacking.append(f"{loss}: no {QUERIES_FILE} of run {', '.join(missing)}; test it again.")
        else:
            files[loss] = paths
    if len(files) < 2:
        lacking.append(f"Two losses with tested runs are needed for a comparison, found {len(files)}.")
        return Comparisons(metric, embedding, tuple(files), (), tuple(lacking))
    path = place(page, outputs)
    inputs = {"metric": metric, "embedding": embedding, "method": _method(), "losses": _digests(files, outputs)}
    memory = path.with_name(_INPUTS_FILE)
    if is_default and path.exists() and memory.exists() and read_plain_json(memory) == inputs:
        return Comparisons(metric, embedding, tuple(files), read_pairs(path), tuple(lacking))
    rows = pairwise([read_query_results(loss, paths, metric, embedding) for loss, paths in files.items()], level=LEVEL)
    pairs = tuple(
        Pair(
            c.loss_a, c.loss_b, c.effect, c.low, c.high, c.p_value, row.p_adjusted, c.effect_size, c.effect_size_low,
            c.effect_size_high, c.num_runs_a, c.num_runs_b, c.num_classes, c.num_queries,
        )
        for row in rows
        for c in (row.comparison,)
    )  # fmt: skip
    if is_default:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, as_csv(pairs, metric, embedding).encode())
        write_json(memory, inputs)
    return Comparisons(metric, embedding, tuple(files), pairs, tuple(lacking))


def render(found: Comparisons) -> str:
    """Returns all pairs as Markdown, in percentage points."""
    lines = [
        f"{METRICS[found.metric]}, {found.embedding}; a minus b in percentage points, 95 % interval; p after Holm's"
        f" correction over {len(found.pairs)} pairs; d: effect in standard deviations between classes",
        "",
        "| a | b | a − b | interval | p | p (Holm) | d | runs |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for pair in found.pairs:
        interval = "–" if pair.low is None or pair.high is None else f"{points(pair.low)} to {points(pair.high)}"
        d = "–" if pair.effect_size is None else signed(pair.effect_size)
        cells = [pair.loss_a, pair.loss_b, points(pair.effect), interval, p_text(pair.p), p_text(pair.p_holm), d,
                 f"{pair.runs_a}, {pair.runs_b}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [*(lines if found.pairs else []), *([""] if found.pairs and found.lacking else []), *found.lacking]
    )


def points(fraction: float) -> str:
    """Returns a difference in percentage points, with its sign."""
    return signed(100 * fraction)


def signed(value: float) -> str:
    """Returns a number with two digits and its sign, never a negative zero."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")


def p_text(p: float | None) -> str:
    """Returns a p-value to four digits. It is a dash where there is no test."""
    if p is None:
        return "–"
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def _runs(page: Page, embedding: str, metric: str) -> dict[str, tuple[str, ...]]:
    """Returns the folders of the runs behind each loss's cell, by the loss's title."""
    baselines = {row.name for row in BASELINES}
    wanted = f"test.{embedding}.{metric}"
    return {
        without_mark(row.title): cell.provenance.folders
        for table in page.tables
        for row in table.rows
        for cell in row.cells
        if isinstance(cell, Accuracy) and cell.provenance is not None and cell.provenance.field == wanted
        if row.name not in baselines
    }


def _digests(files: dict[str, list[Path]], outputs: Path) -> dict[str, dict[str, str]]:
    digests = Digests(outputs, outputs / "tables" / ".digests.json")
    return {loss: digests.of([str(path.relative_to(outputs)) for path in paths]) for loss, paths in files.items()}


def _method() -> str:
    """Returns a digest of the code that compares: other code may find other numbers."""
    source = Path(mlrc_lightning.reporting.statistics.comparison.__file__).read_bytes()
    return hashlib.sha256(source).hexdigest()
