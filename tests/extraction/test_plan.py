from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featcache.backbones.parse import Request
from featcache.cache.rows import Piece, TapRows
from featcache.extraction.networks import Network
from featcache.extraction.plan import make_plan
from featcache.spec import BackboneSpec, Failure, ImageRow, Preprocess, Tap

TOP = Tap("toy/top", BackboneSpec("toy"), "w", "top", "avg", Preprocess(32))
DEEP = replace(TOP, name="toy/deep", layer="deep")


def row(digest, path=None):
    return ImageRow(path or f"{digest}.png", "a", "", "train", digest)


def cached(*taps, digests):
    column, made_by = np.array(list(digests), "S1"), np.zeros(len(digests), np.uint8)
    pieces = [Piece(Path("c.h5"), tap.name, tap, column, (2,), ("{}",), made_by, "s") for tap in taps]
    return {piece.tap.fingerprint: TapRows([piece]) for piece in pieces}


def plan_of(rows, taps, cached, bad=()):
    """Return the plan for one backbone that has these taps."""
    request = Request(TOP.backbone, TOP.preprocess, tuple(tap.layer for tap in taps), TOP.pooling)
    failures = {digest: Failure(f"{digest}.png", digest, "truncated", "cut off") for digest in bad}
    return make_plan(rows, [Network(request, tuple(taps), "file")], cached, failures)


def missing_paths(plan):
    return sorted(path for work in plan.work for path in work.missing)


digests = st.sampled_from("abcdef")


@given(wanted=st.lists(digests), top=st.frozensets(digests), deep=st.frozensets(digests), bad=st.frozensets(digests))
def test_what_is_missing_is_what_lacks_a_row_each_content_once(wanted, top, deep, bad):
    rows = [row(digest, f"{number}.png") for number, digest in enumerate(wanted)]
    plan = plan_of(rows, [TOP, DEEP], cached(TOP, digests=top) | cached(DEEP, digests=deep), bad)
    digest_of = {row.path: row.digest for row in rows}
    missing = [digest_of[path] for path in missing_paths(plan)]
    assert len(missing) == len(set(missing)) == plan.num_missing
    assert set(missing) == plan.lacking == set(wanted) - (top & deep) - bad
    assert plan.hits == sum(digest in (top & deep) - bad for digest in wanted)


def test_an_empty_cache_has_nothing():
    plan = plan_of([row("a"), row("b")], [TOP], {})
    assert (missing_paths(plan), plan.hits) == (["a.png", "b.png"], 0)


def test_of_copies_the_first_is_computed():
    rows = [row("b", "1.png"), row("a", "2.png"), row("b", "3.png")]
    assert missing_paths(plan_of(rows, [TOP], {})) == ["1.png", "2.png"]


def test_rows_are_found_by_content_not_by_name():
    moved = row("a", "moved/elsewhere.png")._replace(label="other", split="test")
    plan = plan_of([moved], [TOP], cached(TOP, digests="a"))
    assert (plan.work, plan.hits) == ((), 1)


def test_rows_of_another_tap_do_not_count():
    assert missing_paths(plan_of([row("a")], [DEEP], cached(TOP, digests="a"))) == ["a.png"]


def test_rows_under_another_name_of_the_same_numbers_count():
    renamed = replace(TOP, name="mine/top")
    assert plan_of([row("a")], [renamed], cached(TOP, digests="a")).work == ()


def test_an_image_that_cannot_be_decoded_is_neither_missing_nor_a_hit():
    plan = plan_of([row("a")], [TOP], {}, "a")
    assert (plan.work, plan.hits) == ((), 0)


def test_views_that_lack_the_same_images_are_one_piece_of_work():
    flipped, cropped = replace(TOP, view="hflip"), replace(TOP, view="crop-1")
    plan = plan_of([row("a"), row("b")], [TOP, flipped, cropped], cached(TOP, digests="a"))
    assert [tuple(work.taps) for work in plan.work] == [("identity",), ("hflip", "crop-1")]
    assert [work.missing for work in plan.work] == [{"b.png"}, {"a.png", "b.png"}]
