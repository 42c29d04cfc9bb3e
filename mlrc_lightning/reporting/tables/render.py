"""From a page to Markdown, LaTeX, CSV and HTML. All four have the same words and digits."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Sequence

from mlrc_lightning.reporting.tables.cells import (
    Accuracy,
    Cell,
    Column,
    Difference,
    Missing,
    Number,
    Page,
    Provenance,
    Row,
    Table,
    percent,
)

MISSING = "–"
CSV_COLUMNS = ("table", "row", "column", "role", "value", "half_width", "n", "lacking")


def cell_text(cell: Cell) -> str:
    """Returns the plain text of a cell, without any mark-up."""
    if isinstance(cell, Accuracy):
        return percent(cell.mean) + ("" if cell.half_width is None else f" ± {percent(cell.half_width)}")
    if isinstance(cell, Difference):
        return f"{cell.points:+.2f}".replace("-", "−")
    if isinstance(cell, Number):
        return (f"{cell.value:.6g}" if cell.text is None else cell.text).replace("-", "−")
    if isinstance(cell, Missing):
        return MISSING
    return cell.text


def markdown(page: Page) -> str:
    """Renders a page as GitHub's Markdown, columns padded so that the source reads as a table too."""
    parts = [f"### {page.title}"]
    parts += [f"**{table.title}**\n\n{_markdown_table(table)}" for table in page.tables]
    if page.notes:
        parts.append("\n".join(f"- {note}" for note in page.notes))
    return "\n\n".join(parts) + "\n"


def latex(page: Page) -> str:
    r"""Renders a page as LaTeX tables for `\input`. The document needs `\usepackage{booktabs}`."""
    comment = f"% {page.title}. Made by: python -m mlrc_lightning table {page.name}. Needs \\usepackage{{booktabs}}."
    notes = " ".join(_tex(_sentence(note)) for note in page.notes)
    tables = []
    for number, table in enumerate(page.tables):
        last = number == len(page.tables) - 1
        tables.append(_latex_table(page, table, notes if last else ""))
    return "\n".join([comment, *tables])


def csv_text(page: Page) -> str:
    """Renders a page as CSV, one line a cell: accuracies and differences in per cent, as in the other formats."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in page.tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                writer.writerow([table.name, row.title, column.group, column.role, *_csv_fields(cell)])
    return buffer.getvalue()


def html_fragment(page: Page, address: Callable[[Provenance], str] | None = None) -> str:
    """Renders a page as an HTML section without style or script. `data-value` sorts, `data-cell` names the manifest's.

    Columns of the paper have the class `paper`, differences `difference`, so that a page may hide them.

    Args:
        page: The table.
        address: Where a cell's source is shown; None for cells without links.
    """
    lines = [f'<section class="mlrc-table" id="table-{_html(page.name)}">', f"<h2>{_html(page.title)}</h2>"]
    for table in page.tables:
        lines += _html_table(page, table, address)
    if page.notes:
        lines += ['<ul class="notes">', *[f"<li>{_html(note)}</li>" for note in page.notes], "</ul>"]
    return "\n".join([*lines, "</section>"]) + "\n"


RENDERERS: dict[str, Callable[[Page], str]] = {
    "md": markdown, "tex": latex, "csv": csv_text, "html": html_fragment,
}  # fmt: skip
"""By the ending of the file."""


def _headings(columns: Sequence[Column]) -> list[str]:
    """Returns one heading a column, for formats with one line of them."""
    return [column.group if column.role == "ours" or not column.title else column.title for column in columns]


def _groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Returns the headings of neighbouring columns of one group, with their number."""
    groups: list[tuple[str, int]] = []
    for column in columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    return groups


def _has_two_lines(table: Table) -> bool:
    return any(count > 1 for _, count in _groups(table.columns))


def _is_best(cell: Cell) -> bool:
    return isinstance(cell, Accuracy) and cell.is_best


def _markdown_table(table: Table) -> str:
    def body(row: Row) -> list[str]:
        title, *texts = (text.replace("|", "\\|") for text in (row.title, *map(cell_text, row.cells)))
        return [title, *(f"**{t}**" if _is_best(c) else t for t, c in zip(texts, row.cells, strict=True))]

    lines = [[table.row_heading, *_headings(table.columns)], *[body(row) for row in table.rows]]
    left = [True, *(column.role == "text" for column in table.columns)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(left))]
    rule = [f":{'-' * (w + 1)}" if is_left else f"{'-' * (w + 1)}:" for w, is_left in zip(widths, left, strict=True)]
    padded = [
        [t.ljust(w) if is_left else t.rjust(w) for t, w, is_left in zip(line, widths, left, strict=True)]
        for line in lines
    ]
    rows = [f"| {' | '.join(line)} |" for line in padded]
    return "\n".join([rows[0], f"|{'|'.join(rule)}|", *rows[1:]])


