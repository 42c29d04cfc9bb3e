"""Tables that need no run: what other papers reported, and the paper's toy and reference tables."""

from __future__ import annotations

from collections.abc import Sequence

from mlrc_lightning.names import METRICS
from mlrc_lightning.reference import PAPER_DATASETS
from mlrc_lightning.reference import rows as reference_rows
from mlrc_lightning.reporting.tables.catalog import LOSSES
from mlrc_lightning.reporting.tables.cells import Accuracy, Cell, Column, Number, Page, Row, Table, Text, difference

NUM_RELEVANT = 10
"""R of the paper's Table 3."""
TOY_RETRIEVALS = {
    "only_1st_correct": ("Only the 1st result is correct", (1,)),
    "1st_and_10th_correct": ("Only the 1st and 10th results are correct", (1, 10)),
    "1st_and_2nd_correct": ("Only the 1st and 2nd results are correct", (1, 2)),
    "all_correct": ("All 10 results are correct", tuple(range(1, 11))),
}
"""Titles of the paper's Table 3, and the ranks at which its results are correct."""


def reported_page() -> Page:
    """Returns what other papers reported for the contrastive and the triplet loss (Precision@1, per cent)."""
    columns = (
        Column("venue", "venue", "text"),
        Column("year", "year", "paper"),
        *(Column(title, title, "paper") for title in PAPER_DATASETS.values()),
    )
    tables = []
    for loss in dict.fromkeys(row["loss"] for row in reference_rows("reported_precision_at_1.csv")):
        rows = [
            Row(
                f"{loss}/{number}",
                row["paper"],
                (Text(row["venue"]), Text(row["year"]), *(_as_printed(row[name]) for name in PAPER_DATASETS)),
            )
            for number, row in enumerate(reference_rows("reported_precision_at_1.csv"))
            if row["loss"] == loss
        ]
        tables.append(Table(loss, f"{loss.capitalize()} loss", "paper", columns, tuple(rows)))
    notes = ("Precision@1 in per cent, as printed on the paper's web page; N/A: not reported.",)
    return Page("reported", "What other papers reported", tuple(tables), notes, {})


def toy_page() -> Page:
    """Returns the paper's Tables 1 to 3 and 7: what can be computed without weights is, the rest is cited."""
    cited = reference_rows("tables_1_2_3.csv")
    tables = [
        _cited_table("1", "Table 1 (cited). Recall@1 of ImageNet models, PCA to 512", cited),
        _cited_table("2", "Table 2 (cited). NMI of randomly initialised networks", cited),
        _retrievals(cited),
        _losses(),
    ]
    notes = (
        "Tables 1 and 2 need weights and images, and are shown as the paper prints them.",
        "Table 3 is computed by our formulas, in per cent; a query has R = 10 relevant results.",
        "Table 7 is our catalogue of losses; the years are checked against the paper's.",
    )
    return Page("toy", "The paper's Tables 1 to 3 and 7", tuple(tables), notes, {})


def toy_accuracies(ranks: Sequence[int], num_relevant: int = NUM_RELEVANT) -> dict[str, float]:
    """Returns Precision@1, R-Precision and AP@R of one query, as fractions.

    Args:
        ranks: Where the relevant results are among the first R, from 1, ascending.
        num_relevant: R.

    Source: Musgrave et al. 2020, section 3.2, equations 3 and 4.
    """
    precisions = [(position + 1) / rank for position, rank in enumerate(ranks)]
    return {
        "precision_at_1": float(1 in ranks),
        "r_precision": len(ranks) / num_relevant,
        "mean_average_precision_at_r": sum(precisions) / num_relevant,
    }


def _as_printed(text: str) -> Cell:
    return Text(text) if text == "N/A" else Number(float(text), text=text)


def _cited_table(number: str, title: str, cited: Sequence[dict[str, str]]) -> Table:
    own = [row for row in cited if row["table"] == number]
    names = list(dict.fromkeys(row["column"] for row in own))
    values = {(row["row"], row["column"]): row["value"] for row in own}
    rows = tuple(
        Row(name, name, tuple(Number(float(values[name, column]), text=values[name, column]) for column in names))
        for name in dict.fromkeys(row["row"] for row in own)
    )
    columns = tuple(Column(PAPER_DATASETS[name], PAPER_DATASETS[name], "paper") for name in names)
    return Table(f"table_{number}", title, "network", columns, rows)


def _retrievals(cited: Sequence[dict[str, str]]) -> Table:
    printed = {(row["row"], row["column"]): row["value"] for row in cited if row["table"] == "3"}
    columns: list[Column] = []
    for title in METRICS.values():
        columns += [Column("", title, "ours"), Column("paper", title, "paper"), Column("Δ", title, "difference")]
    rows = []
    for name, (title, ranks) in TOY_RETRIEVALS.items():
        cells: list[Cell] = []
        for metric, value in toy_accuracies(ranks).items():
            paper = Accuracy(float(printed[name, metric]) / 100)
            cells += [Accuracy(value), paper, difference(Accuracy(value), paper)]
        rows.append(Row(name, title, tuple(cells)))
    return Table("table_3", "Table 3. Toy retrievals", "retrieval", tuple(columns), tuple(rows))


def _losses() -> Table:
    columns = (Column("year", "year", "ours"), Column("kind", "kind", "text"))
    kinds = {True: "classification", False: "embedding"}
    rows = tuple(
        Row(loss.name, loss.title, (Text(str(loss.year)), Text(kinds[loss.is_classification])))
        for loss in LOSSES
        if loss.is_of_the_paper
    )
    return Table("table_7", "Table 7. The losses", "loss", columns, rows)
