"""What a cache has decided about images stays when they are scanned again: splits, groups, and reviewed labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from featcache.cache.changes import UNCHANGED, Changes, later, with_review, without_review
from featcache.cache.reader import Cache
from featcache.errors import UsageError
from featcache.extraction.reviewing import Decisions, reviews_of
from featcache.images.groups import crossing_remark, without_split
from featcache.images.manifest import Images
from featcache.spec import SPLITS, ImageRow, SplitSpec, unit_of, units_of


def as_stored(images: Images, earlier: Cache | None, decisions: Decisions | None = None) -> tuple[Images, Changes]:
    """Return the manifest with the groups, splits and reviewed labels that the cache has, and what that changed.

    decisions: a table of new reviews. Raises UsageError if another split, or other groups, are asked for, DataError if
    a decision cannot be meant.
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


def review_remarks(images: Images, changes: Changes) -> list[str]:
    """Return a sentence on the labels that are as a review left them, and one on reviews of images edited since."""
    given = {(row.digest, changes.relabelled.get(row.path, row.label)) for row in images.rows}
    counts = Counter(review.outcome for review in changes.reviews if (review.digest, review.label) in given)
    remarks = []
    if counts:
        outcomes = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("changed", "dropped", "kept"))
        remarks.append(f"Labels are as reviewed: {outcomes}. To take that back: featcache leaks CACHE --unapply")
    label_of = {row.path: row.label for row in images.rows}
    edited = [
        review.path
        for review in changes.reviews
        if (review.digest, review.label) not in given and label_of.get(review.path) == review.label
    ]
    if edited:
        remarks.append(
            f"{len(edited)} images are other files than when their labels were reviewed, such as {edited[0]}, so these "
            "have the labels of their folders or table again"
        )
    return remarks


def _in_stored_splits(images: Images, earlier: Cache) -> tuple[Images, Changes]:
    """Return the manifest in the groups and splits of a cache that nobody reviewed, with its changes."""
    if images.split_spec != earlier.split_spec:
        raise UsageError(
            f"{earlier.path} is split {_spelt(earlier.split_spec)}, and splits never move; asked for "
            f"{_spelt(images.split_spec)}. For another split use another -o"
        )
    _check_groups(images, earlier)
    rows = _with_joined_groups(images.rows, earlier)
    joined = {row.path: old.group for row, old in zip(rows, images.rows, strict=True) if row.group != old.group}
    changes = earlier.changes._replace(joined=joined, moved=_moved(images, joined, earlier))
    return replace(images, rows=_with_stored_splits(rows, images.given - joined.keys(), earlier)), changes


def kept_apart(scanned: Images, stored: Images) -> str:
    """Return a sentence on the images that stay in another split than their folder or manifest says, or ""."""
    moved = [
        (old.split, new.split)
        for old, new in zip(scanned.rows, stored.rows, strict=True)
        if old.path in scanned.given and new.split and old.split != new.split
    ]
    if not moved:
        return ""
    which = ", ".join(f"{count} of {old} in {new}" for (old, new), count in sorted(Counter(moved).items()))
    return f"Where `featcache leaks --fix` has put them, and not where their folders say, stay {which}"


def apart(images: Images) -> list[str]:
    """Return a sentence on groups, and one on copies, that stand in several splits and should not."""
    remarks = []
    if crossing := crossing_remark(images.rows, images.given):
        remarks.append(f"{crossing}. Put each group into one split: featcache leaks CACHE --fix")
    if copies := images.crossing:
        split_of = {row.path: row.split for row in images.rows}
        first = copies[0][0]
        other = next(path for path in copies[0] if split_of[path] != split_of[first])
        is_given = any(path in images.given for paths in copies for path in paths)
        why = "folders or a table give the splits" if is_given else "stored splits never move"
        remarks.append(
            f"{len(copies)} images have copies in several splits, such as {first} and {other}, since {why}: scores on "
            "those splits are too good. Put copies into one split: featcache leaks CACHE --fix"
        )
    return remarks


