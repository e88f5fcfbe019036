from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featcache.cache.rows import Piece, TapRows
from featcache.plan import make_plan
from featcache.spec import BackboneSpec, ImageRow, Preprocess, Tap

TOP = Tap("toy/top", BackboneSpec("toy"), "w", "top", "avg", Preprocess(32))
DEEP = replace(TOP, name="toy/deep", layer="deep")


def row(digest, path=None):
    return ImageRow(path or f"{digest}.png", "a", "", "train", digest)


def cached(*taps, digests):
    column, made_by = np.array(list(digests), "S1"), np.zeros(len(digests), np.uint8)
    pieces = [Piece(Path("c.h5"), tap.name, tap, column, (2,), ("{}",), made_by, "s") for tap in taps]
    return {piece.tap.fingerprint: TapRows([piece]) for piece in pieces}


digests = st.sampled_from("abcdef")


@given(wanted=st.lists(digests), top=st.frozensets(digests), deep=st.frozensets(digests), bad=st.frozensets(digests))
def test_what_is_missing_is_what_lacks_a_row_each_content_once(wanted, top, deep, bad):
    rows = [row(digest, f"{at}.png") for at, digest in enumerate(wanted)]
    plan = make_plan(rows, [TOP, DEEP], cached(TOP, digests=top) | cached(DEEP, digests=deep), bad)
    missing = [one.digest for one in plan.missing]
    assert len(missing) == len(set(missing))
    assert set(missing) == set(wanted) - (top & deep) - bad
    assert plan.hits == sum(digest in top & deep for digest in wanted)


def test_an_empty_cache_has_nothing():
    plan = make_plan([row("a"), row("b")], [TOP], {}, frozenset())
    assert (plan.missing, plan.hits) == ((row("a"), row("b")), 0)


def test_of_copies_the_first_is_computed_and_the_order_stays():
    rows = [row("b", "1.png"), row("a", "2.png"), row("b", "3.png")]
    assert [one.path for one in make_plan(rows, [TOP], {}, frozenset()).missing] == ["1.png", "2.png"]


def test_rows_are_found_by_content_not_by_name():
    plan = make_plan(
        [row("a", "moved/elsewhere.png")._replace(label="other", split="test")],
        [TOP],
        cached(TOP, digests="a"),
        frozenset(),
    )
    assert (plan.missing, plan.hits) == ((), 1)


def test_rows_of_another_tap_do_not_count():
    assert make_plan([row("a")], [DEEP], cached(TOP, digests="a"), frozenset()).missing == (row("a"),)


def test_rows_under_another_name_of_the_same_numbers_count():
    renamed = replace(TOP, name="mine/top")
    assert make_plan([row("a")], [renamed], cached(TOP, digests="a"), frozenset()).missing == ()


def test_an_image_that_cannot_be_decoded_is_neither_missing_nor_a_hit():
    plan = make_plan([row("a")], [TOP], {}, frozenset("a"))
    assert (plan.missing, plan.hits) == ((), 0)
