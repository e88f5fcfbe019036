"""One HTML file with a few images of each class, to look at before anything is trained.

It shows wrong labels, copies, and turned or black images at a glance. The page needs no other file, runs no script, and
stays small: at most `PER_CLASS` images of each class and `MOST_IMAGES` in all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from featcache.extras.report.pictures import small_picture
from featcache.extras.report.templates import has_mark, page_text, templates
from featcache.files import write_whole
from featcache.images.jpegs import spread
from featcache.images.manifest import Images
from featcache.outputs import Kind, check_output
from featcache.spec import SPLITS, ImageRow, Progress, Tick, silent
from featcache.text import printable

PER_CLASS = 12
MOST_IMAGES = 1200  # 5 MB
MOST_CLASSES = 300
MOST_UNREADABLE = 20  # unreadable images that are named
MARK = b'<meta name="generator" content="featcache scan">'
GALLERY = Kind("page of featcache scan", lambda path: has_mark(path, MARK))


@dataclass(frozen=True)
class Cell:
    """One image in the grid."""

    path: str
    split: str
    data: str | None  # a data URI; None if the image cannot be read


@dataclass(frozen=True)
class ClassRow:
    """One class: its name, its images in each split, and the images that are shown."""

    label: str
    counts: dict[str, int]
    total: int
    cells: Sequence[Cell]


def check_gallery(images: str | Path, out: str | Path, *, force: bool = False) -> None:
    """Raise early what `write_gallery` would raise: UsageError, DiskFault."""
    check_output(Path(out), GALLERY, inputs=[Path(images)], force=force)


def write_gallery(images: Images, out: str | Path, *, force: bool = False, progress: Progress = silent) -> Path:
    """Write the page and return its path. Raises UsageError if something else lies there, DiskFault."""
    path = Path(out)
    page = render(images, progress).encode("utf-8", "replace")
    # Now, and not only before the images were read: that takes a while, and another file may lie there by now.
    check_output(path, GALLERY, inputs=[images.root], force=force)
    write_whole(path, page)
    return path


def render(images: Images, progress: Progress = silent) -> str:
    """Return the page."""
    from markupsafe import Markup

    splits = [split for split in SPLITS if split in images.splits]
    labels = sorted({row.label for row in images.rows})
    shown = labels[:MOST_CLASSES]
    unreadable = images.unreadable[:MOST_UNREADABLE]
    template = templates().get_template("gallery.html")
    return template.render(
        name=printable(images.root.resolve().name),
        num_images=len(images.rows),
        classes=_class_rows(images, shown, splits, progress),
        num_hidden=len(labels) - len(shown),
        splits=splits,
        unreadable=[(printable(failure.path), printable(failure.reason)) for failure in unreadable],
        num_unreadable=len(images.unreadable),
        num_duplicates=len(images.duplicates),
        # On a page an argument reads the same for Python and for the command line: bits=12.
        notes=[printable(note).replace("`", "") for note in (*images.notes, *images.remarks)],
        style=Markup(page_text("page.css")),
    )


def _class_rows(images: Images, labels: Sequence[str], splits: Sequence[str], progress: Progress) -> list[ClassRow]:
    """Return a line of the grid for each label."""
    if not labels:
        return []
    rows_of_class: dict[str, list[ImageRow]] = {label: [] for label in labels}
    for row in images.rows:
        if row.label in rows_of_class:
            rows_of_class[row.label].append(row)
    per_class = max(1, min(PER_CLASS, MOST_IMAGES // len(labels)))
    shown = {label: spread(rows, per_class) for label, rows in rows_of_class.items()}

    class_rows: list[ClassRow] = []
    total = sum(map(len, shown.values()))
    done = 0
    with ThreadPoolExecutor() as threads:
        for label, rows in rows_of_class.items():
            cells: list[Cell] = []
            pictures = threads.map(partial(small_picture, images.source), shown[label])
            for row, data in zip(shown[label], pictures, strict=True):
                cells.append(Cell(printable(row.path), row.split, data))
            done += len(cells)
            progress(Tick("pictures", done, total))
            split_counts = Counter(row.split for row in rows)
            counts = {split: split_counts[split] for split in splits}
            class_rows.append(ClassRow(printable(label), counts, len(rows), cells))
    return class_rows
