"""Rows computed again are the same, or it is said how far off they are; and what a cache lacks is said by name."""

import re

import h5py
import numpy as np
import pytest
from PIL import Image
from tiny import TOY

from featcache.backbones.parse import requests
from featcache.cache import layout
from featcache.cache.reader import Cache
from featcache.cache.rows import content_digest
from featcache.extraction import extract
from featcache.extraction.recheck import lacking, recompute


@pytest.fixture
def cache(photos, tmp_path):
    return extract(photos, TOY, tap="block_1_relu,top", views="flip", out=tmp_path / "c.h5")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_sound_cache_agrees_with_what_is_computed_now(photos, tmp_path, dtype):
    cache = extract(photos, [TOY, "pixels:size=8"], dtype=dtype, out=tmp_path / "c.h5")
    found = recompute(cache, 8)
    assert [(one.tap, one.rows, one.changed) for one in found] == [(name, 8, ()) for name in cache.taps]
    assert all(one.agrees("float32") for one in found)


def test_every_view_is_computed_as_that_view(cache):
    assert all(one.agrees("float32") for one in recompute(cache))


def test_rows_that_are_off_are_told(cache):
    name = "glyphnet:weights=none/top"
    with h5py.File(cache.path, "r+") as file:
        features = file[f"taps/{name}/features"]
        features[...] = features[...] + np.float32(0.01) * features[...].std()
        # as if another machine had computed them: with digests that fit
        layout.put_text(file[f"taps/{name}"], "content_digest", content_digest(file[f"taps/{name}"], cache.path))
        layout.put_text(file, "content_digest", layout.held_digest(file, cache.path))
    found = {one.tap: one for one in recompute(Cache.open(cache.path), 8)}
    assert found[name].difference == pytest.approx(0.01, rel=0.15)
    assert [tap for tap, one in found.items() if not one.agrees("float32")] == [name]


def test_images_that_are_others_now_are_named(cache, photos):
    Image.new("RGB", (3, 3)).save(photos / "red" / "000.png")
    (photos / "blue" / "000.png").unlink()
    for one in recompute(cache, 100):
        assert one.changed == ("blue/000.png", "red/000.png")
        assert (one.rows, one.agrees("float32")) == (34, False)


def missing(cache, backbone, **options):
    [request] = requests(backbone, **options)
    return lacking(request, cache)


def test_what_is_there_is_not_lacking(cache):
    assert missing(cache, TOY) == missing(cache, TOY, tap="block_1_relu") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 40}, r"'glyphnet:weights=none/top' differs in size \(32, asked for 40\)"),
        ({"pool": "max"}, r"differs in pooling \(avg, asked for max\)"),
        ({"tap": "block_2_relu"}, r"differs in layer \("),
        ({"views": ["crop-1"]}, r"differs in view \("),
    ],
)
def test_what_is_lacking_is_told_by_what_differs(cache, options, message):
    [said] = missing(cache, TOY, **options)
    assert re.search(message, said)


def test_other_weights_are_told(cache):
    [said] = missing(cache, "glyphnet:weights=none:seed=5")
    assert "differs in weights" in said


def test_auto_is_what_building_tells(cache):
    assert all("block_" in one for one in missing(cache, TOY, tap="auto"))
