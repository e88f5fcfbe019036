"""Commit rows as they are computed, so that a kill costs at most the batches in flight.

A part is a small HDF5 file with the rows of one batch for every tap of one backbone. It is built in memory,
written whole under a name that contains the hash of its bytes, and never changed. When all rows are computed,
`merge` writes them into the one CACHE.h5 and removes the parts. In a cache that is a folder of parts, `merge` writes
only the table of images.

Several extractions may work on one cache, even on machines that share a disk. Their parts never collide. If another
process replaces CACHE.h5 while this one merges, the parts stay until a later merge has copied them. The lock only
saves work.

Rows are compared with their digest before they are copied, so that damaged rows never get a digest that vouches
for them:

- A part is proven damaged if the disk gave all of its bytes and their hash is not the one in its name. Such a part is
  set aside: it is renamed, and an extraction computes its rows again. In a folder of parts the renamed file stays,
  and the folder remembers how many rows it had, until all of them are back or somebody deletes the file.
- A damaged tap of CACHE.h5 stops a merge. An extraction leaves the rows of that tap out and computes them again. If
  the extraction does not ask for that tap, `merge` copies the tap as it is, with the digest that it does not match.
  Nobody can then read the tap, `verify` still reports it, and other backbones need not wait until it is mended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from featcache import files
from featcache.arrays import Features
from featcache.cache import layout
from featcache.cache.changes import UNCHANGED, Changes
from featcache.cache.check import lost_rows
from featcache.cache.layout import DAMAGED, LOCK_NAME, part_files, parts_folder, table_of
from featcache.cache.reader import Cache
from featcache.cache.rows import Piece, TapRows, by_tap, copy_tap, pieces_in, write_tap
from featcache.errors import NotACache
from featcache.files import Overtaken, again, being_written, remove_litter
from featcache.locks import locked
from featcache.spec import Failure, ImageRow, Tap, canonical_json

SMALL_BYTES = 16 * 2**20  # smaller parts are put together when a folder of parts is finished
PART_BYTES = 64 * 2**20  # of the parts that they become
ANY = ""  # no table has this state


class ImageTable(NamedTuple):
    """The images of a cache, as `merge` writes them."""

    rows: Sequence[ImageRow]
    failures: Mapping[str, Failure]  # {path: why that image has no row}
    facts: Mapping[str, str | bytes]  # of the images as a whole
    changes: Changes = UNCHANGED

    @classmethod
    def of(cls, cache: Cache) -> ImageTable:
        """Return the table that a cache has."""
        failures = {failure.path: failure for failure in cache.failures}
        facts: dict[str, str | bytes] = {
            "root": os.fsencode(cache.root),
            "layout": cache.layout,
            "split_spec": canonical_json(asdict(cache.split_spec)),
            "decode": cache.decode,
        }
        if cache.listing is not None:
            facts[layout.LISTING] = canonical_json(cache.listing)
        return cls(cache.rows, failures, facts, cache.changes)


def commit(
    cache: Path, taps: Sequence[Tap], digests: Sequence[str], features: Sequence[Features], provenance: str
) -> Path:
    """Write the features of M images as one part, and return its path.

    digests: of the M images. features: one array for each tap, (M, D) or (M, h, w, C).
    """
    made_by = np.zeros(len(digests), np.uint8)  # `provenance` is the only maker of these rows

    def fill(file: Any) -> None:
        for tap, array in zip(taps, features, strict=True):
            write_tap(file, tap, digests, array.shape[1:], [provenance], made_by, [array])

    return layout.write_part(parts_folder(cache), fill)


def read_rows(cache: Path, *, all_bytes: bool = False, checked: bool = False) -> dict[str, TapRows]:
    """Return {fingerprint: rows} of the cache and its parts together, and set damaged parts aside.

    all_bytes: read and compare all bytes of large parts in a folder; all other parts are always read that way.
    checked: leave out the damaged taps of CACHE.h5, which means reading all of it. Raises DiskFault if the system
    cannot read a file.
    """
    return again(lambda: _read_rows(cache, all_bytes, checked))


def _read_rows(cache: Path, all_bytes: bool, checked: bool) -> dict[str, TapRows]:
    # List the parts before reading the table: a part that another process merges in between is then in the table.
    listed_parts = part_files(cache)
    pieces = _pieces_of_table(cache)
    if checked:
        damaged = _fingerprints(_damaged_in(pieces))
        pieces = [piece for piece in pieces if piece.tap.fingerprint not in damaged]

    for part in listed_parts:
        # Parts beside CACHE.h5 will be copied into it, and small parts of a folder into larger ones. Damaged bytes
        # must not be copied, since the copy would get a digest that matches them.
        will_be_copied = part.parent != cache or _size(part) < SMALL_BYTES
        pieces += _pieces_or_aside(part, all_bytes or will_be_copied)
    return by_tap(pieces)


def damaged_taps(cache: Path) -> list[Piece]:
    """Return the taps of CACHE.h5 whose rows do not match their digest. Reads all rows."""
    return again(lambda: _damaged_in(_pieces_of_table(cache)))


def _pieces_of_table(cache: Path) -> list[Piece]:
    table = table_of(cache)
    if not table.exists():
        return []
    if not cache.is_dir() and layout.is_foreign(table):
        return []  # --force will replace this file
    return pieces_in(table)


def _damaged_in(pieces: Sequence[Piece]) -> list[Piece]:
    damaged: list[Piece] = []
    for piece in pieces:
        try:
            TapRows([piece]).check()
        except NotACache:
            damaged.append(piece)
    return damaged


def _fingerprints(pieces: Iterable[Piece]) -> set[str]:
    return {piece.tap.fingerprint for piece in pieces}


def is_settled(cache: Path, rows: Mapping[str, TapRows]) -> bool:
    """Return whether no row of a cache waits for a merge: all are in the one file, or the folder's table counts them.

    Some wait if an extraction was stopped, or if `unused_rows.drop_unused` was.
    """
    if not cache.is_dir():
        return not part_files(cache)
    counts = layout.counted_rows(cache)
    return all(len(tap_rows.at) <= counts.get(fingerprint, 0) for fingerprint, tap_rows in rows.items())


def make_folder(cache: Path) -> None:
    """Make the folder of a cache that is a folder of parts. Raises DiskFault."""
    files.make_folder(cache)


def state(cache: Path) -> tuple[str | None, tuple[Path, ...]]:
    """Return a value that differs after every merge and every commit."""
    return layout.state(table_of(cache)), tuple(part_files(cache))


@contextmanager
def lock(cache: Path, wait: Callable[[], None]) -> Iterator[bool]:
    """Keep other extractions off this cache while the block runs. Gives True if another extraction was at work.

    Calls `wait` before it waits for that extraction; the cache may then have changed. The lock only saves work: where
    the file system cannot lock, the block runs at once.
    """
    make_folder(parts_folder(cache))
    try:
        with locked(parts_folder(cache) / LOCK_NAME, busy=wait) as waited:
            yield waited
    finally:
        _tidy(cache)


def tidy(cache: Path) -> None:
    """Remove what a killed extraction left beside a finished cache, unless another extraction is at work on it."""

    def leave_alone() -> NoReturn:
        raise BlockingIOError

    if parts_folder(cache).is_dir():
        with suppress(BlockingIOError), locked(parts_folder(cache) / LOCK_NAME, busy=leave_alone):
            _tidy(cache)


def merge(
    cache: Path,
    images: Sequence[ImageRow],
    failures: Mapping[str, Failure],
    facts: Mapping[str, str | bytes],
    changes: Changes = UNCHANGED,
    before: str | None = ANY,
    damaged: Collection[str] = (),
) -> Cache:
    """Write the images, and the rows of the parts, into the cache's one file; return the cache.

    Rows stand in the order of the images, then by digest, so that the bytes of the file do not depend on
    how often the extraction was interrupted. failures: {path: why that image has no row}.
    damaged: fingerprints of taps that may be damaged; see above for what becomes of them.
    before: `layout.state` of the table that the images were decided on; if it is another one by now, Overtaken is
    raised. With ANY the images replace whatever table is there.
    Raises NotACache, and changes nothing, if rows of another tap are not those that were written.
    """
    table = ImageTable(images, failures, facts, changes)
    if before == ANY:
        merged = again(lambda: _merged(cache, table, layout.state(table_of(cache)), damaged))
    else:
        merged = _merged(cache, table, before, damaged)

    # Damaged parts in a folder stay until all of their rows are back: they are the sign that rows are missing.
    still_lacks_rows = cache.is_dir() and lost_rows(cache)
    if not still_lacks_rows:
        for part in set_aside(cache):
            files.remove(part)
    _tidy(cache)
    return merged


def merge_decided(cache: Path, decide: Callable[[], ImageTable], damaged: Collection[str] = ()) -> Cache:
    """Merge the images that `decide` returns, which reads the table as it is.

    If another process replaces the table meanwhile, nothing is written and `decide` is called again, so that what
    others wrote into the table is never lost. damaged: as for `merge`.
    """

    def merged() -> Cache:
        # Take the state before `decide` reads the table, so that no later change goes unnoticed.
        before = layout.state(table_of(cache))
        return merge(cache, *decide(), before, damaged)

    return again(merged)


def _merged(cache: Path, images: ImageTable, before: str | None, damaged: Collection[str]) -> Cache:
    table = table_of(cache)
    is_folder = cache.is_dir()
    counts: dict[str, int] = {}
    parts: list[Path] = []
    rows: dict[str, TapRows] = {}
    kept: list[Piece] = []
    if is_folder:
        counts = _compacted(cache, images.rows)
    else:
        parts = part_files(cache)  # parts that others commit after this line stay for a later merge
    try:
        if not is_folder:
            rows, kept = _rows_to_merge(cache, parts, damaged)
        written = write_cache(
            table, before, rows.values(), images.rows, images.failures, images.facts, counts, images.changes, kept
        )
    except NotACache as error:
        # Rows that do not match while another process replaces the table are no damage.
        if layout.state(table) != before:
            raise Overtaken(table) from error
        raise
    del rows  # the digests of many images take memory that `Cache.open` needs

    # Parts go last, once the new table could be opened: a kill before that leaves their rows in both places, which
    # the next merge finds and clears up.
    opened = Cache.open(cache)
    _remove_merged(_without_taps(parts, kept), table, written)
    return opened


def _rows_to_merge(
    cache: Path, parts: Sequence[Path], damaged: Collection[str]
) -> tuple[dict[str, TapRows], list[Piece]]:
    """Return {fingerprint: rows} to write, and the damaged taps of CACHE.h5 to copy as they are. Raises NotACache."""
    pieces: list[Piece] = []
    broken: list[Piece] = []
    for piece in _pieces_of_table(cache):
        if piece.tap.fingerprint in damaged and _damaged_in([piece]):
            broken.append(piece)
        else:
            pieces.append(piece)
    for part in parts:
        pieces += pieces_in(part, all_bytes=True)

    # A damaged tap goes once all of its images have new rows.
    computed_again = by_tap(pieces)
    kept: list[Piece] = []
    for piece in broken:
        rows = computed_again.get(piece.tap.fingerprint)
        if rows is None or not rows.at.keys() >= set(piece.digests):
            kept.append(piece)

    # New rows cannot stand beside the damaged rows of the same tap, so they stay in their parts.
    waiting = _fingerprints(kept)
    ready = [piece for piece in pieces if piece.tap.fingerprint not in waiting]
    names_of_kept = [piece.tap.name for piece in kept]
    return by_tap(ready, names_of_kept), kept


def _without_taps(parts: Sequence[Path], kept: Sequence[Piece]) -> list[Path]:
    """Return the parts that hold no rows of the kept taps."""
    waiting = _fingerprints(kept)
    if not waiting:
        return list(parts)
    return [part for part in parts if waiting.isdisjoint(_fingerprints(pieces_in(part)))]


def _remove_merged(parts: Sequence[Path], table: Path, written: str) -> None:
    """Remove parts whose rows are in the table, unless another merge may still replace the table with older rows.

    Right before another merge replaces the table, it compares the table's state with the state that it read. It may
    have compared before our table took its name and rename its own file after. Its temporary file then exists during
    all of that time. So if there is no temporary file now, the other merge has either replaced the table already,
    which the state shows, or it will compare later and see our table.
    """
    remove_litter(table.parent)
    if being_written(table):
        return
    if layout.state(table) != written:
        raise Overtaken(table)
    for part in parts:
        files.remove(part)


def write_cache(
    table: Path,
    before: str | None,
    rows: Iterable[TapRows],
    images: Sequence[ImageRow],
    failures: Mapping[str, Failure],
    facts: Mapping[str, str | bytes],
    counts: Mapping[str, int] | None = None,
    changes: Changes = UNCHANGED,
    kept: Sequence[Piece] = (),
    with_unused: bool = True,
) -> str:
    """Write a cache with these images and all rows of these taps, and return its state. before: see `write_table`.

    counts: only for a folder of parts, {fingerprint: images with a row} in its parts. kept: damaged taps to copy as
    they are. with_unused: also write the rows of images that are gone. Raises NotACache if rows do not match their
    digest.
    """

    def fill(file: Any, check: Callable[[], None]) -> None:
        _fill_images(file, images, failures, facts, counts, changes)
        # By name, so that the bytes of the file do not depend on the order in which taps were computed.
        for tap_rows in sorted(rows, key=lambda tap_rows: tap_rows.tap.name):
            write_rows(file, tap_rows, in_order(tap_rows, images, with_unused), check)
        for piece in kept:
            copy_tap(file, piece, check)

    return layout.write_table(table, before, fill)


def write_rows(file: Any, rows: TapRows, digests: Sequence[str], check: Callable[[], None] = lambda: None) -> None:
    """Write the rows of a tap for these images, block by block."""
    makers, made_by = rows.made_by(digests)
    write_tap(file, rows.tap, digests, rows.shape, makers, made_by, rows.blocks(digests), check)


def in_order(rows: TapRows, images: Sequence[ImageRow], with_unused: bool = True) -> list[str]:
    """Return the digests of a tap's rows in the order of the images, then the digests of images that are gone."""
    present = dict.fromkeys(row.digest for row in images if row.digest in rows.at)
    if not with_unused:
        return list(present)
    return [*present, *sorted(rows.at.keys() - present.keys())]


