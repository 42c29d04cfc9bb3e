"""The frame of every page: head, navigation, heading, and how pages name each other."""

from __future__ import annotations

import html
import posixpath
from collections.abc import Iterable, Sequence
from urllib.parse import quote

FOLDER = "report"
"""Below `outputs`; nothing in it is read as a result, and what no page of a build is, the next build removes."""
STYLE, SCRIPT = "report.css", "report.js"
INDEX = "index.html"
NAVIGATION = (
    (INDEX, "Overview"),
    ("tables/index.html", "Tables"),
    ("hyperparameters.html", "Hyperparameters"),
    ("reported.html", "Reported results"),
    ("figures.html", "Figures"),
)


def text(words: object) -> str:
    """Returns words as HTML."""
    return html.escape(str(words), quote=True)


def url(target: str, page: str) -> str:
    """Returns the address of a file of the report as seen from a page of it. Both are paths below the report.

    Args:
        target: Whatever its folders are called.
        page: Where the link stands.
    """
    return quote(posixpath.relpath(target, posixpath.dirname(page) or "."))


def link(target: str, page: str, words: object) -> str:
    """Returns a link to a file of the report. See `url`."""
    return f'<a href="{url(target, page)}">{text(words)}</a>'


def document(page: str, title: str, body: Iterable[str], trail: Sequence[tuple[str, str]] = ()) -> str:
    """Returns a whole page.

    Args:
        page: Its path below the report.
        title: Its only first heading.
        body: HTML below the heading, whose own headings begin at the second level.
        trail: Path and name of the pages above it, the overview left out.
    """
    entries = "".join(
        f'<li><a href="{url(path, page)}"{" aria-current=page" if path == page else ""}>{text(name)}</a></li>'
        for path, name in NAVIGATION
    )
    crumbs = ""
    if trail:
        items = "".join(f"<li>{link(path, page, name)}</li>" for path, name in trail)
        crumbs = f'<nav class="trail" aria-label="Where this page is"><ol>{items}</ol></nav>\n'
    content = "\n".join(body)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)} · metric learning benchmark</title>
<link rel="stylesheet" href="{url(STYLE, page)}">
<script src="{url(SCRIPT, page)}"></script>
</head>
<body>
<a class="skip" href="#main">Skip to content</a>
<header>
<nav aria-label="Report"><ul>{entries}</ul></nav>
<button type="button" id="theme" aria-pressed="false" hidden>Dark</button>
</header>
<main id="main" tabindex="-1">
{crumbs}<h1>{text(title)}</h1>
{content}
</main>
<footer><p>Made from the stored results alone: <code>python -m mlrc_lightning report</code></p></footer>
</body>
</html>
"""


def table(
    caption: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[tuple[str, float | None]]],
    *,
    name: str = "",
    sortable: bool = True,
    numeric: Sequence[int] = (),
) -> str:
    """Returns a table whose first column heads its rows.

    Args:
        caption: Its heading.
        headings: Of the columns.
        rows: Cells as HTML, each with the number that it is sorted by, or None to sort it by its words.
        name: Its id.
        sortable: Whether the reader may sort it.
        numeric: Positions of columns of numbers, which stand at the right.
    """
    names = "data" + (" sortable" if sortable else "")
    lines = [f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">']
    lines.append(f'<table class="{names}"{f" id={chr(34)}{text(name)}{chr(34)}" if name else ""}>')
    head = "".join(
        f'<th scope="col"{" class=number" if position in numeric else ""}>{text(heading)}</th>'
        for position, heading in enumerate(headings)
    )
    lines += [f"<caption>{text(caption)}</caption>", f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for row in rows:
        cells = []
        for position, (content, value) in enumerate(row):
            attributes = f' data-value="{value!r}"' if value is not None else ""
            attributes += " class=number" if position in numeric else ""
            cells.append(
                f'<th scope="row"{attributes}>{content}</th>' if position == 0 else f"<td{attributes}>{content}</td>"
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>", "</div>"])


def pairs(entries: Iterable[tuple[str, str]]) -> str:
    """Returns names and values as a list. The values are HTML."""
    return "<dl>" + "".join(f"<div><dt>{text(name)}</dt><dd>{value}</dd></div>" for name, value in entries) + "</dl>"
