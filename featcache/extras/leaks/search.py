"""Features and small greys of images -> pairs that show the same, by number. Copies of bytes are out already.

candidates     pairs whose features (cosine around the mean image) or hashes are more similar than those of different
               images are, by a threshold that is set from the data: see `tails`. It lets through one pair of different
               images for ten images, since pixels decide
confirmed      by their pixels: see `pixels`. The least agreement is set from the data as well: where one pair of
               different images is expected, and at least 0.7. Of photographs it is 0.7, of digits of 8 x 8 pixels 0.99
kinds          the whole image agrees: re-encoded (same size), resized (same shape), rotated/flipped; else near, such as
               crops, edits, and the next photograph of a series

Where pixels cannot be compared, the features decide, from where one pair of different images is expected in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from featcache.arrays import Features
from featcache.extras.leaks.pixels import cropped, hashes, outlines, whole
from featcache.extras.leaks.results import Kind, Thresholds
from featcache.extras.leaks.similar import Pairs, Vectors, pairs_over, unit
from featcache.extras.leaks.tails import LEAST_IMAGES, Tails, draws_of, tails_of
from featcache.extras.leaks.thumbnails import Thumbnails

FEW_IMAGES = 0.95  # the threshold where there are too few images to set one
LOOKED_AT = 0.1  # pairs of different images among the candidates, for each image
LEAST_AGREEMENT = 0.7  # on photographs the same ones agree better, different ones worse: see `pixels`
PLAINLY = 0.95  # agreement of whole images of which only one is measured
SAME = 0.9  # agreement of whole images that are one photograph
MOST = 8  # candidates for each image
CROPS = 1.0  # candidates for each image in which parts are sought, and so many in all:
LEAST_CROPS = 500
SHAPE = 0.97  # of a resized image, its ratio of width to height in that of the other


class Match(NamedTuple):
    """Two images that show the same."""

    a: int
    b: int
    kind: Kind
    similarity: float
    agreement: float | None


class Found(NamedTuple):
    """What a search gives."""

    matches: Sequence[Match]
    thresholds: Thresholds
    notes: Sequence[str]


def search(
    features: Features, seen: Thumbnails, splits: Sequence[str], given: float | None, lap: Callable[[str], None]
) -> Found:
    """Return the pairs of images that show the same.

    features: (N, D), finite, N at least 1. splits: of each image; crops are sought across them first. given: the
    similarity of features, instead of the one set from the data. lap: called with the name of each step that is done.
    """
    count, by_eye = len(features), bool(seen.seen.any())
    around = features - features.mean(axis=0) if count >= LEAST_IMAGES else features  # of few it is one of them
    one = unit(around)
    vectors = [Vectors(one, (one,)), *([hashes(seen.greys)] if by_eye else [])]
    there = np.flatnonzero(seen.seen)
    least = None
    if by_eye:
        draws = draws_of(there, lambda rows: outlines(seen.greys[rows]), PLAINLY)
        agreement = tails_of(draws, len(there), lambda rows: outlines(seen.greys[rows]))
        least = max(LEAST_AGREEMENT, 0.0 if agreement is None else agreement.threshold(1.0))
    else:
        draws = draws_of(np.arange(count), vectors[0].only, FEW_IMAGES)
    tails = [tails_of(draws, count, some.only) for some in vectors]
    lap("setting thresholds")
    alone = _threshold(tails[0], 1.0) if given is None else given
    looked = [_threshold(tail, max(1.0, LOOKED_AT * count)) for tail in tails]
    first = looked[0] if given is None and by_eye else alone
    every = [pairs_over(some, at, MOST * count) for some, at in zip(vectors, [first, *looked[1:]], strict=True)]
    lap("comparing all pairs")
    pairs, notes = _united(every, one), _notes(every)
    both = seen.seen[pairs.a] & seen.seen[pairs.b]
    matches = _unseen(pairs.only(~both & (pairs.similarity >= alone)))
    if least is not None:
        confirmed, unsought = _confirmed(seen, pairs.only(both), np.asarray(splits), first, least)
        matches += confirmed
        notes += (
            [f"{unsought} pairs of similar features were not searched for crops: they are many"] if unsought else []
        )
        lap("comparing pixels")
    why = _why(tails[0], count, given, by_eye)
    return Found(matches, Thresholds(first, alone, looked[1] if by_eye else None, least, why), notes)


def _threshold(tails: Tails | None, expected: float) -> float:
    return FEW_IMAGES if tails is None else tails.threshold(expected)


def _unseen(pairs: Pairs) -> list[Match]:
    """Return pairs whose pixels nobody can compare."""
    columns = (pairs.a.tolist(), pairs.b.tolist(), pairs.similarity.tolist())
    return [Match(a, b, "near", similarity, None) for a, b, similarity in zip(*columns, strict=True)]


def _united(every: Sequence[Pairs], one: Features) -> Pairs:
    """Return each pair once, with the similarity of its features, most similar first."""
    pairs = np.concatenate([np.stack([some.a, some.b], axis=1) for some in every])
    a, b = np.unique(pairs, axis=0).T
    similarity = np.einsum("pd,pd->p", one[a], one[b])
    order = np.argsort(-similarity, kind="stable")
    return Pairs(a[order], b[order], similarity[order])


def _notes(every: Sequence[Pairs]) -> list[str]:
    cut = sum(pairs.cut for pairs in every)
    return [f"{cut} less similar pairs were not looked at: so many images are alike"] if cut else []


def _confirmed(seen: Thumbnails, pairs: Pairs, splits: Any, first: float, least: float) -> tuple[list[Match], int]:
    """Return the pairs whose pixels agree; and of how many parts were not sought, because there are too many."""
    if not len(pairs.a):
        return [], 0
    agreement, how = whole(seen.greys, pairs.a, pairs.b)
    kinds = [_kind(seen, *one) for one in zip(pairs.a, pairs.b, agreement, how, strict=True)]
    unsure = np.flatnonzero((agreement < least) & (pairs.similarity >= first))
    within = splits[pairs.a[unsure]] == splits[pairs.b[unsure]]
    unsure = unsure[np.argsort(within, kind="stable")]
    sought = unsure[: LEAST_CROPS + int(CROPS * len(seen.seen))]
    if len(sought):
        agreement[sought] = np.maximum(agreement[sought], cropped(seen.greys, pairs.a[sought], pairs.b[sought]))
    found = [
        Match(int(pairs.a[at]), int(pairs.b[at]), kinds[at], float(pairs.similarity[at]), float(agreement[at]))
        for at in np.flatnonzero(agreement >= least)
    ]
    return found, len(unsure) - len(sought)


def _kind(seen: Thumbnails, a: int, b: int, agreement: float, how: int) -> Kind:
    """Return what kind of copy one is of the other, from the agreement of the whole images in the best symmetry."""
    if agreement < SAME:
        return "near"
    if how:
        return "rotated/flipped"
    first, second = seen.sizes[a], seen.sizes[b]
    if (first == second).all():
        return "re-encoded"
    ratio = (first[0] * second[1]) / (first[1] * second[0])
    return "resized" if SHAPE <= ratio <= 1 / SHAPE else "near"


def _why(tail: Tails | None, count: int, given: float | None, by_eye: bool) -> str:
    """Return why the threshold of features is what it is."""
    if given is not None:
        return "as given"
    if tail is None:
        return f"fixed: {count} different images, or all of the same features, are too few to set it from"
    expected = max(1.0, LOOKED_AT * count) if by_eye else 1.0
    pairs = count * (count - 1) // 2
    return f"set from the data: of {pairs} pairs of different images about {expected:.0f} are expected beyond it"
