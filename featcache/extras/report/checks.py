"""The part of a report about trust: images that show the same, and labels that look wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from featcache.cache.reader import Cache
from featcache.errors import DataError, UsageError
from featcache.extras.leaks import Doubt, Doubts, Leaks, Pair, doubts, leaks
from featcache.extras.report.pictures import bits_of, picture
from featcache.images.sources import Source
from featcache.spec import ImageRow, Progress
from featcache.text import printable

MOST_IMAGES = 10_000  # more images would take minutes
SHOWN = 24  # pairs, and doubted labels, with their pictures


@dataclass(frozen=True)
class Checks:
    """Pairs and doubts, or why there are none."""

    leaks: Leaks | None
    doubted: Doubts | None
    hidden: str  # the split whose labels stay closed, or ""
    why_not: str = ""

    @property
    def doubts(self) -> Sequence[Doubt]:
        """Return the labels that look wrong."""
        return self.doubted.doubts if self.doubted else ()

    @property
    def pairs(self) -> Sequence[Pair]:
        """Return the pairs that may be shown: all with an image outside of the split that stays closed."""
        if self.leaks is None:
            return []
        if not self.hidden:
            return self.leaks.pairs
        return [pair for pair in self.leaks.pairs if set(pair.splits) != {self.hidden}]


def checked(cache: Cache, hidden: str, images: str | Path | None, progress: Progress) -> Checks:
    """Compare the images of a cache by features, and judge their labels. hidden: the split whose labels stay closed."""
    if len(cache.rows) > MOST_IMAGES:
        where = printable(quote(str(cache.path)))
        why = f"Not searched among {len(cache.rows)} images, which would take minutes: featcache leaks {where} --labels"
        return Checks(None, None, hidden, why)
    try:
        same_images = leaks(cache, images=images, progress=progress)
    except DataError as error:
        return Checks(None, None, hidden, str(error))
    # Doubts need the pairs: an image must not be judged by its own copies.
    try:
        return Checks(same_images, doubts(same_images, without=hidden, progress=progress), hidden)
    except (DataError, UsageError) as error:
        return Checks(same_images, None, hidden, str(error))


def pairs_of(checks: Checks, cache: Cache, source: Source | None) -> list[dict[str, Any]]:
    """Return the first pairs with both pictures."""
    rows = {row.path: row for row in cache.rows}
    bits = bits_of(cache)
    shown: list[dict[str, Any]] = []
    for pair in checks.pairs[:SHOWN]:
        sides = [_side(rows[path], source, bits) for path in (pair.a, pair.b)]
        splits = [split or "no split" for split in pair.splits]
        if splits[0] == splits[1]:
            del splits[1]
        shown.append({"pair": pair, "sides": sides, "splits": " - ".join(splits)})
    return shown


def doubts_of(checks: Checks, cache: Cache, source: Source | None) -> list[dict[str, Any]]:
    """Return the first doubted labels with their pictures."""
    rows = {row.path: row for row in cache.rows}
    bits = bits_of(cache)
    shown: list[dict[str, Any]] = []
    for doubt in checks.doubts[:SHOWN]:
        same_photo = [printable(f"{path} ({label})") for path, label in doubt.same_photo]
        shown.append(
            {
                **_side(rows[doubt.path], source, bits),
                "label": printable(doubt.label),
                "suggested": printable(doubt.suggested),
                "same": ", ".join(same_photo),
                "doubt": doubt,
            }
        )
    return shown


def _side(row: ImageRow, source: Source | None, bits: int) -> dict[str, Any]:
    return {"data": picture(source, row, bits), "path": printable(row.path)}
