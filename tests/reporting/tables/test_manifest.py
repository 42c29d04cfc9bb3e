"""What stands behind a cell, and that a changed input is found by name."""

import json
import re
import shutil

import numpy as np
import pytest

from mlrc_lightning.__main__ import main
from mlrc_lightning.errors import RecordError
from mlrc_lightning.reporting.tables.make import replace_block, write_page
from mlrc_lightning.reporting.tables.manifest import verify
from mlrc_lightning.reporting.tables.render import RENDERERS
from mlrc_lightning.reporting.tables.setting import setting_page
from mlrc_lightning.results.runs import run_sets
from mlrc_lightning.results.searches import searches
from mlrc_lightning.settings.composition import Composition
from tests.reporting.tables import fakes

CONCATENATED, SEPARATED = fakes.accuracies(0.75, 0.5, 0.25), fakes.accuracies(0.5, 0.25, 0.25)
ARCFACE = f"{fakes.PROTOCOL}/cub200/arcface"


@pytest.fixture
def outputs(tmp_path):
    """A search, two runs of its best setting with per-query results, two without training."""
    trials = [({"loss.function.margin": 20.0}, (0.4,)), ({"loss.function.margin": 30.0}, (0.2,))]
    fakes.write_search(tmp_path, "arcface", 2, trials, "max_trials")
    for number in range(2):
        shift = {name: value + 0.25 * number for name, value in SEPARATED.items()}
        fakes.write_run(
            tmp_path, "arcface", number, shift, CONCATENATED, parameters={"margin": 20.0}, with_queries=True
        )
        baselines = {"untrained_trunk_pca": fakes.accuracies(0.5, 0.2, 0.1)}
        fakes.write_run(tmp_path, "untrained", number, source="given", baselines=baselines)
    return tmp_path


def write(outputs):
    setting = Composition("cub200", fakes.PROTOCOL, 128, 4, 2, 2)
    found = searches(outputs)
    sets = run_sets(outputs)
    page = setting_page("cub200", setting, "search", outputs, sets, found)
    write_page(page, outputs, list(RENDERERS), sets, found)
    return outputs / "tables" / "cub200.manifest.json"


def test_a_cell_names_its_runs_and_a_run_its_inputs(outputs):
    manifest = json.loads(write(outputs).read_text())
    cells = {cell["cell"]: cell for cell in manifest["cells"]}
    cell = cells["separated/arcface/precision_at_1"]
    assert (cell["mean"], cell["n"]) == (0.625, 2)
    assert cell["half_width"] == pytest.approx(12.706204736 * 0.125)
    assert cell["runs"] == [f"{ARCFACE}/reproduce/search-11111111/{number}" for number in range(2)]
    run = manifest["runs"][cell["runs"][1]]
    assert sorted(name.removeprefix(cell["runs"][1] + "/") for name in run["files"]) == [
        *(f"fold_{fold}/trunk.safetensors" for fold in range(4)), "queries_test.npz", "record.json",
    ]  # fmt: skip
    assert run["classes"]["test"] == [100, 199]
    assert run["classes"]["val"]["0"] == list(range(75, 100))
    assert run["dataset"]["trainval_fingerprint"] == "f0"
    assert run["code"] == {"commit": "c0", "has_changes": False}
    assert (run["seed"], run["fold_seeds"]["3"], run["packages"]["torch"]) == (1, 3, "2.13.0")
    assert (run["hardware"]["processor"], run["seconds"]) == ("CPU", 40.0)
    search = manifest["searches"][f"{ARCFACE}/search"]
    assert (search["best_trial"], search["num_done"], len(search["search_space"])) == (0, 2, 64)
    # every accuracy of ours is there, and none of the paper's
    assert len(cells) == 6 + 3


def test_the_config_hash_changes_with_the_config(outputs):
    before = json.loads(write(outputs).read_text())["runs"]
    for number in range(2):
        shutil.rmtree(outputs / ARCFACE / "reproduce" / "search-11111111" / str(number))
        fakes.write_run(outputs, "arcface", number, SEPARATED, CONCATENATED, parameters={"margin": 21.0})
    after = json.loads(write(outputs).read_text())["runs"]
    name = f"{ARCFACE}/reproduce/search-11111111/0"
    assert before[name]["config"] != after[name]["config"]


def test_what_is_as_it_was_verifies(outputs, capsys):
    path = write(outputs)
    assert verify(path, outputs) == []
    main(["verify", "cub200", "--outputs", str(outputs)])
    assert "every input is as it was" in capsys.readouterr().out


