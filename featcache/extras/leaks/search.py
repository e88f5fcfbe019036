"""Features and thumbnails of images -> pairs that show the same, by number. Byte-for-byte copies are already out.

candidates     pairs whose features (cosine around the mean image) or hashes are more similar than different images'
               are. The threshold is set from the data (see `tails`) so that it lets through one pair of different
               images for ten images: pixels decide about these
confirmed      candidates whose pixels agree (see `pixels`). The least agreement is set from the data, too: where one
               pair of different images is expected, and at least 0.7. It is 0.7 for photographs and 0.99 for digits of
               8 x 8 pixels
kinds          the whole images agree: re-encoded (same size), resized (same shape), rotated/flipped. Otherwise near,
               such as crops, edits, and the next photograph of a series

Where pixels cannot be compared, features decide, from where one pair of different images is expected in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from featcache.arrays import Classes, Features
from featcache.extras.leaks.pixels import cropped, hashes, outlines, whole
from featcache.extras.leaks.results import Kind, Thresholds
from featcache.extras.leaks.tails import LEAST_IMAGES, Tails, draws_of, tails_of
from featcache.extras.leaks.thumbnails import Thumbnails
from featcache.extras.leaks.vector_pairs import Pairs, Vectors, pairs_over, unit

FEW_IMAGES = 0.95  # the threshold where there are too few images to set one
CANDIDATES_PER_IMAGE = 0.1  # pairs of different images expected among the candidates, for each image
LEAST_AGREEMENT = 0.7  # between what same and different photographs reach: see `pixels`
PLAINLY_SAME = 0.95  # agreement from which images count as copies while the threshold is being set
SAME = 0.9  # agreement of whole images that are one photograph
MOST = 8  # candidates for each image
CROPS = 1.0  # candidates for each image that are searched for crops, beyond LEAST_CROPS in all
LEAST_CROPS = 500
SHAPE = 0.97  # least ratio of the aspect ratios of an image and its resized copy


class Match(NamedTuple):
    """Two images that show the same."""

    a: int
    b: int
    kind: Kind
    similarity: float
    agreement: float | None


class SearchResult(NamedTuple):
    """The pairs that show the same, and what the user should know about the search."""

    matches: Sequence[Match]
    thresholds: Thresholds
    notes: Sequence[str]


def search(
    features: Features,
    thumbnails: Thumbnails,
    splits: Sequence[str],
    threshold: float | None,
    lap: Callable[[str], None],
) -> SearchResult:
    """Return the pairs of images that show the same.

    features: (N, D), finite, N at least 1; they are overwritten. splits: the split of each image; pairs across splits
    are searched for crops first. threshold: a similarity of features that replaces the one set from the data. lap:
    called with the name of each finished step.
    """
    count = len(features)
    has_pixels = bool(thumbnails.seen.any())
    # Cosines around the mean image spread wider. Among few images the mean is close to one of them.
    if count >= LEAST_IMAGES:
        features -= features.mean(axis=0)
    unit_features = unit(features, out=features)
    compared = [Vectors(unit_features, (unit_features,))]
    least_agreement: float | None = None
    if has_pixels:
        compared.append(hashes(thumbnails.greys))
        draws, least_agreement = _draws_by_pixels(thumbnails)
    else:
        # Without pixels a draw can only leave out images whose features are nearly the same.
        draws = draws_of(np.arange(count), compared[0].only, FEW_IMAGES)
    tails = [tails_of(draws, count, vectors.only) for vectors in compared]
    lap("setting thresholds")

    # Where features decide alone, one wrong pair in all is too many. Where pixels decide after them, they may let
    # through many more, so that no copy is missed.
    alone = _threshold(tails[0], 1.0) if threshold is None else threshold
    num_expected = max(1.0, CANDIDATES_PER_IMAGE * count) if has_pixels else 1.0
    candidate_thresholds = [_threshold(tail, num_expected) for tail in tails]
    if threshold is not None:
        candidate_thresholds[0] = threshold
    feature_threshold = candidate_thresholds[0]
    candidates: list[Pairs] = []
    for vectors, least_similarity in zip(compared, candidate_thresholds, strict=True):
        candidates.append(pairs_over(vectors, least_similarity, MOST * count))
    notes: list[str] = []
    num_cut = sum(pairs.cut for pairs in candidates)
    if num_cut:
        notes.append(f"{num_cut} less similar pairs were not compared: too many images look alike")
    pairs = _united(candidates, unit_features)
    lap("comparing all pairs")

    matches: list[Match] = []
    both_seen = thumbnails.seen[pairs.a] & thumbnails.seen[pairs.b]
    decided_alone = ~both_seen & (pairs.similarity >= alone)
    for number in np.flatnonzero(decided_alone):
        similarity = float(pairs.similarity[number])
        matches.append(Match(int(pairs.a[number]), int(pairs.b[number]), "near", similarity, None))
    if least_agreement is not None:
        confirmed, num_unsearched = _confirmed(
            thumbnails, pairs.only(both_seen), np.asarray(splits), feature_threshold, least_agreement
        )
        matches += confirmed
        if num_unsearched:
            notes.append(f"{num_unsearched} pairs of similar features were not searched for crops: there are too many")
        lap("comparing pixels")
    hash_threshold = candidate_thresholds[1] if has_pixels else None
    why = _why(tails[0], count, threshold, num_expected)
    thresholds = Thresholds(feature_threshold, alone, hash_threshold, least_agreement, why)
    return SearchResult(matches, thresholds, notes)


def _draws_by_pixels(thumbnails: Thumbnails) -> tuple[list[Classes], float]:
    """Return the draws that set every threshold, and the agreement of pixels from which a pair counts.

    The draws are free of copies by their pixels, which are surest.
    """
    numbers = np.flatnonzero(thumbnails.seen)

    def looks(rows: Classes) -> Vectors:
        return outlines(thumbnails.greys[rows])

    draws = draws_of(numbers, looks, PLAINLY_SAME)
    tails = tails_of(draws, len(numbers), looks)
    if tails is None:
        return draws, LEAST_AGREEMENT
    # Pictures of few pixels agree by chance: digits of 8 x 8 pixels need 0.99.
    return draws, max(LEAST_AGREEMENT, tails.threshold(1.0))


def _threshold(tails: Tails | None, expected: float) -> float:
    return FEW_IMAGES if tails is None else tails.threshold(expected)


def _united(candidates: Sequence[Pairs], unit_features: Features) -> Pairs:
    """Return each pair once, with the similarity of its features, most similar first."""
    # A pair may be similar by features and by hash; from here on the similarity of its features counts.
    all_a = np.concatenate([pairs.a for pairs in candidates])
    all_b = np.concatenate([pairs.b for pairs in candidates])
    a, b = np.unique(np.stack([all_a, all_b], axis=1), axis=0).T
    similarity = np.einsum("pd,pd->p", unit_features[a], unit_features[b])
    order = np.argsort(-similarity, kind="stable")
    return Pairs(a[order], b[order], similarity[order])


def _confirmed(
    thumbnails: Thumbnails, pairs: Pairs, splits: Any, feature_threshold: float, least_agreement: float
) -> tuple[list[Match], int]:
    """Return the pairs whose pixels agree, and how many were not searched for crops because there are too many."""
    if not len(pairs.a):
        return [], 0
    agreement, symmetry = whole(thumbnails.greys, pairs.a, pairs.b)
    # Before crops are searched: the kind depends on how well the whole images agree.
    kinds = [_kind(thumbnails, *pair) for pair in zip(pairs.a, pairs.b, agreement, symmetry, strict=True)]

    # A crop keeps its features and loses its hash, so pairs similar by hash alone are not worth the search.
    is_unsure = (agreement < least_agreement) & (pairs.similarity >= feature_threshold)
    unsure = np.flatnonzero(is_unsure)
    # The search is the slow step and stops at a limit, so pairs across splits come first: they contaminate.
    in_one_split = splits[pairs.a[unsure]] == splits[pairs.b[unsure]]
    unsure = unsure[np.argsort(in_one_split, kind="stable")]
    limit = LEAST_CROPS + int(CROPS * len(thumbnails.seen))
    searched = unsure[:limit]
    if len(searched):
        crop_agreement = cropped(thumbnails.greys, pairs.a[searched], pairs.b[searched])
        agreement[searched] = np.maximum(agreement[searched], crop_agreement)

    matches: list[Match] = []
    for number in np.flatnonzero(agreement >= least_agreement):
        a, b = int(pairs.a[number]), int(pairs.b[number])
        matches.append(Match(a, b, kinds[number], float(pairs.similarity[number]), float(agreement[number])))
    return matches, len(unsure) - len(searched)


def _kind(thumbnails: Thumbnails, a: int, b: int, agreement: float, symmetry: int) -> Kind:
    """Return in which way two images are copies. agreement: of the whole images, in their best symmetry."""
    if agreement < SAME:
        return "near"
    if symmetry:
        return "rotated/flipped"
    width_a, height_a = thumbnails.sizes[a]
    width_b, height_b = thumbnails.sizes[b]
    if width_a == width_b and height_a == height_b:
        return "re-encoded"
    # The ratio of the two aspect ratios: a copy that was only resized keeps its shape, up to whole pixels.
    ratio = (width_a * height_b) / (height_a * width_b)
    return "resized" if SHAPE <= ratio <= 1 / SHAPE else "near"


def _why(tail: Tails | None, count: int, threshold: float | None, expected: float) -> str:
    """Return why the threshold of features is what it is. expected: pairs of different images beyond it."""
    if threshold is not None:
        return "as given"
    if tail is None:
        return f"fixed: {count} different images, or all of the same features, are too few to set it from"
    pairs = count * (count - 1) // 2
    return f"set from the data: of {pairs} pairs of different images about {expected:.0f} are expected beyond it"
