"""Put images that show the same, and images of one group, into one group and one split, in the cache's own table.

The split is train if one of them is in train, else val. So test only loses images: a trained-on image never comes into
test, and test does not count two copies. All other images of their groups move with them.
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

PREFIX = "same:"  # of the names of joined groups
# No table counts as an earlier output, since the user may have made or edited it.
TABLE = Kind("table", lambda path: False, otherwise="may be your own table")


@dataclass(frozen=True)
class Move:
    """One image that changed its split."""

    path: str
    before: str
    after: str


@dataclass(frozen=True)
class Unfixed:
    """What `unfix` undid."""

    cache: Path
    images: int  # whose group and split `fix` had set
    moved: tuple[Move, ...]
    splits: Mapping[str, int]  # images in each split now


@dataclass(frozen=True)
class Fixed:
    """What `fix` did."""

    cache: Path
    groups: int  # sets of images that show the same
    images: int  # in them, with the others of their groups
    moved: tuple[Move, ...]
    splits: Mapping[str, int]  # images in each split now
    emptied: tuple[str, ...]  # "daisy has no test image" where it had one


def fix(leaks: Leaks, *, progress: Progress = silent) -> Fixed:
    """Join the groups of images that show the same, and put each joined group into one split; return what moved.

    Waits for an extraction that is at work on the cache. Runs made earlier notice that the images have changed.
    Raises NotACache if a tap of the cache is damaged, DiskFault if it cannot be written.
    """
    before, after = rewrite(leaks.cache, lambda cache: rows_of(leaks, cache), progress)
    groups = Counter(row.group for row in after.rows if row.path in after.joined)
    had = {(row.label, row.split) for row in before.rows if row.label and row.split}
    have = {(row.label, row.split) for row in after.rows if row.label}
    return Fixed(
        cache=before.path,
        groups=len(groups),
        images=sum(groups.values()),
        moved=_moves(before, after),
        splits=_splits(after),
        emptied=tuple(f"{label} has no {split} image" for label, split in sorted(had - have)),
    )


def unfix(cache: str | Path, *, progress: Progress = silent) -> Unfixed:
    """Undo all that `fix` did to a cache: images get the groups and splits that they had before.

    Raises UsageError if these were not recorded, NotACache if a tap is damaged, DiskFault if it cannot be written.
    """
    before, after = rewrite(Path(cache), _original_table, progress)
    return Unfixed(before.path, len(before.joined), _moves(before, after), _splits(after))


def _original_table(cache: Cache) -> Table:
    """Return the table as it was before `fix`, with the reviews that were applied."""
    joined, moved = cache.changes.joined, cache.changes.moved
    unknown = joined.keys() - moved.keys()
    if unknown:
        raise UsageError(
            f"{cache.path} was fixed by an earlier featcache, which did not record the splits from before. Repeat "
            "the featcache extract that made it, or extract into another `out`, and try again"
        )
    # Splits were recorded as they were before any review: undo the reviews first, apply them again last.
    rows: list[ImageRow] = []
    for row in without_review(cache.rows, cache.changes):
        group = joined.get(row.path, row.group)
        split = moved.get(row.path, row.split)
        rows.append(row._replace(group=group, split=split))
    return with_review(rows, UNCHANGED, cache.changes.reviews)


def check_table(cache: str | Path, out: str | Path, images: str | Path | None = None, *, force: bool = False) -> None:
    """Raise early what `write_table` would raise: UsageError, DiskFault."""
    path = Path(out)
    opened = Cache.open(cache)
    if path.suffix != ".csv":
        raise UsageError(f"The table of images is written to a file that ends in .csv; got {path.name}")
    root = opened.root if images is None else Path(images)
    if root.name == IN_MEMORY.name or root.is_file():
        raise UsageError(
            f"The images of {opened.path} are in {root}, and a table can only name files. Fix the cache itself: "
            f"featcache leaks {quote(str(opened.path))} --fix"
        )
    inputs: list[Path] = []
    if path.exists():  # else it cannot be an input, and a cache may have a million images
        inputs = [opened.path, *(root / row.path for row in opened.rows)]
    check_output(path, TABLE, inputs=inputs, force=force)


def write_table(leaks: Leaks, out: str | Path, images: str | Path | None = None, *, force: bool = False) -> bool:
    """Write the images as `fix` would leave them to a CSV that `extract` takes: path, label, split, group.

    Paths are relative to the folder of the CSV. Return whether all images lie in that folder; if not, `extract` needs
    --allow-outside. images: where the images lie now, if they have moved. force: replace what lies at `out`.
    Raises UsageError, also for images in an archive or in arrays, and DiskFault.
    """
    path = Path(out)
    check_table(leaks.cache, path, images, force=force)
    cache = Cache.open(leaks.cache)
    root = cache.root if images is None else Path(images)

    # Resolve links first: "..", followed through a link, leads to another folder than the text suggests.
    way_to_root = os.path.relpath(os.path.realpath(root), os.path.realpath(path.parent))
    way_to_root = way_to_root.replace(os.sep, "/")
    if way_to_root == os.curdir:
        way_to_root = ""

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "split", "group"])
    are_inside = True
    rows, _ = rows_of(leaks, cache)
    for row in rows:
        image = os.path.join(way_to_root, row.path)
        writer.writerow([image, row.label, row.split, row.group])
        if os.path.isabs(image) or ".." in image.split("/"):
            are_inside = False
    write_whole(path, os.fsencode(text.getvalue()))
    return are_inside


def rows_of(leaks: Leaks, cache: Cache) -> Table:
    """Return the images in joined groups, each group in one split, and the record of what each image had before."""
    set_names = sets_of(leaks, cache.rows)
    members: dict[str, list[ImageRow]] = {}
    for name, row in zip(set_names, cache.rows, strict=True):
        members.setdefault(name, []).append(row)
    digests_in_pairs = set(leaks.digests.values())

    # A set changes if it crosses splits or shows the same image twice; all other images keep group and split.
    group_of: dict[str, str] = {}
    split_of: dict[str, str] = {}
    for name, rows_of_set in members.items():
        splits = {row.split for row in rows_of_set if row.split}
        digests = {row.digest for row in rows_of_set}
        if len(splits) > 1 or digests & digests_in_pairs:
            group_of[name] = PREFIX + digest_of(sorted(digests))[:16]
            split_of[name] = min(splits, key=ORDER.__getitem__, default="")

    rows: list[ImageRow] = []
    joined = dict(cache.changes.joined)
    moved = dict(cache.changes.moved)
    dropped = dict(cache.changes.dropped)
    for name, row in zip(set_names, cache.rows, strict=True):
        if name not in group_of:
            rows.append(row)
            continue
        if row.path not in joined:  # else an earlier fix recorded the original values
            joined[row.path] = row.group
            moved[row.path] = dropped.get(row.path, row.split)
        if row.path in dropped:
            # If the review that dropped this image is undone, the image joins the others' split.
            dropped[row.path] = split_of[name] or dropped[row.path]
        split = split_of[name] if row.split else ""  # an image without a split stays without
        rows.append(row._replace(group=group_of[name], split=split))
    return tuple(rows), cache.changes._replace(joined=joined, moved=moved, dropped=dropped)


def sets_of(leaks: Leaks, rows: Sequence[ImageRow]) -> list[str]:
    """Return for each image the name of its set. Images of one set must stay in one split.

    Two images are in one set if they share a group, have the same bytes, are a pair of `leaks`, or are linked by a
    chain of these: the connected components, by union-find.
    """
    units = units_of(rows)
    unit_of_digest = {row.digest: unit for unit, row in zip(units, rows, strict=True)}
    parent: dict[str, str] = {}

    def root(unit: str) -> str:
        while parent.setdefault(unit, unit) != unit:
            parent[unit] = parent[parent[unit]]  # halve the path, so that later calls are short
            unit = parent[unit]
        return unit

    for pair in leaks.pairs:
        # By digest and not by path: an extraction may have changed the file at a path since the pair was found.
        unit_a = unit_of_digest.get(leaks.digests[pair.a])
        unit_b = unit_of_digest.get(leaks.digests[pair.b])
        if unit_a is not None and unit_b is not None:
            parent[root(unit_a)] = root(unit_b)
    return [root(unit) for unit in units]


def _moves(before: Cache, after: Cache) -> tuple[Move, ...]:
    moves: list[Move] = []
    for old, new in zip(before.rows, after.rows, strict=True):
        if old.split != new.split:
            moves.append(Move(new.path, old.split, new.split))
    return tuple(moves)


def _splits(cache: Cache) -> Mapping[str, int]:
    """Return {split: images}, in the order train, val, test."""
    counts = Counter(row.split for row in cache.rows if row.split)
    return dict(sorted(counts.items(), key=lambda item: ORDER[item[0]]))
