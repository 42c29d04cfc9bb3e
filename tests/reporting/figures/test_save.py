"""Files: the same bytes for the same data, words for those who do not see, light and dark, and no network."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from mlrc_lightning.reporting.figures.reality import OURS_512, PAPER_512, Bar, Column, accuracy_over_years
from mlrc_lightning.reporting.figures.save import FORMATS, PNG_DPI, html_text, png_bytes, save, svg_text
from mlrc_lightning.reporting.figures.style import BLUE, DARK, INK, MUTED, SURFACE

ROOT = Path(__file__).parents[3]
WORDS = ("Figures & <words>", 'Two bars, "a" < b.')


def figure():
    bars = (Bar(PAPER_512, 60.0, 0.5), Bar(OURS_512, 61.0))
    return accuracy_over_years(WORDS[0], "P@1 (%)", {"one": [Column("Loss", 2006, bars)]})


@pytest.mark.slow
def test_the_same_data_give_the_same_bytes_in_any_process_and_order(tmp_path):
    mine = save(figure(), tmp_path / "mine", *WORDS)
    code = (
        "from pathlib import Path; from tests.reporting.figures.test_save import *\n"
        "import mlrc_lightning.reporting.figures.collect\n"
        "f = figure()\n"
        f"for name in reversed(FORMATS): save(f, Path({str(tmp_path)!r}) / 'theirs', *WORDS, (name,))\n"
        "import sys; print([name for name in ('torch', 'matplotlib.pyplot') if name in sys.modules])"
    )
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\nsvg.fonttype: path\n")
    others = os.environ | {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path), "SOURCE_DATE_EPOCH": "1000000000"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=others, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for path, name in zip(mine, FORMATS, strict=True):
        assert path == tmp_path / f"mine.{name}"
        assert path.read_bytes() == (tmp_path / f"theirs.{name}").read_bytes(), name


def test_drawing_leaves_matplotlib_s_settings_as_they_were():
    before = dict(matplotlib.rcParams)
    svg_text(figure(), *WORDS)
    assert dict(matplotlib.rcParams) == before


def test_svg_is_well_formed_and_named_and_keeps_its_text():
    root = ElementTree.fromstring(svg_text(figure(), *WORDS))
    assert root.get("role") == "img"
    texts = {child.get("id"): child.text for child in root if child.tag.rpartition("}")[2] in ("title", "desc")}
    assert [texts[name] for name in root.get("aria-labelledby").split()] == list(WORDS)
    shown = {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"60.0", "61.0", "Loss", "2006"} <= shown
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids))


def test_ids_of_two_figures_in_one_page_differ_and_references_hold():
    one, two = svg_text(figure(), *WORDS), svg_text(figure(), "Other", "Other.")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, two)]
    assert ids[0].isdisjoint(ids[1])
    for text, own in zip((one, two), ids, strict=True):
        used = re.findall(r'(?:url\(#|href="#)([^")]+)', text)
        assert used
        assert set(used) <= own


@pytest.mark.slow
def test_no_date_and_no_program_in_the_files():
    text = svg_text(figure(), *WORDS)
    assert "<metadata" not in text
    assert "DOCTYPE" not in text
    assert b"matplotlib" not in png_bytes(figure(), *WORDS).lower()


def test_html_is_one_file_without_network_and_with_its_words():
    page = html_text(figure(), *WORDS)
    links = re.findall(r"https?://[^\s\"'<>]+", page)
    assert set(links) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\((?!#)", page)
    assert "default-src 'none'" in page
    assert '<html lang="en">' in page
    for tag in ("title", "h1"):
        assert f"<{tag}>Figures &amp; &lt;words&gt;</{tag}>" in page
    assert "<figcaption>Two bars, &quot;a&quot; &lt; b.</figcaption>" in page


def test_html_has_a_dark_version_of_every_colour_in_use():
    page = html_text(figure(), *WORDS)
    style, drawing = page.split("</style>", 1)
    assert "prefers-color-scheme: dark" in style
    assert not set(re.findall(r"#[0-9a-f]{6}\b", drawing)) & set(DARK)
    light, dark = style.split("@media", 1)
    for color in (INK, SURFACE, BLUE):
        name = re.search(rf"(--c\d+): {color};", light)[1]
        assert f"{name}: {DARK[color]};" in dark
        assert f"var({name})" in drawing


def test_png_has_the_size_and_the_words(tmp_path):
    drawn = figure()
    (path,) = save(drawn, tmp_path / "new" / "figure", *WORDS, ("png",))
    with Image.open(path) as image:
        width, height = drawn.get_size_inches()
        assert image.size == pytest.approx((width * PNG_DPI, height * PNG_DPI), abs=1)
        assert (image.info["Title"], image.info["Description"]) == WORDS


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="png.*svg.*html.*found 'gif'"):
        save(figure(), tmp_path / "figure", *WORDS, ("gif",))


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("is_dark", [False, True])
def test_text_stands_out_from_the_page_as_wcag_asks(is_dark):
    ink, muted, surface = (luminance(DARK[color] if is_dark else color) for color in (INK, MUTED, SURFACE))
    for text, least in ((ink, 7), (muted, 4.5)):
        high, low = max(text, surface), min(text, surface)
        assert (high + 0.05) / (low + 0.05) >= least
