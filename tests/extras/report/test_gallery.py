"""`scan --html`: a few images of each class on one page that needs nothing else, whatever the images are called."""

import re

import numpy as np
import pytest
from tiny import write_images

from featcache.errors import UsageError
from featcache.extras.report import gallery
from featcache.extras.report.gallery import check_gallery, render, write_gallery
from featcache.images.manifest import scan


def shown(page):
    return re.findall(r'<img src="data:image/webp;base64,[^"]+" alt="([^"]+)"', page)


def test_some_images_of_each_class_are_shown_from_all_over_it(tmp_path):
    page = render(scan(write_images(tmp_path / "photos", per_class=30)))
    paths = shown(page)
    assert len(paths) == 3 * gallery.PER_CLASS
    of_red = [int(path[-7:-4]) for path in paths if path.startswith("red/")]
    assert (min(of_red), len(of_red)) == (0, gallery.PER_CLASS)
    assert max(of_red) > 25
    assert "30 images: " in page
    assert f"; {gallery.PER_CLASS} are shown" in page


def test_the_page_asks_for_nothing_else_and_runs_no_script(photos):
    page = render(scan(photos))
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "<script" not in page
    assert set(re.findall(r'(?:src|href)="(.{5})', page)) == {"data:"}


def test_names_are_text_and_what_cannot_be_read_has_a_place(photos):
    (photos / "red").rename(photos / "<b>red & co")
    (photos / "blue" / "broken.png").write_bytes(b"no")
    images = scan(photos, check=True)
    page = render(images)
    assert "&lt;b&gt;red &amp; co" in page
    assert "<b>red" not in page
    assert "Images that cannot be read: 1." in page
    assert "blue/broken.png: " in page
    (photos / "blue" / "000.png").unlink()
    assert '<span class="gone"></span>' in render(images)


def test_the_page_stays_small_however_many_classes_there_are(monkeypatch):
    monkeypatch.setattr(gallery, "MOST_CLASSES", 20)
    monkeypatch.setattr(gallery, "MOST_IMAGES", 60)
    labels = [f"c{number // 10:02d}" for number in range(250)]
    page = render(scan(np.zeros((250, 8, 8), np.uint8), labels=labels))
    assert len(shown(page)) == 60
    assert "5 more classes are not shown." in page


def test_only_an_earlier_page_is_replaced(photos):
    images, out = scan(photos), photos.parent / "look.html"
    assert write_gallery(images, out) == write_gallery(images, out)
    other = photos.parent / "other.html"
    other.write_text("<p>mine")
    for write in (write_gallery, lambda images, out: check_gallery(photos, out)):
        with pytest.raises(UsageError, match=r"other\.html is there already and is no page of featcache scan"):
            write(images, other)
    write_gallery(images, other, force=True)
    with pytest.raises(UsageError, match="uses"):
        write_gallery(images, photos / "red" / "000.png", force=True)
