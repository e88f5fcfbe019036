"""Commit rows as they are computed, so that a kill costs at most the batch in flight.

A part is a small HDF5 file beside the cache, `CACHE.h5.parts/part-<content>.h5`, with the rows of one
batch for every tap of one backbone. It appears whole, under the hash of its content, and is never
changed. When all rows are there, `merge` writes the one CACHE.h5 and removes the parts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Features
from featcache.cache import layout
from featcache.cache.reader import Cache, TapRows, tap_groups
from featcache.errors import NotACache
from featcache.spec import Failure, ImageRow, Tap


def parts_folder(cache: Path) -> Path:
    """Return the folder beside the cache that holds rows not yet merged into it."""
    return cache.with_name(cache.name + layout.PARTS_SUFFIX)


def commit(
    cache: Path, taps: Sequence[Tap], digests: Sequence[str], features: Sequence[Features], provenance: str
) -> Path:
    """Write one part: for each tap its (M, D) features of the M images with these digests."""
    content = hashlib.sha256("".join([*digests, *(tap.fingerprint for tap in taps)]).encode())
    for array in features:
        content.update(np.ascontiguousarray(array).data)
    path = parts_folder(cache) / f"part-{content.hexdigest()[:24]}.h5"
    rows = {tap: TapRows(tap, list(digests), array, provenance) for tap, array in zip(taps, features, strict=True)}
    layout.write(path, lambda file: _fill_taps(file, list(rows.values())))
    return path


def part_files(cache: Path) -> list[Path]:
    """Return the parts that are not merged yet."""
    return sorted(parts_folder(cache).glob("part-*.h5"))


def read_rows(cache: Path) -> dict[str, TapRows]:
    """Return {fingerprint: rows} of the cache and its parts together; parts that are damaged are set aside."""
    rows: dict[str, TapRows] = {}
    sources = [*([cache] if cache.exists() else []), *part_files(cache)]
    found: dict[str, list[TapRows]] = {}
    for source in sources:
        try:
            with layout.reading(source) as file:
                for tap_rows in _taps_in(file, source):
                    found.setdefault(tap_rows.tap.fingerprint, []).append(tap_rows)
        except NotACache:
            if source == cache:
                raise
            os.replace(source, source.with_suffix(".damaged"))
    taken: set[str] = set()
    for fingerprint, pieces in found.items():  # those of the cache come first and keep their names
        joined = _joined(pieces)
        rows[fingerprint] = joined.renamed() if joined.tap.name in taken else joined
        taken.add(rows[fingerprint].tap.name)
    return rows


def merge(
    cache: Path,
    images: Sequence[ImageRow],
    failures: Mapping[str, Failure],
    facts: Mapping[str, str | bytes],
) -> Cache:
    """Write the one CACHE.h5 from its rows and those of its parts, remove these parts, and return the cache.

    Rows stand in the order of the images, then by digest, so that the bytes of the file do not depend on
    how often the extraction was interrupted. failures: {path: why that image has no row}.
    """
    merged = part_files(cache)  # another extraction may commit more meanwhile; those stay for its own merge
    rows = read_rows(cache)
    order = {row.digest: at for at, row in enumerate(images)}
    in_order = [_sorted(tap_rows, order) for tap_rows in rows.values()]

    def fill(file: Any) -> None:
        _fill_images(file, images, failures, facts)
        _fill_taps(file, sorted(in_order, key=lambda tap_rows: tap_rows.tap.name))

    layout.write(cache, fill)
    for part in merged:
        part.unlink(missing_ok=True)
    with suppress(OSError):  # not empty: parts of another extraction, or damaged ones
        parts_folder(cache).rmdir()
    return Cache.open(cache)


def _fill_images(
    file: Any, images: Sequence[ImageRow], failures: Mapping[str, Failure], facts: Mapping[str, str | bytes]
) -> None:
    group = file.create_group("images")
    for key, fact in facts.items():
        layout.put_text(group, key, fact)
    ok = Failure("", "", "ok", "")
    found = [failures.get(row.path, ok) for row in images]
    columns = {
        "path": [os.fsencode(row.path) for row in images],
        "label": [os.fsencode(row.label) for row in images],
        "group": [os.fsencode(row.group) for row in images],
        "split": [row.split.encode() for row in images],
        "digest": [row.digest.encode() for row in images],
        "status": [failure.status.encode() for failure in found],
        "reason": [os.fsencode(failure.reason) for failure in found],
    }
    for name in layout.IMAGE_COLUMNS:
        group.create_dataset(name, data=layout.strings(columns[name]))


def _fill_taps(file: Any, all_rows: Sequence[TapRows]) -> None:
    for rows in all_rows:
        group = file.create_group(f"taps/{rows.tap.name}")
        group.create_dataset("features", data=np.ascontiguousarray(rows.features, dtype=np.float32))
        group.create_dataset("digest", data=layout.strings([digest.encode() for digest in rows.digests]))
        layout.put_text(group, "tap", rows.tap.to_json())
        layout.put_text(group, "fingerprint", rows.tap.fingerprint)
        layout.put_text(group, "provenance", rows.provenance)


def _taps_in(file: Any, source: Path) -> list[TapRows]:
    return [TapRows.read(group, source) for group in tap_groups(file, source)]


def _joined(pieces: list[TapRows]) -> TapRows:
    """Put the pieces of one tap together; of an image computed twice the first row stays."""
    seen: set[str] = set()
    digests: list[str] = []
    features: list[Features] = []
    for piece in pieces:
        new = [at for at, digest in enumerate(piece.digests) if digest not in seen]
        digests += [piece.digests[at] for at in new]
        seen.update(piece.digests)
        features.append(piece.features[new])
    return TapRows(pieces[0].tap, digests, np.concatenate(features), pieces[0].provenance)


def _sorted(rows: TapRows, order: Mapping[str, int]) -> TapRows:
    last = len(order)
    ranked = sorted(range(len(rows.digests)), key=lambda at: (order.get(rows.digests[at], last), rows.digests[at]))
    return TapRows(rows.tap, [rows.digests[at] for at in ranked], rows.features[ranked], rows.provenance)
