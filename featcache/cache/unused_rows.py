"""Find and drop the rows of images that are not in a cache's table of images any more.

Such rows stay when images are moved out of the folder, so that nothing is computed twice if they come back. Dropping
them rewrites the file whole or not at all. In a folder of parts, the table is written first, so that no row is missed
that goes afterwards; then the rows that stay are written into new parts, and the old parts are removed.

Rows that no table has counted yet are work of an extraction that was stopped. They are never dropped.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from featcache.cache import layout, parts
from featcache.cache.reader import Cache, stored_rows
from featcache.cache.rows import pieces_in
from featcache.errors import DataError
from featcache.files import again


class UnusedRows(NamedTuple):
    """The rows of one tap that belong to no image of the table."""

    tap: str
    rows: int
    bytes: int
    kept: int  # rows that stay; a tap without any goes as a whole


def unused_rows(cache: Path) -> list[UnusedRows]:
    """Return what `drop_unused` would drop, by tap.

    Raises NotACache, DataError if an extraction was stopped or there is no table of images.
    """
    return again(lambda: _unused(cache, Cache.open(cache)))


def drop_unused(cache: Path) -> list[UnusedRows]:
    """Drop the rows of images that are not in the table, and return what was dropped. Call it under `parts.lock`.

    Raises NotACache, and drops nothing, if rows are damaged; DataError as `unused_rows` does; DiskFault.
    """
    return again(lambda: _dropped(cache))


def _unused(cache: Path, opened: Cache) -> list[UnusedRows]:
    if not opened.rows:
        raise DataError(
            f"{cache} has no table of images yet, so all of its features would go. Make the table: featcache extract "
            f"IMAGES -o {cache}"
        )
    _require_finished(cache)
    used = _digests(opened)
    unused: list[UnusedRows] = []
    for rows in stored_rows(cache).values():
        num_kept = len(used & rows.at.keys())
        num_unused = len(rows.at) - num_kept
        if num_unused:
            unused.append(UnusedRows(rows.tap.name, num_unused, num_unused * rows.row_bytes, num_kept))
    return unused


def _dropped(cache: Path) -> list[UnusedRows]:
    table = layout.table_of(cache)
    # Before the table is read, so that no later change goes unnoticed.
    before = layout.state(table)
    opened = Cache.open(cache)
    unused = _unused(cache, opened)
    if not unused:
        return []

    used = _digests(opened)
    images = parts.ImageTable.of(opened)
    stored = stored_rows(cache)
    kept = {fingerprint: rows for fingerprint, rows in stored.items() if not used.isdisjoint(rows.at)}
    if not cache.is_dir():
        parts.write_cache(
            table,
            before,
            kept.values(),
            images.rows,
            images.failures,
            images.facts,
            None,
            images.changes,
            with_unused=False,
        )
        return unused
    counts = {fingerprint: len(used & rows.at.keys()) for fingerprint, rows in kept.items()}
    parts.write_cache(table, before, [], images.rows, images.failures, images.facts, counts, images.changes)
    parts.compact(cache, _parts_with_others(cache, used), opened.rows, with_unused=False)
    return unused


def _digests(cache: Cache) -> set[str]:
    return {row.digest for row in cache.rows}


def _parts_with_others(cache: Path, used: Collection[str]) -> list[Path]:
    """Return the parts of a folder that have rows of other images than these."""
    with_others: list[Path] = []
    for part in layout.part_files(cache):
        if any(not set(piece.digests).issubset(used) for piece in pieces_in(part)):
            with_others.append(part)
    return with_others


def _require_finished(cache: Path) -> None:
    """Raise DataError if rows wait for an extraction to be finished, or if some are damaged and must be mended."""
    if not parts.is_settled(cache, stored_rows(cache)) or parts.set_aside(cache):
        raise DataError(
            f"{cache} has rows of an extraction that was stopped or still runs, or damaged parts. Finish it first: "
            "repeat the featcache extract that made it"
        )
