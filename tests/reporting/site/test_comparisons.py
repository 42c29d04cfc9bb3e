"""Pairwise tests and spreads: over exactly the runs of the table, stored, and computed again only where they must."""

import csv
import math

import numpy as np
import pytest

from mlrc_lightning.__main__ import main
from mlrc_lightning.errors import RecordError
from mlrc_lightning.reporting.figures.collect import collect
from mlrc_lightning.reporting.site import comparisons
from mlrc_lightning.reporting.site.comparisons import compare, p_text, points
from mlrc_lightning.reporting.site.spread import spreads
from mlrc_lightning.reporting.statistics import pairwise, read_query_results
from mlrc_lightning.reporting.tables.setting import setting_page
from mlrc_lightning.results.runs import run_sets
from mlrc_lightning.results.searches import searches
from mlrc_lightning.settings.composition import Composition
from tests.reporting.site.synthetic import write_run, write_search, write_study

PROTOCOL = "mlrc-fake-00000000"
METRIC = "mean_average_precision_at_r"


def page(outputs, source="search"):
    setting = Composition("cub200", PROTOCOL, 128, 4, 2, 3)
    return setting_page("cub200", setting, source, outputs, run_sets(outputs), searches(outputs))


@pytest.fixture
def outputs(tmp_path):
    losses = ("triplet", "contrastive", "arcface")
    write_study(tmp_path, PROTOCOL, losses=losses, settings=("cub200",), trials=3, runs=2, epochs=1, figures=False)
    return tmp_path


def files(outputs, loss, runs=2, setting="search-11111111"):
    return [
        outputs / PROTOCOL / "cub200" / loss / "reproduce" / setting / str(n) / "queries_test.npz" for n in range(runs)
    ]


def test_stored_tests_are_those_of_the_statistics_in_the_tables_order(outputs):
    found = compare(page(outputs), outputs)
    assert (found.metric, found.embedding, found.losses) == (
        METRIC,
        "concatenated",
        ("Contrastive", "Triplet", "ArcFace"),
    )
    names = {"Contrastive": "contrastive", "Triplet": "triplet", "ArcFace": "arcface"}
    results = [read_query_results(title, files(outputs, n), METRIC, "concatenated") for title, n in names.items()]
    expected = pairwise(results)
    with (outputs / PROTOCOL / "cub200" / "pairwise_tests.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["loss_a"], line["loss_b"]) for line in lines] == [
        (row.comparison.loss_a, row.comparison.loss_b) for row in expected
    ]
    for line, row in zip(lines, expected, strict=True):
        assert float(line["effect"]) == row.comparison.effect
        assert (float(line["low"]), float(line["high"])) == (row.comparison.low, row.comparison.high)
        assert (float(line["p"]), float(line["p_holm"])) == (row.comparison.p_value, row.p_adjusted)
        assert float(line["effect_size"]) == row.comparison.effect_size
    (drawing,) = collect("pairwise_tests", outputs)
    assert str(drawing.path) == f"{PROTOCOL}/cub200/pairwise_tests"


def test_what_is_stored_is_read_until_an_input_changes(outputs, monkeypatch):
    first = compare(page(outputs), outputs)

    def refuse(*arguments, **more):
        raise AssertionError("computed again")

    monkeypatch.setattr(comparisons, "pairwise", refuse)
    assert compare(page(outputs), outputs) == first
    changed = files(outputs, "arcface")[1]
    with np.load(changed) as stored:
        arrays = dict(stored)
    arrays["concatenated_average_precision_at_r"] = arrays["concatenated_average_precision_at_r"] / 2
    np.savez_compressed(changed, **arrays)
    with pytest.raises(AssertionError, match="computed again"):
        compare(page(outputs), outputs)


def test_one_run_has_a_difference_and_no_test(outputs):
    write_run(outputs, PROTOCOL, "cub200", "margin", 0, np.random.default_rng(0), 0.3, classes=20, per_class=10)
    found = compare(page(outputs), outputs)
    (pair,) = [pair for pair in found.pairs if {pair.loss_a, pair.loss_b} == {"Margin", "Triplet"}]
    assert (pair.low, pair.high, pair.p, pair.p_holm, pair.effect_size) == (None,) * 5
    assert (pair.runs_a, pair.runs_b) == (2, 1)
    assert compare(page(outputs), outputs) == found  # as read from its file


