"""What a sweep reads from its cache: labelled images of a split, and the features of one tap or of several joined."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features
from featcache.cache.reader import Cache
from featcache.errors import UsageError
from featcache.spec import ImageRow, digest_of
from featcache.sweeps.unseen import rows_that_judge

FIRST_LAYERS = ("stem", "expanded_conv", "conv1", "pool1", "bn_conv1")  # how the names of first layers begin
LAST_LAYERS = ("top", "avg_pool", "predictions")


def taps_in(cache: Cache, name: str) -> list[str]:
    """Return the taps of a name that may join several with +."""
    return [name] if name in cache.taps else [part.strip() for part in name.split("+")]


def single_taps(cache: Cache, names: Sequence[str]) -> list[str]:
    """Return each tap of these names once, in order; joined names count as their parts."""
    taps: dict[str, None] = {}
    for name in names:
        taps |= dict.fromkeys(taps_in(cache, name))
    return list(taps)


def views_of(cache: Cache, tap: str, among: Container[str] | None = None) -> list[str]:
    """Return a tap, or several joined by +, in every cached view: as named first, then in the other views.

    among: names of taps; a view of a tap that is not among them is left out.
    Raises UsageError if there is no other view, or if one of the joined taps lacks a view that another has.
    """
    parts = taps_in(cache, tap)
    parts_in_view: dict[str, list[str]] = {}
    for part in parts:
        for name in cache.views(part):
            if among is None or name in among:
                parts_in_view.setdefault(cache.taps[name].view, []).append(name)
    lacking = [view for view, names in parts_in_view.items() if len(names) < len(parts)]
    if lacking:
        raise UsageError(
            f"Not all of the joined taps '{tap}' have the view {lacking[0]}, which `train_views` needs. Extract them "
            "with the same `views`"
        )
    others = [name for name in map("+".join, parts_in_view.values()) if name != tap]
    if not others:
        raise UsageError(
            f"`train_views` needs several views; {cache.path} has only one view of tap '{tap}'. Add the mirror image "
            "of each image: repeat the featcache extract that made it, with `views='flip'`"
        )
    return [tap, *others]


def by_depth(cache: Cache, names: Sequence[str]) -> list[str]:
    """Return taps in the order of their layers, as far as names tell: numbers by value, stems first, top last.

    The taps of one backbone stand together.
    """
    backbones = list(dict.fromkeys(cache.taps[name].backbone for name in names))

    def depth(name: str) -> tuple[Any, ...]:
        layer = cache.taps[name].layer.lower()
        # "block_10" comes after "block_9": runs of digits compare as numbers, and before any text.
        parts = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", layer)]
        backbone = backbones.index(cache.taps[name].backbone)
        return backbone, layer in LAST_LAYERS, not layer.startswith(FIRST_LAYERS), parts

    return sorted(names, key=depth)


def rows_of(cache: Cache, split: str, taps: Sequence[str], shots: int | None) -> list[ImageRow]:
    """Return the labelled images of a split that a sweep uses: of train and val at most `shots` per class.

    Of val and test those that can judge heads on these taps: see `unseen`.
    """
    limit = None if split == "test" else shots
    rows = [row for row in cache.usable(split, limit) if row.label]
    return rows_that_judge(cache, rows, split, single_taps(cache, taps))


def few_of(labels: Classes, shots: int, seed: int) -> Classes:
    """Return the rows of a small training set, (n,): of each class `shots` or all there are, drawn by the seed."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(drawn))


def features_of(cache: Cache, rows: Sequence[ImageRow], tap: str) -> Features:
    """Return the (N, D) features of a tap, or of several joined by +, beside one another."""
    if tap in cache.taps:
        return cache.features(rows, tap)
    return np.concatenate([cache.features(rows, name) for name in taps_in(cache, tap)], axis=1)


def arrays_to_fit(
    cache: Cache, rows: Sequence[ImageRow], tap: str, train_views: bool, taps_of_run: Container[str]
) -> tuple[Features, Classes]:
    """Return features (N, D) and classes (N,) of images, to fit a head on.

    train_views: of all V views of each image, one view after another: (V * N, D) and (V * N,). taps_of_run: the taps
    and views that the run began with, `Run.fingerprints`. The cache may have more views by now.
    """
    if not train_views:
        return features_of(cache, rows, tap), cache.labels(rows)
    views = [features_of(cache, rows, name) for name in views_of(cache, tap, taps_of_run)]
    return np.concatenate(views), np.tile(cache.labels(rows), len(views))


def digest_of_rows(rows: Sequence[ImageRow], *, with_groups: bool = False) -> str:
    """Return one digest of the contents and labels of these images, in order.

    with_groups: of their groups too, which decide on the folds of cross-validation.
    """
    facts = []
    for row in rows:
        fact = [row.digest, row.label]
        if with_groups and row.group:
            fact.append(row.group)
        facts.append(fact)
    return digest_of(facts)
