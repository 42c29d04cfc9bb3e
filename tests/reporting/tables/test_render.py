"""One page in four formats, byte for byte."""

import shutil
import subprocess

import pytest

from mlrc_lightning.reporting.tables.cells import (  # fmt: skip
    Accuracy,
    Column,
    Difference,
    Missing,
    Number,
    Page,
    Provenance,
    Row,
    Table,
    Text,
    difference,
    with_best,
)
from mlrc_lightning.reporting.tables.render import RENDERERS, csv_text, html_fragment, latex, markdown

COLUMNS = (
    Column("", "P@1", "ours"), Column("paper", "P@1", "paper"), Column("Δ", "P@1", "difference"),
    Column("runs", "runs", "runs"),
)  # fmt: skip
ROWS = (
    # 0.67554999 rounds down and 0.675551 up
    Row("a", "A & B", (Accuracy(0.67554999, 0.0012345, 3, Provenance("separated/a/p", ("r/0",), "f")),
                       Accuracy(0.6813, 0.0031), Difference(-0.58), Text("3"))),
    Row("c", "C_1 | <d>", (Accuracy(0.675551, None, 1), Accuracy(0.6713, 0.001), Difference(0.43), Text("1 of 3"))),
    Row("e", "E", (Missing("no search yet"), Accuracy(0.6813, None), Missing("no search yet"), Text("no search yet"))),
)  # fmt: skip
PAGE = Page(
    "t", "Title 50 %", (Table("separated_128", "Separated, 128", "%", COLUMNS, with_best(COLUMNS, ROWS)),),
    ("A note.", "Another"), {},
)  # fmt: skip

MARKDOWN = """\
### Title 50 %

**Separated, 128**

| %          |          P@1 |            paper |     Δ |          runs |
|:-----------|-------------:|-----------------:|------:|--------------:|
| A & B      | 67.55 ± 0.12 | **68.13 ± 0.31** | −0.58 |             3 |
| C_1 \\| <d> |    **67.56** |     67.13 ± 0.10 | +0.43 |        1 of 3 |
| E          |            – |        **68.13** |     – | no search yet |

- A note.
- Another
"""
LATEX = r"""% Title 50 %. Made by: python -m mlrc_lightning table t. Needs \usepackage{booktabs}.
\begin{table}[htbp]
\centering\footnotesize\setlength{\tabcolsep}{3pt}
\caption{Title 50 \%. Separated, 128. A note. Another.}
\begin{tabular}{lrrrr}
\toprule
 & \multicolumn{3}{c}{P@1} &  \\
\cmidrule(lr){2-4}
\% & ours & paper & $\Delta$ & runs \\
\midrule
A \& B & 67.55 $\pm$ 0.12 & \textbf{68.13 $\pm$ 0.31} & $-$0.58 & 3 \\
C\_1 \textbar{} \textless{}d\textgreater{} & \textbf{67.56} & 67.13 $\pm$ 0.10 & +0.43 & 1 of 3 \\
E & -- & \textbf{68.13} & -- & no search yet \\
\bottomrule
\end{tabular}
\end{table}
"""
CSV = """\
table,row,column,role,value,half_width,n,lacking
separated_128,A & B,P@1,ours,67.55,0.12,3,
separated_128,A & B,P@1,paper,68.13,0.31,,
separated_128,A & B,P@1,difference,-0.58,,,
separated_128,A & B,runs,runs,3,,,
separated_128,C_1 | <d>,P@1,ours,67.56,,1,
separated_128,C_1 | <d>,P@1,paper,67.13,0.10,,
separated_128,C_1 | <d>,P@1,difference,+0.43,,,
separated_128,C_1 | <d>,runs,runs,1 of 3,,,
separated_128,E,P@1,ours,,,,no search yet
separated_128,E,P@1,paper,68.13,,,
separated_128,E,P@1,difference,,,,no search yet
separated_128,E,runs,runs,no search yet,,,
"""
MISSING = '<span aria-hidden="true">–</span><span class="lacking">no search yet</span>'
HTML = f"""\
<section class="mlrc-table" id="table-t">
<h2>Title 50 %</h2>
<table id="table-t-separated_128">
<caption>Separated, 128</caption>
<thead>
<tr>
<th scope="col" rowspan="2">%</th>
<th scope="colgroup" colspan="3">P@1</th>
<th scope="col" rowspan="2" class="runs">runs</th>
</tr>
<tr>
<th scope="col" class="ours">ours</th>
<th scope="col" class="paper">paper</th>
<th scope="col" class="difference">Δ</th>
</tr>
</thead>
<tbody>
<tr data-row="a">
<th scope="row">A &amp; B</th>
<td class="ours" data-value="67.55" data-cell="separated/a/p">67.55 ± 0.12</td>
<td class="paper" data-value="68.13"><strong>68.13 ± 0.31</strong></td>
<td class="difference" data-value="-0.58">−0.58</td>
<td class="runs">3</td>
</tr>
<tr data-row="c">
<th scope="row">C_1 | &lt;d&gt;</th>
<td class="ours" data-value="67.56"><strong>67.56</strong></td>
<td class="paper" data-value="67.13">67.13 ± 0.10</td>
<td class="difference" data-value="0.43">+0.43</td>
<td class="runs">1 of 3</td>
</tr>
<tr data-row="e">
<th scope="row">E</th>
<td class="ours missing" title="no search yet">{MISSING}</td>
<td class="paper" data-value="68.13"><strong>68.13</strong></td>
<td class="difference missing" title="no search yet">{MISSING}</td>
<td class="runs">no search yet</td>
</tr>
</tbody>
</table>
<ul class="notes">
<li>A note.</li>
<li>Another</li>
</ul>
</section>
"""


