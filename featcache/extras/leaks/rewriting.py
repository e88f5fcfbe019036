"""Replace the table of images of a cache while extractions may be at work on it. The features stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from featcache.cache import parts
from featcache.cache.changes import Changes
from featcache.cache.reader import Cache
from featcache.spec import ImageRow, Progress, Tick

Table = tuple[Sequence[ImageRow], Changes]


def rewrite(path: Path, decide: Callable[[Cache], Table], progress: Progress) -> tuple[Cache, Cache]:
    """Write the images as `decide` returns them; return the cache as it was before and as it is now.

    Waits for an extraction that is at work on the cache. If another process replaces the table meanwhile, `decide` is
    called again with the new table. If nothing changes, nothing is written. Raises NotACache if a tap is damaged,
    DiskFault.
    """
    before = after = Cache.open(path)

    def table() -> parts.ImageTable:
        nonlocal before, after
        before = Cache.open(path)
        rows, changes = decide(before)
        after = replace(before, rows=tuple(rows), changes=changes)
        return parts.ImageTable.of(after)

    with parts.lock(path, lambda: progress(Tick("wait", 0, 0, f"An extraction is at work on {path}; waiting for it"))):
        # Decide once without writing: `merge_decided` rewrites the whole file, even if no row changes.
        table()
        if (after.rows, after.changes) != (before.rows, before.changes):
            parts.merge_decided(path, table)
    return before, after