def _with_joined_groups(rows: Sequence[ImageRow], earlier: Cache) -> tuple[ImageRow, ...]:
    """Return the rows in the groups that `leaks --fix` has made: by content, and with all of the group they were in."""
    of_content = {row.digest: row.group for row in earlier.rows if row.path in earlier.joined}
    of_group = {earlier.joined[row.path]: row.group for row in earlier.rows if earlier.joined.get(row.path)}
    of_group |= {row.group: of_content[row.digest] for row in rows if row.group and row.digest in of_content}
    return tuple(row._replace(group=of_content.get(row.digest) or of_group.get(row.group) or row.group) for row in rows)


def _moved(images: Images, joined: Mapping[str, str], earlier: Cache) -> dict[str, str]:
    """Return the split that each joined image had before `leaks --fix`; a new one has that of its folder or bytes."""
    moved = earlier.changes.moved
    by_place = {(row.path, row.digest): moved[row.path] for row in earlier.rows if row.path in moved}
    by_content = {digest: split for (_, digest), split in by_place.items()}
    splits: dict[str, str] = {}
    for row in images.rows:
        if row.path in joined:
            otherwise = row.split if row.path in images.given else by_content.get(row.digest, row.split)
            splits[row.path] = by_place.get((row.path, row.digest), otherwise)
    return splits


def _check_groups(images: Images, earlier: Cache) -> None:
    """Raise UsageError if the groups are made by another rule, which would move images to other splits."""
    stored = {(row.path, row.digest): earlier.joined.get(row.path, row.group) for row in earlier.rows}
    for row in images.rows:
        group = stored.get((row.path, row.digest), row.group)
        # caches of 0.1.0 have the folder of the split in the names of `parent`
        if row.group not in (group, without_split(group)):
            raise UsageError(
                f"{earlier.path} has {row.path} in {_group(group)}, and splits never move; asked for "
                f"{_group(row.group)}. Give the --group-from that it was made with, or use another -o"
            )


def _with_stored_splits(rows: Sequence[ImageRow], given: frozenset[str], earlier: Cache) -> tuple[ImageRow, ...]:
    """Return the rows with the splits that the cache has, except those whose split folders or a manifest give.

    An image that is stored keeps its split, and copies of it get the same. Others go where their group is, or groups
    that share an image with it: where those stand in several splits, to train, else to val.
    A group under a new name is known by its images. Raises UsageError if it has some of several splits.
    """
    stored = [row for row in earlier.rows if row.split]
    of_place = {(row.path, row.digest): row.split for row in stored}
    of_member = {(row.group, row.digest): row.split for row in stored}
    of_content: dict[str, set[str]] = {}
    of_group: dict[str, set[str]] = {}
    of_unit: dict[str, set[str]] = {}
    units = units_of([*stored, *rows])
    for unit, row in zip(units, stored, strict=False):
        of_content.setdefault(row.digest, set()).add(row.split)
        of_group.setdefault(unit_of(row), set()).add(row.split)
        of_unit.setdefault(unit, set()).add(row.split)
    # where an image is still in its group, the same bytes elsewhere are a copy, and else the image itself, regrouped
    in_place = {row.digest for row in rows if (row.group, row.digest) in of_member}

    placed = []
    for unit, row in zip(units[len(stored) :], rows, strict=True):
        if not row.split or row.path in given:
            placed.append(row)
            continue
        splits = of_content.get(row.digest)
        if splits and row.digest not in in_place:
            others = of_group.setdefault(unit_of(row), splits)
            if splits.isdisjoint(others):
                raise UsageError(
                    f"{earlier.path} has {row.path} in {_listed(splits)}, and others of {_group(row.group)} in "
                    f"{_listed(others)}, and splits never move. Keep the groups as they were, or use another -o"
                )
        own = of_place.get((row.path, row.digest)) or of_member.get((row.group, row.digest))
        split = own or min(splits or of_unit.get(unit) or {row.split}, key=SPLITS.index)
        placed.append(row._replace(split=split))
    return tuple(placed)


def _listed(splits: Iterable[str]) -> str:
    return " and ".join(sorted(splits))


def _group(name: str) -> str:
    return f"group '{name}'" if name else "no group"


def _spelt(spec: SplitSpec) -> str:
    return f"{spec.train}/{spec.val}/{spec.test} seed {spec.seed}"
