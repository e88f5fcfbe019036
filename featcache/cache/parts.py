"""Commit rows as they are computed, so that a kill costs at most the batches in flight.

A part is a small HDF5 file with the rows of one batch for every tap of one backbone. It is built in memory,
appears whole, under the hash of its bytes, and is never changed. When all rows are there, `merge` writes the one
CACHE.h5 and removes the parts; in a cache that is a folder of parts, `merge` writes its table of images only.

Any number of extractions may work on one cache, on machines that share a disk: parts never collide, and of a
merge that another one overtook the parts stay until a later merge has them. The lock only saves work.

What is copied is compared with its digest first, so that damage never gets a digest that vouches for it:

- A part that is proven damaged (the disk gave all of its bytes, and they are not those that its name tells) is set
  aside: it is renamed, and an extraction computes its rows again. In a folder of parts it stays there, and the folder
  remembers how many rows it had, until they are all back or somebody deletes the file.
- A tap of CACHE.h5 that is damaged stops a merge. An extraction leaves its rows out and computes them again; if it
  does not ask for that tap, it has `merge` copy the tap as it stands, under the digest that it does not match. So
  nobody can read the tap, `verify` reports it as before, and no other backbone has to wait until it is mended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from featcache import files
from featcache.arrays import Features
from featcache.cache import layout
from featcache.cache.check import lost_rows
from featcache.cache.layout import DAMAGED, LOCK_NAME, part_files, parts_folder, table_of
from featcache.cache.reader import Cache
from featcache.cache.rows import Piece, TapRows, by_tap, copy_tap, pieces_in, write_tap
from featcache.errors import NotACache
from featcache.files import Overtaken, again, being_written, remove_litter
from featcache.locks import locked
from featcache.spec import Failure, ImageRow, Tap, canonical_json

SMALL_BYTES = 16 * 2**20  # parts below this are put together when a folder of parts is finished
PART_BYTES = 64 * 2**20
ANY = ""  # no table has this state


class ImageTable(NamedTuple):
    """The images of a cache, as `merge` writes them."""

    rows: Sequence[ImageRow]
    failures: Mapping[str, Failure]  # {path: why that image has no row}
    facts: Mapping[str, str | bytes]  # of the images as a whole
    joined: Mapping[str, str]  # see `Cache`


def commit(
    cache: Path, taps: Sequence[Tap], digests: Sequence[str], features: Sequence[Features], provenance: str
) -> Path:
    """Write one part: for each tap its (M, D) features of the M images with these digests."""
    made_by = np.zeros(len(digests), np.uint8)

    def fill(file: Any) -> None:
        for tap, array in zip(taps, features, strict=True):
            write_tap(file, tap, digests, array.shape[1:], [provenance], made_by, [array])

    return layout.write_part(parts_folder(cache), fill)


def read_rows(cache: Path, *, whole: bool = False, checked: bool = False) -> dict[str, TapRows]:
    """Return {fingerprint: rows} of the cache and its parts together; parts that are damaged are set aside.

    whole: read large parts of a folder whole, too; the small ones always are. checked: leave the damaged taps of
    CACHE.h5 out, which takes reading it all. Raises DiskFault where the system does not let a file be read.
    """
    return again(lambda: _read_rows(cache, whole, checked))


def _read_rows(cache: Path, whole: bool, checked: bool) -> dict[str, TapRows]:
    listed = part_files(cache)  # before the table: what is merged meanwhile is in it
    pieces = _pieces_of_table(cache)
    if checked:
        damaged = {piece.tap.fingerprint for piece in _damaged_in(pieces)}
        pieces = [piece for piece in pieces if piece.tap.fingerprint not in damaged]
    for part in listed:
        pieces += _pieces_or_aside(part, whole or _is_read_whole(part, cache))
    return by_tap(pieces)


def damaged_taps(cache: Path) -> list[Piece]:
    """Return the taps of CACHE.h5 whose rows are not those that were written; reads all of them."""
    return again(lambda: _damaged_in(_pieces_of_table(cache)))


def _pieces_of_table(cache: Path) -> list[Piece]:
    table = table_of(cache)
    is_replaced = not cache.is_dir() and table.exists() and layout.is_foreign(table)
    return pieces_in(table) if table.exists() and not is_replaced else []


def _damaged_in(pieces: Sequence[Piece]) -> list[Piece]:
    damaged: list[Piece] = []
    for piece in pieces:
        try:
            TapRows([piece]).check()
        except NotACache:
            damaged.append(piece)
    return damaged


def make_folder(cache: Path) -> None:
    """Make the folder of a cache that stays in parts. Raises DiskFault."""
    files.make_folder(cache)


def state(cache: Path) -> tuple[str | None, tuple[Path, ...]]:
    """Return what every merge and every commit changes."""
    return layout.state(table_of(cache)), tuple(part_files(cache))


@contextmanager
def lock(cache: Path, wait: Callable[[], None]) -> Iterator[bool]:
    """Keep other extractions off this cache while the block runs; if one is at work, call `wait` first and give True.

    Only saves work: where the file system cannot lock, the block runs at once. What was read before may have changed.
    """
    make_folder(parts_folder(cache))
    try:
        with locked(parts_folder(cache) / LOCK_NAME, busy=wait) as waited:
            yield waited
    finally:
        _tidy(cache)


def tidy(cache: Path) -> None:
    """Remove what a killed extraction left of a cache that is whole; not while another one is at work on it."""

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
    joined: Mapping[str, str] | None = None,
    before: str | None = ANY,
    damaged: Collection[str] = (),
) -> Cache:
    """Write the images, and the rows of the parts, into the cache's one file; return the cache.

    Rows stand in the order of the images, then by digest, so that the bytes of the file do not depend on
    how often the extraction was interrupted. failures: {path: why that image has no row}. joined: see `Cache`.
    damaged: fingerprints of taps that may be damaged; see above for what becomes of them.
    before: `layout.state` of the table that the images were decided on; if it is another one by now, Overtaken is
    raised. With ANY the images replace whatever table is there.
    Raises NotACache, and changes nothing, if rows of another tap are not those that were written.
    """
    table = ImageTable(images, failures, facts, joined or {})
    if before == ANY:
        merged = again(lambda: _merged(cache, table, layout.state(table_of(cache)), damaged))
    else:
        merged = _merged(cache, table, before, damaged)
    if not (cache.is_dir() and lost_rows(cache)):
        for part in set_aside(cache):
            files.remove(part)
    _tidy(cache)
    return merged


def merge_decided(cache: Path, decide: Callable[[], ImageTable], damaged: Collection[str] = ()) -> Cache:
    """Merge the images that `decide` returns, which reads the table as it is.

    If another process replaces that table before the new one is there, nothing is written and `decide` is asked again:
    what others have put into the table is never lost unseen. damaged: as for `merge`.
    """

    def merged() -> Cache:
        before = layout.state(table_of(cache))  # before `decide` reads it, so that every change is noticed
        return merge(cache, *decide(), before, damaged)

    return again(merged)


def _merged(cache: Path, images: ImageTable, before: str | None, damaged: Collection[str]) -> Cache:
    table, folder = table_of(cache), cache.is_dir()
    counts = _compacted(cache, images.rows) if folder else {}
    parts = [] if folder else part_files(cache)  # others may commit more meanwhile; those stay for their merge
    try:
        rows, kept = ({}, []) if folder else _rows_to_merge(cache, parts, damaged)
        written = write_cache(
            table, before, rows.values(), images.rows, images.failures, images.facts, counts, images.joined, kept
        )
    except NotACache as error:
        if layout.state(table) != before:
            raise Overtaken(table) from error
        raise
    del rows  # of many images they take some memory
    opened = Cache.open(cache)
    _remove_merged(_without_taps(parts, kept), table, written)
    return opened


def _rows_to_merge(
    cache: Path, parts: Sequence[Path], damaged: Collection[str]
) -> tuple[dict[str, TapRows], list[Piece]]:
    """Return {fingerprint: rows} that are whole, and the damaged taps that stay as they are. Raises NotACache."""
    pieces: list[Piece] = []
    broken: list[Piece] = []
    for piece in _pieces_of_table(cache):
        if piece.tap.fingerprint in damaged and _damaged_in([piece]):
            broken.append(piece)
        else:
            pieces.append(piece)
    for part in parts:
        pieces += pieces_in(part, whole=True)

    computed_again = by_tap(pieces)
    kept: list[Piece] = []
    for piece in broken:
        rows = computed_again.get(piece.tap.fingerprint)
        if rows is None or not rows.at.keys() >= set(piece.digests):
            kept.append(piece)

    # What parts have of a tap that stays as it is waits in them: its rows cannot stand beside damaged ones.
    waiting = {piece.tap.fingerprint for piece in kept}
    whole = [piece for piece in pieces if piece.tap.fingerprint not in waiting]
    return by_tap(whole, [piece.tap.name for piece in kept]), kept


def _without_taps(parts: Sequence[Path], kept: Sequence[Piece]) -> list[Path]:
    """Return the parts that have no rows of these taps."""
    waiting = {piece.tap.fingerprint for piece in kept}
    if not waiting:
        return list(parts)
    return [part for part in parts if waiting.isdisjoint(piece.tap.fingerprint for piece in pieces_in(part))]


def _remove_merged(parts: Sequence[Path], table: Path, written: str) -> None:
    """Remove parts whose rows are in the table, unless another merge may replace the table by one without them.

    Another merge asks whether the table is still what it read right before it replaces it. Where it asked before our
    table took its name, and replaces it after, its temporary file was there all the time from before to after. So
    if there is none now, it has either replaced the table already, which shows, or it will ask later.
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
    joined: Mapping[str, str] | None = None,
    kept: Sequence[Piece] = (),
) -> str:
    """Write a whole cache: its images, and every row of these taps; return its state. before: see `write_table`.

    counts: of a folder of parts, {fingerprint: images with a row} of what lies in them. kept: damaged taps that stay.
    Raises NotACache if rows are not those that were written.
    """

    def fill(file: Any, check: Callable[[], None]) -> None:
        _fill_images(file, images, failures, facts, counts, joined or {})
        for tap_rows in sorted(rows, key=lambda one: one.tap.name):
            write_rows(file, tap_rows, in_order(tap_rows, images), check)
        for piece in kept:
            copy_tap(file, piece, check)

    return layout.write_table(table, before, fill)


