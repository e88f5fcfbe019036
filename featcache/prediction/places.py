"""What a user points at -> images in order: folders, files, patterns, archives, tables, arrays, lists of files.

One folder, archive, table or array gives the paths inside it. With several places, each path begins with its place, as
in a shell. A place that does not exist is a row with a reason if there are several, and an error if it is the only one.
"""

from __future__ import annotations

import codecs
import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from featcache.errors import DataError, FeatcacheError, NoImages
from featcache.images.decode import Undecodable
from featcache.images.folder import FolderSource, Stamp
from featcache.images.manifest import Images
from featcache.images.memory import IN_MEMORY, InMemory, MemorySource
from featcache.images.sources import Source, holds_images, list_source, open_source
from featcache.spec import ImageRow

Place = str | Path | Iterator[str]  # an iterator: a list of files, which may be longer than memory
ToPredict = Images | Place | Sequence[Place] | InMemory | Sequence[InMemory]
PATTERN = frozenset("*?[")
CHUNK = 65_536
LONGEST_PATH = 4096  # bytes, on Linux; elsewhere it is less


@dataclass(frozen=True)
class ImageList:
    """Images in order, and where their bytes come from."""

    source: Source
    rows: Iterable[ImageRow]
    total: int | None  # None: only the end tells
    others: Mapping[str, int] = field(default_factory=dict)  # {suffix: files that are not images}


def gather(images: ToPredict) -> ImageList:
    """Return the images at a place, or at several. Raises NoImages, DataError."""
    if isinstance(images, Images):
        # A scan leaves these out of its rows; here every file gets a row, if only with the reason why it has no class.
        unread = [failure.path for failure in images.unreadable if not failure.digest]
        others = map(_unlabelled, [*images.stray, *unread])
        rows = sorted([*images.rows, *others])
        return ImageList(images.source, rows, len(rows), images.others)
    if isinstance(images, IN_MEMORY):
        is_stack = isinstance(images, np.ndarray) and images.ndim > 3
        return _in_memory(images if is_stack else [images])
    if isinstance(images, Sequence) and images and isinstance(images[0], IN_MEMORY):
        return _in_memory(images)
    places: list[Any] = [images]
    if isinstance(images, Sequence) and not isinstance(images, str):
        places = list(images)
    if len(places) == 1 and isinstance(places[0], (str, Path)) and not _is_pattern(str(places[0])):
        return _inside(Path(places[0]))
    return _several(places)


def _in_memory(images: Any) -> ImageList:
    source = MemorySource(images)
    rows = list(map(_unlabelled, source.paths))
    return ImageList(source, rows, len(rows))


def paths_in(stream: IO[bytes]) -> Iterator[str]:
    """Yield the paths of a list: separated by NUL bytes if there are any, else by newlines. Empty ones are left out.

    Bytes that are not UTF-8 survive. A list from Windows may begin with a byte order mark, end its lines with CR LF, or
    be UTF-16. Memory does not depend on the length of the list.
    """
    # The first path decides on the separator, so enough is read to hold it whole.
    rest = b""
    while len(rest) <= LONGEST_PATH and (chunk := stream.read(CHUNK)):
        rest += chunk
    decoder: codecs.IncrementalDecoder | None = None
    if rest.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # UTF-8 cannot begin like this
        decoder = codecs.getincrementaldecoder("utf-16")("replace")
        rest = decoder.decode(rest).encode()
    rest = rest.removeprefix(codecs.BOM_UTF8)
    separator = b"\0" if b"\0" in rest else b"\n"
    path_of = _without_cr if separator == b"\n" else os.fsdecode
    while True:
        *lines, rest = rest.split(separator)
        yield from filter(None, map(path_of, lines))
        if not (chunk := stream.read(CHUNK)):
            break
        rest += chunk if decoder is None else decoder.decode(chunk).encode()
    if path := path_of(rest):
        yield path


