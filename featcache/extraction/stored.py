"""What a cache has decided about images stays when they are scanned again: splits, groups, and reviewed labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from shlex import quote

from featcache.cache.changes import UNCHANGED, Changes, later, with_review, without_review
from featcache.cache.reader import Cache
from featcache.errors import UsageError
from featcache.extraction.reviewing import Decisions, reviews_of
from featcache.images.groups import crossing_remark, without_split
from featcache.images.listing import normalize_name
from featcache.images.manifest import Images
from featcache.spec import SPLITS, ImageRow, SplitSpec, unit_of, units_of
from featcache.text import counted


def as_stored(images: Images, earlier: Cache | None, decisions: Decisions | None = None) -> tuple[Images, Changes]:
    """Return the manifest with the groups, splits and reviewed labels of the cache, and what they changed.

    decisions: a table of new reviews. Raises UsageError if the scan uses another rule for splits or groups, and
    DataError if a decision makes no sense.
    """
    changes = UNCHANGED
    if earlier is not None:
        unreviewed = replace(earlier, rows=without_review(earlier.rows, earlier.changes))
        images, changes = _in_stored_splits(images, unreviewed)
    reviews = changes.reviews
    if decisions is not None:
        reviews = later(reviews, reviews_of(decisions, images.rows, reviews))
    rows, changes = with_review(images.rows, changes, reviews)
    return replace(images, rows=rows), changes


def review_remarks(images: Images, changes: Changes, cache: Path) -> list[str]:
    """Return a sentence on the labels that are as a review left them, and one on reviews of images edited since.

    cache: where the command in the sentence finds the cache.
    """
    # A review belongs to certain bytes with the label that their folder or table gave them.
    scanned = {(row.digest, changes.relabelled.get(row.path, row.label)) for row in images.rows}
    label_of = {row.path: row.label for row in images.rows}
    counts = Counter[str]()
    edited: list[str] = []  # images with other bytes than when they were reviewed
    for review in changes.reviews:
        if (review.digest, review.label) in scanned:
            counts[review.outcome] += 1
        elif label_of.get(review.path) == review.label:
            edited.append(review.path)
    remarks = []
    if counts:
        outcomes = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("changed", "dropped", "kept"))
        undo = f"featcache leaks {quote(str(cache))} --unapply"
        remarks.append(f"Labels are as reviewed: {outcomes}. To take that back: {undo}")
    if edited:
        remarks.append(
            f"Changed since the labels were reviewed, so labelled by folder or table again: "
            f"{counted(len(edited), 'image')}, such as {edited[0]}"
        )
    return remarks


def _in_stored_splits(images: Images, earlier: Cache) -> tuple[Images, Changes]:
    """Return the manifest in the groups and splits of a cache that nobody reviewed, with its changes."""
    # A table without images has no splits that could move: see `fc.FeatureExtractor`.
    if earlier.rows and images.split_spec != earlier.split_spec:
        raise UsageError(
            f"{earlier.path} is split {_spelt(earlier.split_spec)}, and splits never move; asked for "
            f"{_spelt(images.split_spec)}. For another split use another `out`"
        )
    _check_groups(images, earlier)
    rows = _with_joined_groups(images.rows, earlier)
    joined: dict[str, str] = {}
    for row, scanned in zip(rows, images.rows, strict=True):
        if row.group != scanned.group:
            joined[row.path] = scanned.group
    changes = earlier.changes._replace(joined=joined, moved=_moved(images, joined, earlier))
    # `leaks --fix` decides on the splits of joined images, even where a folder or a table gives another split.
    fixed_by_scan = images.given - joined.keys()
    return replace(images, rows=_with_stored_splits(rows, fixed_by_scan, earlier)), changes


def kept_apart(scanned: Images, stored: Images) -> str:
    """Return a sentence on the images that stay in another split than their folder or manifest gives them, or ""."""
    moves = Counter[tuple[str, str]]()
    for old, new in zip(scanned.rows, stored.rows, strict=True):
        has_moved = new.split and old.split != new.split  # images that a review dropped have no split now
        if has_moved and old.path in scanned.given:
            moves[old.split, new.split] += 1
    if not moves:
        return ""
    counts = ", ".join(f"{count} of {old} in {new}" for (old, new), count in sorted(moves.items()))
    return f"Images stay where featcache leaks --fix has put them, and not where their folders say: {counts}"


def apart(images: Images, cache: Path) -> list[str]:
    """Return a sentence on groups, and one on copies, that are in several splits and should be in one.

    cache: where the command in the sentences finds the cache.
    """
    fix = f"featcache leaks {quote(str(cache))} --fix"
    remarks = []
    if crossing := crossing_remark(images.rows, images.given):
        remarks.append(f"{crossing}. Put each group into one split: {fix}")
    if copies := images.crossing:
        split_of = {row.path: row.split for row in images.rows}
        first = copies[0][0]
        other = next(path for path in copies[0] if split_of[path] != split_of[first])
        is_given = not images.given.isdisjoint(chain.from_iterable(copies))
        why = "folders or a table give the splits" if is_given else "stored splits never move"
        remarks.append(
            f"Copies of {counted(len(copies), 'image')} stand in several splits, such as {first} and {other}, since "
            f"{why}: scores on those splits are too good. Put copies into one split: {fix}"
        )
    return remarks


def _with_joined_groups(rows: Sequence[ImageRow], earlier: Cache) -> tuple[ImageRow, ...]:
    """Return the rows in the groups that `leaks --fix` made. An image is recognised by its content or by its group."""
    merged_by_digest: dict[str, str] = {}
    merged_by_group: dict[str, str] = {}
    for row in earlier.rows:
        original_group = earlier.joined.get(row.path)
        if original_group is None:
            continue  # `leaks --fix` did not touch this image
        merged_by_digest[row.digest] = row.group
        if original_group:
            merged_by_group[original_group] = row.group

    # A group that gained a merged image moves as a whole: its members must stay together.
    for row in rows:
        if row.group and row.digest in merged_by_digest:
            merged_by_group[row.group] = merged_by_digest[row.digest]

    merged: list[ImageRow] = []
    for row in rows:
        group = merged_by_digest.get(row.digest) or merged_by_group.get(row.group) or row.group
        merged.append(row._replace(group=group))
    return tuple(merged)


def _moved(images: Images, joined: Mapping[str, str], earlier: Cache) -> dict[str, str]:
    """Return the split that each joined image had before `leaks --fix`; a new image has its folder's or copies'."""
    split_by_place: dict[tuple[str, str], str] = {}
    split_by_content: dict[str, str] = {}
    for row in earlier.rows:
        if row.path in earlier.changes.moved:
            split = earlier.changes.moved[row.path]
            split_by_place[row.path, row.digest] = split
            split_by_content[row.digest] = split

    splits: dict[str, str] = {}
    for row in images.rows:
        if row.path not in joined:
            continue
        split = row.split
        if row.path not in images.given:
            split = split_by_content.get(row.digest, split)
        splits[row.path] = split_by_place.get((row.path, row.digest), split)
    return splits


def _check_groups(images: Images, earlier: Cache) -> None:
    """Raise UsageError if another rule makes the groups, since that would move images to other splits."""
    stored_groups = {(row.path, row.digest): earlier.joined.get(row.path, row.group) for row in earlier.rows}
    for row in images.rows:
        group = stored_groups.get((row.path, row.digest), row.group)
        # Caches of earlier versions have groups with the folder of the split in their names, or in decomposed Unicode.
        if row.group not in {group, without_split(group), normalize_name(group)}:
            raise UsageError(
                f"{earlier.path} has {row.path} in {_group(group)}, and splits never move; asked for "
                f"{_group(row.group)}. Give the `group_from` that it was made with, or use another `out`"
            )


def _with_stored_splits(rows: Sequence[ImageRow], fixed: frozenset[str], earlier: Cache) -> tuple[ImageRow, ...]:
    """Return the rows with the splits of the cache.

    fixed: paths of images that keep the splits they have, since folders or a manifest give these.
    A stored image keeps its split, and its copies get the same. A new image goes to the split of its group, or of
    groups that share an image with it. If these are in several splits, it goes to train if that is one of them, else to
    val. A group under a new name is recognised by its images. Raises UsageError if they are in several splits.
    """
    stored = [row for row in earlier.rows if row.split]
    split_by_place = {(row.path, row.digest): row.split for row in stored}
    split_by_member = {(row.group, row.digest): row.split for row in stored}
    splits_by_digest: dict[str, set[str]] = {}
    splits_by_group: dict[str, set[str]] = {}
    splits_by_unit: dict[str, set[str]] = {}
    units = units_of([*stored, *rows])
    for unit, row in zip(units, stored, strict=False):
        splits_by_digest.setdefault(row.digest, set()).add(row.split)
        splits_by_group.setdefault(unit_of(row), set()).add(row.split)
        splits_by_unit.setdefault(unit, set()).add(row.split)
    # If an image is still in its group, the same bytes elsewhere are a copy; if not, they are the image itself in
    # another group.
    still_in_group = {row.digest for row in rows if (row.group, row.digest) in split_by_member}

    placed = []
    for unit, row in zip(units[len(stored) :], rows, strict=True):
        if not row.split or row.path in fixed:
            placed.append(row)
            continue
        splits = splits_by_digest.get(row.digest)
        if splits and row.digest not in still_in_group:
            group_splits = splits_by_group.setdefault(unit_of(row), splits)
            if splits.isdisjoint(group_splits):
                raise UsageError(
                    f"{earlier.path} has {row.path} in {' and '.join(sorted(splits))}, and others of "
                    f"{_group(row.group)} in {' and '.join(sorted(group_splits))}, and splits never move. "
                    "Keep the groups as they were, or use another `out`"
                )
        # The stored split of the image itself; else the split of its copies, of its group or groups that share images
        # with it, or of the scan.
        split = split_by_place.get((row.path, row.digest)) or split_by_member.get((row.group, row.digest))
        if not split:
            candidates = splits or splits_by_unit.get(unit) or {row.split}
            split = min(candidates, key=SPLITS.index)  # train is first, and test last
        placed.append(row._replace(split=split))
    return tuple(placed)


def _group(name: str) -> str:
    return f"group '{name}'" if name else "no group"


def _spelt(spec: SplitSpec) -> str:
    return f"{spec.train}/{spec.val}/{spec.test} seed {spec.seed}"
