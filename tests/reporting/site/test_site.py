"""The whole report of a half-done study: nothing invented, every link resolves, no network, the same bytes again."""

import json
import os
import re
import shutil
from html import unescape
from posixpath import dirname, join, normpath
from urllib.parse import unquote, urlsplit

import pytest

from mlrc_lightning.__main__ import main
from mlrc_lightning.errors import RecordError
from mlrc_lightning.reporting.site import memory, site
from mlrc_lightning.reporting.site.site import build
from mlrc_lightning.reporting.tables.catalog import LOSSES
from tests.reporting.site.conftest import SMALL, pages, write_half_done
from tests.reporting.site.pages import Reader, contrast, is_in_order

pytestmark = pytest.mark.slow


def words(html):
    return unescape(" ".join(re.sub("<[^>]*>", " ", html).split()))


def cell(index, loss, column, grid=0):
    """The cell of a loss in the overview, as HTML."""
    table = re.findall(r'<table class="grid">.*?</table>', index, re.DOTALL)[grid]
    row = re.search(rf'<tr><th scope="row">{re.escape(loss)}</th>(.*?)</tr>', table)[1]
    return re.findall(r"<td>(.*?)</td>", row)[column]


def test_every_link_resolves_and_every_page_can_be_reached(study):
    outputs, _ = study
    found = pages(outputs)
    readers = {name: Reader(text) for name, text in found.items()}
    linked = {}
    for name, reader in readers.items():
        for tag, address in reader.addresses:
            parts = urlsplit(address)
            assert (parts.scheme, parts.netloc) in (("", ""), ("data", "")), (name, address)
            if parts.scheme == "data":
                continue
            target = normpath(join(dirname(name), unquote(parts.path))) if parts.path else name
            assert (outputs / "report" / target).is_file(), (name, address)
            if parts.fragment:
                assert unquote(parts.fragment) in readers[target].ids, (name, address)
            if tag == "a":
                linked.setdefault(name, set()).add(target)
    reached, todo = set(), ["index.html"]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += linked.get(name, ())
    assert found.keys() - reached == set()


def test_nothing_is_asked_of_the_network(study):
    outputs, _ = study
    texts = pages(outputs)
    for name in ("report.css", "report.js"):
        texts[name] = (outputs / "report" / name).read_text()
    for name, text in texts.items():
        assert set(re.findall(r"""([\w:]*)=?["']?https?://""", text)) <= {"xmlns", "xmlns:xlink"}, name
        assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|<iframe|<object|<embed", text), name


def test_a_screen_reader_stumbles_over_nothing(study):
    outputs, _ = study
    for name, text in pages(outputs).items():
        reader = Reader(text)
        assert reader.problems == [], name
        assert reader.language == "en", name
        assert reader.title.endswith(" · metric learning benchmark"), name
        assert is_in_order([level for level, _ in reader.headings]), (name, reader.headings)
        assert [tag for tag, _ in reader.landmarks].count("main") == 1
        navigations = [label for tag, label in reader.landmarks if tag == "nav"]
        assert len(set(navigations)) == len(navigations)
        assert None not in navigations


def test_the_checks_of_a_page_find_what_is_wrong():
    reader = Reader(
        '<h1>a</h1><h3>b</h3><img src="x"><svg></svg><b id="y"></b><i id="y"></i><th>c</th><button></button>'
    )
    assert len(reader.problems) == 5
    assert not is_in_order([level for level, _ in reader.headings])
    assert round(contrast("#ffffff", "#000000"), 2) == 21
    assert round(contrast("#777777", "#ffffff"), 2) == 4.48


def test_colours_of_text_have_a_contrast_of_4_5_in_light_and_dark(study):
    outputs, _ = study
    light, dark, _ = re.findall(r"\{ ((?:--[^{}]*)) \}", (outputs / "report" / "report.css").read_text())
    for text in (light, light + dark):
        values = dict(re.findall(r"(--[\w-]+): ([^;]+);", text))

        def color(name, values=values):
            found = values[name]
            return color(found[4:-1]) if found.startswith("var(") else found

        for surface in ("--surface", "--band"):
            for ink in ("--ink", "--muted", "--link", "--good", "--bad"):
                assert contrast(color(ink), color(surface)) >= 4.5, (ink, surface)
            for mark in ("--control", "--focus", "--blue", "--paper-line"):
                assert contrast(color(mark), color(surface)) >= 3, (mark, surface)