def _latex_table(page: Page, table: Table, notes: str) -> str:
    alignment = "l" + "".join("l" if column.role == "text" else "r" for column in table.columns)
    lines = [
        r"\begin{table}[htbp]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_tex(page.title)}. {_tex(_sentence(table.title))}{' ' + notes if notes else ''}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
    ]
    if _has_two_lines(table):
        above, rules, position = [""], [], 2
        for group, count in _groups(table.columns):
            above.append(rf"\multicolumn{{{count}}}{{c}}{{{_tex(group)}}}" if count > 1 else "")
            if count > 1:
                rules.append(rf"\cmidrule(lr){{{position}-{position + count - 1}}}")
            position += count
        lines += [" & ".join(above) + r" \\", " ".join(rules)]
        headings = [
            ("ours" if column.role == "ours" else column.title) if count > 1 else column.title or column.group
            for (_, count), column in _with_group_size(table.columns)
        ]
    else:
        headings = _headings(table.columns)
    lines += [" & ".join([_tex(table.row_heading), *map(_tex, headings)]) + r" \\", r"\midrule"]
    for row in table.rows:
        texts = [_tex(cell_text(cell)) for cell in row.cells]
        bold = [rf"\textbf{{{t}}}" if _is_best(c) else t for t, c in zip(texts, row.cells, strict=True)]
        lines.append(" & ".join([_tex(row.title), *bold]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _with_group_size(columns: Sequence[Column]) -> list[tuple[tuple[str, int], Column]]:
    sizes = [group for group in _groups(columns) for _ in range(group[1])]
    return list(zip(sizes, columns, strict=True))


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--", "−": "$-$", "Δ": r"$\Delta$",
    "|": r"\textbar{}", "§": r"\S{}", "…": r"\dots{}", "≤": r"$\leq$", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _csv_fields(cell: Cell) -> list[str]:
    """Returns value, half_width, n and lacking."""
    if isinstance(cell, Accuracy):
        half_width = "" if cell.half_width is None else percent(cell.half_width)
        return [percent(cell.mean), half_width, str(cell.n or ""), ""]
    if isinstance(cell, Missing):
        return ["", "", "", cell.lacking]
    return [cell_text(cell).replace("−", "-"), "", "", ""]


def _html_table(page: Page, table: Table, address: Callable[[Provenance], str] | None) -> list[str]:
    lines = [
        f'<table id="table-{_html(page.name)}-{_html(table.name)}">',
        f"<caption>{_html(table.title)}</caption>",
        "<thead>",
    ]
    if _has_two_lines(table):
        lines += ["<tr>", f'<th scope="col" rowspan="2">{_html(table.row_heading)}</th>']
        below = ["<tr>"]
        for (_, count), column in _with_group_size(table.columns):
            if count == 1:
                heading = _html(column.title or column.group)
                lines.append(f'<th scope="col" rowspan="2" class="{column.role}">{heading}</th>')
                continue
            if column.role == "ours":
                lines.append(f'<th scope="colgroup" colspan="{count}">{_html(column.group)}</th>')
            title = "ours" if column.role == "ours" else column.title
            below.append(f'<th scope="col" class="{column.role}">{_html(title)}</th>')
        lines += ["</tr>", *below, "</tr>"]
    else:
        headings = [
            f'<th scope="col" class="{column.role}">{_html(text)}</th>'
            for column, text in zip(table.columns, _headings(table.columns), strict=True)
        ]
        lines += ["<tr>", f'<th scope="col">{_html(table.row_heading)}</th>', *headings, "</tr>"]
    lines += ["</thead>", "<tbody>"]
    for row in table.rows:
        cells = [_html_cell(column, cell, address) for column, cell in zip(table.columns, row.cells, strict=True)]
        lines += [f'<tr data-row="{_html(row.name)}">', f'<th scope="row">{_html(row.title)}</th>', *cells, "</tr>"]
    return [*lines, "</tbody>", "</table>"]


def _html_cell(column: Column, cell: Cell, address: Callable[[Provenance], str] | None) -> str:
    classes: list[str] = [column.role]
    attributes = ""
    text = _html(cell_text(cell))
    if isinstance(cell, Accuracy):
        attributes += f' data-value="{percent(cell.mean)}"'
        text = f"<strong>{text}</strong>" if cell.is_best else text
    elif isinstance(cell, Difference):
        attributes += f' data-value="{cell.points:.2f}"'
    elif isinstance(cell, Number):
        attributes += f' data-value="{cell.value!r}"'
    elif isinstance(cell, Missing):
        classes.append("missing")
        attributes += f' title="{_html(cell.lacking)}"'
        text = f'<span aria-hidden="true">{text}</span><span class="lacking">{_html(cell.lacking)}</span>'
    if isinstance(cell, Accuracy | Number) and cell.provenance is not None:
        attributes += f' data-cell="{_html(cell.provenance.key)}"'
        if address is not None:
            text = f'<a href="{_html(address(cell.provenance))}">{text}</a>'
    return f'<td class="{" ".join(classes)}"{attributes}>{text}</td>'


def _html(text: str) -> str:
    return html.escape(text, quote=True)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."
