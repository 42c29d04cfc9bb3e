"""The overview: losses by settings, each with its search and how far it is."""

from __future__ import annotations

from collections.abc import Sequence

from mlrc_lightning.names import MAP_AT_R, NOT_READ, RECORD_FILE, SEARCH, SOURCES, UNTRAINED
from mlrc_lightning.reporting.site.charts import sparkline
from mlrc_lightning.reporting.site.contents import (
    Contents,
    Grid,
    loss_title,
    runs_status,
    search_status,
    setting_title,
    source_order,
)
from mlrc_lightning.reporting.site.layout import INDEX, document, link, table, text, url
from mlrc_lightning.reporting.site.places import run_page, search_page, set_page
from mlrc_lightning.reporting.statistics import paper_curve
from mlrc_lightning.reporting.tables.cells import percent
from mlrc_lightning.results.damaged import listed
from mlrc_lightning.results.records import TrialRecord, read_json
from mlrc_lightning.results.runs import RunSet
from mlrc_lightning.results.searches import SearchResult
from mlrc_lightning.settings.composition import Composition

LEGEND = (
    '<ul class="legend" aria-label="Signs in the plots">'
    '<li><svg class="key" viewBox="0 0 28 12" aria-hidden="true"><path class="dots large" d="M4 8h0M14 4h0M24 6h0"/>'
    "</svg>trial of a search, mean validation MAP@R over folds</li>"
    '<li><svg class="key" viewBox="0 0 28 12" aria-hidden="true"><path class="best-line" d="M1 9H14V3H27"/></svg>'
    "best so far</li>"
    '<li><svg class="key" viewBox="0 0 28 12" aria-hidden="true"><path class="paper-line" d="M1 9H14V4H27"/></svg>'
    "best so far in the paper’s own search</li>"
    '<li><svg class="key" viewBox="0 0 28 12" aria-hidden="true"><path class="crosses" d="M11 3l6 6m0 -6l-6 6"/></svg>'
    "failed trial</li></ul>"
)


def index_page(contents: Contents) -> str:
    """Returns the overview of everything that was found."""
    num_runs = sum(len(entry.complete) for entry in contents.sets)
    failed = sum(len(entry.failed) for entry in contents.sets)
    found = (
        f"{_count(len(contents.searches), 'search', 'searches')}, {_count(num_runs, 'tested run', 'tested runs')} of"
        f" {_count(len(contents.sets), 'setting', 'settings')}"
        + (f", {_count(failed, 'failed run', 'failed runs')}" if failed else "")
        + f", {_count(len(contents.singles), 'single trial', 'single trials')}"
        + (f"; {_count(len(contents.damaged), 'result', 'results')} {NOT_READ}." if contents.damaged else ".")
    )
    body = [f'<p class="lede">{found} A plot leads to its search, a number of runs to its runs.</p>', LEGEND]
    for grid in contents.grids:
        body += _grid(contents, grid)
    if contents.singles:
        body += _singles(contents)
    if contents.damaged:
        items = "".join(f"<li>{text(line)}</li>" for line in listed(contents.damaged))
        body += [f"<h2>{NOT_READ.capitalize()}</h2>", f"<ul>{items}</ul>"]
    return document(INDEX, "Losses by setting", body)


def describe(search: SearchResult | None, paper: Sequence[float], name: str, status: str) -> str:
    """Says in words what a search's plot shows."""
    best = search.best if search is not None else None
    words = [f"{name}: {status}"]
    if best is not None and best.mean is not None:
        words.append(f"best validation MAP@R {percent(best.mean)} in trial {best.index}")
    if paper:
        words.append(f"the paper’s own search reached {percent(paper[-1])} in {len(paper)} trials")
    return "; ".join(words)


def _grid(contents: Contents, grid: Grid) -> list[str]:
    heading = "The paper’s protocol" if grid.is_papers else f"Protocol {grid.protocol}"
    tables = [entry for entry in contents.tables if entry.composition.protocol == grid.protocol]
    links = ", ".join(link(entry.path, INDEX, entry.title) for entry in tables)
    named = f"<code>{text(grid.protocol)}</code>. " if grid.is_papers else ""
    lines = [f"<h2>{text(heading)}</h2>", f"<p>{named}Tables: {links}.</p>"]
    caption = f"Searches and runs, {heading[0].lower()}{heading[1:]}"
    head = "".join(f'<th scope="col">{text(setting_title(c.setting))}</th>' for c in grid.compositions)
    lines += [
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">',
        f'<table class="grid"><caption class="unseen">{text(caption)}</caption>',
        f'<thead><tr><th scope="col">Loss</th>{head}</tr></thead>',
        "<tbody>",
    ]
    searches: dict[tuple[str, str], list[SearchResult]] = {}
    for search in contents.searches:
        if search.protocol == grid.protocol:
            searches.setdefault((search.loss, search.setting), []).append(search)
    sets: dict[tuple[str, str], list[RunSet]] = {}
    for run_set in contents.sets:
        if run_set.protocol == grid.protocol:
            sets.setdefault((run_set.loss, run_set.setting), []).append(run_set)
    for loss in grid.losses:
        cells = [
            _cell(contents, loss, composition, searches.get((loss, composition.setting), []),
                  sets.get((loss, composition.setting), []))
            for composition in grid.compositions
        ]  # fmt: skip
        lines.append(f'<tr><th scope="row">{text(loss_title(loss))}</th>{"".join(cells)}</tr>')
    lines += ["</tbody></table></div>"]
    if grid.absent:
        lines.append(f"<p>Nothing yet of the paper’s other losses: {text(', '.join(grid.absent))}.</p>")
    return lines