def test_the_overview_says_how_far_everything_is(study):
    outputs, _ = study
    index = pages(outputs)["index.html"]
    assert words(cell(index, "ArcFace", 0)).startswith("50 trials, 1 failed, best ")
    assert words(cell(index, "ArcFace", 0)).endswith("3 of 10 runs 1 of 10 runs (the paper's hyperparameters)")
    assert words(cell(index, "ArcFace", 1)).startswith("12 of 50 trials, 1 failed, best ")
    assert "run" not in words(cell(index, "ArcFace", 1))  # none is due before the search has ended
    assert words(cell(index, "Margin", 0)) == "no search yet 1 of 10 runs, 1 failed, run 2: 1 of 4 folds"
    assert words(cell(index, "FastAP", 2)) == "no search yet"
    assert "the paper’s own search reached" in cell(index, "CosFace", 3)
    assert words(cell(index, "mine", 0, grid=1)).startswith("6 trials, 1 failed")
    assert "Nothing yet of the paper’s other losses: Contrastive, Triplet," in index
    assert "a #2?: 4 trials, 1 failed, best" in words(cell(index, "mine", 0, grid=1))
    assert "7 searches, 15 tested runs of 7 settings, 1 failed run, 1 single trial." in index


def test_of_nothing_the_report_says_so(empty):
    outputs, protocol = empty
    build(outputs)
    index = pages(outputs)["index.html"]
    assert "0 searches, 0 tested runs of 0 settings, 0 single trials." in index
    assert index.count("no search yet</span>") == 4 * len(LOSSES)
    table = pages(outputs)[f"tables/{protocol}/cub200-search.html"]
    assert "data-cell" not in table
    assert "Two losses with tested runs are needed for a comparison, found 0." in table
    assert "No run is tested yet." in table


def test_a_failed_run_says_why_and_an_unfinished_one_has_no_page(study):
    outputs, protocol = study
    found = pages(outputs)
    place = f"runs/{protocol}/cub200/margin/reproduce/search-11111111"
    assert "RuntimeError: loss &lt;nan&gt; is not finite" in found[f"{place}/1.html"]
    assert "Not tested." in found[f"{place}/1.html"]
    assert f"{place}/2.html" not in found
    of_set = words(found[f"{place}.html"])
    assert "Run 2 unfinished – – – – – –" in of_set
    assert of_set.count("(1 run: no interval)") == 6


def test_each_cell_leads_to_the_runs_it_is_the_mean_of(study):
    outputs, protocol = study
    found = pages(outputs)
    name = f"tables/{protocol}/cub200-search.html"
    links = dict(re.findall(r'data-cell="([^"]+)"><a href="([^"]+)"', found[name]))
    manifest = json.loads((outputs / "report" / f"{name.removesuffix('.html')}.manifest.json").read_text())
    cells = {cell["cell"]: cell for cell in manifest["cells"]}
    assert links.keys() == cells.keys()
    assert len(cells) == 4 * 6
    for key, address in links.items():
        target = normpath(join(dirname(name), address))
        for run in cells[key]["runs"]:
            assert f'href="search-11111111/{run.rpartition("/")[2]}.html"' in found[target]
            assert f"runs/{run}.html" in found
    main(["verify", str(outputs / "report" / f"{name.removesuffix('.html')}.manifest.json"), "--outputs", str(outputs)])


def test_uses_of_the_test_split_are_counted(study):
    outputs, protocol = study
    found = pages(outputs)
    place = f"runs/{protocol}/cub200/arcface/reproduce/search-11111111"
    assert "The test split was used 2 times." in found[f"{place}/0.html"]
    assert "2026-01-03T00:00:00+00:00: test, by evaluate" in found[f"{place}/0.html"]
    assert "The test split was used once." in found[f"{place}/1.html"]


def test_a_run_shows_its_curves_images_environment_and_configuration(study):
    outputs, protocol = study
    page = pages(outputs)[f"runs/{protocol}/cub200/arcface/reproduce/search-11111111/0.html"]
    assert [text for _, text in Reader(page).headings][1:] == [
        "Test accuracies", "Learning curves", "Fold 0", "Fold 1", "Fold 2", "Fold 3", "Test embeddings in the plane",
        "Nearest test images", "Uses of the test split", "Environment", "Provenance", "Configuration",
    ]  # fmt: skip
    assert page.count("<img ") == 3 * (1 + 4)
    assert 'alt="Query: ' in page
    assert "0123456789abcdef" in page
    assert "loss.function.margin: " in page


def test_a_search_stands_beside_the_papers_optimum(study):
    outputs, protocol = study
    page = words(pages(outputs)[f"searches/{protocol}/cub200/arcface/search.html"])
    assert "loss.function.margin 0 to 90" in page
    assert re.search(r"loss\.function\.scale 0\.01 to 100, log scale \d", page)
    assert "23.2259" in page  # as tables/hyperparameters has it of reference/optimal_hyperparameters_full_precision.csv
    assert "search-11111111 : its best trial" in page


