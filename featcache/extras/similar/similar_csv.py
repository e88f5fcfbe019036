"""The images that are nearest to a query as a CSV file: path, label, split and similarity."""

from __future__ import annotations

from pathlib import Path

from featcache.cache.reader import Cache
from featcache.extras.leaks.label_review import csv_line
from featcache.extras.similar.searching import Similar
from featcache.files import write_whole
from featcache.images.tables import safe_cell
from featcache.outputs import Kind, check_output

HEADER = csv_line(["path", "label", "split", "similarity"])


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(HEADER)) == HEADER


SIMILAR_CSV = Kind("table of featcache similar", _is_ours)


def check_similar_csv(cache: Cache, query: str | Path, out: str | Path, *, force: bool = False) -> None:
    """Raise early what `write_similar_csv` would raise: UsageError, DiskFault."""
    check_output(Path(out), SIMILAR_CSV, inputs=[cache.path, cache.root, Path(query)], force=force)


def write_similar_csv(result: Similar, out: str | Path, *, force: bool = False) -> None:
    """Write the table, the nearest image first. force: replace what lies at `out` even if it is no such table.

    Raises UsageError, DiskFault.
    """
    check_similar_csv(Cache.open(result.cache), result.query, out, force=force)
    lines = [HEADER]
    for image in result.images:
        lines.append(csv_line([image.path, safe_cell(image.label), image.split, f"{image.similarity:.6f}"]))
    write_whole(Path(out), b"".join(lines))
