"""What a cache has decided about images stays so when they are scanned again: splits, and groups of `leaks --fix`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from featcache.cache.reader import Cache
from featcache.errors import UsageError
from featcache.images.manifest import Images
from featcache.spec import ImageRow, SplitSpec, unit_of


def as_stored(images: Images, earlier: Cache | None) -> tuple[Images, Mapping[str, str]]:
    """Return the manifest with the groups and splits that the cache has, and what each joined image's group was.

    Raises UsageError if another split, or other groups, are asked for.
    """
    if earlier is None:
        return images, {}
    if images.split_spec != earlier.split_spec:
        raise UsageError(
            f"{earlier.path} is split {_spelt(earlier.split_spec)}, and splits never move; asked for "
            f"{_spelt(images.split_spec)}. For another split use another -o"
        )
    _check_groups(images, earlier)
    rows = _with_joined_groups(images.rows, earlier)
    joined = {row.path: old.group for row, old in zip(rows, images.rows, strict=True) if row.group != old.group}
    return replace(images, rows=_with_stored_splits(rows, images.given - joined.keys(), earlier)), joined


def kept_apart(scanned: Images, stored: Images) -> str:
    """Return a sentence on the images that stay in another split than their folder or manifest says, or ""."""
    moved = [
        (old.split, new.split)
        for old, new in zip(scanned.rows, stored.rows, strict=True)
        if old.path in scanned.given and old.split != new.split
    ]
    if not moved:
        return ""
    which = ", ".join(f"{count} of {old} in {new}" for (old, new), count in sorted(Counter(moved).items()))
    return f"Where `featcache leaks --fix` has put them, and not where their folders say, stay {which}"


def _with_joined_groups(rows: Sequence[ImageRow], earlier: Cache) -> tuple[ImageRow, ...]:
    """Return the rows in the groups that `leaks --fix` has made: by content, and with all of the group they were in."""
    of_content = {row.digest: row.group for row in earlier.rows if row.path in earlier.joined}
    of_group = {earlier.joined[row.path]: row.group for row in earlier.rows if earlier.joined.get(row.path)}
    of_group |= {row.group: of_content[row.digest] for row in rows if row.group and row.digest in of_content}
    return tuple(row._replace(group=of_content.get(row.digest) or of_group.get(row.group) or row.group) for row in rows)


def _check_groups(images: Images, earlier: Cache) -> None:
    """Raise UsageError if the groups are made by another rule, which would move images to other splits."""
    stored = {(row.path, row.digest): earlier.joined.get(row.path, row.group) for row in earlier.rows}
    for row in images.rows:
        group = stored.get((row.path, row.digest), row.group)
        if group != row.group:
            raise UsageError(
                f"{earlier.path} has {row.path} in {_group(group)}, and splits never move; asked for "
                f"{_group(row.group)}. Give the --group-from that it was made with, or use another -o"
            )


def _with_stored_splits(rows: Sequence[ImageRow], given: frozenset[str], earlier: Cache) -> tuple[ImageRow, ...]:
    """Return the rows with the splits that the cache has, except those whose split folders or a manifest give.

    A group under a new name is known by its images. Raises UsageError if it has some of several splits.
    """
    of_unit = {unit_of(row): row.split for row in earlier.rows if row.split}
    of_content: dict[str, set[str]] = {}
    for row in earlier.rows:
        if row.split:
            of_content.setdefault(row.digest, set()).add(row.split)
    free = [row for row in rows if row.split and row.path not in given]
    for row in free:
        found, unit = of_content.get(row.digest, set()), unit_of(row)
        split = of_unit.setdefault(unit, min(found)) if found else of_unit.get(unit)
        if found and split not in found:
            raise UsageError(
                f"{earlier.path} has {row.path} in {' and '.join(sorted(found))}, and others of {_group(row.group)} in "
                f"{split}, and splits never move. Keep the groups as they were, or use another -o"
            )
    moved = {row.path: row._replace(split=of_unit.get(unit_of(row), row.split)) for row in free}
    return tuple(moved.get(row.path, row) for row in rows)


def _group(name: str) -> str:
    return f"group '{name}'" if name else "no group"


def _spelt(spec: SplitSpec) -> str:
    return f"{spec.train}/{spec.val}/{spec.test} seed {spec.seed}"