def write_rows(file: Any, rows: TapRows, digests: Sequence[str], check: Callable[[], None] = lambda: None) -> None:
    """Write these rows of a tap, read block by block."""
    makers, made_by = rows.made_by(digests)
    write_tap(file, rows.tap, digests, rows.shape, makers, made_by, rows.blocks(digests), check)


def in_order(rows: TapRows, images: Sequence[ImageRow]) -> list[str]:
    """Return the digests of a tap's rows: in the order of the images, then those of images that are gone."""
    present = dict.fromkeys(row.digest for row in images if row.digest in rows.at)
    return [*present, *sorted(rows.at.keys() - present.keys())]


def _fill_images(
    file: Any,
    images: Sequence[ImageRow],
    failures: Mapping[str, Failure],
    facts: Mapping[str, str | bytes],
    counts: Mapping[str, int] | None,
    joined: Mapping[str, str],
) -> None:
    group = file.create_group("images")
    for key in layout.IMAGE_FACTS:
        layout.put_text(group, key, facts[key])
    if layout.LISTING in facts:
        layout.put_text(group, layout.LISTING, facts[layout.LISTING])
    if counts:
        layout.put_text(group, layout.ROWS_OF, canonical_json(counts))
    ok = Failure("", "", "ok", "")
    columns: dict[str, Callable[[ImageRow], str]] = {
        "path": lambda row: row.path,
        "label": lambda row: row.label,
        "group": lambda row: row.group,
        "split": lambda row: row.split,
        "digest": lambda row: row.digest,
        "status": lambda row: failures.get(row.path, ok).status,
        "reason": lambda row: failures.get(row.path, ok).reason,
    }
    for name in layout.IMAGE_COLUMNS:
        group.create_dataset(name, data=layout.strings([os.fsencode(columns[name](row)) for row in images]))
    if joined:
        given = [f"={joined[row.path]}" if row.path in joined else "" for row in images]
        group.create_dataset(layout.GIVEN_GROUP, data=layout.strings([os.fsencode(text) for text in given]))
    layout.put_text(group, "content_digest", layout.images_digest(group))