def _fill_images(
    file: Any,
    images: Sequence[ImageRow],
    failures: Mapping[str, Failure],
    facts: Mapping[str, str | bytes],
    counts: Mapping[str, int] | None,
    changes: Changes,
) -> None:
    group = file.create_group("images")
    for key in layout.IMAGE_FACTS:
        layout.put_text(group, key, facts[key])
    if layout.LISTING in facts:
        layout.put_text(group, layout.LISTING, facts[layout.LISTING])
    if counts:
        layout.put_text(group, layout.ROWS_OF, canonical_json(counts))

    # Always in this order, which decides the bytes of the file: equal extractions must give equal files.
    for name in ImageRow._fields:
        _put_column(group, name, [getattr(row, name) for row in images])
    ok = Failure("", "", "ok", "")
    outcomes = [failures.get(row.path, ok) for row in images]
    _put_column(group, "status", [outcome.status for outcome in outcomes])
    _put_column(group, "reason", [outcome.reason for outcome in outcomes])

    for name, field_name in layout.COLUMNS_OF_CHANGES.items():
        value_before = getattr(changes, field_name)
        # The "=" tells an image that had nothing before (no group, no label) from an image that was not changed.
        texts = [f"={value_before[row.path]}" if row.path in value_before else "" for row in images]
        if any(texts):
            _put_column(group, name, texts)
    if changes.reviews:
        _put_column(group, layout.REVIEWS, [review.to_json() for review in changes.reviews])

    # Last: it covers all columns and facts above.
    layout.put_text(group, "content_digest", layout.images_digest(group))


