"""A reviewed table of `leaks --labels --csv` -> what it decides about the labels of a folder's images.

Columns: path, label, suggestion, probability, decision. A decision is accept, keep, drop, change:CLASS, or new:CLASS
for a class that no image has yet; rows without one decide nothing. The table is refused as a whole if one of its rows
cannot be meant, before anything is computed or written.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from featcache.cache.changes import Review
from featcache.errors import DataError, UsageError
from featcache.images.listing import normalize_name
from featcache.images.tables import DELIMITERS, read_text_table, safe_cell
from featcache.spec import ImageRow, did_you_mean

COLUMNS = ("path", "label", "suggestion", "probability", "decision")
NEEDED = ("path", "label", "decision")
DECISIONS = "accept, keep, drop, change:CLASS, or new:CLASS for a class that no image has yet"


class Decision(NamedTuple):
    """One row of the table that decides something."""

    place: str  # "labels.csv, line 3"
    path: str
    label: str
    suggestion: str
    decision: str  # accept, keep, drop, change or new
    name: str  # behind the colon of change and new


class Decisions(NamedTuple):
    """A table that was read."""

    lines: tuple[Decision, ...]
    undecided: int  # rows without a decision
    at: str  # when it was read, UTC


def read_decisions(file: str | Path) -> Decisions:
    """Return what a reviewed table decides. Raises UsageError, DataError naming the row."""
    path = Path(file)
    if path.suffix.lower() not in DELIMITERS:
        raise UsageError(f"`apply` takes the CSV of a review; got {path}. Save it as CSV UTF-8")
    columns, rows = read_text_table(path)
    names = [name.lower() for name in columns]
    missing = [name for name in NEEDED if names.count(name) != 1]
    if missing:
        raise DataError(
            f"{path} needs one column called '{missing[0]}', and has {', '.join(columns)}. A reviewed table has "
            f"{', '.join(COLUMNS)}"
        )
    lines: list[Decision] = []
    first_place: dict[str, str] = {}
    undecided = 0
    for where, cells in rows:
        padded = [*cells, *[""] * len(names)]  # rows may be shorter than the header
        values = dict(zip(names, padded, strict=False))
        place = f"{path}, {where}"
        if other := first_place.get(values["path"]):
            raise DataError(f"{place}: {values['path']!r} stands in {other} already. Keep one of the rows")
        first_place[values["path"]] = where
        if values["decision"].strip():
            lines.append(_line(place, values))
        else:
            undecided += 1
    now = datetime.datetime.now(datetime.UTC)
    return Decisions(tuple(lines), undecided, now.isoformat(timespec="microseconds"))


def _line(place: str, values: Mapping[str, str]) -> Decision:
    decision, colon, name = values["decision"].strip().partition(":")
    decision = decision.strip().lower()
    name = name.strip()
    takes_name = decision in ("change", "new")
    is_known = decision in ("accept", "keep", "drop", "change", "new")
    if not is_known or takes_name != bool(name) or (colon and not name):
        raise DataError(f"{place}: decision '{values['decision']}'. Write {DECISIONS}, or nothing")
    return Decision(place, values["path"], values["label"], values.get("suggestion", ""), decision, name)


def reviews_of(decisions: Decisions, rows: Sequence[ImageRow], earlier: Iterable[Review] = ()) -> list[Review]:
    """Return what the table decides about these images.

    rows: the images as their folder or table labels them, in the splits that they have. earlier: reviews, whose classes
    exist too. Raises DataError naming the row of the table.
    """
    row_of = {row.path: row for row in rows}
    classes = {row.label for row in rows} | {review.new_label for review in earlier}
    new = {line.name for line in decisions.lines if line.decision == "new"}
    class_of = _spellings(new) | _spellings(classes - {""})  # a class that exists wins over another spelling of it

    # Copies of an image share a review, so the table must decide alike about all of them.
    reviews: dict[tuple[str, str], Review] = {}
    place_of: dict[tuple[str, str], str] = {}
    for line in decisions.lines:
        row = row_of.get(_path(line.path, row_of))
        if row is None:
            raise DataError(
                f"{line.place}: no image is called {line.path!r}{did_you_mean(line.path, row_of)}. "
                f"{_remedy(line.path, 'Remove the row')}"
            )
        if not row.label or _spellings([row.label]).get(normalize_name(line.label)) is None:
            now = f"labelled '{row.label}'" if row.label else "without a label"
            raise DataError(
                f"{line.place}: {row.path} is {now} in its folder or table, not '{line.label}'. "
                f"{_remedy(line.label, 'Look at it again')}"
            )
        new_label = _new_label(line, row, class_of)
        key = row.digest, row.label
        review = Review(row.digest, row.label, new_label, row.path, row.split, decisions.at)
        other = reviews.setdefault(key, review)
        if other.new_label != new_label:
            raise DataError(
                f"{line.place}: {row.path} has the same bytes and label as {other.path} of {place_of[key]}, which is "
                "decided otherwise. Decide both alike"
            )
        place_of.setdefault(key, line.place.rpartition(", ")[2])
    return list(reviews.values())


def _new_label(line: Decision, row: ImageRow, class_of: Mapping[str, str]) -> str:
    if line.decision == "keep":
        return row.label
    if line.decision == "drop":
        return ""
    name = line.suggestion if line.decision == "accept" else line.name
    if not name.strip():
        raise DataError(f"{line.place}: there is no suggestion to accept. Write {DECISIONS}")
    known = class_of.get(normalize_name(name))
    if known is None:
        raise DataError(
            f"{line.place}: no image is labelled '{name}'{did_you_mean(name, class_of)}. For a new class write "
            f"new:{name}"
        )
    return known


def _remedy(text: str, otherwise: str) -> str:
    """Return what to do about a cell that names nothing: the table may be in a national code page."""
    if any("\udc80" <= letter <= "\udcff" for letter in text):
        return "The table is not UTF-8: save it as such (in Excel: CSV UTF-8)"
    return f"{otherwise}, or write the table again: featcache leaks CACHE.h5 --labels --csv FILE"


def _path(cell: str, paths: Mapping[str, ImageRow]) -> str:
    """Return a path as the cache has it: spreadsheets may add blanks, and Windows backslashes."""
    stripped = cell.strip()
    for name in (cell, stripped, stripped.replace("\\", "/")):
        if name in paths:
            return name
    return cell


def _spellings(classes: Iterable[str]) -> dict[str, str]:
    """Return {text of a cell: class}: with the ' that keeps spreadsheets from running it, too."""
    names = sorted(classes)
    class_of: dict[str, str] = {}
    for name in names:
        class_of.setdefault(normalize_name(safe_cell(name)), name)
    # The plain spelling wins over a class whose safe cell looks like it.
    for name in names:
        class_of[normalize_name(name)] = name
    return class_of
