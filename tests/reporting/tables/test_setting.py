"""A setting's table at every stage of a study; what it says is what is there."""

import csv
import io
import re

import pytest
from scipy import stats

from mlrc_lightning.errors import ConfigError
from mlrc_lightning.reference import rows as reference_rows
from mlrc_lightning.reporting.tables.catalog import LOSSES
from mlrc_lightning.reporting.tables.cells import Accuracy, Missing
from mlrc_lightning.reporting.tables.render import RENDERERS
from mlrc_lightning.reporting.tables.setting import setting_page
from mlrc_lightning.results.runs import run_sets
from mlrc_lightning.results.searches import searches
from mlrc_lightning.settings.composition import Composition
from tests.reporting.tables import fakes

METRIC_TITLES = {"precision_at_1": "P@1", "r_precision": "RP", "mean_average_precision_at_r": "MAP@R"}


def page(outputs, source="search", **changes):
    values = {"setting": "cub200", "protocol": fakes.PROTOCOL, "embedding_size": 128, "num_folds": 4}
    setting = Composition(**{**values, "num_runs": 3, "max_trials": 50, **changes})
    return setting_page("cub200", setting, source, outputs, run_sets(outputs), searches(outputs))


def row(made, name, table=0):
    return next(row for row in made.tables[table].rows if row.name == name)


def ours(made, name, table=0):
    """The three cells of a row that are ours, and what its last column says."""
    cells = row(made, name, table).cells
    roles = [column.role for column in made.tables[table].columns]
    return [cell for cell, role in zip(cells, roles, strict=True) if role == "ours"], cells[-1].text


# the paper's numbers


def rendered_paper_cells(outputs, setting, ending):
    """Reads (embedding, row, metric) -> "51.05 ± 0.31" out of a rendered table."""
    made = page(outputs, setting=setting)
    text = RENDERERS[ending](made)
    found = {}
    if ending == "csv":
        for line in csv.DictReader(io.StringIO(text)):
            if line["role"] == "paper" and line["value"]:
                value = line["value"] + (f" ± {line['half_width']}" if line["half_width"] else "")
                found[line["table"], line["row"], line["column"]] = value
        return found
    patterns = {
        "md": (r"^\*\*(\w+), (\d+)\*\*$", r"^\| (.*) \|$", " | "),
        "tex": (r"^\\caption\{.*?\. (\w+), (\d+)\.", r"^(.* & .*) \\\\$", " & "),
    }
    table = None
    if ending == "html":
        text = re.sub(r"\n<t[hd]", " <td", text)
    for line in text.splitlines():
        if ending == "html":
            if caption := re.match(r"<caption>(\w+), (\d+)</caption>", line):
                table = f"{caption[1].lower()}_{caption[2]}"
            values = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</t[hd]>", line)]
        else:
            heading, body, separator = patterns[ending]
            if caption := re.match(heading, line):
                table = f"{caption[1].lower()}_{caption[2]}"
            cells = re.match(body, line)
            values = [value.strip() for value in cells[1].split(separator)] if cells else []
        if len(values) != 11 or table is None:
            continue
        clean = [re.sub(r"\*\*|\\textbf|[{}]", "", value).replace("$\\pm$", "±") for value in values]
        for metric, value in zip(METRIC_TITLES.values(), clean[2:11:3], strict=True):
            if re.match(r"\d", value):
                found[table, clean[0], metric] = value
    return found


@pytest.mark.parametrize("ending", ["md", "tex", "csv", "html"])
@pytest.mark.parametrize("setting", ["cub200", "cars196", "sop"])
def test_the_paper_s_tables_are_rendered_cell_by_cell_as_in_the_csv(tmp_path, setting, ending):
    expected = {
        (line["embedding"], line["loss"], METRIC_TITLES[line["metric"]]): line["mean"]
        + (f" ± {line['ci95']}" if line["ci95"] else "")
        for line in reference_rows("paper_tables.csv")
        if line["dataset"] == setting
    }
    assert len(expected) == 90
    assert rendered_paper_cells(tmp_path, setting, ending) == expected


