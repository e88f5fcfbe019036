"""What a cache has decided stays: whatever copies are added to whatever groups, no stored image moves."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_images

from featcache.cache.changes import UNCHANGED, Review, with_review
from featcache.cache.reader import Cache
from featcache.errors import UsageError
from featcache.extraction import extract
from featcache.extraction.stored import as_stored
from featcache.images.manifest import scan
from featcache.images.splits import assign
from featcache.spec import ImageRow, SplitSpec

PIXELS = "pixels:size=8"
SPEC = SplitSpec(34, 33, 33)
FACTS = st.tuples(st.integers(0, 12), st.sampled_from("ab"), st.sampled_from(["", "g", "h", "i", "j", "k"]))


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    """Return a manifest whose images do not matter."""
    return scan(write_images(tmp_path_factory.mktemp("photos"), 1), split=SPEC)


def rows_of(facts, first=0):
    return [
        ImageRow(f"{at}.png", label, group, "", f"{content:064x}")
        for at, (content, label, group) in enumerate(facts, first)
    ]


def stored(rows):
    return Cache(Path("c.h5"), Path("photos"), tuple(rows), (), {}, SPEC, "")


@given(before=st.lists(FACTS, min_size=1, max_size=15), more=st.lists(FACTS, max_size=15), data=st.data())
def test_adding_images_never_moves_a_stored_one(nothing, before, more, data):
    first = assign(rows_of(before), SPEC)
    together = data.draw(st.permutations(rows_of(before) + rows_of(more, len(before))))
    images = replace(nothing, rows=tuple(assign(together, SPEC)), given=frozenset())
    after, changes = as_stored(images, stored(first))
    splits = {row.path: row.split for row in after.rows}
    assert {row.path: splits[row.path] for row in first} == {row.path: row.split for row in first}
    split_of = {}
    for row in after.rows:
        assert split_of.setdefault(row.digest, row.split) == row.split  # copies stay together even then
    assert changes.joined == {}
    again, _ = as_stored(replace(images, rows=tuple(assign(together, SPEC))), stored(after.rows))
    assert again.rows == after.rows


def test_a_group_stored_in_decomposed_unicode_is_the_same_group(nothing):
    row = ImageRow("0", "a", "cafe\u0301", "val", "0")
    after, _ = as_stored(replace(nothing, rows=(row._replace(group="caf\u00e9"),)), stored([row]))
    assert [(row.group, row.split) for row in after.rows] == [("caf\u00e9", "val")]


def test_a_new_image_of_groups_that_it_links_goes_to_train_if_one_of_them_is_there(nothing):
    rows = [ImageRow("0", "a", "g", "test", "0"), ImageRow("1", "a", "h", "train", "1")]
    linking = [ImageRow(path, "a", group, "test", "2") for path, group in (("2", "g"), ("3", "h"))]
    after, _ = as_stored(replace(nothing, rows=(*rows, *linking), given=frozenset()), stored(rows))
    assert [row.split for row in after.rows] == ["test", "train", "train", "train"]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_image_that_a_review_dropped_goes_back_into_the_split_that_it_was_in(nothing, split):
    row = ImageRow("0", "a", "", split, "0")
    rows, changes = with_review([row], UNCHANGED, [Review("0", "a", "", "0", split, "")])
    scanned = assign([row._replace(split="")], SPEC)  # the hash puts it into one split, whatever is stored
    images = replace(nothing, rows=tuple(scanned), given=frozenset())
    after, again = as_stored(images, replace(stored(rows), changes=changes))
    assert (after.rows, again) == (rows, changes)


def test_a_cache_of_parents_with_the_folder_of_their_split_can_be_extended(tmp_path):
    for split in ("train", "val", "test"):
        for plant in ("p1", "p2"):
            write_images(tmp_path / "x", 2, seed=len(split + plant), first=ord(plant[1]))
            for path in sorted((tmp_path / "x").glob("*/*.png")):
                to = tmp_path / "photos" / split / path.parent.name / plant / path.name
                to.parent.mkdir(parents=True, exist_ok=True)
                path.rename(to)
    photos = tmp_path / "photos"
    images = scan(photos, group_from="parent")
    earlier = tuple(row._replace(group=row.path.rpartition("/")[0]) for row in images.rows)
    old = extract(replace(images, rows=earlier), PIXELS, out=tmp_path / "c.h5")
    assert old.rows[0].group == "test/blue/p1"
    after = extract(photos, PIXELS, out=old.path, group_from="parent")
    assert [row.split for row in after.rows] == [row.split for row in old.rows]
    assert after.rows[0].group == "blue/p1"
    with pytest.raises(UsageError, match="asked for no group"):
        extract(photos, PIXELS, out=old.path)
