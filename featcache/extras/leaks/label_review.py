"""Labels that look wrong -> a table to review; the reviewed table -> the labels of a cache. Both can be undone."""

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
    after: str  # "" if the image was dropped
    split: str  # the image's split, or for a dropped image the split it was in


@dataclass(frozen=True)
class Reviewed:
    """What a review did to a cache, or what undoing it did."""

    cache: Path
    decisions: int  # images with a decision, or whose decision was undone
    undecided: int  # rows of the table without a decision
    relabelled: tuple[Relabelled, ...]
    looks: int  # how often test had been looked at, if a label of test was changed; else 0

    @property
    def dropped(self) -> tuple[Relabelled, ...]:
        """Return the images that are no longer used for training or evaluation."""
        return tuple(image for image in self.relabelled if not image.after)

    @property
    def of_test(self) -> tuple[Relabelled, ...]:
        """Return the images of the test split."""
        return tuple(image for image in self.relabelled if image.split == "test")


def apply_review(cache: str | Path, file: str | Path, *, progress: Progress = silent) -> Reviewed:
    """Give the images of a cache the labels that a reviewed table decides, and record all its decisions.

    No feature is computed. Later extractions of the same images keep the decisions. Raises UsageError, DataError naming
    the row of the table, NotACache if a tap is damaged, DiskFault.
    """
    decisions = read_decisions(file)

    def with_decisions(opened: Cache) -> Table:
        rows = without_review(opened.rows, opened.changes)
        earlier = opened.changes.reviews
        new = reviews_of(decisions, rows, earlier)
        return with_review(rows, opened.changes, later(earlier, new))

    before, after = rewrite(Path(cache), with_decisions, progress)
    return _difference(before, after, len(decisions.lines), decisions.undecided)


def unapply(cache: str | Path, *, progress: Progress = silent) -> Reviewed:
    """Forget all decisions about labels: images get the labels of their folders or table, and the splits they had.

    Raises NotACache if a tap is damaged, DiskFault.
    """

    def without_decisions(opened: Cache) -> Table:
        rows = without_review(opened.rows, opened.changes)
        return with_review(rows, opened.changes, UNCHANGED.reviews)

    before, after = rewrite(Path(cache), without_decisions, progress)
    return _difference(before, after, len(before.changes.reviews), 0)


def _difference(before: Cache, after: Cache, num_decisions: int, undecided: int) -> Reviewed:
    relabelled: list[Relabelled] = []
    for old, new in zip(before.rows, after.rows, strict=True):
        if old.label != new.label:
            relabelled.append(Relabelled(new.path, old.label, new.label, new.split or old.split))
    looks = 0
    if any(image.split == "test" for image in relabelled):
        looks = len(read_looks(looks_beside(before.path)))
    return Reviewed(before.path, num_decisions, undecided, tuple(relabelled), looks)


def _is_undecided(path: Path) -> bool:
    """Return whether a file is a table of featcache in which nobody has decided anything yet."""
    columns, rows = read_text_table(path)
    if tuple(columns) != COLUMNS:
        return False
    for _, cells in rows:
        # A comma too many in a decision puts text into further columns: it counts, too.
        decision = "".join(cells[len(COLUMNS) - 1 :])
        if decision.strip():
            return False
    return True


DOUBTS = Kind("table of labels", _is_undecided, otherwise="may hold your decisions, or be another table")


def check_doubts_table(cache: str | Path, out: str | Path, *, force: bool = False) -> None:
    """Raise early what `write_doubts` would raise: UsageError, DiskFault."""
    path = Path(out)
    if path.suffix != ".csv":
        raise UsageError(f"Labels to review are written to a file that ends in .csv; got {path.name}")
    check_output(path, DOUBTS, inputs=[Path(cache)], force=force)


def write_doubts(doubted: Doubts, cache: str | Path, out: str | Path, *, force: bool = False) -> None:
    """Write the labels that look wrong to a CSV whose column "decision" is to be filled: see `apply_review`.

    force: replace what lies at `out`. Raises UsageError, also if the table there has decisions, and DiskFault.
    """
    check_doubts_table(cache, out, force=force)
    lines = [csv_line(COLUMNS)]
    for doubt in doubted.doubts:
        undecided = ""
        lines.append(csv_line([*doubt_cells(doubt), undecided]))
    write_whole(Path(out), b"".join(lines))


def doubt_cells(doubt: Doubt) -> list[str]:
    """Return the cells of a row, up to the one for the decision."""
    probability = "" if doubt.probability is None else f"{doubt.probability:.6f}"
    return [doubt.path, safe_cell(doubt.label), safe_cell(doubt.suggested), probability]


def csv_line(cells: Sequence[str]) -> bytes:
    """Return the bytes of one line. A path has the same bytes as on the disk."""
    text = io.StringIO()
    # Before Python 3.13 csv does not quote a bare \r by itself.
    has_bare_return = any("\r" in cell for cell in cells)
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if has_bare_return else csv.QUOTE_MINIMAL)
    writer.writerow(cells)
    return os.fsencode(text.getvalue())
