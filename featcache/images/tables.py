"""A manifest file -> the images it names, with labels, splits and groups: CSV, TSV or Parquet.

Columns: path (or file, filename, image), label (or class, target), split, group. Paths are relative to the
manifest's folder; what leads out of it is refused unless it is allowed. Where no column has the labels, 0/1 columns
that add up to 1 in each row give them.

Spreadsheets write tables in many ways: with semicolons or tabs instead of commas, as UTF-16, with backslashes in paths
and blanks around values. What can have one meaning only is read: labels and groups that look the same are the same.
Bytes that are not UTF-8 are kept where a file of that name exists; elsewhere each code page would give another name, so
the table is refused.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from featcache.errors import DataError, EnvironmentFault, NoImages
from featcache.files import raise_if_of_the_system
from featcache.images.listing import SPLIT_NAMES, SUFFIXES, Listed, Listing, normalize_name, remarks_on_labels

DELIMITERS = {".csv": ",", ".tsv": "\t"}
OTHER_DELIMITERS = (",", ";", "\t")  # Excel takes the list separator of the country
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # how "Unicode text" of Excel begins
TABLES = (*DELIMITERS, ".parquet")
COLUMNS = {
    "path": ("path", "file", "filename", "image"),
    "label": ("label", "class", "target"),
    "split": ("split",),
    "group": ("group",),
}
OPTIONS = {"path": "`path_column`", "label": "`label_column`", "group": "`group_from`"}
# How columns of labels are called in data sets, the surest names first; compared without case, blanks, - and _
LABEL_LIKE = (
    *("labels", "labelname", "classname", "classes", "classid", "labelid", "targets", "groundtruth", "category"),
    *("categoryname", "categories", "categoryid", "species", "breed", "variety", "genus", "family", "diagnosis", "dx"),
    *("type", "kind", "tag", "tags", "y", "name", "id"),
)
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets would run such a cell
NUMBER = re.compile(r"[+-]\d+(\.\d+)?")
ONES = ("1", "1.0", "true")
ZEROS = ("0", "0.0", "false")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # two letters at least: C:/ is a drive

Row = tuple[str, Sequence[str]]  # where it stands ("line 3"), and its cells


class _Cells(NamedTuple):
    """The header of a table, and its rows below."""

    columns: list[str]
    rows: Iterator[Row]


def list_table(
    path: Path,
    *,
    allow_outside: bool = False,
    group_column: str | None = None,
    label_column: str | None = None,
    path_column: str | None = None,
) -> Listing:
    """Return the images that a manifest names, sorted by the bytes of their paths. They need not exist.

    group_column, label_column, path_column: the columns to read, instead of those with the usual names. Raises
    DataError naming the row, NoImages, EnvironmentFault if Parquet cannot be read here.
    """
    options = {"path": path_column, "label": label_column, "group": group_column}
    named = {name: column for name, column in options.items() if column is not None}
    is_parquet = path.suffix.lower() == ".parquet"
    table = _parquet(path) if is_parquet else _text(path, named.get("path"))
    at = _places(table.columns, path, named)
    rows = list(table.rows)
    hot = [] if "label" in at else _one_hot(table.columns, rows, at)

    door = _Door(path.parent, allow_outside)
    files: dict[str, Listed] = {}
    spellings: dict[str, set[str]] = {}  # {label: how the cells write it}
    for where, cells in rows:
        values: dict[str, str] = {}
        for name, place in at.items():
            values[name] = normalize_name(_cell_at(cells, place))
        if values.get("label"):
            spellings.setdefault(values["label"], set()).add(cells[at["label"]])
        # Blanks can belong to the name of a file, so the path is taken as the cell writes it.
        path_cell = cells[at["path"]] if at["path"] < len(cells) else ""
        values["path"] = _as_file(path_cell, path.parent)
        for place in hot:
            if _cell_at(cells, place).lower() in ONES:
                values["label"] = table.columns[place]
        file = _listed(values, f"{path}, {where}", door)
        _require_text(file, f"{path}, {where}", path.parent)
        if file.path in files:
            raise DataError(f"{path}, {where}: {file.path!r} stands there twice. Keep one of the rows")
        files[file.path] = file
    if not files:
        raise NoImages(f"{path} names no images: it has no rows below its header")

    listed = sorted(files.values(), key=lambda file: os.fsencode(file.path))
    labels = {file.label for file in listed}
    remarks = [
        *_remarks_on_columns(table.columns, rows, at, hot, path.name),
        *remarks_on_labels(spellings, path.name),
        *_remarks_on_rows(listed, path.name),
    ]
    if any(file.split for file in listed):
        return Listing("splits", listed, [], remarks=tuple(remarks))
    return Listing("flat" if labels == {""} else "classes", listed, [], remarks=tuple(remarks))


def require_files(table: Path, files: Sequence[Listed]) -> None:
    """Raise NoImages if none of the files exists that a table names, with the file that the first may mean."""
    folder = table.parent
    # One is enough: the scan reports each of the others by name.
    if any(os.path.lexists(folder / file.path) for file in files):
        return
    first = files[0].path
    if ADDRESS.match(first):
        raise NoImages(
            f"{table} names addresses, such as {first!r}, not files. Download the images, and write the paths of the "
            "files into it"
        )
    if near := _near_file(folder, first):
        hint = f"There is {near!r}: write the paths like that, relative to the table"
    else:
        hint = "Write the paths relative to the table, or move the table to the folder where they begin"
    raise NoImages(
        f"None of the {len(files)} files that {table} names exists; the first, {first!r}, would be "
        f"{str(Path(os.path.abspath(folder)) / first)!r}. {hint}"
    )


def _near_file(folder: Path, path: str) -> str:
    """Return a file that a path may mean, relative to the folder, or "".

    Its suffix may be missing, as in the tables of Kaggle, a folder before it too, or its first folders may be those of
    another computer.
    """
    parts = path.replace("\\", "/").split("/")
    with os.scandir(folder) as entries:
        inside = sorted(f"{entry.name}/" for entry in entries if entry.is_dir() and entry.name[:1] != ".")
    for start in range(len(parts)):
        tail = "/".join(parts[start:])
        for before in ("", *inside):
            for suffix in ("", *sorted(SUFFIXES)):
                if os.path.isfile(folder / f"{before}{tail}{suffix}"):
                    return f"{before}{tail}{suffix}"
    return ""


def read_text_table(path: Path) -> tuple[list[str], list[Row]]:
    """Return the columns and rows of a CSV or TSV file with paths, as any spreadsheet writes it.

    Raises DataError, NoImages if it is empty.
    """
    table = _text(path, None)
    return table.columns, list(table.rows)


def safe_cell(text: str) -> str:
    """Return a text as a cell that no spreadsheet runs as a formula. Numbers such as -1 are none.

    >>> safe_cell("=1+1"), safe_cell("-1"), safe_cell("rose")
    ("'=1+1", '-1', 'rose')
    """
    return f"'{text}" if text.startswith(FORMULA_STARTS) and not NUMBER.fullmatch(text) else text


def _as_file(cell: str, folder: Path) -> str:
    """Return a path as the file is called: without blanks around it, with slashes for the backslashes of Windows.

    A name can have blanks and backslashes here, so the files that exist decide.
    """
    stripped = cell.strip()
    is_plain = cell == stripped and "\\" not in cell
    if is_plain or "\0" in cell:
        return cell
    for name in (cell, stripped, stripped.replace("\\", "/")):
        if name and os.path.lexists(folder / name):
            return name
    return stripped


def _cell_at(cells: Sequence[str], place: int) -> str:
    """Return a cell without blanks around it; rows may be shorter than the header."""
    return cells[place].strip() if place < len(cells) else ""


def _one_hot(columns: Sequence[str], rows: Sequence[Row], used: Mapping[str, int]) -> list[int]:
    """Return the places of the 0/1 columns that say the label together, one of them 1 in each row; else none.

    Where another column is called like labels, they may be about something else.
    """
    places = _zero_one(columns, rows, used)
    if _label_like(columns, used) or any(_num_ones(cells, places) != 1 for _, cells in rows):
        return []
    # One column of ones would give all images the same label.
    num_classes = 0
    for place in places:
        num_classes += any(_cell_at(cells, place).lower() in ONES for _, cells in rows)
    return places if num_classes > 1 else []


def _zero_one(columns: Sequence[str], rows: Sequence[Row], used: Mapping[str, int]) -> list[int]:
    """Return the places of columns that hold nothing but 0 and 1."""
    places = []
    for place in range(len(columns)):
        cells = (_cell_at(cells, place).lower() for _, cells in rows)
        if place not in used.values() and all(cell in ONES or cell in ZEROS for cell in cells):
            places.append(place)
    return places


def _num_ones(cells: Sequence[str], places: Iterable[int]) -> int:
    return sum(_cell_at(cells, place).lower() in ONES for place in places)


def _label_like(columns: Sequence[str], used: Mapping[str, int]) -> str:
    """Return the unused column whose name says most surely that it has labels, or ""."""
    column_of: dict[str, str] = {}  # {its name without case, blanks, - and _: its name}
    for place, name in enumerate(columns):
        if place not in used.values():
            column_of[re.sub(r"[\s_-]", "", name.lower())] = name
    return next((column_of[name] for name in LABEL_LIKE if name in column_of), "")


def _remarks_on_columns(
    columns: Sequence[str], rows: Sequence[Row], used: Mapping[str, int], hot: Sequence[int], table: str
) -> Iterator[str]:
    """Yield a sentence on columns that may have labels and are not read, or that are read without being called so."""
    others = [name for place, name in enumerate(columns) if place not in used.values() and name]
    if "label" in used:
        label = columns[used["label"]]
        synonyms = [name for name in others if name.lower() in COLUMNS["label"]]
        if synonyms and label.lower() in COLUMNS["label"]:
            yield (
                f"Labels come from column '{label}' of {table}; column '{synonyms[0]}' is not used. If it has them: "
                f"`label_column='{synonyms[0]}'`"
            )
    elif hot:
        names = ", ".join(columns[place] for place in hot)
        yield f"Labels are the names of the 0/1 columns of {table}, which add up to 1 in each row: {names}"
    elif others:
        example = _label_like(columns, used) or others[0]
        yield (
            f"No image has a label, since no column of {table} is called {', '.join(COLUMNS['label'])}. It also has "
            f"{', '.join(others)}; name the column with the labels, as in `label_column='{example}'`"
        )
        places = _zero_one(columns, rows, used)
        odd = [where for where, cells in rows if _num_ones(cells, places) != 1]
        if len(places) > 1 and odd:
            names = ", ".join(columns[place] for place in places)
            yield f"The 0/1 columns {names} are no labels, since they do not add up to 1 in each row, as in {odd[0]}"


def _remarks_on_rows(files: Sequence[Listed], table: str) -> Iterator[str]:
    """Yield a sentence on rows without a label, where others have one."""
    unlabelled = [file.path for file in files if not file.label]
    if 0 < len(unlabelled) < len(files):
        yield (
            f"{len(unlabelled)} of {len(files)} rows of {table} have no label, such as {unlabelled[0]}: these images "
            "neither train nor judge"
        )


class _Door:
    """Decides which paths a manifest may name."""

    def __init__(self, folder: Path, allow_outside: bool) -> None:
        self._root = os.path.realpath(folder)
        self._allow_outside = allow_outside
        self._inside = {"": True}  # {folder below the root: whether it leads to a place inside}

    def checked(self, path: str, where: str) -> str:
        """Return the path as a row has it. Raises DataError if it leads out."""
        if "\0" in path:
            raise DataError(f"{where}: a path with a NUL byte, which no file has")
        if self._allow_outside:
            return path
        plain = posixpath.normpath(path)
        if os.path.isabs(path) or ".." in path.split("/") or not self._stays(plain):
            raise DataError(
                f"{where}: {path!r} leads out of the manifest's folder. If you mean that: `allow_outside=True`"
            )
        return path if ADDRESS.match(path) else plain  # an address is named as it stands there

    def _stays(self, path: str) -> bool:
        """Return whether a path stays inside the folder; links that stay inside are fine."""
        # Folders are remembered: a table names many files in each, and following a path asks the disk at every step.
        folder = posixpath.dirname(path)
        if folder not in self._inside:
            self._inside[folder] = self._reaches(folder)
        if not self._inside[folder]:
            return False
        is_link = os.path.islink(f"{self._root}/{path}")
        return not is_link or self._reaches(path)

    def _reaches(self, path: str) -> bool:
        real = os.path.realpath(os.path.join(self._root, path))
        return os.path.commonpath([self._root, real]) == self._root


def _listed(values: dict[str, str], where: str, door: _Door) -> Listed:
    if not values["path"]:
        raise DataError(f"{where}: no path")
    split = values.get("split", "")
    if split and split.lower() not in SPLIT_NAMES:
        raise DataError(f"{where}: split '{split}'. Splits are called train, val and test; empty, featcache decides")
    label = values.get("label", "")
    group = values.get("group", "")
    if "\0" in label + group:
        raise DataError(f"{where}: a label or group with a NUL byte")
    return Listed(door.checked(values["path"], where), label, SPLIT_NAMES.get(split.lower(), ""), group)


def _require_text(file: Listed, where: str, folder: Path) -> None:
    """Raise DataError for bytes that are not UTF-8, unless a file of that name is there: then the disk has them too."""
    raw = next((value for value in (file.path, file.label, file.group) if not _is_utf8(value)), "")
    if raw and (_is_utf8(file.path) or not os.path.lexists(folder / file.path)):
        raise DataError(
            f"{where}: {os.fsencode(raw)!r} is not UTF-8, and its letters depend on the country of the computer that "
            "wrote it. Save the table as UTF-8 (in Excel: CSV UTF-8), or convert it; if it comes from Western Europe: "
            "iconv -f CP1252 -t UTF-8"
        )


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in text)


def _places(columns: Sequence[str], path: Path, named: Mapping[str, str]) -> dict[str, int]:
    """Return {what a column holds: its place}, for the columns that the user named and those with usual names."""
    names = [name.lower() for name in columns]
    places: dict[str, int] = {}
    for name, usual_names in COLUMNS.items():
        if name in named:
            column = named[name]
            if column not in columns:
                others = ", ".join(columns)
                raise DataError(f"{path} has no column '{column}' for {OPTIONS[name]}; it has {others}")
            places[name] = _only(columns, column, path)
            continue
        present = [usual_name for usual_name in usual_names if usual_name in names]
        if present:
            places[name] = _only(names, present[0], path)
    if "path" not in places:
        raise DataError(
            f"{path} has the columns {', '.join(columns)}, none of them called {', '.join(COLUMNS['path'])}. "
            "Name the one with the paths so, or say which it is: `path_column=NAME`"
        )
    return places


def _only(names: Sequence[str], name: str, path: Path) -> int:
    """Return the place of a column. Raises DataError if several have its name, because each could be meant."""
    count = names.count(name)
    if count > 1:
        raise DataError(f"{path} has {count} columns called '{name}', and each could be meant. Rename all but one")
    return names.index(name)


def _text(path: Path, path_column: str | None) -> _Cells:
    try:
        data = path.read_bytes()
        text = data.decode("utf-16") if data[:2] in UTF_16 else data.decode("utf-8-sig", "surrogateescape")
        delimiter = _delimiter(text, path, path_column)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [(f"line {reader.line_num}", row) for row in reader if any(row)]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise_if_of_the_system(path, error)
        raise DataError(f"Cannot read {path}: {error}") from error
    if not rows:
        raise NoImages(f"{path} is empty: it needs a header with a column 'path', and a row for each image")
    return _Cells([name.strip() for name in rows[0][1]], iter(rows[1:]))


def _delimiter(text: str, path: Path, path_column: str | None) -> str:
    """Return what separates cells: what the suffix says, unless only another one gives a column with the paths."""
    header = text.lstrip("\r\n").partition("\n")[0]
    usual = DELIMITERS[path.suffix.lower()]
    wanted = COLUMNS["path"] if path_column is None else (path_column.lower(),)
    for delimiter in (usual, *OTHER_DELIMITERS):
        cells = next(csv.reader([header], delimiter=delimiter), [])
        if any(cell.strip().lower() in wanted for cell in cells):
            return delimiter
    return usual


def _parquet(path: Path) -> _Cells:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise EnvironmentFault(f"Reading {path} takes pyarrow: pip install featcache[parquet]") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            columns = [file.read(columns=[name]).column(0).to_pylist() for name in names]
    except Exception as error:  # pyarrow raises its own kinds
        raise_if_of_the_system(path, error)
        raise DataError(f"Cannot read {path}: {' '.join(str(error).split())}") from error
    rows: list[Row] = []
    for number, values in enumerate(zip(*columns, strict=True), 1):
        cells: list[str] = []
        for value in values:
            is_missing = value is None or value != value  # NaN of pandas
            cells.append("" if is_missing else str(value))
        rows.append((f"row {number}", cells))
    return _Cells([name.strip() for name in names], iter(rows))
