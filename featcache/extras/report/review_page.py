"""One HTML file to review labels that look wrong, by eye. It needs no network and saves a table of decisions.

The lines of that table are written here, so that paths and labels keep their bytes; the page only adds the decisions.
Until they are saved, the browser keeps them (localStorage), by the folder of the images and by the bytes and label of
each image. So a later page about the same images shows them, too.
"""

from __future__ import annotations

import base64
from pathlib import Path
from shlex import quote
from typing import Any

from featcache.cache.reader import Cache
from featcache.extraction.reviewing import COLUMNS
from featcache.extras.leaks import Doubt, Doubts
from featcache.extras.leaks.label_review import csv_line, doubt_cells
from featcache.extras.report.pictures import bits_of, pictures_of, source_of
from featcache.extras.report.templates import has_mark, render_page
from featcache.files import write_whole
from featcache.outputs import Kind, check_output
from featcache.spec import ImageRow, Progress, digest_of, silent
from featcache.text import printable

MARK = b'<meta name="generator" content="featcache review">'
REVIEW_PAGE = Kind("review page of featcache", lambda path: has_mark(path, MARK))
MOST = 10_000  # labels on the page; write_doubts writes all
ON_A_PAGE = 48


def saved_as(cache: Path) -> str:
    """Return the name under which the page saves its table."""
    return f"{cache.stem}-labels.csv"


def check_review_page(
    cache: str | Path, out: str | Path, images: str | Path | None = None, *, force: bool = False
) -> None:
    """Raise early what `write_review_page` would raise: UsageError, DiskFault."""
    path = Path(out)
    inputs: list[Path] = []
    if path.exists():  # else it cannot be an input
        opened = Cache.open(cache)
        root = opened.root if images is None else Path(images)
        files = [opened.path, root, *(root / row.path for row in opened.rows)]
        inputs = [file for file in files if file.is_file()]
    check_output(path, REVIEW_PAGE, inputs=inputs, force=force)


def write_review_page(
    doubted: Doubts,
    cache: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> None:
    """Write a page with the labels that look wrong, the most doubtful first, and a button that saves the decisions.

    images: where the images lie now, if they have moved. force: replace what lies at `out` even if it is no such page.
    Raises UsageError, DiskFault, NoImages if there is nothing at `images`.
    """
    opened = Cache.open(cache)
    check_review_page(cache, out, images, force=force)
    source = source_of(opened, images)
    row_of = {row.path: row for row in opened.rows}
    shown = [doubt for doubt in doubted.doubts[:MOST] if doubt.path in row_of]
    rows = [row_of[doubt.path] for doubt in shown]
    pictures = pictures_of(source, rows, bits_of(opened), progress)
    cards = [_card(doubt, row, data) for doubt, row, data in zip(shown, rows, pictures, strict=True)]
    classes: list[dict[str, str]] = []
    for name in opened.classes:
        cell = csv_line([f"change:{name}"]).removesuffix(b"\n")
        classes.append({"name": printable(name), "cell": _encoded(cell)})
    csv = saved_as(opened.path)
    context = {
        "name": printable(opened.path.name),
        "doubted": doubted,
        "num_doubts": len(doubted.doubts),
        "num_shown": len(shown),
        "num_pictures": sum(data is not None for data in pictures),
        "has_source": source is not None,
        "command": printable(f"featcache leaks {quote(str(opened.path))} --apply {quote(csv)}"),
        "data": {
            "key": digest_of(str(opened.root))[:16],
            "file": csv,
            "header": _encoded(csv_line(COLUMNS)),
            "onAPage": ON_A_PAGE,
            "classes": classes,
            "rows": cards,
        },
    }
    styles = ("page.css", "review.css")
    page = render_page("review.html", script="review.js", styles=styles, context=context)
    # Again, because making pictures takes a while and another file may lie there by now.
    check_review_page(cache, out, images, force=force)
    write_whole(Path(out), page.encode("utf-8", "replace"))


def _card(doubt: Doubt, row: ImageRow, picture: str | None) -> dict[str, Any]:
    """Return the facts about an image for the page, and the beginning of its line in the table."""
    return {
        "id": digest_of([row.digest, row.label])[:24],
        "line": _encoded(csv_line(doubt_cells(doubt)).removesuffix(b"\n") + b","),  # the decision follows the comma
        "path": printable(doubt.path),
        "label": printable(doubt.label),
        "suggested": printable(doubt.suggested),
        "probability": doubt.probability,
        "ofSuggested": doubt.of_suggested,
        "split": doubt.split,
        "same": [printable(f"{path} ({label})") for path, label in doubt.same_photo],
        "picture": picture,
    }


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