@pytest.mark.parametrize(
    ("setting", "best"),  # docs/protocol.md, §3: the cells that the paper prints in bold
    [
        ("cub200", [["contrastive", "cosface", "cosface"], ["arcface"] * 3]),
        ("cars196", [["cosface", "multi_similarity", "multi_similarity"]] * 2),
        ("sop", [["arcface"] * 3, ["normalized_softmax"] * 3]),
    ],
)
def test_the_best_cells_are_those_that_the_paper_has_in_bold(tmp_path, setting, best):
    made = page(tmp_path, setting=setting)
    for table, names in zip(made.tables, best, strict=True):
        positions = [i for i, column in enumerate(table.columns) if column.role == "paper"]
        found = [[r.name for r in table.rows if getattr(r.cells[i], "is_best", False)] for i in positions]
        for winners, name in zip(found, names, strict=True):
            assert name in winners


def test_rows_are_in_the_paper_s_order(tmp_path):
    titles = [r.title for r in page(tmp_path).tables[0].rows]
    paper = list(dict.fromkeys(line["loss"] for line in reference_rows("paper_tables.csv")))
    assert titles == ["Pretrained", "Untrained embedder", *paper[1:]]


# every stage of a study


def test_nothing_yet(tmp_path):
    made = page(tmp_path)
    for name in ("arcface", "fastap"):
        cells, standing = ours(made, name)
        assert cells == [Missing("no search yet")] * 3
        assert standing == "no search yet"
    assert ours(made, "pretrained")[1] == "no run yet"


def test_some_trials(tmp_path):
    trials = [({"loss.function.margin": float(i)}, (0.1,)) for i in range(12)] + [({"x": 1}, "NaN")]
    fakes.write_search(tmp_path, "arcface", 50, trials)
    assert ours(page(tmp_path), "arcface") == ([Missing("search: 12 of 50 trials, 1 failed")] * 3,
                                              "search: 12 of 50 trials, 1 failed")  # fmt: skip


def test_a_finished_search_without_a_run(tmp_path):
    fakes.write_search(tmp_path, "arcface", 2, [({"x": 1}, (0.1,)), ({"x": 2}, (0.2,))], "max_trials")
    assert ours(page(tmp_path, max_trials=2), "arcface")[1] == "search finished; no run yet"
    assert ours(page(tmp_path, max_trials=5), "arcface")[1] == "search: 2 of 5 trials"


def test_a_search_without_a_successful_trial(tmp_path):
    fakes.write_search(tmp_path, "arcface", 1, [({"x": 1}, "NaN"), ({"x": 2}, "NaN")], "exhausted")
    assert "of 50 trials, 2 failed" in ours(page(tmp_path), "arcface")[1]


def test_some_folds_of_a_run(tmp_path):
    folder = tmp_path / fakes.PROTOCOL / "cub200" / "arcface" / "reproduce" / "search-11111111" / "0" / "fold_0"
    folder.mkdir(parents=True)
    (folder / "fold.json").write_text("{}")
    cells, standing = ours(page(tmp_path), "arcface")
    assert standing == "0 of 3, run 0: 1 of 4 folds"
    assert cells == [Missing(standing)] * 3


def test_one_run_has_no_interval(tmp_path):
    fakes.write_run(tmp_path, "arcface", 0, fakes.accuracies(0.6, 0.3, 0.2), fakes.accuracies(0.7, 0.4, 0.3))
    made = page(tmp_path)
    cells, standing = ours(made, "arcface")
    assert [(cell.mean, cell.half_width, cell.n) for cell in cells] == [(0.7, None, 1), (0.4, None, 1), (0.3, None, 1)]
    assert standing == "1 of 3"
    assert "| ArcFace                  | **70.00** |" in RENDERERS["md"](made)


def test_intervals_are_scipy_s(tmp_path):
    values = [0.61, 0.63, 0.6, 0.62]
    for number, value in enumerate(values):
        fakes.write_run(tmp_path, "arcface", number, fakes.accuracies(value, 0.3, 0.2), None)
    made = page(tmp_path, num_runs=4)
    cell = ours(made, "arcface", table=1)[0][0]
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert cell.mean == pytest.approx((low + high) / 2, rel=1e-12)
    assert cell.half_width == pytest.approx((high - low) / 2, rel=1e-12)
    assert ours(made, "arcface", table=1)[1] == "4"
    # not measured: the concatenated one, which needs all folds
    assert ours(made, "arcface", table=0)[0] == [Missing("not measured by these runs")] * 3


