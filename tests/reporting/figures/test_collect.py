"""From a folder of results to files: what is found, averaged, named, and said to be lacking."""

import numpy as np
import pytest
from scipy import stats

from mlrc_lightning.__main__ import main
from mlrc_lightning.files import write_npz
from mlrc_lightning.reference import rows
from mlrc_lightning.reporting.figures import NAMES
from mlrc_lightning.reporting.figures.collect import Drawing, Lacking, collect, loss_years, measured
from mlrc_lightning.reporting.pairs import Pair, as_csv
from mlrc_lightning.reporting.tables.catalog import LOSSES
from mlrc_lightning.results.runs import run_sets
from mlrc_lightning.results.searches import searches
from tests.reporting.figures.results import METRIC, put, record
from tests.reporting.figures.test_curves import by_gid
from tests.reporting.figures.test_reality import bars
from tests.reporting.tables import fakes

PROTOCOL = "mlrc-bn_inception-01234567"


def reproductions(outputs, loss="arcface", values=(0.6, 0.62, 0.67), source="search"):
    for run, value in enumerate(values):
        content = record("reproduce", PROTOCOL, "cub200", loss, separated=value - 0.1, concatenated=value)
        put(outputs, f"{PROTOCOL}/cub200/{loss}/reproduce/{source}-89abcdef/{run}", content)


def test_a_cell_is_the_mean_over_runs_with_scipys_t_interval(tmp_path):
    reproductions(tmp_path)
    (own,) = measured(run_sets(tmp_path), searches(tmp_path))
    assert (own.protocol, own.source) == (PROTOCOL, "search")
    cell = own.accuracies["cub200", "ArcFace", "concatenated", METRIC]
    low, high = stats.t.interval(0.95, 2, loc=np.mean([60, 62, 67]), scale=stats.sem([60, 62, 67]))
    assert (cell.mean - cell.half_width, cell.mean + cell.half_width) == pytest.approx((low, high))
    assert cell.n == 3
    assert own.accuracies["cub200", "ArcFace", "separated", METRIC].mean == pytest.approx(53)


def test_one_run_has_no_interval_and_failed_untested_or_untrained_ones_do_not_count(tmp_path):
    reproductions(tmp_path, values=(0.6,))
    place = f"{PROTOCOL}/cub200/arcface/reproduce/search-89abcdef"
    put(tmp_path, f"{place}/1", record("reproduce", PROTOCOL, "cub200", "arcface", failure="diverged"))
    put(tmp_path, f"{place}/2", record("reproduce", PROTOCOL, "cub200", "arcface"))
    untrained = record("reproduce", PROTOCOL, "cub200", "untrained", separated=0.1, concatenated=0.1)
    put(tmp_path, f"{PROTOCOL}/cub200/untrained/reproduce/given-89abcdef/0", untrained)
    (own,) = measured(run_sets(tmp_path), searches(tmp_path))
    cell = own.accuracies["cub200", "ArcFace", "concatenated", METRIC]
    assert (cell.mean, cell.half_width, cell.n) == (60.0, None, 1)


@pytest.mark.slow
def test_protocols_and_sources_never_share_a_figure(tmp_path):
    reproductions(tmp_path)
    reproductions(tmp_path, loss="triplet", source="paper")
    small = "mlrc-small_cnn-00000000"
    other = record("reproduce", small, "glyphs", "triplet", separated=0.2, concatenated=0.3)
    put(tmp_path, f"{small}/glyphs/triplet/reproduce/search-0/0", other)
    drawings = list(collect("figure_2b", tmp_path))
    assert [str(drawing.path) for drawing in drawings] == [
        "figure_2b",
        f"{PROTOCOL}/figure_2b_paper",
        f"{PROTOCOL}/figure_2b_search",
        f"{small}/figure_2b_search",
    ]
    assert [axes.get_title(loc="left") for axes in drawings[3].figure.axes] == ["glyphs"]


@pytest.mark.slow
def test_ours_stand_beside_the_papers_and_missing_ones_are_dashes(tmp_path):
    reproductions(tmp_path)
    drawing = list(collect("figure_2b", tmp_path))[1]
    axes = {axes.get_title(loc="left"): axes for axes in drawing.figure.axes}
    order = list(loss_years())
    assert len(bars(axes["CUB200"])) == len(order) + 1
    ours = [(x, height) for x, height in bars(axes["CUB200"]) if height == pytest.approx(63)]
    assert ours[0][0] == pytest.approx(order.index("ArcFace") + 0.2)
    assert sum(text.get_text() == "–" for text in axes["CUB200"].texts) == len(order) - 1
    assert "CUB200, ours: 63.0 (ArcFace)" in drawing.description


def test_figure_3_of_ours_needs_all_losses_of_the_mean(tmp_path):
    names = [row.name for row in LOSSES if row.title not in ("FastAP", "SoftTriple")]
    for name in names:
        reproductions(tmp_path, loss=name, values=(0.5 if name == "contrastive" else 0.6,))
    lacking = list(collect("figure_3a", tmp_path))[1]
    assert isinstance(lacking, Lacking)
    assert "all of Contrastive and the 11 losses" in lacking.text
    reproductions(tmp_path, loss="soft_triple", values=(0.6,))
    drawing = list(collect("figure_3a", tmp_path))[1]
    assert [height for _, height in bars(drawing.figure.axes[0])][3:5] == pytest.approx([25.0, 20.0])