def _put_column(group: Any, name: str, texts: Iterable[str]) -> None:
    """Write one text for each image. Undecodable bytes of file names come out as they went in."""
    group.create_dataset(name, data=layout.strings([os.fsencode(text) for text in texts]))


def _pieces_or_aside(part: Path, compare_bytes: bool) -> list[Piece]:
    """Return what a part holds; rename it and return nothing if it is proven damaged. Raises DiskFault."""
    with suppress(NotACache):
        return pieces_in(part, all_bytes=compare_bytes)
    # A failure proves damage only when all bytes were read and compared with the name.
    try:
        return pieces_in(part, all_bytes=True)
    except NotACache:
        with suppress(OSError):  # another process has renamed it already, or nobody may rename here
            os.replace(part, part.with_suffix(DAMAGED))
        return []


def set_aside(cache: Path) -> list[Path]:
    """Return the damaged parts that were renamed, so that their rows are computed again."""
    return files.matching(parts_folder(cache), f"part-*{DAMAGED}")


def _compacted(cache: Path, images: Sequence[ImageRow]) -> dict[str, int]:
    """Put the small parts of a folder together; return {fingerprint: images with a row} of all its parts.

    While a damaged part lies in the folder, no number falls below what it was before the damage.
    """
    small = [part for part in part_files(cache) if _size(part) < SMALL_BYTES]
    if len(small) > 1:
        compact(cache, small, images)

    pieces: list[Piece] = []
    for part in part_files(cache):
        pieces += pieces_in(part)
    counts = {fingerprint: len(rows.at) for fingerprint, rows in by_tap(pieces).items()}

    # Otherwise a merge after the damage would forget that rows are missing, and nobody would compute them again.
    if set_aside(cache):
        for fingerprint, number in layout.counted_rows(cache).items():
            counts[fingerprint] = max(number, counts.get(fingerprint, 0))
    return counts


