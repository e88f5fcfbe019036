"""How two caches differ: their images, labels, groups, splits and taps. Features are compared by their fingerprints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from featcache.cache.reader import Cache, stored_rows
from featcache.cache.rows import TapRows
from featcache.spec import ImageRow


class ImageDifference(NamedTuple):
    """One image that both caches have under one path, and what differs, in the first and in the second."""

    path: str
    a: str
    b: str


class TapDifference(NamedTuple):
    """One tap that both caches have under one name, and what differs.

    facts: {name: (in the first, in the second)} of how it was made. rows: how many of the images that both caches
    list have a row.
    """

    tap: str
    facts: Mapping[str, tuple[Any, Any]]
    rows: tuple[int, int]


@dataclass(frozen=True)
class CacheDifference:
    """What two caches do not have in common. Paths and names are sorted."""

    images_only_in_a: tuple[str, ...]
    images_only_in_b: tuple[str, ...]
    content: tuple[ImageDifference, ...]  # digests
    labels: tuple[ImageDifference, ...]
    groups: tuple[ImageDifference, ...]
    splits: tuple[ImageDifference, ...]
    taps_only_in_a: tuple[str, ...]
    taps_only_in_b: tuple[str, ...]
    taps: tuple[TapDifference, ...]

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return any(vars(self).values())


def differences(a: str | Path, b: str | Path) -> CacheDifference:
    """Compare two caches. Raises NotACache, CacheVersion."""
    first, second = Cache.open(a), Cache.open(b)
    rows_of_a = {row.path: row for row in first.rows}
    rows_of_b = {row.path: row for row in second.rows}
    taps_of_a = {rows.tap.name: rows for rows in stored_rows(first.path).values()}
    taps_of_b = {rows.tap.name: rows for rows in stored_rows(second.path).values()}
    common = {row.digest for row in first.usable()} & {row.digest for row in second.usable()}
    taps: list[TapDifference] = []
    for name in sorted(taps_of_a.keys() & taps_of_b.keys()):
        facts = _facts_that_differ(taps_of_a[name], taps_of_b[name])
        rows = len(common & taps_of_a[name].at.keys()), len(common & taps_of_b[name].at.keys())
        if facts or rows[0] != rows[1]:
            taps.append(TapDifference(name, facts, rows))
    return CacheDifference(
        images_only_in_a=tuple(sorted(rows_of_a.keys() - rows_of_b.keys())),
        images_only_in_b=tuple(sorted(rows_of_b.keys() - rows_of_a.keys())),
        content=_that_differ("digest", rows_of_a, rows_of_b),
        labels=_that_differ("label", rows_of_a, rows_of_b),
        groups=_that_differ("group", rows_of_a, rows_of_b),
        splits=_that_differ("split", rows_of_a, rows_of_b),
        taps_only_in_a=tuple(sorted(taps_of_a.keys() - taps_of_b.keys())),
        taps_only_in_b=tuple(sorted(taps_of_b.keys() - taps_of_a.keys())),
        taps=tuple(taps),
    )


def _that_differ(
    column: str, rows_of_a: Mapping[str, ImageRow], rows_of_b: Mapping[str, ImageRow]
) -> tuple[ImageDifference, ...]:
    """Return the images that both caches have, and whose values in a column differ."""
    differing: list[ImageDifference] = []
    for path in sorted(rows_of_a.keys() & rows_of_b.keys()):
        a, b = getattr(rows_of_a[path], column), getattr(rows_of_b[path], column)
        if a != b:
            differing.append(ImageDifference(path, a, b))
    return tuple(differing)


def _facts_that_differ(a: TapRows, b: TapRows) -> dict[str, tuple[Any, Any]]:
    """Return {name: values in the first and in the second} of what decides the numbers; {} if they are the same tap."""
    if a.tap.fingerprint == b.tap.fingerprint:
        return {}
    facts_of_a, facts_of_b = json.loads(a.tap.to_json()), json.loads(b.tap.to_json())
    names = sorted(facts_of_a.keys() | facts_of_b.keys())
    pairs = {name: (facts_of_a.get(name), facts_of_b.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
