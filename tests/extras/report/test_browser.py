"""The page works in a real browser: no error, the table sorts and filters, the map shows what one points at."""

import shutil
from xml.etree import ElementTree

import pytest

from featcache.extras.report.html import write_report

sync = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt install chromium"),
]


@pytest.fixture(scope="module")
def path(toy_run, tmp_path_factory):
    weak = toy_run[next(trial.trial for trial in toy_run.trials if trial.params == {"C": 1e-4})]
    return write_report(toy_run, tmp_path_factory.mktemp("page") / "report.html", chosen=weak)


@pytest.fixture(params=[(1280, "light"), (400, "dark")], ids=["wide light", "narrow dark"])
def page(request, path):
    """Return the opened page; whatever the browser complains about fails the test."""
    width, scheme = request.param
    complaints = []
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or complaints.append(asked.url))
        opened.goto(path.as_uri())
        sections = opened.locator("main > section > details")
        is_open = sections.evaluate_all("all => all.map(element => element.open)")
        assert is_open == [True, *[width > 480] * (sections.count() - 1)]
        sections.evaluate_all("all => { for (const element of all) element.open = true; }")
        yield opened
        browser.close()
    assert complaints == []


def column(page, number):
    return page.locator(f"#leaderboard tbody tr:visible td:nth-child({number})").all_inner_texts()


def test_the_table_sorts_both_ways_and_filters(page):
    before = column(page, 1)
    page.click("#leaderboard th:nth-child(1) button")
    assert column(page, 1) == [str(at) for at in sorted(map(int, before), reverse=True)]
    page.click("#leaderboard th:nth-child(1) button")
    assert column(page, 1) == [str(at) for at in sorted(map(int, before))]
    page.click("#leaderboard th:nth-child(3) button")
    assert column(page, 3) == sorted(column(page, 3))
    page.fill("#filter", "ridge alpha=1")
    assert set(column(page, 3)) == {"ridge"}
    assert page.inner_text("#shown") == f"{len(column(page, 1))} of {len(before)} trials"


def test_rows_without_a_number_come_last_in_either_order(page):
    for _ in range(2):
        page.click("#leaderboard th:nth-child(10) button")
        sizes = column(page, 10)
        assert sizes.count("-") > 0
        assert "-" not in sizes[: -sizes.count("-")]


def test_the_map_shows_the_image_that_is_pointed_at_or_stepped_to(page):
    assert page.locator("#tip").is_hidden()
    page.locator("#points circle").first.hover(force=True)
    assert page.locator("#tip .thumb").is_visible()
    shown = page.inner_text("#tip")
    assert ".png" in shown
    assert "data:image/webp" in page.locator("#tip .thumb").evaluate(
        "element => getComputedStyle(element).backgroundImage"
    )
    page.focus("#points")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tip") != shown
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_the_map_is_coloured_by_what_is_chosen(page):
    def colours():
        return page.locator("#points circle").evaluate_all(
            "all => new Set(all.map(element => element.getAttribute('fill'))).size"
        )

    assert colours() == 3
    page.select_option("#colour", "split")
    assert colours() == 2
    page.select_option("#colour", "verdict")
    assert colours() == 3
    page.click("#legend button >> text=mistake")
    faded, there = (page.locator(f"#points circle{selector}").count() for selector in (".faded", ""))
    assert 0 < faded < there


def test_nothing_is_wider_than_the_window(page):
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for image in page.locator("img:visible").all():
        assert image.evaluate("element => element.complete && element.naturalWidth > 0")


def test_the_score_of_every_trial_is_on_screen(page):
    score = page.locator("#leaderboard tbody tr:first-child td:nth-child(2)").bounding_box()
    assert score["x"] + score["width"] <= page.viewport_size["width"]


def test_a_link_opens_the_section_that_it_leads_to(page):
    section = page.locator("#made > details")
    section.evaluate("element => { element.open = false; }")
    for _ in range(2):  # the second time the address names it already
        page.click("nav a[href='#made']")
        page.wait_for_function("document.querySelector('#made > details').open")
        section.evaluate("element => { element.open = false; }")


def test_a_figure_is_saved_as_svg_with_dark_text(page, tmp_path):
    for place, least in (("#classes figure", 10), ("#map", 50)):
        with page.expect_download() as waiting:
            page.click(f"{place} button.save >> nth=0")
        assert waiting.value.suggested_filename.startswith("toy.run-")
        assert waiting.value.suggested_filename.endswith(".svg")
        waiting.value.save_as(tmp_path / "figure.svg")
        root = ElementTree.parse(tmp_path / "figure.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("style") == "color: #1c2430"
        assert len(list(root.iter())) > least


def test_the_plots_take_the_colour_of_the_page(page):
    text = page.locator("figure svg text").first
    assert text.evaluate("element => getComputedStyle(element).fill") == page.locator("body").evaluate(
        "element => getComputedStyle(element).color"
    )
