"""Tables of what is cited, and of the catalogue."""

import pytest
import torch
import yaml

from mlrc_lightning.files import config_folder
from mlrc_lightning.metrics.functional import average_precision_at_r, precision_at_1, r_precision
from mlrc_lightning.reference import rows as reference_rows
from mlrc_lightning.reporting.tables.catalog import LOSSES
from mlrc_lightning.reporting.tables.cells import Missing, Number, Text
from mlrc_lightning.reporting.tables.cited import TOY_RETRIEVALS, reported_page, toy_accuracies, toy_page
from mlrc_lightning.reporting.tables.hyperparameters import hyperparameters_page
from mlrc_lightning.reporting.tables.make import parameter_keys
from mlrc_lightning.reporting.tables.render import cell_text
from mlrc_lightning.results.searches import searches
from tests.reporting.tables import fakes


@pytest.mark.parametrize("name", TOY_RETRIEVALS)
def test_toy_retrievals_are_what_the_metrics_say(name):
    ranks = TOY_RETRIEVALS[name][1]
    is_relevant = torch.tensor([[rank in ranks for rank in range(1, 11)]])
    relevant = torch.tensor([10])
    expected = (precision_at_1(is_relevant), r_precision(is_relevant, relevant),
                average_precision_at_r(is_relevant, relevant))  # fmt: skip
    assert list(toy_accuracies(ranks).values()) == pytest.approx([value.item() for value in expected])


def test_table_3_equals_the_paper_s():
    (table,) = (table for table in toy_page().tables if table.name == "table_3")
    assert len(table.rows) == 4
    for row in table.rows:
        assert [cell.points for cell in row.cells[2::3]] == [0, 0, 0]


def test_tables_1_and_2_are_the_reference_s():
    found = {
        (table.name[-1], row.name, column.title): cell_text(cell)
        for table in toy_page().tables[:2]
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
    }
    titles = {"cub200": "CUB200", "cars196": "Cars196", "sop": "SOP"}
    expected = {
        (r["table"], r["row"], titles[r["column"]]): r["value"]
        for r in reference_rows("tables_1_2_3.csv")
        if r["table"] != "3"
    }
    assert found == expected


def test_reported_numbers_are_the_reference_s():
    rows = [row for table in reported_page().tables for row in table.rows]
    expected = [list(r.values())[1:] for r in reference_rows("reported_precision_at_1.csv")]
    assert [[row.title, *map(cell_text, row.cells)] for row in rows] == expected


def test_every_yaml_has_a_row_and_every_row_a_yaml():
    yamls = {}
    for path in (config_folder() / "loss").glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        yamls[content["name"]] = (content["paper_name"], content["samples_per_class"] == 1)
    rows = {row.name: (row.title if row.is_of_the_paper else None, row.is_classification) for row in LOSSES}
    assert yamls == rows


def test_years_and_kinds_are_those_of_table_7():
    # docs/protocol.md, §3
    years = [2006, 2006, 2016, 2017, 2017, 2017, 2017, 2018, 2019, 2019, 2019, 2019, 2019, 2019]
    classification = {"ProxyNCA", "Normalized Softmax", "CosFace", "ArcFace", "SoftTriple"}
    rows = {row.title: row for row in LOSSES if row.is_of_the_paper}
    assert [row.year for row in rows.values()] == years
    assert {title for title, row in rows.items() if row.is_classification} == classification


# hyperparameters


def made(outputs, **changes):
    values = {"protocol": fakes.PROTOCOL, "outputs": outputs, "searches": searches(outputs),
              "parameter_keys": parameter_keys(config_folder()), "max_trials": 50}  # fmt: skip
    return hyperparameters_page(**{**values, **changes})


def test_the_paper_s_hyperparameters_are_all_there_at_full_precision(tmp_path):
    (table,) = made(tmp_path).tables
    exact = {(r["loss"], r["setting"], r["parameter"]): r["value"] for r in
             reference_rows("optimal_hyperparameters_full_precision.csv")}  # fmt: skip
    printed = reference_rows("optimal_hyperparameters.csv")
    assert len(table.rows) * 4 == len(printed) == 144
    found = {}
    for row in table.rows:
        loss, _, parameter = row.title.partition(": ")
        for setting, cell in zip(("cub200", "cars196", "sop", "cub200_batch256"), row.cells[1::2], strict=True):
            found[loss, setting, parameter] = cell
    for r in printed:
        key = r["loss"], r["setting"], r["parameter"]
        if r["value"] == "N/A":
            assert found[key] == Text("N/A")
        else:
            assert found[key].value == float(exact.get(key, r["value"]))


def test_our_best_trial_is_beside_them_and_an_unfinished_search_is_called_so(tmp_path):
    names = ("loss.function.margin", "loss.function.scale", "loss.optimizer.lr")
    settings = [dict(zip(names, values, strict=True)) for values in ((30.0, 64.0, 0.1), (20.0, 32.0, 0.01))]
    trials = [(settings[0], (0.1,)), (settings[1], (0.2,))]
    fakes.write_search(tmp_path, "arcface", 50, trials)
    fakes.write_search(tmp_path, "triplet", 50, [])
    page = made(tmp_path)
    rows = {row.title: row.cells[0] for row in page.tables[0].rows}
    found = {name: rows[f"ArcFace: {name}"] for name in ("weights lr", "margin", "scale")}
    assert {name: cell.value for name, cell in found.items()} == {"weights lr": 0.01, "margin": 20.0, "scale": 32.0}
    assert isinstance(found["margin"], Number)
    assert rows["Triplet: margin"] == Missing("search: 0 of 50 trials")
    assert rows["CosFace: margin"] == Missing("no search yet")
    assert "ArcFace: CUB200 after 2 of 50 trials." in page.notes


def test_searches_of_another_protocol_do_not_count(tmp_path):
    trials = [({"loss.function.margin": 30.0}, (0.1,))]
    fakes.write_search(tmp_path, "arcface", 50, trials, protocol="mlrc-other-22222222")
    rows = {row.title: row.cells[0] for row in made(tmp_path).tables[0].rows}
    assert rows["ArcFace: margin"] == Missing("no search yet")
