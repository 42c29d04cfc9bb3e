"""Tables, figures and studies count the same runs, and as many folds as a run has."""

import re

import pytest

from mlrc_lightning.__main__ import main
from mlrc_lightning.reporting.figures.collect import collect, measured
from mlrc_lightning.reporting.tables.make import make_page
from mlrc_lightning.results.runs import run_sets
from mlrc_lightning.results.searches import searches
from mlrc_lightning.settings.composition import compose
from tests.reporting.tables import fakes

FIVE_FOLDS = ["split=class_disjoint", "split.num_folds=5"]


@pytest.fixture
def superseded(tmp_path):
    """Three runs of a setting that was the best once, and two of the one that is the best now."""
    key = "loss.function.margin"
    fakes.write_search(tmp_path, "arcface", 2, [({key: 10.0}, (0.2,) * 4), ({key: 20.0}, (0.4,) * 4)], "max_trials")
    for margin, digest, values in (
        (10.0, "00000001", (0.36, 0.367, 0.374)),
        (20.0, "00000002", (0.67, 0.6854)),
    ):
        for number, value in enumerate(values):
            scores = fakes.accuracies(value, value, value)
            of_set = {"parameters": {"margin": margin}, "digest": digest}
            fakes.write_run(tmp_path, "arcface", number, scores, scores, **of_set)
    return tmp_path


def cell(outputs, name="cub200", *overrides, protocol=fakes.PROTOCOL, table="concatenated"):
    page, _, _ = make_page(name, overrides, protocol, "search", outputs)
    (tab,) = (t for t in page.tables if t.name.startswith(table))
    row = next(row for row in tab.rows if row.name == "arcface")
    position = [i for i, column in enumerate(tab.columns) if column.role == "ours"][2]
    return tab, row.cells[position]


def test_a_figure_has_the_runs_of_the_table(superseded):
    _, ours = cell(superseded)
    assert f"{100 * ours.mean:.2f}" == "67.77"
    (own,) = measured(run_sets(superseded), searches(superseded))
    drawn = own.accuracies["cub200", "ArcFace", "concatenated", "mean_average_precision_at_r"]
    assert (drawn.mean, drawn.half_width, drawn.n) == (100 * ours.mean, 100 * ours.half_width, 2)


def test_every_number_in_a_description_is_in_the_table(superseded):
    _, ours = cell(superseded)
    (drawing,) = (d for d in collect("figure_2b_map_at_r", superseded) if fakes.PROTOCOL in str(getattr(d, "path", "")))
    said = re.search(r"ours[^.]*?([0-9]+\.[0-9]+)", drawing.description)[1]
    assert f"{100 * ours.mean:.2f}".startswith(said) or said == f"{100 * ours.mean:.1f}"
    assert "means over 2 training runs" in drawing.description


@pytest.mark.parametrize(("folds", "models"), [([], (200, 40)), (FIVE_FOLDS, (250, 50))])
def test_a_plan_counts_the_folds_of_the_split(tmp_path, capsys, folds, models):
    main(["study", "glyphs", *folds, "--losses", "arcface", "--outputs", str(tmp_path), "--plan"])
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[3]) for line in lines if " arcface " in line] == list(models)


@pytest.mark.slow
def test_a_table_of_five_folds_has_the_width_of_five_models(tmp_path):
    protocol = compose(["dataset=glyphs", *FIVE_FOLDS], tmp_path).protocol
    tab, _ = cell(tmp_path, "glyphs", *FIVE_FOLDS, protocol=None)
    assert (tab.name, tab.title) == ("concatenated_640", "Concatenated, 640")
    assert protocol != compose(["dataset=glyphs"], tmp_path).protocol


def test_a_table_of_a_protocol_by_name_asks_its_records(tmp_path):
    fakes.write_run(
        tmp_path, "arcface", 0, fakes.accuracies(0.6, 0.5, 0.4), fakes.accuracies(0.6, 0.5, 0.4), num_folds=5
    )
    tab, _ = cell(tmp_path)
    assert tab.title == "Concatenated, 640"


def test_a_run_of_five_folds_lacks_none_once_they_are_there(tmp_path):
    from mlrc_lightning.results.runs import missing_folds, run_of

    folder = tmp_path / fakes.PROTOCOL / "cub200/arcface/reproduce/search-1/0"
    for number in range(5):
        (folder / f"fold_{number}").mkdir(parents=True)
        (folder / f"fold_{number}" / "fold.json").write_text("{}")
    assert missing_folds(run_of(folder, tmp_path), 5) == 0