def test_what_was_derived_comes_out_the_same_byte_by_byte(study, tmp_path):
    outputs = tmp_path / "outputs"
    shutil.copytree(study[0], outputs)
    before = contents_of(outputs)
    build(outputs)
    assert contents_of(outputs) == before
    for derived in ("report", "tables"):
        shutil.rmtree(outputs / derived)
    for path in [*outputs.rglob("pairwise_tests.csv"), *outputs.rglob(".pairwise_tests.json")]:
        path.unlink()
    build(outputs)
    assert contents_of(outputs) == before


def contents_of(outputs):
    files = [path for path in outputs.rglob("*") if path.is_file()]
    memories = (".digests.json", ".compositions.json")
    return {str(path.relative_to(outputs)): path.read_bytes() for path in files if path.name not in memories}


def test_pages_of_what_is_gone_are_removed(study, tmp_path):
    outputs = tmp_path / "outputs"
    shutil.copytree(study[0], outputs)
    shutil.rmtree(outputs / SMALL)
    build(outputs)
    assert not [name for name in pages(outputs) if SMALL in name]
    assert not (outputs / "report" / "runs" / SMALL).exists()
    assert len(list((outputs / "report" / site._DRAWN).iterdir())) == 3


def test_a_damaged_record_is_named(empty):
    outputs, protocol = empty
    write_half_done(outputs, protocol)
    path = outputs / protocol / "cub200/arcface/reproduce/search-11111111/1/record.json"
    path.write_text("{")
    index, (line,) = build(outputs)
    assert "search-11111111/1/record.json: expected JSON, found a damaged file" in line
    assert "search-11111111/1/record.json" in index.read_text()


def test_the_command_says_where_the_report_is(empty, capsys):
    outputs, _ = empty
    main(["report", "--outputs", str(outputs)])
    assert capsys.readouterr().out == f"Written: {outputs}/report/index.html\n"


def test_a_report_is_made_again_only_where_something_has_changed(empty, capsys, monkeypatch):
    outputs, protocol = empty
    write_half_done(outputs, protocol)

    def made():
        main(["report", "--outputs", str(outputs)])
        return capsys.readouterr().out.startswith("Written")

    assert made()
    assert not made()
    record = outputs / protocol / "cub200/arcface/reproduce/search-11111111/1/record.json"
    os.utime(record)
    assert made()
    assert not made()
    page = outputs / "report" / "figures.html"
    page.unlink()
    assert made()
    assert page.exists()
    assert not made()
    record.with_name("evaluations.jsonl").write_text("{}\n")
    assert made()
    shutil.rmtree(record.parent)
    assert made()
    assert not made()
    monkeypatch.setattr(memory, "version", lambda name: "2")
    assert made()


# what is the user's


@pytest.mark.parametrize("build_again", [False, True])
def test_a_folder_without_the_marker_stays_as_it_is(tmp_path, capsys, build_again):
    mine = tmp_path / "report"
    (mine / "data").mkdir(parents=True)
    for name in ("notes.html", "data/numbers.json", "index.html"):
        (mine / name).write_text("mine")
    for _ in range(1 + build_again):
        with pytest.raises(SystemExit) as ended:
            main(["report", "--outputs", str(tmp_path)])
        assert ended.value.code == 2
        assert "report: expected the folder of a report, found one without its marker" in capsys.readouterr().err
    assert sorted(path.name for path in mine.rglob("*")) == ["data", "index.html", "notes.html", "numbers.json"]
    assert (mine / "index.html").read_text() == "mine"


def test_links_are_not_followed(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.html").write_text("mine")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    (outputs / "report").symlink_to(mine)
    with pytest.raises(RecordError, match="report: expected the folder of a report or nothing, found another file or"):
        site.build(outputs)
    (outputs / "report").unlink()
    site.build(outputs)
    shutil.rmtree(outputs / "report" / "tables")
    (outputs / "report" / "tables").symlink_to(mine)
    with pytest.raises(RecordError, match="expected a file of the report, found a link"):
        site.build(outputs)
    assert [path.name for path in mine.iterdir()] == ["notes.html"]


def test_only_files_of_the_last_report_are_removed(tmp_path):
    site.build(tmp_path)
    report = tmp_path / "report"
    (report / "own.html").write_text("mine")
    marker = report / site.MARKER
    (tmp_path / "outside.html").write_text("mine")
    (report / "runs").mkdir()
    (report / "runs" / "old.html").write_text("of an earlier report")
    names = [*json.loads(marker.read_text()), "runs/old.html", "../outside.html", "/etc/hostname"]
    marker.write_text(json.dumps(names))
    site.build(tmp_path)
    assert (report / "own.html").read_text() == "mine"
    assert (tmp_path / "outside.html").read_text() == "mine"
    assert not (report / "runs").exists()
