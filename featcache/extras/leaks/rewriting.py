"""Replace the table of images of a cache, while extractions may be at work on it; its features stay as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from featcache.cache import parts
from featcache.cache.changes import Changes
from featcache.cache.layout import LISTING
from featcache.cache.reader import Cache
from featcache.spec import ImageRow, Progress, Tick, canonical_json

Table = tuple[Sequence[ImageRow], Changes]


def rewrite(path: Path, decide: Callable[[Cache], Table], progress: Progress) -> tuple[Cache, Cache]:
    """Write the images as `decide` returns them; return the cache with what was there, and with what was written.

    Waits for an extraction that is at work on the cache; `decide` is asked again about a table that another process has
    written meanwhile. Nothing is written where nothing changes. Raises NotACache if a tap is damaged, DiskFault.
    """
    before = after = Cache.open(path)

    def table() -> parts.ImageTable:
        nonlocal before, after
        before = Cache.open(path)
        rows, changes = decide(before)
        after = replace(before, rows=tuple(rows), changes=changes)
        failures = {failure.path: failure for failure in before.failures}
        return parts.ImageTable(after.rows, failures, facts_of(before), changes)

    with parts.lock(path, lambda: progress(Tick("wait", 0, 0, f"An extraction is at work on {path}; waiting for it"))):
        table()
        if (after.rows, after.changes) != (before.rows, before.changes):
            parts.merge_decided(path, table)
    return before, after


def facts_of(cache: Cache) -> dict[str, str | bytes]:
    """Return what a cache says of its images as a whole, for `parts.merge`."""
    facts: dict[str, str | bytes] = {
        "root": os.fsencode(cache.root),
        "layout": cache.layout,
        "split_spec": canonical_json(asdict(cache.split_spec)),
        "decode": cache.decode,
    }
    if cache.listing is not None:
        facts[LISTING] = canonical_json(cache.listing)
    return facts
