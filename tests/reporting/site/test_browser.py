"""The report in headless Chromium, opened from disk: pip install '.[browser]' and Debian's chromium."""

import os
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page of the report; what the console says and what is requested is kept."""

    def __init__(self, browser, study, **context):
        self.outputs, self.protocol = study
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.page = self.context.new_page()
        self.said, self.requested = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requested.append(request.url))

    def go(self, name):
        self.page.goto((self.outputs / "report" / name.format(protocol=self.protocol)).as_uri())
        return self.page


@pytest.fixture
def open_page(browser, study):
    opened = []

    def make(name, **context):
        opened.append(Opened(browser, study, **context))
        opened[-1].go(name)
        return opened[-1]

    yield make
    for one in opened:
        one.context.close()


TABLE = "tables/{protocol}/cub200-search.html"
NAMES = ["index.html", "tables/index.html", TABLE, "hyperparameters.html", "reported.html", "toy.html", "figures.html"]
NAMES += [
    "searches/{protocol}/cub200/arcface/search.html",
    "runs/{protocol}/cub200/arcface/reproduce/search-11111111.html",
    "runs/{protocol}/cub200/arcface/reproduce/search-11111111/0.html",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_loads_without_errors_and_without_the_network(open_page, name):
    opened = open_page(name)
    assert opened.said == []
    assert [url for url in opened.requested if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in opened.requested) == 3  # itself, the style sheet, the script


@pytest.mark.parametrize("name", NAMES)
def test_a_narrow_page_scrolls_its_tables_and_not_itself(open_page, name):
    page = open_page(name, viewport={"width": 420, "height": 800}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 420


def column(page, position, table=0):
    rows = page.locator(".mlrc-table table").nth(table).locator("tbody tr")
    return [rows.nth(n).locator("th, td").nth(position).inner_text().split("\n")[0] for n in range(rows.count())]


def test_columns_are_sorted_by_mouse_and_by_keyboard_with_what_is_missing_last(open_page):
    page = open_page(TABLE).page
    before = column(page, 0)
    heading = page.locator(".mlrc-table table").first.locator("th[scope=col]").filter(has_text="paper").first
    button = heading.locator("button")
    assert button.get_attribute("aria-label") == "P@1, paper"
    button.click()
    assert heading.get_attribute("aria-sort") == "descending"
    values = [float(text.split()[0]) for text in column(page, 2) if text != "–"]
    assert values == sorted(values, reverse=True)
    assert len(values) == 15
    assert column(page, 2)[-1] == "–"
    button.focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    values = [float(text.split()[0]) for text in column(page, 2) if text != "–"]
    assert values == sorted(values)
    assert column(page, 2)[-1] == "–"
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") is None
    assert column(page, 0) == before
    names = page.locator(".mlrc-table table").first.locator("th[scope=col]").first
    names.locator("button").click()
    assert column(page, 0) == sorted(before, key=str.lower)
    assert page.get_by_role("status").first.inner_text() == "Sorted by %, ascending."


def test_columns_can_be_hidden_and_headings_follow(open_page):
    page = open_page(TABLE).page
    table = page.locator(".mlrc-table table").first
    group = table.locator("th[scope=colgroup]").first

    def shown(role):
        return [cell.is_visible() for cell in table.locator(f"td.{role}").all()]

    assert group.get_attribute("colspan") == "3"
    for role, left in (("Paper", 2), ("Difference", 1)):
        button = page.get_by_role("button", name=role, exact=True)
        button.focus()
        page.keyboard.press("Space")
        assert button.get_attribute("aria-pressed") == "false"
        assert group.evaluate("cell => cell.colSpan") == left
    assert not any(shown("paper") + shown("difference"))
    assert all(shown("ours"))
    edges = group.bounding_box(), table.locator("tbody tr").first.locator("td.ours").first.bounding_box()
    assert abs(edges[0]["x"] - edges[1]["x"]) < 1  # a heading stands above its column
    page.get_by_role("button", name="Ours", exact=True).click()
    assert not group.is_visible()
    for role in ("Ours", "Paper", "Difference"):
        page.get_by_role("button", name=role, exact=True).click()
    assert all(shown("ours") + shown("paper") + shown("difference"))
    assert group.evaluate("cell => cell.colSpan") == 3


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_light_and_dark_follow_the_reader_and_a_choice_is_remembered(open_page):
    light = background(open_page("index.html", color_scheme="light").page)
    opened = open_page("index.html", color_scheme="dark")
    page = opened.page
    dark = background(page)
    assert light == "rgb(255, 255, 255)"
    assert dark == "rgb(20, 23, 27)"
    button = page.get_by_role("button", name="Dark")
    assert button.get_attribute("aria-pressed") == "true"
    button.focus()
    page.keyboard.press("Enter")
    assert background(page) == light
    assert button.get_attribute("aria-pressed") == "false"
    page.reload()
    assert background(page) == light
    opened.go("figures.html")
    assert background(page) == light
    inks = {text.evaluate("t => getComputedStyle(t).fill") for text in page.locator(".drawing svg text").all()[:20]}
    assert "rgb(27, 31, 36)" in inks


def test_the_first_key_skips_to_the_content_and_focus_is_seen(open_page):
    page = open_page("index.html").page
    page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.textContent")
    assert focused == "Skip to content"
    assert page.locator(".skip").bounding_box()["y"] >= 0
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_plot_leads_to_its_search_and_a_cell_to_its_runs(open_page):
    opened = open_page("index.html")
    page = opened.page
    page.get_by_role("link", name="ArcFace, CUB200: 50 trials").click()
    assert page.locator("h1").inner_text() == "Search: ArcFace on CUB200"
    opened.go(TABLE)
    page.locator("tr[data-row=arcface] td[data-cell] a").first.click()
    assert page.locator("h1").inner_text() == "Runs: ArcFace on CUB200, search-11111111"


def test_without_scripts_everything_is_shown(open_page):
    page = open_page(TABLE, java_script_enabled=False).page
    assert page.get_by_role("button").count() == 0
    assert page.locator("td.paper").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_nothing(open_page, name, scheme):
    if "MLRC_AXE" not in os.environ:
        pytest.skip("needs axe.min.js of npm's axe-core: MLRC_AXE=FILE")
    page = open_page(name, color_scheme=scheme).page
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.add_script_tag(path=os.environ["MLRC_AXE"])
    wrong = page.evaluate(
        "document.body.append(document.createElement('img')), axe.run().then(f => f.violations.length)"
    )
    assert wrong == 2  # an image without words, outside of all landmarks
    page.evaluate("document.body.lastElementChild.remove()")
    violations = page.evaluate("axe.run().then(found => found.violations)")
    assert [(v["id"], [node["html"][:150] for node in v["nodes"]][:3]) for v in violations] == []
