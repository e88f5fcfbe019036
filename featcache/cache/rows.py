"""The rows of one tap, wherever they are stored: in the one file of a cache, in its parts, or in both.

Planning needs to know only which images have rows. Features therefore stay on the disk until somebody reads them, and
then pass through memory in blocks.

No feature leaves this module unchecked. The digest of a tap covers all of its rows in a file, so the first read of any
row compares all rows with that digest. A process does this once for a file that does not change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import numpy.typing as npt

from featcache.arrays import Features
from featcache.cache import layout
from featcache.errors import DataError, NotACache, UsageError
from featcache.files import Overtaken
from featcache.spec import Dtype, Tap, canonical_json
from featcache.text import Table

BLOCK_BYTES = 4 * 2**20
FEATURE_RANKS = (2, 3, 4)  # vectors (M, D), tokens (M, T, C), spatial maps (M, h, w, C)
Digests = Sequence[str] | npt.NDArray[np.bytes_]  # of images, as texts or as a column of a file
MAX_MAKERS = 100  # HDF5 takes attributes of up to 64 KiB
checked_taps: set[tuple[Any, ...]] = set()  # taps that this process has compared with their digests: see `check_tap`


@dataclass(frozen=True)
class Piece:
    """The rows of one tap in one file: row i was computed from the image with column[i]."""

    source: Path
    group: str  # "taps/mobilenet_v2/top"
    tap: Tap
    column: Any  # (M,) bytes, ASCII: the digests
    shape: tuple[int, ...]  # of one row
    makers: tuple[str, ...]  # JSON: engine, versions, source of the weights
    made_by: Any  # (M,) uint8: which maker
    state: str  # of the file when this was read

    @classmethod
    def read(cls, group: Any, source: Path) -> Piece:
        """Read everything of a tap but its features. Raises NotACache if it does not follow the format."""
        features = layout.plain(group, "features", "f", FEATURE_RANKS, source)
        digests = layout.plain(group, "digest", "S", (1,), source)
        made_by = layout.plain(group, "made_by", "u", (1,), source)[()]
        tap = described(group, source)
        makers = _makers(layout.text_of(group, "provenance"))
        lengths_agree = len(features) == len(digests) == len(made_by)
        makers_are_listed = made_by.max(initial=0) < len(makers)
        fingerprint = layout.text_of(group, "fingerprint")
        is_described = tap.fingerprint == fingerprint and tap.dtype == features.dtype
        if not (lengths_agree and makers_are_listed and is_described):
            raise NotACache(f"{source}: tap '{group.name}' does not match its own description")
        # `digests` below decodes the column as one text, where each byte must be one character.
        column = digests[()]
        if column.view(np.int8).min(initial=0) < 0:
            raise NotACache(f"{source}: tap '{group.name}' has digests of images that are not ASCII")
        row_shape = features.shape[1:]
        state = layout.state_in(group.file)
        return cls(source, group.name, tap, column, row_shape, makers, made_by, state)

    def __len__(self) -> int:
        return len(self.made_by)

    @cached_property
    def digests(self) -> list[str]:
        """The digest of the image of each row."""
        text = self.column.tobytes().decode("ascii")
        width = self.column.dtype.itemsize
        return [text[start : start + width].rstrip("\0") for start in range(0, len(text), width)]

    def is_of(self, digests: Digests) -> bool:
        """Return whether the rows belong to exactly these images in this order. Quick; a False may be wrong."""
        if isinstance(digests, np.ndarray):
            return bool(digests.dtype == self.column.dtype and digests.tobytes() == self.column.tobytes())
        width = self.column.dtype.itemsize
        if len(digests) != len(self) or set(map(len, digests)) != {width}:
            return False
        # All texts are as wide as the column, so joined they must be its bytes. Small blocks stay in the processor's
        # cache.
        for start in range(0, len(self), 1000):
            rows = slice(start, start + 1000)
            block = "".join(digests[rows]).encode("utf-8", "surrogateescape")
            if block != self.column[rows].tobytes():
                return False
        return True


class TapRows:
    """All rows of one tap. If an image was computed twice, its first row counts."""

    def __init__(self, pieces: Sequence[Piece], name: str | None = None) -> None:
        first = pieces[0]
        self.pieces = tuple(pieces)
        self.tap = first.tap if name is None else replace(first.tap, name=name)
        self.shape = first.shape
        self._starts = [0, *accumulate(map(len, pieces))]  # number of the first row of each piece
        if any(piece.shape != self.shape for piece in pieces):
            raise NotACache(f"{first.source}: tap '{self.tap.name}' has rows of different widths. Extract it again")

    @cached_property
    def at(self) -> Mapping[str, int]:
        """{digest: number of its row}, counted through all pieces."""
        numbers: dict[str, int] = {}
        for start, piece in zip(self._starts, self.pieces, strict=False):
            for number, digest in enumerate(piece.digests, start):
                numbers.setdefault(digest, number)
        return numbers

    @property
    def digests(self) -> Iterable[str]:
        """The digests of the images that have a row."""
        return self.at.keys()

    def lack(self, digests: Sequence[str]) -> int:
        """Return how many of these images have no row."""
        if len(self.pieces) == 1 and self.pieces[0].is_of(digests):
            return 0
        return sum(digest not in self.at for digest in digests)

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.tap.dtype).itemsize

    @property
    def makers(self) -> tuple[str, ...]:
        """What computed these rows: each maker once, sorted."""
        return tuple(sorted(set().union(*(piece.makers for piece in self.pieces))))

    def made_by(self, digests: Sequence[str]) -> tuple[tuple[str, ...], Any]:
        """Return the makers of the rows of these images, sorted, and for each row its index in them, (N,) uint8."""
        makers = self.makers
        index = {maker: number for number, maker in enumerate(makers)}
        by_piece = []
        for piece in self.pieces:
            # Each piece numbers its own makers; `indices` leads from those numbers to ours.
            indices = np.array([index[maker] for maker in piece.makers], np.int64)
            by_piece.append(indices[piece.made_by])
        of_all_rows = np.concatenate(by_piece)

        # Makers without a row among these are left out, so the numbers close up again.
        used, made_by = np.unique(of_all_rows[self._numbers(digests)], return_inverse=True)
        if len(used) > MAX_MAKERS:
            raise NotACache(f"Tap '{self.tap.name}' was computed by {len(used)} kinds of software. Extract it again")
        return tuple(makers[number] for number in used), made_by.astype(np.uint8)

    def features(self, digests: Digests) -> Features:
        """Return the rows of these images in their order, (N, D) or (N, h, w, C) float32.

        Raises KeyError if an image has no row, NotACache if the rows do not match their digest.
        """
        out = np.empty((len(digests), *self.shape), np.float32)
        self._read(self._numbers(digests), out)
        return out

    def blocks(self, digests: Sequence[str]) -> Iterator[Features]:
        """Yield the same rows in the stored dtype, a few megabytes at a time. Raises NotACache as `features` does."""
        step = _rows_in_block(self.row_bytes)
        numbers = self._numbers(digests)
        for start in range(0, len(numbers), step):
            block_numbers = numbers[start : start + step]
            out = np.empty((len(block_numbers), *self.shape), self.tap.dtype)
            self._read(block_numbers, out)
            yield out

    def _numbers(self, digests: Digests) -> Any:
        """Return the number of the row of each image, (N,) int64. Raises KeyError."""
        # The usual case, all images in the stored order, does without a dictionary of all digests.
        if len(self.pieces) == 1 and self.pieces[0].is_of(digests):
            return np.arange(len(digests))
        if isinstance(digests, np.ndarray):
            digests = digests.astype(str).tolist()
        numbers = self.at
        return np.array([numbers[digest] for digest in digests], np.int64)

    def _read(self, numbers: Any, out: Features) -> None:
        """Fill `out` with the rows of these numbers."""
        for start, piece in zip(self._starts, self.pieces, strict=False):
            is_here = (numbers >= start) & (numbers < start + len(piece))
            places = np.flatnonzero(is_here)
            if not len(places):
                continue
            # Check and read through one open file: another process may replace the file in between.
            with opened(piece.source, piece.state) as file:
                group = file[piece.group]
                check_tap(group, piece.source)
                _take(group["features"], numbers[places] - start, out, places)

    def check(self) -> None:
        """Raise NotACache if the rows do not match their digest."""
        for piece in self.pieces:
            with opened(piece.source, piece.state) as file:
                check_tap(file[piece.group], piece.source)


def is_part(path: Path) -> bool:
    """Return whether a file is a part, and not the file with the images."""
    return path.name.startswith("part-")


def opened(source: Path, state: str | None = None) -> AbstractContextManager[h5py.File]:
    """Open a part or the file with the images. Raises NotACache, or Overtaken if its state has changed."""
    return layout.reading_part(source) if is_part(source) else layout.reading(source, state)


def pieces_in(source: Path, fingerprint: str | None = None, *, all_bytes: bool = False) -> list[Piece]:
    """Return what one file holds of each tap, or only of one tap. Raises NotACache, or Overtaken if a part is gone.

    all_bytes: `source` is a part; read all of it first, and refuse it if its bytes do not match its name.
    """
    with layout.reading_all_of_part(source) if all_bytes else opened(source) as file:
        groups = layout.tap_groups(file, source)
        if fingerprint is not None:
            groups = [group for group in groups if described(group, source).fingerprint == fingerprint]
        return [Piece.read(group, source) for group in groups]


def by_tap(pieces: Iterable[Piece], names: Iterable[str] = ()) -> dict[str, TapRows]:
    """Return {fingerprint: rows}. If two taps have the same name, the second gets its fingerprint as a suffix.

    names: names that other taps use already.
    """
    pieces_of_tap: dict[str, list[Piece]] = {}
    for piece in pieces:
        pieces_of_tap.setdefault(piece.tap.fingerprint, []).append(piece)

    used_names = set(names)
    rows: dict[str, TapRows] = {}
    for fingerprint, tap_pieces in pieces_of_tap.items():
        name = tap_pieces[0].tap.name
        if name in used_names:
            name = f"{name.split('#')[0]}#{fingerprint[:6]}"
        used_names.add(name)
        rows[fingerprint] = TapRows(tap_pieces, name)
    return rows


def tap_table(taps: Iterable[TapRows]) -> Table:
    """Return what is shown of taps: how many rows of what shape each has, and what they take on the disk."""
    rows: list[list[object]] = []
    for stored in taps:
        tap, num_rows = stored.tap, len(stored.at)
        shape = "x".join(map(str, stored.shape))
        megabytes = f"{stored.row_bytes * num_rows / 1e6:.1f}"
        rows.append([tap.name, num_rows, shape, megabytes, tap.precision, tap.fingerprint[:12]])
    return Table(["tap", "rows", "features", "MB", "precision", "fingerprint"], rows)


def described(group: Any, source: Path) -> Tap:
    """Return the tap that a group describes. Raises NotACache."""
    try:
        tap = Tap.from_json(layout.text_of(group, "tap"))
        tap.to_json()  # raises for values that cannot have a fingerprint
    except (DataError, UsageError) as error:
        raise NotACache(f"{source}: '{group.name}' is damaged. {error}") from error
    if group.name != f"/taps/{tap.name}" or tap.dtype not in get_args(Dtype):
        raise NotACache(f"{source}: tap '{group.name}' does not match its own description")
    return tap


def _makers(text: str) -> tuple[str, ...]:
    """Return each entry of a JSON list of objects as JSON. Raises ValueError."""
    entries = json.loads(text)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("the provenance of the rows is not a list of objects")
    try:
        return tuple(canonical_json(entry) for entry in entries)
    except UsageError as error:
        raise ValueError("the provenance of the rows is not JSON") from error


def write_tap(
    file: Any,
    tap: Tap,
    digests: Sequence[str],
    shape: tuple[int, ...],
    makers: Sequence[str],
    made_by: Any,
    blocks: Iterable[Features],
    check: Any = lambda: None,
) -> None:
    """Write one tap, its features block by block.

    shape: of one row. made_by: (M,) index in `makers` for each row. check: called after each block; see
    `layout.write_table`.
    """
    group = file.create_group(f"taps/{tap.name}")
    width = max(map(len, digests), default=1)
    column = np.array(digests, f"S{width}")
    provenance = f"[{','.join(makers)}]"
    group.create_dataset("digest", data=column)
    group.create_dataset("made_by", data=made_by)
    features = group.create_dataset("features", (len(digests), *shape), tap.dtype)
    hashed = _content(tap, provenance, column, made_by)
    start = 0
    # Hash the features on their way to the disk, so that no second pass must read them.
    for block in blocks:
        stored = np.ascontiguousarray(block, dtype=tap.dtype)
        features.write_direct(stored, dest_sel=np.s_[start : start + len(stored)])
        hashed.update(stored.data)
        start += len(stored)
        check()
    layout.put_text(group, "tap", tap.to_json())
    layout.put_text(group, "fingerprint", tap.fingerprint)
    layout.put_text(group, "provenance", provenance)
    layout.put_text(group, "content_digest", hashed.hexdigest())


def content_digest(group: Any, source: Path) -> str:
    """Return the SHA-256 of what a tap holds now; `write_tap` stored it as the attribute content_digest."""
    tap = described(group, source)
    provenance = layout.text_of(group, "provenance")
    digests = layout.plain(group, "digest", "S", (1,), source)[()]
    made_by = layout.plain(group, "made_by", "u", (1,), source)[()]
    hashed = _content(tap, provenance, digests, made_by)
    features = layout.plain(group, "features", "f", FEATURE_RANKS, source)
    step = _rows_in_block(_stored_row_bytes(features))
    for start in range(0, len(features), step):
        hashed.update(features[start : start + step].data)
    return str(hashed.hexdigest())


def check_tap(group: Any, source: Path) -> None:
    """Raise NotACache if the rows of a tap do not match their digest. Reads all rows, once in a process.

    It reads a file again that was changed or replaced since: its time or its state differs then. Raises Overtaken if
    another process has removed the file, which only happens after its rows were copied.
    """
    try:
        file = os.stat(source)
    except FileNotFoundError as error:
        raise Overtaken(source) from error
    key = (file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, layout.state_in(group.file), group.name)
    if key not in checked_taps:
        compare_tap(group, source)
        checked_taps.add(key)


def compare_tap(group: Any, source: Path) -> None:
    """Raise NotACache if the rows of a tap do not match their digest. Reads all rows."""
    if content_digest(group, source) != layout.text_of(group, "content_digest"):
        raise NotACache(
            f"{source} is damaged: the rows of tap '{group.name}' do not match their digest. "
            "Compute them again: repeat the featcache extract that made them, with `rehash=True`"
        )


def compared_rows(file: Any, source: Path) -> int:
    """Return how many rows an open file has in all taps. Raises NotACache if they do not match their digests."""
    rows = 0
    for group in layout.tap_groups(file, source):
        compare_tap(group, source)
        rows += len(Piece.read(group, source))
    return rows


def copy_tap(file: Any, piece: Piece, check: Any = lambda: None) -> None:
    """Copy a damaged tap as it is, with the digest that it does not match, so that readers still see the damage."""
    copy = file.create_group(piece.group)
    with opened(piece.source, piece.state) as source:
        group = source[piece.group]
        for name in ("digest", "made_by", "features"):
            stored = group[name]
            target = copy.create_dataset(name, stored.shape, stored.dtype)
            step = _rows_in_block(_stored_row_bytes(stored))
            for start in range(0, len(stored), step):
                rows = slice(start, start + step)
                target[rows] = stored[rows]
                check()
        for name in ("tap", "fingerprint", "provenance", "content_digest"):
            layout.put_text(copy, name, layout.text_of(group, name))


def _content(tap: Tap, provenance: str, digests: Any, made_by: Any) -> Any:
    """Return the hash of a tap so far: everything but its features, which the caller adds in their order."""
    parts = [tap.to_json().encode(), provenance.encode(), digests.tobytes(), np.uint8(made_by).tobytes()]
    return hashlib.sha256(b"\0".join(parts))


def _take(features: h5py.Dataset, rows: Any, out: Features, places: Any) -> None:
    """Copy features[rows] to out[places]: in one read if both are consecutive, else in blocks in the file's order."""
    if _are_consecutive(rows) and _are_consecutive(places) and features.dtype == out.dtype:
        stored_range = slice(rows[0], rows[-1] + 1)
        target_range = slice(places[0], places[-1] + 1)
        features.read_direct(out, stored_range, target_range)
        return

    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    places = places[order]
    step = _rows_in_block(out[:1].nbytes)
    for start in range(int(rows[0]), int(rows[-1]) + 1, step):
        # rows[low:high] lie in this block. Read the range that spans them, then pick them in memory: h5py reads a
        # range much faster than a list of rows.
        low, high = np.searchsorted(rows, [start, start + step])
        if low == high:
            continue
        rows_in_block = rows[low:high]
        first = int(rows_in_block[0])
        last = int(rows_in_block[-1])
        block = features[first : last + 1]
        out[places[low:high]] = block[rows_in_block - first]


def _are_consecutive(numbers: Any) -> bool:
    # The first comparison costs nothing and decides for most selections.
    return bool(numbers[-1] - numbers[0] == len(numbers) - 1 and (np.diff(numbers) == 1).all())


def _rows_in_block(row_bytes: int) -> int:
    """Return how many rows fill a block of BLOCK_BYTES, at least one."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def _stored_row_bytes(dataset: h5py.Dataset) -> int:
    return int(dataset.nbytes) // max(1, len(dataset))
