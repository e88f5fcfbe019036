"""The nearest images are exactly those of one large product; the query may be new, known, gone, or nothing."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import TOY, write_images

import featcache as fc
from featcache.cache.layout import table_of
from featcache.errors import DataError, UnknownTap, UnreadableImages, UsageError, WeightsMismatch
from featcache.extraction import engines, extract
from featcache.extras.similar import similar
from featcache.extras.similar.similar_page import write_similar_page

PIXELS = "pixels:size=8"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with photos/, of which one is there twice, a broken photo, and cache.h5. Do not change it."""
    folder = tmp_path_factory.mktemp("similar")
    photos = write_images(folder / "photos")
    first = sorted(photos.glob("*/*"))[0]
    shutil.copy(first, first.with_name("z-copy.png"))
    (first.parent / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    extract(photos, [TOY, PIXELS], out=folder / "cache.h5")
    Image.new("RGB", (20, 20), (250, 10, 10)).save(folder / "new.png")
    return folder


@pytest.fixture
def cache(place, monkeypatch):
    monkeypatch.chdir(place)
    return fc.Cache.open("cache.h5")


def cosines_with(cache, features, tap):
    """Return {path: cosine}, from one product in float64."""
    rows = cache.usable()
    X = cache.features(rows, tap).astype(np.float64)
    query = features.astype(np.float64)
    products = X @ query / np.linalg.norm(X, axis=1) / np.linalg.norm(query)
    return dict(zip([row.path for row in rows], products, strict=True))


def test_a_photo_whose_features_are_zero_is_refused(cache, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "black.png")
    with pytest.raises(DataError, match=r"black.png in tap 'pixels:size=8/top' are zero, .* Compare another `tap`"):
        cache.similar(tmp_path / "black.png", tap=f"{PIXELS}/top")


@pytest.mark.parametrize("block_bytes", [1, 10_000, 2**22])
@pytest.mark.parametrize("tap", [f"{PIXELS}/top", f"{TOY}/top"])
def test_images_of_the_cache_have_exactly_the_nearest(tap, block_bytes, cache, monkeypatch):
    monkeypatch.setattr("featcache.cache.rows.BLOCK_BYTES", block_bytes)
    row = cache.usable()[5]
    expected = cosines_with(cache, cache.features([row], tap)[0], tap)
    del expected[row.path]
    found = cache.similar(row.path, tap=tap, top=7)
    assert (found.tap, found.compared, found.computed) == (tap, len(expected), False)
    assert [image.path for image in found.images] == sorted(expected, key=lambda path: -expected[path])[:7]
    nearest = [expected[image.path] for image in found.images]
    assert [image.similarity for image in found.images] == pytest.approx(nearest, abs=1e-5)
    labels = {row.path: (row.label, row.split) for row in cache.rows}
    assert all((image.label, image.split) == labels[image.path] for image in found.images)


def test_a_new_photo_is_computed_once_as_extraction_would(cache, place, tmp_path):
    found = similar("cache.h5", place / "new.png", tap=f"{TOY}/top", top=100)
    assert found.computed
    assert len(found.images) == found.compared == len(cache.usable())
    shutil.copytree(place / "photos", tmp_path / "photos")
    shutil.copy(place / "new.png", tmp_path / "photos" / "red" / "new.png")
    grown = extract(tmp_path / "photos", TOY, out=tmp_path / "grown.h5").similar("red/new.png", top=100)
    assert not grown.computed
    assert [image.path for image in grown.images] == [image.path for image in found.images]
    expected = [image.similarity for image in grown.images]
    assert [image.similarity for image in found.images] == pytest.approx(expected, abs=1e-5)


def test_a_copy_of_an_image_of_the_cache_is_found_without_a_network(cache, place, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "choose", None)
    copy = shutil.copy(place / "photos" / cache.rows[0].path, tmp_path / "elsewhere.png")
    found = cache.similar(copy, top=2)
    assert not found.computed
    assert [image.similarity for image in found.images] == pytest.approx([1, 1], abs=1e-6)  # itself and its copy


@pytest.mark.parametrize("how", ["path in the cache", "file", "link"])
def test_an_image_is_not_its_own_neighbour_but_its_copy_is(how, cache, place, tmp_path):
    row = cache.rows[0]
    query = {"path in the cache": row.path, "file": place / "photos" / row.path}.get(how)
    if query is None:
        (tmp_path / "link").symlink_to(place / "photos")
        query = tmp_path / "link" / row.path
    paths = [image.path for image in cache.similar(query, top=100).images]
    assert row.path not in paths
    assert paths[0].endswith("z-copy.png")


def test_an_image_whose_file_is_gone_is_still_known(place, tmp_path):
    shutil.copytree(place / "photos", tmp_path / "photos")
    cache = extract(tmp_path / "photos", PIXELS, out=tmp_path / "c.h5")
    shutil.rmtree(tmp_path / "photos")
    assert len(cache.similar(cache.rows[0].path, top=3).images) == 3


@pytest.mark.parametrize(
    ("query", "error", "reason"),
    [
        ("", UsageError, "names the photo to compare, or an image of the cache by its path; got nothing"),
        ("  ", UsageError, "got nothing"),
        ("photos", UsageError, r"photos is a folder\. `query` takes one photo"),
        ("nowhere.jpg", DataError, r"There is no photo nowhere\.jpg, neither here nor in .+photos, and no image with"),
        ("broken.png", DataError, "There is no photo broken.png"),
        ("cache.h5", UnreadableImages, r"cache\.h5 cannot be read: unknown_format, not an image"),
    ],
)
def test_what_cannot_be_compared_is_one_line(query, error, reason, cache):
    with pytest.raises(error, match=reason) as raised:
        cache.similar(query)
    assert "\n" not in str(raised.value)


def test_a_broken_image_of_the_cache_is_named_with_its_reason(cache):
    [failure] = cache.failures
    with pytest.raises(UnreadableImages, match=r"broken\.png cannot be read: "):
        cache.similar(failure.path)


def test_a_tap_that_is_not_there_and_a_top_of_none_are_refused(cache):
    with pytest.raises(UnknownTap, match="has no tap 'vgg'"):
        cache.similar("new.png", tap="vgg")
    with pytest.raises(UsageError, match="`top` takes a number from 1; got 0"):
        cache.similar("new.png", top=0)


def test_a_tap_that_lacks_images_is_refused(place, tmp_path):
    shutil.copytree(place / "photos", tmp_path / "photos")
    extract(tmp_path / "photos", [TOY, PIXELS], out=tmp_path / "c.h5")
    Image.new("RGB", (20, 20)).save(tmp_path / "photos" / "red" / "black.png")
    cache = extract(tmp_path / "photos", PIXELS, out=tmp_path / "c.h5")
    with pytest.raises(UnknownTap, match=r"has no features of 1 of 1 images, such as red/black\.png"):
        cache.similar(cache.rows[0].path, tap=f"{TOY}/top")
    assert cache.similar(cache.rows[0].path).tap == f"{PIXELS}/top"


def test_other_weights_than_the_caches_are_refused(place, tmp_path):
    import keras

    def model(seed):
        keras.utils.set_random_seed(seed)
        layers = [keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3)]
        keras.Sequential(layers).save(tmp_path / "m.keras")

    model(1)
    cache = extract(place / "photos", str(tmp_path / "m.keras"), out=tmp_path / "c.h5")
    assert cache.similar(place / "new.png").computed
    model(2)
    with pytest.raises(WeightsMismatch, match="are not those that tap 'm/top' was made with"):
        cache.similar(place / "new.png")


