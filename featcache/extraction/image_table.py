"""The table of images that an extraction writes: the scanned images, with what decoding learnt about them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec

from featcache.cache.changes import UNCHANGED, Changes
from featcache.cache.layout import LISTING
from featcache.cache.parts import ImageTable
from featcache.cache.reader import Cache
from featcache.extraction.compute import Findings
from featcache.images.manifest import Images
from featcache.images.memory import MemorySource
from featcache.images.sources import IN_MEMORY
from featcache.spec import DECODE_VERSION, Failure, ImageRow, SplitSpec, canonical_json


def image_table(images: Images, changes: Changes, findings: Findings) -> ImageTable:
    """Return the table to write into the cache."""
    return ImageTable(all_rows(images, findings), failures_of(images, findings), facts_of(images), changes)


def kept_table(table: Cache | None) -> ImageTable:
    """Return the table that a cache has; of a new cache, a table without images."""
    if table is not None:
        return ImageTable.of(table)
    nothing = Images(IN_MEMORY, MemorySource([]), "flat", (), SplitSpec())
    return image_table(nothing, UNCHANGED, Findings({}, {}, {}))


def all_rows(images: Images, findings: Findings) -> tuple[ImageRow, ...]:
    """Return all images, sorted by path, with the digests of the bytes that were read."""
    digests = findings.digests
    rows = [row._replace(digest=digests[row.path]) for row in images.rows]
    # Images that the scan could not read have no digest, so they are no rows of the scan.
    rows += [ImageRow(path, "", "", "", "") for path in findings.unread if path not in digests]
    return tuple(sorted(rows, key=lambda row: os.fsencode(row.path)))


def readable_rows(images: Images, findings: Findings) -> list[ImageRow]:
    """Return the images whose bytes could be read, with the digests of those bytes."""
    readable = [row for row in images.rows if row.path not in findings.unread]
    return [row._replace(digest=findings.digests[row.path]) for row in readable]


def failures_of(images: Images, findings: Findings) -> dict[str, Failure]:
    """Return {path: why that image has no row}, sorted by path."""
    # A failure belongs to bytes, so every copy of them fails, each under its path.
    failures: dict[str, Failure] = {}
    for row in all_rows(images, findings):
        failure = findings.bad.get(row.digest)
        if failure is not None:
            failures[row.path] = failure._replace(path=row.path)
    failures |= findings.unread
    return {path: failures[path] for path in sorted(failures, key=os.fsencode)}


def facts_of(images: Images) -> Mapping[str, str | bytes]:
    """Return what the table says about the images as a whole."""
    facts: dict[str, str | bytes] = {
        "root": root_of(images),
        "layout": images.layout,
        "split_spec": canonical_json(asdict(images.split_spec)),
        "decode": _decoder(),
    }
    if images.listing is not None:
        facts[LISTING] = canonical_json(images.listing)
    return facts


def root_of(images: Images) -> bytes:
    """Return the place of the images, from the root of the file system; arrays in memory have none."""
    root = images.root.resolve() if images.source.location else images.root
    return os.fsencode(root)


def is_up_to_date(table: Cache, images: Images, changes: Changes, findings: Findings) -> bool:
    """Return whether the stored table says already what `image_table` would write."""
    if table.rows != all_rows(images, findings) or table.changes != changes:
        return False
    stored_failures = {failure.path: failure for failure in table.failures}
    if stored_failures != failures_of(images, findings) or os.fsencode(table.root) != root_of(images):
        return False
    # A plain folder needs no listing: a cache of an earlier version, which has none, is not written again for it.
    return (table.listing or {}) == (images.listing or {})


def known_failures(table: Cache | None) -> dict[str, Failure]:
    """Return {digest: failure} of images that the same decoder could not use before.

    A lack of memory is not the image's fault, so such an image is tried again.
    """
    if table is None or table.decode != _decoder():
        return {}
    lasting = [failure for failure in table.failures if failure.digest and failure.status != "no_memory"]
    return {failure.digest: failure for failure in lasting}


def _decoder() -> str:
    """Return the versions that decide which images can be decoded."""
    heif = " heif" if find_spec("pillow_heif") else ""
    return f"{DECODE_VERSION} pillow {version('pillow')}{heif}"