def test_what_keeps_losses_from_being_compared_is_said(outputs):
    files(outputs, "arcface")[1].unlink()
    found = compare(page(outputs), outputs)
    assert found.losses == ("Contrastive", "Triplet")
    assert found.lacking == ("ArcFace: no queries_test.npz of run 1; test it again.",)
    for loss in ("triplet", "contrastive"):
        files(outputs, loss)[0].unlink()
    found = compare(page(outputs), outputs)
    assert found.pairs == ()
    assert found.lacking[-1] == "Two losses with tested runs are needed for a comparison, found 0."


def test_sources_of_hyperparameters_are_stored_apart(outputs):
    for loss, level in (("triplet", 0.3), ("arcface", 0.4)):
        write_run(
            outputs,
            PROTOCOL,
            "cub200",
            loss,
            0,
            np.random.default_rng(0),
            level,
            source="paper",
            digest="22222222",
        )
    compare(page(outputs), outputs)
    compare(page(outputs, "paper"), outputs)
    places = [str(path.relative_to(outputs / PROTOCOL)) for path in sorted(outputs.rglob("pairwise_tests.csv"))]
    assert places == ["cub200/pairwise_tests.csv", "cub200/paper/pairwise_tests.csv"]


def test_damaged_results_are_refused_by_name(outputs):
    compare(page(outputs), outputs)
    files(outputs, "arcface")[0].write_bytes(b"no archive")
    with pytest.raises(RecordError, match="search-11111111/0/queries_test.npz: expected the per-query results"):
        compare(page(outputs), outputs)


def test_the_command_prints_every_pair_and_stores_only_the_default(outputs, capsys):
    arguments = ["compare", "cub200", "--outputs", str(outputs), "--protocol", PROTOCOL]
    main([*arguments, "--metric", "precision_at_1", "--embedding", "separated"])
    printed = capsys.readouterr().out
    assert printed.startswith("P@1, separated; a minus b in percentage points")
    assert printed.count("\n| ") == 4
    assert not list(outputs.rglob("pairwise_tests.csv"))
    main(arguments)
    assert "| Contrastive | Triplet |" in capsys.readouterr().out
    assert len(list(outputs.rglob("pairwise_tests.csv"))) == 1


def test_numbers_in_words():
    assert [points(0.01234), points(-0.5), points(-1e-9)] == ["+1.23", "−50.00", "+0.00"]
    assert [p_text(None), p_text(0.00001), p_text(0.05)] == ["–", "<0.0001", "0.0500"]


def test_a_spread_is_split_by_hand(tmp_path):
    for run in range(2):
        write_run(tmp_path, PROTOCOL, "cub200", "arcface", run, np.random.default_rng(run), 0.3)
    sets = run_sets(tmp_path)
    scores = np.array(
        [
            [run.outcome.test.separated_folds[str(fold)][METRIC] for fold in range(4)]
            for run in sets[0].complete
        ]
    )  # fmt: skip
    rest = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
    residual = (rest**2).sum() / 3
    between_runs = (4 * scores.mean(axis=1).var(ddof=1) - residual) / 4
    (found,) = spreads(page(tmp_path), tmp_path, sets, [])
    assert found.loss == "ArcFace"
    assert found.residual == pytest.approx(math.sqrt(residual))
    assert found.run == pytest.approx(math.sqrt(max(0, between_runs)))
    assert (found.search, found.num_searches) == (None, 0)


def test_one_run_has_no_spread_and_two_searches_have_one_between_them(tmp_path):
    random = np.random.default_rng(0)
    write_run(tmp_path, PROTOCOL, "cub200", "triplet", 0, random, 0.3)
    for name, identity, trials in (("search", "aaaaaaaa", 3), ("second", "bbbbbbbb", 5)):
        best = write_search(tmp_path, PROTOCOL, "cub200", "arcface", random, 0.3, trials, name=name)
        for run in range(2):
            write_run(tmp_path, PROTOCOL, "cub200", "arcface", run, random, 0.3, digest=identity, parameters=best)
    own = {spread.loss: spread for spread in spreads(page(tmp_path), tmp_path, run_sets(tmp_path), searches(tmp_path))}
    assert own["Triplet"].run is None
    assert "2 runs and 2 folds at least" in own["Triplet"].lacking
    assert own["ArcFace"].num_searches == 2
    means = [
        [run.outcome.test.separated[METRIC] for run in run_set.complete]
        for run_set in run_sets(tmp_path)
        if run_set.loss == "arcface"
    ]
    between, within = 2 * np.mean(means, axis=1).var(ddof=1), np.var(means, axis=1, ddof=1).mean()
    assert own["ArcFace"].search == pytest.approx(math.sqrt(max(0.0, (between - within) / 2)))