def test_maps_are_averaged(place, tmp_path):
    maps = extract(place / "photos", f"{TOY}:size=64", pool="none", out=tmp_path / "maps.h5")
    means = extract(place / "photos", f"{TOY}:size=64", out=tmp_path / "means.h5")
    path = maps.rows[0].path
    [similarities, expected] = [[image.similarity for image in cache.similar(path).images] for cache in (maps, means)]
    assert similarities == pytest.approx(expected, abs=1e-4)


def test_the_page_shows_the_pictures_and_escapes_names(place, tmp_path):
    photos = shutil.copytree(place / "photos", tmp_path / "photos" / "<b>red")
    cache = extract(tmp_path / "photos", PIXELS, out=tmp_path / "c.h5")
    result = cache.similar(place / "new.png", top=4)
    write_similar_page(result, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/webp") == 5
    assert "<b>red" not in page
    assert f"{result.images[0].similarity:.3f}" in page
    write_similar_page(result, tmp_path / "page.html")  # its own page is replaced
    shutil.rmtree(photos)
    write_similar_page(result, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("data:image/webp") == 1  # the new photo is still there


def test_the_command_lists_them_as_text_json_csv_and_page(place, capsys, monkeypatch):
    from featcache_cli.app import main

    monkeypatch.chdir(place)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["featcache", "similar", "cache.h5", *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
        return leaving.value.code, capsys.readouterr()

    files = ("--html", "p.html", "--csv", "p.csv")
    code, captured = run("new.png", "--top", "2", "--tap", f"{PIXELS}/top", "--json", *files)
    facts = json.loads(captured.out)
    assert code == 0
    assert facts.keys() == {"cache", "tap", "query", "compared", "computed", "similar", "csv", "html"}
    with open("p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [image["path"] for image in facts["similar"]]
    code, captured = run(facts["similar"][0]["path"], "--tap", f"{PIXELS}/top")
    assert code == 0
    assert captured.out.startswith("Nearest of 36 images by pixels:size=8/top:\nimage")
    code, captured = run("nowhere.jpg")
    assert (code, captured.err.count("\n")) == (4, 1)
    code, captured = run("new.png", "--html", "cache.h5", "--force")
    assert code == 2
    assert table_of(place / "cache.h5").exists()
