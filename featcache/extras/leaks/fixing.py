"""Put images that show the same, and images of one group, into one group and one split, in the cache's own table.

Which split: train if one of them is in train, else val. So test only ever loses images: what was trained on never comes
into test, and of two copies test does not count both. Of the groups that images had, all others come along.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from featcache.cache.changes import UNCHANGED, with_review, without_review
from featcache.cache.reader import Cache
from featcache.errors import UsageError
from featcache.extras.leaks.results import ORDER, Leaks
from featcache.extras.leaks.rewriting import Table, rewrite
from featcache.files import write_whole
from featcache.images.sources import IN_MEMORY
from featcache.outputs import Kind, check_output
from featcache.spec import ImageRow, Progress, digest_of, silent, units_of

NAME = "same:"  # how the groups are called that were joined


@dataclass(frozen=True)
class Move:
    """One image that changed its split."""

    path: str
    before: str
    after: str


@dataclass(frozen=True)
class Unfixed:
    """What was taken back."""

    cache: Path
    images: int  # that had been put together
    moved: tuple[Move, ...]
    splits: Mapping[str, int]  # images in each split now


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
    before, after = rewrite(found.cache, lambda cache: rows_of(found, cache), progress)
    return _fixed(before, after)


def unfix(cache: str | Path, *, progress: Progress = silent) -> Unfixed:
    """Take all that `fix` did to a cache back: images have the groups and splits that they had before.

    Raises UsageError if nobody knows these, NotACache if a tap of it is damaged, DiskFault if it cannot be written.
    """
    before, after = rewrite(Path(cache), _unfixed, progress)
    return Unfixed(before.path, len(before.joined), _moves(before, after), _splits(after))


def _unfixed(cache: Cache) -> Table:
    joined, moved = cache.changes.joined, cache.changes.moved
    unknown = joined.keys() - moved.keys()
    if unknown:
        raise UsageError(
            f"{cache.path} was fixed by an earlier featcache, which did not record the splits from before. Bring it up "
            "to date (featcache extract), or extract into another -o, and try again"
        )
    rows = [
        row._replace(group=joined.get(row.path, row.group), split=moved.get(row.path, row.split))
        for row in without_review(cache.rows, cache.changes)
    ]
    return with_review(rows, UNCHANGED, cache.changes.reviews)


def _never(path: Path) -> bool:
    """Return that no table counts as an earlier output: the user may have made it, or gone on with it."""
    return False


TABLE = Kind("table", _never, otherwise="may be your own table")


def check_table(cache: str | Path, out: str | Path, images: str | Path | None = None, *, force: bool = False) -> None:
    """Raise now what `write_table` would raise: UsageError, DiskFault."""
    path, opened = Path(out), Cache.open(cache)
    if path.suffix != ".csv":
        raise UsageError(f"The table of images is written to a file that ends in .csv; got {path.name}")
    root = opened.root if images is None else Path(images)
    if root.name == IN_MEMORY.name or root.is_file():
        raise UsageError(
            f"The images of {opened.path} are in {root}, and a table can only name files. Fix the cache itself: "
            f"featcache leaks {quote(str(opened.path))} --fix"
        )
    read = [opened.path, *(root / row.path for row in opened.rows)] if path.exists() else []
    check_output(path, TABLE, inputs=read, force=force)


def write_table(found: Leaks, out: str | Path, images: str | Path | None = None, *, force: bool = False) -> bool:
    """Write the images as `fix` would leave them to a CSV that `extract` takes: path, label, split, group.

    Its paths are relative to its own folder. Return whether they all stay in it; if not, `extract` takes the table with
    --allow-outside. images: where the images lie now, if they have moved. force: replace what lies at `out`.
    Raises UsageError, also for images in an archive or in arrays, and DiskFault.
    """
    path = Path(out)
    check_table(found.cache, path, images, force=force)
    cache = Cache.open(found.cache)
    before = _way(path.parent, cache.root if images is None else Path(images))
    rows, _ = rows_of(found, cache)
    paths = [os.path.join(before, row.path) for row in rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "split", "group"])
    writer.writerows([path, row.label, row.split, row.group] for path, row in zip(paths, rows, strict=True))
    write_whole(path, os.fsencode(text.getvalue()))
    return not any(os.path.isabs(path) or ".." in path.split("/") for path in paths)


def _way(start: Path, root: Path) -> str:
    """Return how to get from a folder to the images; "" if it is theirs. Links are followed, since .. does not."""
    way = os.path.relpath(os.path.realpath(root), os.path.realpath(start))
    return "" if way == os.curdir else way.replace(os.sep, "/")


def rows_of(found: Leaks, cache: Cache) -> Table:
    """Return the images in joined groups, each in one split, and what each joined image had before."""
    set_of = sets_of(found, cache.rows)
    members: dict[str, list[ImageRow]] = {}
    for unit, row in zip(set_of, cache.rows, strict=True):
        members.setdefault(unit, []).append(row)
    in_pairs = {found.digests[path] for pair in found.pairs for path in (pair.a, pair.b)}

    group_of: dict[str, str] = {}
    split_of: dict[str, str] = {}
    for unit, of_unit in members.items():
        splits = {row.split for row in of_unit if row.split}
        if len(splits) > 1 or any(row.digest in in_pairs for row in of_unit):
            group_of[unit] = NAME + digest_of(sorted({row.digest for row in of_unit}))[:16]
            split_of[unit] = min(splits, key=ORDER.__getitem__, default="")

    rows: list[ImageRow] = []
    joined, moved, dropped = dict(cache.changes.joined), dict(cache.changes.moved), dict(cache.changes.dropped)
    for unit, row in zip(set_of, cache.rows, strict=True):
        if unit in group_of:
            if row.path not in joined:
                joined[row.path] = row.group
                moved[row.path] = dropped.get(row.path, row.split)
            if row.path in dropped:  # when the review is taken back, it comes into the split of the others
                dropped[row.path] = split_of[unit] or dropped[row.path]
            row = row._replace(group=group_of[unit], split=split_of[unit] if row.split else "")
        rows.append(row)
    return tuple(rows), cache.changes._replace(joined=joined, moved=moved, dropped=dropped)


def sets_of(found: Leaks, rows: Sequence[ImageRow]) -> list[str]:
    """Return a name for each image that it shares with all that must stay in one split with it."""
    units = units_of(rows)
    unit_of_digest = {row.digest: unit for unit, row in zip(units, rows, strict=True)}
    above: dict[str, str] = {}

    def top(unit: str) -> str:
        while above.setdefault(unit, unit) != unit:
            above[unit] = above[above[unit]]
            unit = above[unit]
        return unit

    for pair in found.pairs:
        # known by their bytes: an extraction may have changed what lies at a path since the pair was found
        first, second = (unit_of_digest.get(found.digests[path]) for path in (pair.a, pair.b))
        if first is not None and second is not None:
            above[top(first)] = top(second)
    return [top(unit) for unit in units]


def _fixed(before: Cache, after: Cache) -> Fixed:
    groups = Counter(row.group for row in after.rows if row.path in after.joined)
    had, have = ({(row.label, row.split) for row in some.rows if row.label} for some in (before, after))
    return Fixed(
        cache=before.path,
        groups=len(groups),
        images=sum(groups.values()),
        moved=_moves(before, after),
        splits=_splits(after),
        emptied=tuple(f"{label} has no {split} image" for label, split in sorted(had - have) if split),
    )


def _moves(before: Cache, after: Cache) -> tuple[Move, ...]:
    pairs = zip(before.rows, after.rows, strict=True)
    return tuple(Move(new.path, old.split, new.split) for old, new in pairs if old.split != new.split)


def _splits(cache: Cache) -> Mapping[str, int]:
    counts = Counter(row.split for row in cache.rows if row.split)
    return dict(sorted(counts.items(), key=lambda item: ORDER[item[0]]))