def _without_cr(line: bytes) -> str:
    """Return the path on a line, without the CR of Windows unless a file has it in its name."""
    path = os.fsdecode(line)
    if path.endswith("\r") and not os.path.lexists(path):
        return path.removesuffix("\r")
    return path


class _Places:
    """A source of files by their paths, and of files in archives by the archive's path and theirs."""

    location = None

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.inside: dict[str, Source] = {}  # by the path before the slash
        self._files = FolderSource(Path())

    def read(self, path: str) -> bytes:
        """Return the bytes of one image. Raises Undecodable."""
        if path in self.refused:
            raise Undecodable("unreadable", self.refused[path])
        source, name = self._home(path)
        return source.read(name)

    def stamp(self, path: str) -> Stamp:
        """Return the stamp of one image. Raises Undecodable."""
        source, name = self._home(path)
        return source.stamp(name)

    def _home(self, path: str) -> tuple[Source, str]:
        for place, source in self.inside.items():
            if path.startswith(f"{place}/"):
                return source, path[len(place) + 1 :]
        return self._files, path


def _inside(path: Path) -> ImageList:
    if path.is_file() and not holds_images(path):
        source = open_source(path.parent)
        return ImageList(source, [_unlabelled(path.name)], 1)
    source, listing = list_source(path)
    rows = [ImageRow(file.path, file.label, "", "", "") for file in listing.files]
    rows += map(_unlabelled, listing.stray)
    rows.sort()
    return ImageList(source, rows, len(rows), listing.others)


def _several(places: Sequence[Place]) -> ImageList:
    source = _Places()
    others: Counter[str] = Counter()
    parts: list[Iterable[ImageRow]] = []
    total: int | None = 0
    for place in places:
        if isinstance(place, (str, Path)):
            rows: list[ImageRow] = []
            for path in _expanded(str(place)):
                rows += _rows_at(path, source, others)
            parts.append(rows)
            if total is not None:
                total += len(rows)
        else:
            parts.append(map(_unlabelled, place))
            total = None  # nobody knows how long a list on standard input is
    # Only the first image is taken now: a list may be longer than memory.
    rows_of_all = chain.from_iterable(parts)
    first = next(rows_of_all, None)
    if first is None:
        raise NoImages("The list names no files. Give one path on each line")
    if total == 1 and first.path in source.refused:
        raise NoImages(source.refused[first.path])
    return ImageList(source, chain([first], rows_of_all), total, dict(sorted(others.items())))


def _rows_at(place: str, source: _Places, others: Counter[str]) -> list[ImageRow]:
    path = Path(place)
    if not path.is_dir() and not (path.is_file() and holds_images(path)):
        if _is_pattern(place):
            source.refused[place] = f"No file matches {place}"
        return [_unlabelled(place)]
    try:
        images = _inside(path)
    except DataError as error:
        source.refused[place] = str(error).replace("`", "")  # it becomes a cell, which nobody translates
        return [_unlabelled(place)]
    except FeatcacheError as error:  # such as Parquet, which cannot be read here
        raise type(error)(f"{place}: {error}") from error
    others.update(images.others)
    if isinstance(images.source, FolderSource):
        prefix = str(images.source.location)
    else:
        prefix = place.rstrip("/")
        source.inside[prefix] = images.source
    return [row._replace(path=os.path.join(prefix, row.path)) for row in images.rows]


def _expanded(place: str) -> list[str]:
    """Return the matches of a pattern, sorted by bytes; the place itself if it is no pattern or matches nothing."""
    if not _is_pattern(place):
        return [place]
    matches = glob.glob(place, recursive=True)
    return sorted(matches, key=os.fsencode) or [place]


def _is_pattern(place: str) -> bool:
    return bool(PATTERN & {*place}) and not os.path.lexists(place)


def _unlabelled(path: str) -> ImageRow:
    return ImageRow(path, "", "", "", "")
