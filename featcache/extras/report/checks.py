"""What a report says of trust: images that show the same, and labels that look wrong."""

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

MOST_IMAGES = 10_000  # that a report looks at; of more it would take minutes
SHOWN = 24  # pairs, and doubted labels, with their pictures


@dataclass(frozen=True)
class Checks:
    """Pairs and doubts, or why there are none."""

    found: Leaks | None
    doubted: Doubts | None
    hidden: str  # the split whose labels stay closed, or ""
    why_not: str = ""

    @property
    def doubts(self) -> Sequence[Doubt]:
        """Return the labels that look wrong."""
        return self.doubted.doubts if self.doubted else ()

    @property
    def pairs(self) -> Sequence[Pair]:
        """Return the pairs that may be shown: all that have an image outside of the split that stays closed."""
        every = self.found.pairs if self.found else ()
        return [one for one in every if not self.hidden or set(one.splits) != {self.hidden}]


def checked(cache: Cache, hidden: str, images: str | Path | None, progress: Progress) -> Checks:
    """Return what the features say of copies and of labels. hidden: the split whose labels are not to be used."""
    if len(cache.rows) > MOST_IMAGES:
        where = printable(quote(str(cache.path)))
        why = f"Not looked for here among {len(cache.rows)} images: featcache leaks {where} --labels"
        return Checks(None, None, hidden, why)
    try:
        found = leaks(cache, images=images, progress=progress)
    except DataError as error:
        return Checks(None, None, hidden, str(error))
    try:
        return Checks(found, doubts(found, without=hidden, progress=progress), hidden)
    except (DataError, UsageError) as error:
        return Checks(found, None, hidden, str(error))


def pairs_of(checks: Checks, cache: Cache, source: Source | None) -> list[dict[str, Any]]:
    """Return the first pairs with both pictures."""
    rows = _by_path(cache)
    return [
        {
            "pair": pair,
            "sides": [_side(rows[path], source, bits_of(cache)) for path in (pair.a, pair.b)],
            "splits": _splits(pair),
        }
        for pair in checks.pairs[:SHOWN]
    ]


def doubts_of(checks: Checks, cache: Cache, source: Source | None) -> list[dict[str, Any]]:
    """Return the first doubted labels with their pictures."""
    rows = _by_path(cache)
    return [
        {
            "label": printable(one.label),
            "suggested": printable(one.suggested),
            "same": ", ".join(printable(f"{path} ({label})") for path, label in one.same_photo),
            "doubt": one,
        }
        | _side(rows[one.path], source, bits_of(cache))
        for one in checks.doubts[:SHOWN]
    ]


def _by_path(cache: Cache) -> dict[str, ImageRow]:
    return {row.path: row for row in cache.rows}


def _side(row: ImageRow, source: Source | None, bits: int) -> dict[str, Any]:
    return {"data": picture(source, row, bits), "path": printable(row.path)}


def _splits(pair: Pair) -> str:
    return " - ".join(dict.fromkeys(name or "no split" for name in pair.splits))
