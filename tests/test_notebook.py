"""What results look like in a notebook: complete, escaped, bounded, and never a traceback."""

import os
import re
import shutil
from base64 import b64decode
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tiny import write_images

import featcache as fc
from featcache.images import jpegs
from featcache.models import Certificate
from featcache.notebook import MOST_PICTURES, MOST_ROWS, html, never_raising
from featcache.sweeps.metrics import Score
from featcache.text import Table
from featcache.tuning.train import Epoch
from featcache.tuning.tuned import Tuned

EVIL = "<img src=x onerror=alert(1)>"
PIXELS = "pixels:size=8"


def pictures_in(shown: str) -> list[Image.Image]:
    data = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', shown)
    return [Image.open(BytesIO(b64decode(jpeg))) for jpeg in data]


def text_of(shown: str) -> str:
    """Return HTML without its tags."""
    return re.sub(r"<[^>]+>", " ", shown)


@pytest.fixture
def evil(tmp_path):
    """Return a folder of images with HTML in the names of a class and of files, and a copy in another class folder."""
    folder = write_images(tmp_path / EVIL)
    (folder / "red").rename(folder / EVIL)
    for path in list((folder / EVIL).iterdir()):
        path.rename(path.with_name(f"<i>{path.name}"))
    return folder


@pytest.fixture
def results(evil, tmp_path, monkeypatch):
    """Return every kind of result, made from these images in a folder whose name is HTML, too."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(next((evil / EVIL).iterdir()), evil / "blue" / "<u>.png")
    cache = fc.extract(evil, PIXELS, out=f"{EVIL}.h5")
    run = fc.sweep(cache, "ridge,logreg", cv=3)
    start = Epoch(0, float("nan"), 0.5, Score(0.8, 0.7, 0.9), 0.1)
    tuned = Tuned(None, tmp_path / f"{EVIL}.keras", (start,), start, None, 0, 0.1, run.best, np.zeros((0, 3)))
    return {
        "images": fc.scan(evil),
        "cache": cache,
        "run": run,
        "chosen": run.best,
        "trial": replace(run.best.trial, head=EVIL),
        "comparison": fc.compare(run[1], run[2]),
        "leaks": fc.leaks(cache),
        "certificate": Certificate(1e-6, 2e-6, 1.0, 64, probabilities=0.1, precision=EVIL),
        "tuned": tuned,
    }


def test_html_in_names_is_text(results):
    for name, result in results.items():
        shown = result._repr_html_()
        assert [tag for tag in (EVIL, "<i>", "<u>") if tag in shown] == [], name
        assert "&lt;img src=x onerror=alert(1)&gt;" in shown, name


def test_results_show_their_facts_and_pictures(results):
    shown = {name: result._repr_html_() for name, result in results.items()}
    assert "37 images in" in text_of(shown["images"])
    assert "1 image found more than once" in shown["images"]
    assert len(pictures_in(shown["images"])) == MOST_PICTURES
    assert max(pictures_in(shown["images"])[0].size) <= 112
    assert "pixels:size=8/top" in shown["cache"]
    assert shown["run"].count("<tr>") - 1 == len(results["run"])
    assert "of 10 other trials" in shown["run"]
    assert "<td" in shown["chosen"]
    assert "temperature" in shown["chosen"]
    assert "McNemar" in shown["comparison"]
    assert "tie: the interval" in shown["comparison"]
    assert "exact" in shown["leaks"]
    assert len(pictures_in(shown["leaks"])) >= 2
    assert "2.0e-06" in shown["certificate"]
    assert "computes what its head computed" in shown["certificate"]
    assert "0.800 [0.700, 0.900]" in shown["tuned"]


def test_what_is_gone_is_said_and_nothing_raises(results, evil):
    shutil.rmtree(evil)
    os.remove(results["cache"].path)
    shown = {name: result._repr_html_() for name, result in results.items()}
    assert "Of 8 pictures 8 could not be read just now." in shown["images"]
    assert "No cache at" in shown["cache"]
    assert "No cache at" in shown["run"]
    assert shown["run"].count("<tr>") - 1 == len(results["run"])
    assert "The images cannot be shown: No cache at" in shown["leaks"]


def test_a_cache_that_is_damaged_says_so(results):
    results["cache"].path.write_bytes(b"not HDF5")
    assert "is not an HDF5 file, so it is no cache" in results["cache"]._repr_html_()


def test_a_result_that_cannot_be_shown_says_why():
    class Broken:
        def __repr__(self):
            return "Broken(<b>)"

        @never_raising
        def _repr_html_(self):
            raise KeyError("<script>")

    shown = Broken()._repr_html_()
    assert "Broken(&lt;b&gt;)" in shown
    assert "KeyError: &#39;&lt;script&gt;&#39;" in shown


def test_long_tables_are_cut_and_say_so():
    shown = html("many", Table(["n"], [[number] for number in range(MOST_ROWS + 5)]))
    assert shown.count("<td") == MOST_ROWS
    assert "5 more rows" in shown


def test_numbers_stand_on_the_right_and_text_on_the_left():
    shown = html("", Table(["head", "score"], [["ridge", "0.9"]]))
    assert '<td style="text-align: left">ridge</td><td style="text-align: right">0.9</td>' in shown


def test_undecodable_names_can_be_written_as_utf8():
    shown = html("caf\udce9", Table(["\udce9"], [["\udce9"]]), {"\udce9": "\udce9"}, lines=["\udce9"], notes=["\udce9"])
    assert shown.encode().count(rb"\udce9") == 7


def test_images_of_many_megapixels_do_not_make_large_pictures(tmp_path):
    folder = write_images(tmp_path / "photos", per_class=1)
    Image.fromarray(np.zeros((3000, 2000, 3), np.uint8)).save(folder / "red" / "large.png")
    shown = fc.scan(folder)._repr_html_()
    assert len(pictures_in(shown)) == 4
    assert len(shown) < 40_000


def test_pictures_that_take_long_to_read_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(jpegs, "LONGEST_S", -1.0)
    shown = fc.scan(write_images(tmp_path / "photos", per_class=1))._repr_html_()
    assert pictures_in(shown) == []
    assert "Of 3 pictures 3 could not be read just now." in shown


def test_leaks_of_images_that_have_left_the_cache_show_the_others(results, evil, tmp_path):
    (evil / "blue" / "<u>.png").unlink()
    fc.extract(evil, PIXELS, out=results["cache"].path)
    shown = results["leaks"]._repr_html_()
    assert len(pictures_in(shown)) == 1
    assert "exact" in shown


def test_a_picture_that_has_changed_since_the_scan_is_left_out(tmp_path):
    folder = write_images(tmp_path / "photos", per_class=1)
    images = fc.scan(folder)
    (folder / "red" / "000.png").write_bytes(b"other")
    shown = images._repr_html_()
    assert len(pictures_in(shown)) == 2
    assert "Of 3 pictures 1 could not be read just now." in shown
