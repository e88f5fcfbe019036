"""A manifest file -> the images it names, with labels, splits and groups: CSV, TSV or Parquet.

Columns: path (or file, filename, image), label (or class, target), split, group. Paths are relative to the
manifest's folder; what leads out of it is refused unless it is allowed.
"""

from __future__ import annotations

import csv
import os
import posixpath
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from featcache.errors import DataError, EnvironmentFault, NoImages
from featcache.files import raise_if_of_the_system
from featcache.images.listing import SPLIT_NAMES, Listed, Listing

DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = (*DELIMITERS, ".parquet")
COLUMNS = {
    "path": ("path", "file", "filename", "image"),
    "label": ("label", "class", "target"),
    "split": ("split",),
    "group": ("group",),
}

Row = tuple[str, Sequence[str]]  # where it stands ("line 3"), and its cells


class _Table(NamedTuple):
    columns: list[str]
    rows: Iterator[Row]


def list_table(path: Path, *, allow_outside: bool = False, group_column: str | None = None) -> Listing:
    """Return the images that a manifest names, sorted by the bytes of their paths. They need not exist.

    group_column: the column with the groups, instead of "group". Raises DataError naming the row, NoImages,
    EnvironmentFault if Parquet cannot be read here.
    """
    table = _parquet(path) if path.suffix.lower() == ".parquet" else _text(path)
    at = _places(table.columns, path, group_column)
    door = _Door(path.parent, allow_outside)
    found: dict[str, Listed] = {}
    for where, cells in table.rows:
        values = {name: cells[place] if place < len(cells) else "" for name, place in at.items()}
        file = _listed(values, f"{path}, {where}", door)
        if file.path in found:
            raise DataError(f"{path}, {where}: {file.path!r} stands there twice. Keep one of the rows")
        found[file.path] = file
    if not found:
        raise NoImages(f"{path} names no images: it has no rows below its header")
    files = sorted(found.values(), key=lambda file: os.fsencode(file.path))
    if any(file.split for file in files):
        return Listing("splits", files, [])
    return Listing("classes" if any(file.label for file in files) else "flat", files, [])


class _Door:
    """Decides which paths a manifest may name."""

    def __init__(self, folder: Path, allow_outside: bool) -> None:
        self._root = os.path.realpath(folder)
        self._allow_outside = allow_outside
        self._inside = {"": True}  # {folder below the root: does it lead to where it says}

    def checked(self, path: str, where: str) -> str:
        """Return the path as a row has it. Raises DataError if it leads out."""
        if "\0" in path:
            raise DataError(f"{where}: a path with a NUL byte, which no file has")
        if self._allow_outside:
            return path
        plain = posixpath.normpath(path)
        if os.path.isabs(path) or ".." in path.split("/") or not self._stays(plain):
            raise DataError(
                f"{where}: {path!r} leads out of the manifest's folder. If that is meant, allow it: --allow-outside"
            )
        return plain

    def _stays(self, path: str) -> bool:
        """Tell whether a path stays inside; links that do are fine."""
        folder = posixpath.dirname(path)
        if folder not in self._inside:
            self._inside[folder] = self._reaches(folder)
        return self._inside[folder] and (not os.path.islink(f"{self._root}/{path}") or self._reaches(path))

    def _reaches(self, path: str) -> bool:
        real = os.path.realpath(os.path.join(self._root, path))
        return os.path.commonpath([self._root, real]) == self._root


def _listed(values: dict[str, str], where: str, door: _Door) -> Listed:
    if not values["path"]:
        raise DataError(f"{where}: no path")
    split = values.get("split", "")
    if split and split.lower() not in SPLIT_NAMES:
        raise DataError(f"{where}: split '{split}'. Splits are called train, val and test; empty, featcache decides")
    label, group = values.get("label", ""), values.get("group", "")
    if "\0" in label + group:
        raise DataError(f"{where}: a label or group with a NUL byte")
    return Listed(door.checked(values["path"], where), label, SPLIT_NAMES.get(split.lower(), ""), group)


def _places(columns: list[str], path: Path, group_column: str | None) -> dict[str, int]:
    names = [name.strip().lower() for name in columns]
    at = {
        what: next(names.index(name) for name in known if name in names)
        for what, known in COLUMNS.items()
        if {*known} & {*names}
    }
    if "path" not in at:
        raise DataError(
            f"{path} has the columns {', '.join(columns)}, none of them called {', '.join(COLUMNS['path'])}. "
            "Name the one with the paths so"
        )
    if group_column is not None:
        if group_column not in columns:
            raise DataError(f"{path} has no column '{group_column}' for --group-from; it has {', '.join(columns)}")
        at["group"] = columns.index(group_column)
    return at


def _text(path: Path) -> _Table:
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.reader(file, delimiter=DELIMITERS[path.suffix.lower()])
            rows = [(f"line {reader.line_num}", row) for row in reader if any(row)]
    except (OSError, csv.Error) as error:
        raise_if_of_the_system(path, error)
        raise DataError(f"Cannot read {path}: {error}") from error
    if not rows:
        raise NoImages(f"{path} is empty: it needs a header with a column 'path', and a row for each image")
    return _Table([*rows[0][1]], iter(rows[1:]))


def _parquet(path: Path) -> _Table:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise EnvironmentFault(f"Reading {path} takes pyarrow: pip install featcache[parquet]") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names]
            columns = [file.read(columns=[name]).column(0).to_pylist() for name in names]
    except Exception as error:  # pyarrow raises its own kinds
        raise_if_of_the_system(path, error)
        raise DataError(f"Cannot read {path}: {' '.join(str(error).split())}") from error
    cells = zip(*columns, strict=True)
    return _Table(names, ((f"row {number}", [*map(_cell, row)]) for number, row in enumerate(cells, 1)))


def _cell(value: object) -> str:
    return "" if value is None else str(value)
