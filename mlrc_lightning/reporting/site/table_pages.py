"""Pages of tables: accuracies with links to the runs behind them, pairwise tests, where the spread comes from."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlrc_lightning.names import METRICS, SOURCES
from mlrc_lightning.reporting.site.comparisons import Comparisons, p_text, points, signed
from mlrc_lightning.reporting.site.contents import Contents, SettingTable
from mlrc_lightning.reporting.site.layout import INDEX, document, link, table, text, url
from mlrc_lightning.reporting.site.places import provenance_page
from mlrc_lightning.reporting.site.spread import Spread
from mlrc_lightning.reporting.tables.cells import Page
from mlrc_lightning.reporting.tables.render import html_fragment

LIST = "tables/index.html"
_CONTROLS = (
    '<fieldset class="controls" hidden><legend class="unseen">Columns to show</legend>'
    '<span aria-hidden="true">Show:</span>'
    '<button type="button" value="ours" aria-pressed="true">Ours</button>'
    '<button type="button" value="paper" aria-pressed="true">Paper</button>'
    "{difference}</fieldset>"
)
_DIFFERENCE = '<button type="button" value="difference" aria-pressed="true">Difference</button>'


def list_document(contents: Contents) -> str:
    """Returns the list of all tables."""
    body = []
    for grid in contents.grids:
        heading = "The paper’s protocol" if grid.is_papers else f"Protocol {grid.protocol}"
        own = [entry for entry in contents.tables if entry.composition.protocol == grid.protocol]
        items = "".join(f"<li>{link(entry.path, LIST, entry.title)}</li>" for entry in own)
        body += [f"<h2>{text(heading)}</h2>", f"<ul>{items}</ul>"]
    others = (
        ("hyperparameters.html", "Hyperparameters beside the paper’s"),
        ("reported.html", "What other papers reported"),
        ("toy.html", "The paper’s Tables 1 to 3 and 7"),
    )
    items = "".join(f"<li>{link(path, LIST, name)}</li>" for path, name in others)
    return document(LIST, "Tables", [*body, "<h2>Others</h2>", f"<ul>{items}</ul>"])


def setting_document(
    entry: SettingTable, manifest: str, comparisons: Comparisons, heat_map: str, spreads: Sequence[Spread]
) -> str:
    """Returns the page of a setting's table.

    Args:
        entry: The table.
        manifest: Path of its manifest, below the report.
        comparisons: Of every two losses.
        heat_map: Of these, as HTML; empty where there are none.
        spreads: Of its losses.
    """
    body = [
        f'<p class="lede">Protocol <code>{text(entry.composition.protocol)}</code>,'
        f" {text(SOURCES.get(entry.source, entry.source))}. A number leads to the runs it is the mean of;"
        f" {link(manifest, entry.path, 'the manifest')} has everything behind each cell.</p>",
        *rendered(entry.content, entry.path, "Accuracy on the test classes"),
        "<h2>Every two losses compared</h2>",
        *_comparisons(comparisons, heat_map),
        "<h2>Where the spread comes from</h2>",
        *_spreads(spreads),
    ]
    return document(entry.path, f"Table: {entry.title}", body, [(INDEX, "Overview"), (LIST, "Tables")])


def plain_document(content: Page, path: str, heading: str) -> str:
    """Returns the page of a table that needs no more than itself."""
    return document(path, content.title, rendered(content, path, heading), [(INDEX, "Overview"), (LIST, "Tables")])


def rendered(content: Page, path: str, heading: str) -> list[str]:
    """Returns a table's own HTML for a page: sortable, its columns to be hidden, its cells linked."""
    fragment = html_fragment(content, lambda source: url(provenance_page(source), path))
    fragment = re.sub(r"<h2>.*?</h2>", f"<h2>{text(heading)}</h2>", fragment, count=1)
    titles = iter(entry.title for entry in content.tables)
    fragment = re.sub(
        r"<table ",
        lambda _: (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{text(next(titles))}"><table class="sortable" '
        ),
        fragment,
    ).replace("</table>", "</table></div>")
    roles = {column.role for entry in content.tables for column in entry.columns}
    if not {"ours", "paper"} <= roles:
        return [fragment]
    return [_CONTROLS.format(difference=_DIFFERENCE if "difference" in roles else ""), fragment]


def _comparisons(found: Comparisons, heat_map: str) -> list[str]:
    lines = []
    if found.pairs:
        untested = sum(pair.p is None for pair in found.pairs)
        few = f" {untested} pairs have too few runs or classes for a test." if untested else ""
        lines += [
            f"<p>{METRICS[found.metric]} of the {found.embedding} embedding, on the same queries: a bootstrap of whole"
            f" classes, with training runs as a second factor. {found.num_different} of {len(found.pairs)} pairs differ"
            f" at the 5 % level after Holm’s correction.{few}</p>",
            heat_map,
            _pairs(found),
        ]
    if found.lacking:
        lines.append(f"<ul>{''.join(f'<li>{text(reason)}</li>' for reason in found.lacking)}</ul>")
    return lines


def _pairs(found: Comparisons) -> str:
    rows = []
    for pair in found.pairs:
        interval = "–" if pair.low is None or pair.high is None else f"{points(pair.low)} to {points(pair.high)}"
        size = "–" if pair.effect_size is None else signed(pair.effect_size)
        if pair.effect_size_low is not None and pair.effect_size_high is not None:
            size += f" ({signed(pair.effect_size_low)} to {signed(pair.effect_size_high)})"
        rows.append(
            (
                (f"{text(pair.loss_a)} − {text(pair.loss_b)}", None),
                (points(pair.effect), pair.effect),
                (interval, pair.low),
                (text(p_text(pair.p)), pair.p),
                (text(p_text(pair.p_holm)), pair.p_holm),
                (size, pair.effect_size),
                (f"{pair.runs_a}, {pair.runs_b}", None),
            )
        )
    headings = ("Losses", "Difference (points)", "95 % interval", "p", "p after Holm", "Effect size d", "Runs")
    content = table("Differences of every two losses", headings, rows, numeric=(1, 2, 3, 4, 5))
    return f"<details><summary>All {len(rows)} pairs as a table</summary>{content}</details>"


def _spreads(spreads: Sequence[Spread]) -> list[str]:
    if not spreads:
        return ["<p>No run is tested yet.</p>"]
    rows = []
    for spread in spreads:
        cells = []
        for name in ("run", "fold", "residual", "search"):
            value = getattr(spread, name)
            mark = " *" if name in spread.truncated else ""
            cells.append(("–" if value is None else f"{100 * value:.2f}{mark}", value))
        rows.append(
            (
                (text(spread.loss), None),
                (str(spread.num_runs), float(spread.num_runs)),
                *cells,
                (text(spread.lacking or "–"), None),
            )
        )
    headings = ("Loss", "Runs", "Between runs", "Between folds", "Residual", "Between searches", "What is lacking")
    return [
        "<p>Standard deviations of MAP@R on the test classes, separated, in percentage points, from a two-way analysis"
        " of runs and folds. Between searches: where two searches of a loss have runs. * The estimate came out"
        " negative, and is given as 0.</p>",
        table("Standard deviations", headings, rows, numeric=(1, 2, 3, 4, 5)),
    ]