def _is_read_whole(part: Path, cache: Path) -> bool:
    """Tell whether a part is always read whole: all that are to be merged, and the small ones of a folder."""
    return part.parent != cache or _size(part) < SMALL_BYTES


def _pieces_or_aside(part: Path, whole: bool) -> list[Piece]:
    """Return what a part has; nothing, and rename it, if it is proven damaged. Raises DiskFault."""
    with suppress(NotACache):
        return pieces_in(part, whole=whole)
    try:
        return pieces_in(part, whole=True)  # all of its bytes are the proof
    except NotACache:
        with suppress(OSError):  # another has done it, or nobody can
            os.replace(part, part.with_suffix(DAMAGED))
        return []


def set_aside(cache: Path) -> list[Path]:
    """Return the parts that were found damaged and renamed, so that their rows are computed anew."""
    return files.matching(parts_folder(cache), f"part-*{DAMAGED}")


def _compacted(cache: Path, images: Sequence[ImageRow]) -> dict[str, int]:
    """Put the small parts of a folder together; return {fingerprint: images with a row} of all its parts.

    While a damaged part lies there whose rows are not back, the numbers are those that they were with it.
    """
    small = [part for part in part_files(cache) if _size(part) < SMALL_BYTES]
    if len(small) > 1:
        _compact(cache, small, images)
    pieces: list[Piece] = []
    for part in part_files(cache):
        pieces += pieces_in(part)
    counts = {rows.tap.fingerprint: len(rows.at) for rows in by_tap(pieces).values()}
    if set_aside(cache):
        for fingerprint, number in layout.counted_rows(cache).items():
            counts[fingerprint] = max(number, counts.get(fingerprint, 0))
    return counts


def _compact(cache: Path, small: Sequence[Path], images: Sequence[ImageRow]) -> None:
    """Write parts of about PART_BYTES with all rows of these small ones, then remove them. Raises NotACache."""
    kept: set[Path] = set()
    pieces: list[Piece] = []
    for part in small:
        pieces += pieces_in(part, whole=True)
    for rows in by_tap(pieces).values():
        digests = in_order(rows, images)
        step = max(1, PART_BYTES // max(1, rows.row_bytes))
        for start in range(0, len(digests), step):
            fill = partial(write_rows, rows=rows, digests=digests[start : start + step])
            kept.add(layout.write_part(cache, fill))
    for part in small:
        if part not in kept:
            files.remove(part)


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError as error:
        raise Overtaken(part) from error


def _tidy(cache: Path) -> None:
    """Remove what killed processes left, and the folder of the parts once nothing is in it."""
    folder = parts_folder(cache)
    for place in (folder, cache.parent):
        remove_litter(place)
    with suppress(OSError):
        if folder != cache and all(one.name == LOCK_NAME for one in folder.iterdir()):
            (folder / LOCK_NAME).unlink(missing_ok=True)
            folder.rmdir()