def test_a_search_is_drawn_with_its_failures_and_the_papers_curve(tmp_path):
    trials = [({}, [0.2, 0.4]), ({}, "diverged"), ({}, [0.4, 0.4]), ({}, None)]
    fakes.write_search(tmp_path, "arcface", 50, trials, protocol=PROTOCOL)
    (drawing,) = collect("optimisation", tmp_path)
    assert str(drawing.path) == f"{PROTOCOL}/cub200/arcface/search/optimisation"
    lines = by_gid(drawing.figure.axes[0])
    assert lines["trials"].get_xydata() == pytest.approx(np.array([[1, 30], [3, 40]]))
    assert list(lines["failed"].get_xdata()) == [2]
    paper = [
        float(row["best_so_far_val_map_at_r"])
        for row in rows("original_searches.csv")
        if (row["setting"], row["loss"]) == ("cub200", "ArcFace")
    ]
    assert len(paper) == 50
    assert lines["paper"].get_ydata() == pytest.approx(100 * np.array(paper))


@pytest.mark.slow
def test_learning_curves_are_of_runs_and_of_a_search_s_best_trial(tmp_path):
    reproductions(tmp_path, values=(0.6,))
    trials = [({}, [value]) for value in (0.3, 0.4, 0.35)]
    fakes.write_search(tmp_path, "arcface", 3, trials, protocol=PROTOCOL)
    for number, value in enumerate((0.3, 0.4, 0.35)):
        content = record("search", PROTOCOL, "cub200", "arcface", val=value)
        put(tmp_path, f"{PROTOCOL}/cub200/arcface/search/{number}", content)
    found = [str(drawing.path) for drawing in collect("learning_curves", tmp_path)]
    place = f"{PROTOCOL}/cub200/arcface"
    assert found == [f"{place}/reproduce/search-89abcdef/0/learning_curves", f"{place}/search/1/learning_curves"]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("figure_2a", "figure_3a", "figure_3b")])
@pytest.mark.slow
def test_an_empty_folder_says_what_is_lacking(name, tmp_path):
    lacking = [found for found in collect(name, tmp_path) if not isinstance(found, Drawing)]
    assert len(lacking) == 1
    assert lacking[0].text.startswith(f"{name}: ")


def test_stored_tests_are_drawn_and_damaged_ones_refused(tmp_path):
    folder = tmp_path / PROTOCOL / "cub200"
    folder.mkdir(parents=True)
    path = folder / "pairwise_tests.csv"
    stored = Pair("Triplet", "Contrastive", -0.01, -0.02, 0.0, 0.04, 0.04, None, None, None, 2, 2, 100, 500)
    path.write_text(as_csv([stored], METRIC, "concatenated"))
    (drawing,) = collect("pairwise_tests", tmp_path)
    assert [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()] == ["Contrastive", "Triplet"]
    assert "1 of 1 pairs" in drawing.description
    path.write_text("loss_a,loss_b,effect\nTriplet,Contrastive,much\n")
    (lacking,) = collect("pairwise_tests", tmp_path)
    assert lacking.is_damaged
    assert "pairwise_tests.csv: expected the columns loss_a" in lacking.text


def test_a_damaged_input_is_named_and_stops_no_other(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "projection_test.npz").write_bytes(b"no archive")
    (tmp_path / "b" / "projection_test.npz").mkdir()
    arrays = {"points": np.zeros((3, 2)), "labels": np.arange(9), "class_names": np.array(["x"])}
    write_npz(tmp_path / "c" / "projection_test.npz", arrays)
    found = list(collect("projection", tmp_path))
    assert all(lacking.is_damaged for lacking in found)
    assert "a/projection_test.npz: expected arrays, found a damaged file" in found[0].text
    assert "b/projection_test.npz: expected a file, found a folder" in found[1].text
    assert "c/projection_test.npz: expected arrays that belong together" in found[2].text


@pytest.mark.slow
def test_the_command_draws_into_the_folder_of_figures_and_never_reads_from_it(tmp_path, capsys):
    reproductions(tmp_path, values=(0.6,))
    put(tmp_path, "figures/old", record("train", PROTOCOL, "cub200", "arcface"))
    main(["figure", "figure_2a", "learning_curves", "--outputs", str(tmp_path), "--format", "svg"])
    printed = capsys.readouterr().out.split()
    place = f"figures/{PROTOCOL}/cub200/arcface/reproduce/search-89abcdef/0/learning_curves.svg"
    assert printed == [str(tmp_path / "figures/figure_2a.svg"), str(tmp_path / place)]
    assert len(list(tmp_path.rglob("*.svg"))) == 2


def test_the_command_says_what_is_lacking(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["figure", "projection", "optimisation", "--outputs", str(tmp_path)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "projection: no projection_test.npz" in error
    assert "optimisation: no searches" in error
    assert not (tmp_path / "figures").exists()


@pytest.mark.slow
def test_the_command_computes_the_toy_embeddings_once(tmp_path):
    main(["figure", "figure_1", "--outputs", str(tmp_path), "--format", "png"])
    stored = (tmp_path / "figures/inputs/toy.npz").read_bytes()
    drawn = (tmp_path / "figures/figure_1.png").read_bytes()
    (tmp_path / "figures/figure_1.png").unlink()
    main(["figure", "figure_1", "--outputs", str(tmp_path), "--format", "png"])
    assert (tmp_path / "figures/inputs/toy.npz").read_bytes() == stored
    assert (tmp_path / "figures/figure_1.png").read_bytes() == drawn