def test_ours_minus_the_paper_s(tmp_path):
    for number in range(3):
        fakes.write_run(tmp_path, "arcface", number, fakes.accuracies(0.6, 0.3, 0.2), fakes.accuracies(0.7, 0.4, 0.3))
    made = page(tmp_path)
    # the paper has 67.50, 37.31 and 26.45 there
    points = [cell.points for cell in row(made, "arcface").cells[2:9:3]]
    assert points == pytest.approx([70 - 67.5, 40 - 37.31, 30 - 26.45])


def test_failed_runs_are_counted_named_and_left_out(tmp_path):
    for number in range(2):
        fakes.write_run(tmp_path, "arcface", number, fakes.accuracies(0.6, 0.3, 0.2), fakes.accuracies(0.7, 0.4, 0.3))
    fakes.write_run(tmp_path, "arcface", 2, failure="NonFiniteError: loss is NaN\nmore")
    made = page(tmp_path)
    cells, standing = ours(made, "arcface")
    assert standing == "2 of 3, 1 failed"
    assert cells[0].n == 2
    assert "ArcFace, run 2 failed: NonFiniteError: loss is NaN" in made.notes


def test_only_failed_runs(tmp_path):
    fakes.write_run(tmp_path, "arcface", 0, failure="NonFiniteError: loss is NaN")
    assert ours(page(tmp_path), "arcface") == ([Missing("0 of 3, 1 failed")] * 3, "0 of 3, 1 failed")


# what never mixes


def test_runs_of_another_protocol_are_named_and_left_out(tmp_path):
    fakes.write_run(tmp_path, "arcface", 0, fakes.accuracies(0.6, 0.3, 0.2), protocol="mlrc-other-22222222")
    made = page(tmp_path)
    assert ours(made, "arcface")[1] == "no search yet"
    assert "Not shown: another protocol, mlrc-other-22222222, 1 loss: --protocol mlrc-other-22222222." in made.notes
    assert ours(page(tmp_path, protocol="mlrc-other-22222222"), "arcface", table=1)[0][0].mean == 0.6


def test_runs_on_other_data_are_named_and_left_out(tmp_path):
    for number, fingerprint in enumerate(["f0", "f0", "f1"]):
        fakes.write_run(tmp_path, "arcface", number, fakes.accuracies(0.6, 0.3, 0.2), fingerprint=fingerprint)
    made = page(tmp_path)
    assert ours(made, "arcface", table=1)[0][0].n == 2
    assert "ArcFace: 1 run on other data or in another precision left out." in made.notes


def test_settings_of_another_source_are_named_and_left_out(tmp_path):
    fakes.write_run(tmp_path, "arcface", 0, fakes.accuracies(0.6, 0.3, 0.2), source="paper")
    made = page(tmp_path)
    assert ours(made, "arcface")[1] == "no search yet"
    assert any("the paper's hyperparameters, 1 loss: --source paper" in note for note in made.notes)
    assert ours(page(tmp_path, source="paper"), "arcface", table=1)[0][0].mean == 0.6
    assert ours(page(tmp_path, source="paper"), "triplet")[1] == "no run yet"


def test_runs_of_the_search_s_best_setting_are_preferred_and_old_ones_called_so(tmp_path):
    trials = [({"loss.function.margin": 1.0}, (0.1,)), ({"loss.function.margin": 2.0}, (0.4,))]
    fakes.write_search(tmp_path, "arcface", 2, trials, "max_trials")
    for number in range(3):
        fakes.write_run(tmp_path, "arcface", number, fakes.accuracies(0.6, 0.3, 0.2), parameters={"margin": 1.0})
    made = page(tmp_path, max_trials=2)
    assert "ArcFace: the runs are not of trial 1, which is the search's best now." in made.notes
    new = fakes.accuracies(0.7, 0.3, 0.2)
    fakes.write_run(tmp_path, "arcface", 0, new, digest="22222222", parameters={"margin": 2.0})
    made = page(tmp_path, max_trials=2)
    assert ours(made, "arcface", table=1)[0][0].mean == 0.7
    assert ours(made, "arcface", table=1)[1] == "1 of 3"
    assert "ArcFace: runs of search-22222222; there are others of search-11111111." in made.notes


