"""Put images that show the same into one group and one split, in the cache's own table of images.

Which split: train if one of them is in train, else val. So test only ever loses images: what was trained on never comes
into test, and of two copies test does not count both. Of the groups that images had, all others come along.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from featcache.cache import parts
from featcache.cache.reader import Cache
from featcache.errors import UsageError
from featcache.files import again, write_whole
from featcache.leakage.results import ORDER, Leaks
from featcache.spec import ImageRow, Progress, Tick, canonical_json, digest_of, silent, unit_of

NAME = "same:"  # how the groups are called that were joined


@dataclass(frozen=True)
class Move:
    """One image that changed its split."""

    path: str
    before: str
    after: str


@dataclass(frozen=True)
class Fixed:
    """What was put together."""

    cache: Path
    groups: int  # sets of images that show the same
    images: int  # in them, with the others of their groups
    moved: tuple[Move, ...]
    splits: Mapping[str, int]  # images in each split now
    emptied: tuple[str, ...]  # "daisy has no test image" where it had one


def fix(found: Leaks, *, progress: Progress = silent) -> Fixed:
    """Join the groups of images that show the same, and put each joined group into one split; return what moved.

    Waits for an extraction that is at work on the cache. Runs that were made before see that the images are others.
    Raises NotACache if a tap of it is damaged, DiskFault if it cannot be written.
    """
    path = found.cache
    with parts.lock(path, lambda: progress(Tick("wait", 0, 0, f"An extraction is at work on {path}; waiting for it"))):
        cache = Cache.open(path)
        rows, joined = rows_of(found, cache)
        if rows != cache.rows:
            failures = {one.path: one for one in cache.failures}
            again(lambda: parts.merge(path, rows, failures, facts_of(cache), joined))
    return _fixed(cache, rows, joined)


def write_table(found: Leaks, out: Path) -> None:
    """Write the images as `fix` would leave them to a CSV that `extract` takes: path, label, split, group.

    Its paths are as in the cache, so it belongs into the folder of the images. Raises UsageError.
    """
    if out.suffix != ".csv":
        raise UsageError(f"The table of images is written to a file that ends in .csv; got {out.name}")
    rows, _ = rows_of(found, Cache.open(found.cache))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "split", "group"])
    writer.writerows([row.path, row.label, row.split, row.group] for row in rows)
    write_whole(out, os.fsencode(text.getvalue()))


def rows_of(found: Leaks, cache: Cache) -> tuple[tuple[ImageRow, ...], dict[str, str]]:
    """Return the images in joined groups, each in one split, and what the group of each joined image was before."""
    of_unit = _sets(found, cache.rows)
    members: dict[str, list[ImageRow]] = {}
    for row in cache.rows:
        if unit_of(row) in of_unit:
            members.setdefault(of_unit[unit_of(row)], []).append(row)
    group_of = {root: _name(rows) for root, rows in members.items()}
    split_of = {root: min((row.split for row in rows if row.split), key=ORDER.__getitem__, default="")
                for root, rows in members.items()}  # fmt: skip
    rows, joined = [], dict(cache.joined)
    for row in cache.rows:
        root = of_unit.get(unit_of(row))
        if root is not None:
            joined.setdefault(row.path, row.group)
            row = row._replace(group=group_of[root], split=split_of[root] if row.split else "")
        rows.append(row)
    return tuple(rows), joined


def sets_of(found: Leaks, rows: Sequence[ImageRow]) -> list[str]:
    """Return a name for each image that it shares with all that must stay in one split with it."""
    of_unit = _sets(found, rows)
    return [of_unit.get(unit_of(row), unit_of(row)) for row in rows]


def _sets(found: Leaks, rows: Iterable[ImageRow]) -> dict[str, str]:
    """Return {unit: one unit that stands for its set} of the units that show the same."""
    unit = {row.path: unit_of(row) for row in rows}
    above: dict[str, str] = {}

    def top(one: str) -> str:
        while above.setdefault(one, one) != one:
            above[one] = above[above[one]]
            one = above[one]
        return one

    for pair in found.pairs:
        if pair.a in unit and pair.b in unit:
            above[top(unit[pair.a])] = top(unit[pair.b])
    return {one: top(one) for one in list(above)}


def _name(rows: Sequence[ImageRow]) -> str:
    return NAME + digest_of(sorted({row.digest for row in rows}))[:16]


def facts_of(cache: Cache) -> dict[str, str | bytes]:
    """Return what a cache says of its images as a whole, for `parts.merge`."""
    return {
        "root": os.fsencode(cache.root),
        "layout": cache.layout,
        "split_spec": canonical_json(asdict(cache.split_spec)),
        "decode": cache.decode,
    }


def _fixed(before: Cache, rows: Sequence[ImageRow], joined: Mapping[str, str]) -> Fixed:
    pairs = list(zip(before.rows, rows, strict=True))
    groups = Counter(row.group for row in rows if row.path in joined)
    had, have = ({(row.label, row.split) for row in some if row.label} for some in (before.rows, rows))
    return Fixed(
        cache=before.path,
        groups=len(groups),
        images=sum(groups.values()),
        moved=tuple(Move(new.path, old.split, new.split) for old, new in pairs if old.split != new.split),
        splits=dict(sorted(Counter(row.split for row in rows if row.split).items(), key=lambda one: ORDER[one[0]])),
        emptied=tuple(f"{label} has no {split} image" for label, split in sorted(had - have) if split),
    )