@pytest.mark.parametrize(
    ("render", "expected"), [(markdown, MARKDOWN), (latex, LATEX), (csv_text, CSV), (html_fragment, HTML)]
)
def test_a_page_is_rendered_as_worked_by_hand(render, expected):
    assert render(PAGE) == expected


def test_a_table_without_groups_has_one_line_of_headings():
    columns = (Column("venue", "venue", "text"), Column("", "CUB200", "ours"))
    page = Page("t", "T", (Table("x", "X", "paper", columns, (Row("a", "A", (Text("CVPR"), Number(0.1))),)),), (), {})
    assert markdown(page).splitlines()[4:] == [
        "| paper | venue | CUB200 |",
        "|:------|:------|-------:|",
        "| A     | CVPR  |    0.1 |",
    ]
    assert r"paper & venue & CUB200 \\" in latex(page)
    assert "multicolumn" not in latex(page)
    assert html_fragment(page).count("<tr") == 2


def test_the_difference_is_that_of_the_rendered_numbers():
    # 67.554 and 67.125 differ by 0.43 as rendered, 67.55 and 67.12, though by 0.429 in full
    assert difference(Accuracy(0.67554), Accuracy(0.6712)) == Difference(0.43)


def test_equal_numbers_are_all_best_and_only_accuracies_count():
    columns = (Column("", "P@1", "ours"),)
    rows = with_best(columns, [Row(str(i), "", (cell,)) for i, cell in enumerate(
        [Accuracy(0.50001), Accuracy(0.49999), Accuracy(0.3), Missing("x")])])  # fmt: skip
    assert [getattr(row.cells[0], "is_best", None) for row in rows] == [True, True, False, None]


@pytest.mark.latex
def test_latex_compiles_without_overfull_lines_of_text(tmp_path):
    compiler = shutil.which("pdflatex") or shutil.which("tectonic")
    if compiler is None:
        pytest.skip("no pdflatex, no tectonic: apt-get install texlive-latex-base texlive-latex-recommended")
    from mlrc_lightning.reporting.tables.cited import reported_page, toy_page
    from mlrc_lightning.reporting.tables.hyperparameters import hyperparameters_page
    from mlrc_lightning.reporting.tables.setting import setting_page
    from mlrc_lightning.settings.composition import Composition

    setting = Composition("cub200", "mlrc-bn_inception-00000000", 128, 4, 10, 50)
    keys = _parameter_keys()
    pages = [PAGE, reported_page(), toy_page(), setting_page("cub200", setting, "search", tmp_path, [], []),
             hyperparameters_page("mlrc-x", tmp_path, [], keys, 50)]  # fmt: skip
    for page in pages:
        (tmp_path / f"{page.name}.tex").write_text(RENDERERS["tex"](page), encoding="utf-8")
    inputs = "\n".join(rf"\input{{{page.name}}}" for page in pages)
    document = "\n".join(
        [r"\documentclass{article}", r"\usepackage[margin=1cm,landscape]{geometry}", r"\usepackage{booktabs}",
         r"\begin{document}", inputs, r"\end{document}"]
    )  # fmt: skip
    (tmp_path / "all.tex").write_text(document)
    flags = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in compiler else []
    done = subprocess.run([compiler, *flags, "all.tex"], capture_output=True, cwd=tmp_path, timeout=300)
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output[-3000:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
    assert "Undefined control sequence" not in output
    assert "Missing character" not in output


def _parameter_keys():
    from mlrc_lightning.files import config_folder
    from mlrc_lightning.reporting.tables.make import parameter_keys

    return parameter_keys(config_folder())