def test_the_best_of_an_unfinished_search_is_called_so(tmp_path):
    fakes.write_search(tmp_path, "arcface", 50, [({"loss.function.margin": 1.0}, (0.1,))])
    fakes.write_run(tmp_path, "arcface", 0, fakes.accuracies(0.6, 0.3, 0.2), parameters={"margin": 1.0})
    assert "ArcFace: the best of 1 of 50 trials." in page(tmp_path).notes


# rows without training


BASELINES = {"untrained_trunk_pca": fakes.accuracies(0.5, 0.2, 0.1), "untrained_trunk_pca_concatenated": None,
             "untrained_embedder": fakes.accuracies(0.4, 0.1, 0.1)}  # fmt: skip


def test_pretrained_features_have_no_interval_since_no_seed_decides_them(tmp_path):
    for number, value in enumerate([0.4, 0.42]):
        baselines = {**BASELINES, "untrained_embedder": fakes.accuracies(value, 0.1, 0.1)}
        fakes.write_run(tmp_path, "untrained", number, source="given", baselines=baselines)
    made = page(tmp_path, num_runs=2)
    cells, standing = ours(made, "pretrained", table=1)
    assert [(c.mean, c.half_width) for c in cells] == [(0.5, None), (0.2, None), (0.1, None)]
    assert standing == "2"
    assert ours(made, "untrained_embedder", table=1)[0][0].half_width == pytest.approx(
        stats.t.ppf(0.975, 1) * stats.sem([0.4, 0.42])
    )
    assert all(isinstance(cell, Missing) for cell in ours(made, "pretrained", table=0)[0])
    assert row(made, "pretrained").title == "Pretrained"


def test_a_trunk_from_scratch_is_not_called_pretrained(tmp_path):
    fakes.write_run(tmp_path, "untrained", 0, source="given", baselines=BASELINES, pretrained=False)
    assert row(page(tmp_path), "pretrained").title == "Untrained trunk, PCA"


# own losses


def test_a_loss_without_a_row_is_named(tmp_path):
    fakes.write_run(tmp_path, "mine", 0, fakes.accuracies(0.6, 0.3, 0.2))
    made = page(tmp_path)
    assert "Not shown: mine, which have no row in mlrc_lightning/reporting/tables/catalog.py." in made.notes


def test_a_loss_of_one_s_own_is_one_row_where_it_has_results(tmp_path, monkeypatch):
    from mlrc_lightning.reporting.tables import setting as module
    from mlrc_lightning.reporting.tables.catalog import LossRow

    monkeypatch.setattr(module, "LOSSES", (*LOSSES, LossRow("mine", "Mine", 2026, is_of_the_paper=False)))
    assert "mine" not in [r.name for r in page(tmp_path).tables[0].rows]
    fakes.write_run(tmp_path, "mine", 0, fakes.accuracies(0.6, 0.3, 0.2))
    made = page(tmp_path)
    assert made.tables[1].rows[-1].title == "Mine"
    assert isinstance(made.tables[1].rows[-1].cells[0], Accuracy)
    assert made.tables[1].rows[-1].cells[1] == Missing("not in the paper")


def test_a_setting_that_the_paper_lacks_has_no_paper_columns(tmp_path):
    made = page(tmp_path, setting="birds")
    assert {column.role for column in made.tables[0].columns} == {"ours", "runs"}


def test_an_unknown_source_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected one of search, paper, given"):
        page(tmp_path, source="guess")


def test_a_row_with_a_doubtful_run_has_a_mark_and_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mlrc_lightning.reporting.tables.setting.doubts_of_run", lambda record: ["fold 1: the loss was 0"]
    )
    fakes.write_run(tmp_path, "arcface", 0, fakes.accuracies(0.6, 0.3, 0.2), fakes.accuracies(0.7, 0.4, 0.3))
    made = page(tmp_path)
    assert "ArcFace †" in [row.title for row in made.tables[0].rows]
    assert any(note.startswith("ArcFace †: run 0, fold 1: the loss was 0") for note in made.notes)