def compact(cache: Path, small: Sequence[Path], images: Sequence[ImageRow], with_unused: bool = True) -> None:
    """Write the rows of small parts into parts of about PART_BYTES, then remove the small ones. Raises NotACache.

    with_unused: also the rows of images that are gone.
    """
    new_parts: set[Path] = set()
    pieces: list[Piece] = []
    for part in small:
        pieces += pieces_in(part, all_bytes=True)

    for rows in by_tap(pieces).values():
        digests = in_order(rows, images, with_unused)
        step = max(1, PART_BYTES // max(1, rows.row_bytes))
        for start in range(0, len(digests), step):
            fill = partial(write_rows, rows=rows, digests=digests[start : start + step])
            new_parts.add(layout.write_part(cache, fill))

    # Small parts go only when all rows stand in new ones: after a kill, rows stand twice, never nowhere.
    for part in small:
        if part not in new_parts:  # equal bytes have equal names
            files.remove(part)


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError as error:
        raise Overtaken(part) from error


def _tidy(cache: Path) -> None:
    """Remove temporary files of killed processes, and the folder of the parts once it is empty."""
    folder = parts_folder(cache)
    remove_litter(folder)
    remove_litter(cache.parent)
    if folder == cache:
        return
    with suppress(OSError):
        names = {path.name for path in folder.iterdir()}
        if names <= {LOCK_NAME}:
            (folder / LOCK_NAME).unlink(missing_ok=True)
            folder.rmdir()
