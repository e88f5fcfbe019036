"""Labels are reviewed on a page without network: it shows all of them, keeps decisions, and saves the table."""

import json
import re
import shutil

import pytest
from tiny import write_images

from featcache.cache.reader import Cache
from featcache.extraction import extract
from featcache.extras.leaks import apply_review, doubts, leaks
from featcache.extras.report import pictures, review_page
from featcache.extras.report.review_page import write_review_page

PIXELS = "pixels:size=8"
EVIL = "red/=two,\"<script>alert('x').png"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return class folders with one photo under two labels, and six images in a wrong folder."""
    root = write_images(tmp_path_factory.mktemp("x") / "photos", 30)
    for number in range(6):
        shutil.move(root / f"red/00{number}.png", root / f"blue/wrong{number}.png")
    shutil.copy(root / "green/010.png", root / EVIL)
    return root


@pytest.fixture(scope="module")
def doubted(photos):
    cache = extract(photos, PIXELS, out=photos.parent / "c.h5")
    return doubts(leaks(cache))


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), flags=re.DOTALL)[1])


def written(doubted, photos, tmp_path, **options):
    page = tmp_path / "labels.html"
    write_review_page(doubted, photos.parent / "c.h5", page, **options)
    return page


def test_the_page_shows_every_label_with_its_picture_and_escapes_it(doubted, photos, tmp_path):
    page = written(doubted, photos, tmp_path)
    data = data_of(page)
    assert [row["path"] for row in data["rows"]] == [doubt.path for doubt in doubted.doubts]
    assert all(row["picture"].startswith("data:image/webp;base64,") for row in data["rows"])
    assert EVIL in {row["path"] for row in data["rows"]}
    assert "<script>alert" not in page.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page.read_text())


def test_a_page_that_would_be_too_large_says_what_is_cut(doubted, photos, tmp_path, monkeypatch):
    assert len(doubted.doubts) > 3
    monkeypatch.setattr(review_page, "MOST", 3)
    monkeypatch.setattr(pictures, "BLOCK", 1)
    monkeypatch.setattr(pictures, "PICTURE_BYTES", 5000)
    page = written(doubted, photos, tmp_path)
    rows = data_of(page)["rows"]
    without = sum(row["picture"] is None for row in rows)
    assert len(rows) == 3
    assert 0 < without < 3
    assert f"{len(doubted.doubts)} of 91 labels look wrong" in page.read_text()
    assert "This page has the first 3. The table of <code>--csv</code> has all." in page.read_text()
    assert f"{without} have no picture here" in page.read_text()


def test_images_that_are_gone_leave_a_page_without_pictures(doubted, photos, tmp_path):
    hidden = photos.with_name("hidden")
    photos.rename(hidden)
    try:
        page = written(doubted, photos, tmp_path)
        assert "so there are no pictures" in page.read_text()
        assert {row["picture"] for row in data_of(page)["rows"]} == {None}
        moved = written(doubted, photos, tmp_path, images=hidden)
        assert None not in {row["picture"] for row in data_of(moved)["rows"]}
    finally:
        hidden.rename(photos)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt install chromium")
@pytest.mark.parametrize(("width", "on_a_page"), [(1280, 48), (400, 2)], ids=["wide", "narrow, several pages"])
def test_a_review_from_page_to_table_to_second_extraction(doubted, photos, tmp_path, monkeypatch, width, on_a_page):
    sync = pytest.importorskip("playwright.sync_api")
    monkeypatch.setattr(review_page, "ON_A_PAGE", on_a_page)
    page_file = written(doubted, photos, tmp_path)
    complaints = []
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, accept_downloads=True)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request", lambda asked: asked.url.startswith(("file:", "data:", "blob:")) or complaints.append(asked.url)
        )
        page.goto(page_file.as_uri())
        names = [doubt.path for doubt in doubted.doubts]
        assert page.locator("#cards > li").count() == min(on_a_page, len(names))
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert names[:2] == ["green/010.png", EVIL]  # the photo under two labels
        assert "the same photo: red/=two" in page.locator("#cards > li").first.inner_text()

        page.keyboard.press("k")  # the label of the first is right
        page.keyboard.press("d")  # its copy goes
        page.keyboard.press("a")  # the suggestion is right
        page.keyboard.press("c")
        page.keyboard.type("gre")
        page.keyboard.press("Enter")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("u")  # no, that was none
        page.keyboard.press("a")
        assert page.inner_text("#status") == f"4 of {len(names)} decided"
        page.reload()
        assert page.inner_text("#status") == f"4 of {len(names)} decided"
        page.keyboard.press("n")
        focused = page.evaluate("Number(document.activeElement.dataset.at)")
        assert focused == (4 if len(names) > 4 else 0)
        with page.expect_download() as download:
            page.click("#save")
        saved = tmp_path / download.value.suggested_filename
        download.value.save_as(saved)
        browser.close()
    assert complaints == []
    assert saved.name == "c-labels.csv"

    decided = shutil.copy(photos.parent / "c.h5", tmp_path / "c.h5")
    done = apply_review(decided, saved)
    labels = {row.path: (row.label, row.split) for row in Cache.open(decided).rows}
    assert (done.decisions, done.undecided) == (4, len(names) - 4)
    assert labels[EVIL] == ("", "")
    assert labels[names[0]][0] == "green"
    assert {labels[names[at]][0] for at in (2, 3)} == {doubted.doubts[at].suggested for at in (2, 3)}

    again = extract(photos, PIXELS, out=decided)
    assert again.report.computed == 0
    assert {row.path: (row.label, row.split) for row in again.rows} == labels
    assert "Labels are as reviewed: 2 changed, 1 dropped, 1 kept" in again.report.remarks[-1]
    other = extract(photos, PIXELS, out=tmp_path / "other.h5", apply=saved)
    assert {row.path: row.label for row in other.rows} == {path: label for path, (label, _) in labels.items()}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt install chromium")
def test_without_local_storage_the_page_warns_and_still_saves(doubted, photos, tmp_path):
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(accept_downloads=True)
        page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('blocked'); }})")
        page.goto(written(doubted, photos, tmp_path).as_uri())
        assert page.locator("#unkept").is_visible()
        page.click("#cards > li >> nth=2 >> text=drop")
        page.keyboard.press("k")
        with page.expect_download() as download:
            page.keyboard.press("s")
        download.value.save_as(tmp_path / "saved.csv")
        browser.close()
    ends = [line.rpartition(",")[2] for line in (tmp_path / "saved.csv").read_text().splitlines()]
    assert ends[:5] == ["decision", "", "", "drop", "keep"]