def change_record(folder):
    path = folder / "record.json"
    content = json.loads(path.read_text())
    content["test"]["separated"]["precision_at_1"] += 0.01
    path.write_text(json.dumps(content))


def change_queries(folder):
    path = folder / "queries_test.npz"
    with np.load(path) as arrays:
        content = dict(arrays)
    content["concatenated_r_precision"] = 1 - content["concatenated_r_precision"][:1].repeat(4)
    np.savez_compressed(path, **content)


def remove_record(folder):
    (folder / "record.json").unlink()


def damage_queries(folder):
    (folder / "queries_test.npz").write_bytes(b"PK")


def change_weights(folder):
    (folder / "fold_2" / "trunk.safetensors").write_bytes(b"others")


def damage_record(folder):
    (folder / "record.json").write_text("{")


def change_search(folder):
    shutil.rmtree(folder.parents[2] / "search")
    trials = [({"loss.function.margin": 25.0}, (0.4,))]
    fakes.write_ledger(folder.parents[2] / "search", 2, trials)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_record, [r"/1/record.json: was changed", r"cell separated/arcface/precision_at_1: 62.5.* 63.0",
                         r"queries_test.npz: separated precision_at_1 is 0.750000 .* 0.760000 in the record"]),
        (change_queries, [r"/1/queries_test.npz: was changed", r"concatenated r_precision is 0.000000 .* 0.500000"]),
        (remove_record, [r"/1/record.json: is missing", r"cell concatenated/arcface/r_precision: .*has no test.conc"]),
        (damage_queries, [r"/1/queries_test.npz: was changed", r"single queries, found a damaged file"]),
        (change_weights, [r"/1/fold_2/trunk.safetensors: was changed"]),
        (damage_record, [r"/1/record.json: was changed", r"expected JSON, found a damaged file", r"cell separated/"]),
        (change_search, [r"/arcface/search/ledger.jsonl: was changed"]),
    ],
)  # fmt: skip
def test_a_changed_input_is_named(outputs, change, expected):
    path = write(outputs)
    change(outputs / ARCFACE / "reproduce" / "search-11111111" / "1")
    findings = "\n".join(verify(path, outputs))
    for pattern in expected:
        assert re.search(pattern, findings), findings


def test_verify_exits_with_1_and_names_the_change(outputs, capsys):
    write(outputs)
    change_record(outputs / ARCFACE / "reproduce" / "search-11111111" / "1")
    with pytest.raises(SystemExit) as exit_:
        main(["verify", "cub200", "--outputs", str(outputs)])
    assert exit_.value.code == 1
    assert "record.json: was changed" in capsys.readouterr().out


def test_a_changed_table_is_named(outputs):
    path = write(outputs)
    table = outputs / "tables" / "cub200.md"
    table.write_text(table.read_text().replace("62.50", "82.50"))
    assert verify(path, outputs) == [f"{table}: the rendered table was changed."]


def test_a_manifest_that_is_none_is_refused(tmp_path):
    with pytest.raises(RecordError, match="expected a result file, found none"):
        verify(tmp_path / "cub200.manifest.json", tmp_path)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(RecordError, match="expected a table's manifest of version 1"):
        verify(tmp_path / "x.json", tmp_path)


def test_everything_derived_is_made_again_byte_for_byte(outputs):
    def contents():
        write(outputs)
        return {path.name: path.read_bytes() for path in (outputs / "tables").iterdir() if path.suffix != ".json"} | {
            "manifest": (outputs / "tables" / "cub200.manifest.json").read_bytes()
        }

    first = contents()
    shutil.rmtree(outputs / "tables")
    assert contents() == first
    # a copy elsewhere, as on another machine
    shutil.copytree(outputs, outputs.parent / "copy")
    shutil.rmtree(outputs.parent / "copy" / "tables")
    write(outputs.parent / "copy")
    assert (outputs.parent / "copy" / "tables" / "cub200.manifest.json").read_bytes() == first["manifest"]


def test_a_block_of_a_text_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- demo table -->\nold\n<!-- end of demo table -->\nafter\n")
    assert replace_block(path, "demo", "| a |\n")
    assert path.read_text() == "before\n<!-- demo table -->\n| a |\n<!-- end of demo table -->\nafter\n"
    assert not replace_block(path, "demo", "| a |\n")
    with pytest.raises(Exception, match="expected the marks <!-- cub200 table -->"):
        replace_block(path, "cub200", "x")