def _cell(
    contents: Contents, loss: str, composition: Composition, searches: Sequence[SearchResult], sets: Sequence[RunSet]
) -> str:
    parts = []
    if loss != UNTRAINED:
        # that of the tables first
        ordered = sorted(searches, key=lambda search: (search.name != SEARCH, search.name))
        for search in ordered:
            parts += _search(contents, composition, search)
        if not ordered:
            parts += _no_search(loss, composition)
    for run_set in sorted(sets, key=lambda entry: source_order(entry.source)):
        status = runs_status(run_set, composition)
        is_done = len(run_set.complete) >= max(composition.num_runs, len(run_set.runs))
        mood = " bad" if run_set.failed else " good" if is_done else ""
        origin = "" if run_set.source == SEARCH or loss == UNTRAINED else _origin(run_set.source)
        page = set_page(contents.relative(run_set.folder))
        parts.append(f'<span class="status{mood}">{link(page, INDEX, status)}{text(origin)}</span>')
    if not sets:
        # before a search has ended, its runs are not lacking yet
        is_due = loss == UNTRAINED or any(search.finished is not None for search in searches)
        parts += ['<span class="status none">no run yet</span>'] if is_due else []
    return f"<td>{''.join(parts)}</td>"


def _search(contents: Contents, composition: Composition, search: SearchResult) -> list[str]:
    is_main = search.name == SEARCH
    status = search_status(search, composition.max_trials if is_main else 0)
    status = status if is_main else f"{search.name}: {status}"
    name, paper = _paper(search.loss, composition)
    plot = sparkline(describe(search, paper, name, status), search.trials, paper, composition.max_trials)
    best = search.best
    reached = "" if best is None or best.mean is None else f", best {percent(best.mean)}"
    mood = " bad" if search.num_failed and best is None else ""
    page = search_page(contents.relative(search.folder))
    return [
        f'<a class="plot" href="{url(page, INDEX)}">{plot}</a>',
        f'<span class="status{mood}">{text(status + reached)}</span>',
    ]


def _no_search(loss: str, composition: Composition) -> list[str]:
    status = "no search yet"
    name, paper = _paper(loss, composition)
    plot = sparkline(describe(None, paper, name, status), (), paper, composition.max_trials) if paper else ""
    return [plot, f'<span class="status none">{status}</span>']


def _paper(loss: str, composition: Composition) -> tuple[str, list[float]]:
    """Returns what a search is called, and the paper's best so far in its own."""
    curve = paper_curve(composition.setting, loss_title(loss)) if composition.paper_setting else None
    name = f"{loss_title(loss)}, {setting_title(composition.setting)}"
    return name, [] if curve is None else [float(value) for value in curve]


def _singles(contents: Contents) -> list[str]:
    rows = []
    for folder in contents.singles:
        record = read_json(contents.outputs / folder / RECORD_FILE, TrialRecord)
        val = None if record.val is None else record.val[MAP_AT_R]
        test = None if record.test is None else record.test.separated.get(MAP_AT_R)
        rows.append(
            (
                (link(run_page(folder), INDEX, loss_title(record.loss)), None),
                (text(setting_title(record.setting)), None),
                (f"<code>{text(record.protocol)}</code>", None),
                (text(record.status), None),
                ("–" if val is None else percent(val), val),
                ("–" if test is None else percent(test), test),
                (text(record.started_at), None),
            )
        )
    headings = ("Loss", "Setting", "Protocol", "Status", "Validation MAP@R", "Test MAP@R, separated", "Begun")
    return [
        "<h2>Single trials</h2>",
        "<p>Trained once, outside of any search and set of runs; in no table.</p>",
        table("Single trials", headings, rows, numeric=(4, 5)),
    ]


def _origin(source: str) -> str:
    return f" ({SOURCES.get(source, source)})"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
