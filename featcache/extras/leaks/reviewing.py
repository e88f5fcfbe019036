"""Labels that look wrong -> a table to review; the reviewed table -> the labels of a cache, and back again."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.cache.changes import UNCHANGED, later, with_review, without_review
from featcache.cache.layout import looks_beside
from featcache.cache.reader import Cache
from featcache.errors import UsageError
from featcache.extraction.reviewing import COLUMNS, read_decisions, reviews_of
from featcache.extras.leaks.labels import Doubt, Doubts
from featcache.extras.leaks.rewriting import Table, rewrite
from featcache.files import write_whole
from featcache.images.tables import read_text_table, safe_cell
from featcache.outputs import Kind, check_output
from featcache.spec import Progress, silent
from featcache.sweeps.records import read_looks


@dataclass(frozen=True)
class Relabelled:
    """One image whose label a review changed, or took back."""

    path: str
    before: str
    after: str  # "" of an image that was dropped
    split: str  # that it is in, or was in until it was dropped


@dataclass(frozen=True)
class Reviewed:
    """What a review, or taking it back, did to a cache."""

    cache: Path
    decisions: int  # images that were decided about, or of which the decision was taken back
    undecided: int  # rows of the table without a decision
    relabelled: tuple[Relabelled, ...]
    looks: int  # at the test split before, if a label in it was changed

    @property
    def dropped(self) -> tuple[Relabelled, ...]:
        """Return the images that neither train nor judge any more."""
        return tuple(image for image in self.relabelled if not image.after)

    @property
    def of_test(self) -> tuple[Relabelled, ...]:
        """Return the images of the test split."""
        return tuple(image for image in self.relabelled if image.split == "test")


def apply_review(cache: str | Path, file: str | Path, *, progress: Progress = silent) -> Reviewed:
    """Give the images of a cache the labels that a reviewed table decides, and remember all its decisions.

    No feature is computed. Later extractions of the same images keep the decisions. Raises UsageError, DataError naming
    the row of the table, NotACache if a tap is damaged, DiskFault.
    """
    decisions = read_decisions(file)
    path = Path(cache)

    def reviewed(opened: Cache) -> Table:
        given = without_review(opened.rows, opened.changes)
        new = reviews_of(decisions, given, opened.changes.reviews)
        return with_review(given, opened.changes, later(opened.changes.reviews, new))

    before, after = rewrite(path, reviewed, progress)
    return _reviewed(before, after, len(decisions.lines), decisions.undecided)


def unapply(cache: str | Path, *, progress: Progress = silent) -> Reviewed:
    """Forget all decisions about labels: images get the labels of their folders or table, and the splits they had.

    Raises NotACache if a tap is damaged, DiskFault.
    """

    def unreviewed(opened: Cache) -> Table:
        rows = without_review(opened.rows, opened.changes)
        return with_review(rows, opened.changes, UNCHANGED.reviews)

    before, after = rewrite(Path(cache), unreviewed, progress)
    return _reviewed(before, after, len(before.changes.reviews), 0)


def _reviewed(before: Cache, after: Cache, num_decisions: int, undecided: int) -> Reviewed:
    relabelled = tuple(
        Relabelled(new.path, old.label, new.label, new.split or old.split)
        for old, new in zip(before.rows, after.rows, strict=True)
        if old.label != new.label
    )
    is_of_test = any(image.split == "test" for image in relabelled)
    looks = len(read_looks(looks_beside(before.path))) if is_of_test else 0
    return Reviewed(before.path, num_decisions, undecided, relabelled, looks)


def _is_undecided(path: Path) -> bool:
    """Return whether a file is a table of ours in which nobody has decided anything yet."""
    columns, rows = read_text_table(path)
    return tuple(columns) == COLUMNS and not any("".join(cells[len(COLUMNS) - 1 :]).strip() for _, cells in rows)


DOUBTS = Kind("table of labels", _is_undecided, otherwise="may hold your decisions, or be another table")


def check_doubts_table(cache: str | Path, out: str | Path, *, force: bool = False) -> None:
    """Raise now what `write_doubts` would raise: UsageError, DiskFault."""
    path = Path(out)
    if path.suffix != ".csv":
        raise UsageError(f"Labels to review are written to a file that ends in .csv; got {path.name}")
    check_output(path, DOUBTS, inputs=[Path(cache)], force=force)


def write_doubts(doubted: Doubts, cache: str | Path, out: str | Path, *, force: bool = False) -> None:
    """Write the labels that look wrong to a CSV, for somebody to fill its column "decision": see `apply_review`.

    force: replace what lies at `out`. Raises UsageError, also where a table has decisions already, and DiskFault.
    """
    check_doubts_table(cache, out, force=force)
    lines = [csv_line(COLUMNS), *(csv_line([*doubt_cells(doubt), ""]) for doubt in doubted.doubts)]
    write_whole(Path(out), b"".join(lines))


def doubt_cells(doubt: Doubt) -> list[str]:
    """Return the cells of a table before that of the decision."""
    probability = "" if doubt.probability is None else f"{doubt.probability:.6f}"
    return [doubt.path, safe_cell(doubt.label), safe_cell(doubt.suggested), probability]


def csv_line(cells: Sequence[str]) -> bytes:
    """Return the bytes of one line: those of a path are as on the disk."""
    text = io.StringIO()
    # before Python 3.13 csv does not quote a bare \r by itself
    is_quoted = any("\r" in cell for cell in cells)
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if is_quoted else csv.QUOTE_MINIMAL).writerow(cells)
    return os.fsencode(text.getvalue())
