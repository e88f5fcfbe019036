"""Two caches: what differs is named, in the direction that it differs, and equal ones are equal."""

from dataclasses import replace

import pytest

from featcache.cache import parts
from featcache.cache.differing import differences
from featcache.errors import NotACache

from .scenes import DIGESTS, FACTS, IMAGES, MAKERS, MAPS, TOP, maps, top


def make(path, images=IMAGES, taps=(TOP,), digests=DIGESTS):
    """Return a cache with these images, and rows of these digests in each tap."""
    for tap in taps:
        features = maps(digests) if tap.pooling == "none" else top(digests)
        parts.commit(path, [tap], digests, [features], MAKERS[0])
    parts.merge(path, images, {}, FACTS)
    return path


@pytest.fixture
def a(tmp_path):
    return make(tmp_path / "a.h5")


def test_a_cache_and_its_copy_are_equal_also_if_one_is_a_folder(a, tmp_path):
    (tmp_path / "b").mkdir()
    assert not differences(a, make(tmp_path / "b"))
    assert not differences(a, make(tmp_path / "c.h5", images=IMAGES[::-1]))


def test_images_that_one_lacks_are_named(a, tmp_path):
    b = make(tmp_path / "b.h5", images=[*IMAGES[2:], IMAGES[0]._replace(path="moved.png")])
    different = differences(a, b)
    assert different
    assert different.images_only_in_a == tuple(sorted(row.path for row in IMAGES[:2]))
    assert different.images_only_in_b == ("moved.png",)
    assert different.taps == ()
    assert differences(b, a).images_only_in_a == ("moved.png",)


@pytest.mark.parametrize(
    ("column", "field", "value"),
    [("label", "labels", "b"), ("group", "groups", "g"), ("split", "splits", "test"), ("digest", "content", "f" * 64)],
)
def test_what_differs_in_an_image_is_named(column, field, value, a, tmp_path):
    b = make(tmp_path / "b.h5", images=[IMAGES[0]._replace(**{column: value}), *IMAGES[1:]])
    different = differences(a, b)
    assert getattr(different, field) == ((IMAGES[0].path, getattr(IMAGES[0], column), value),)
    others = {"labels", "groups", "splits", "content"} - {field}
    assert not any(getattr(different, other) for other in others)


def test_taps_are_compared_by_what_made_them_and_by_their_rows(a, tmp_path):
    other_weights = replace(TOP, weights_digest="v")
    different = differences(a, make(tmp_path / "b.h5", taps=[other_weights]))
    assert [(tap.tap, tap.facts) for tap in different.taps] == [("toy/top", {"weights_digest": ("w", "v")})]

    different = differences(a, make(tmp_path / "c.h5", digests=DIGESTS[:6]))
    assert [(tap.tap, tap.facts, tap.rows) for tap in different.taps] == [("toy/top", {}, (9, 6))]

    both = make(tmp_path / "d.h5", taps=[TOP, MAPS])
    assert differences(a, both).taps_only_in_b == ("toy/maps",)
    assert differences(both, a).taps_only_in_a == ("toy/maps",)


def test_a_file_that_is_no_cache_is_refused(a, tmp_path):
    with pytest.raises(NotACache, match="No cache at"):
        differences(a, tmp_path / "nothing.h5")
