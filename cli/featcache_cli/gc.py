"""featcache cache gc."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli.output import Json, Quiet, emit, progress, say

if TYPE_CHECKING:
    from featcache.extras.unused_features import UnusedFeatures


def command(
    cache: Annotated[Path, typer.Argument(metavar="CACHE.h5", help="A cache: a file, or a folder of parts.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only show what would be dropped.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also if a run beside the cache was made from other images than it has now.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Drop the features of images that are gone; say first which. Images, labels and splits stay.

    Example: featcache cache gc photos.h5 --dry-run
    """
    from featcache.extras.unused_features import drop_unused_features, unused_features

    unused = unused_features(cache)
    if unused.taps and not dry_run:
        if force or not unused.runs:
            say(_amounts(unused, "Dropping"))
        with progress(quiet) as draw:
            unused = drop_unused_features(cache, force=force, progress=draw)
    emit(json, document(unused, dropped=not dry_run), lambda: text(unused, dropped=not dry_run))


def document(unused: UnusedFeatures, dropped: bool) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    return {
        "cache": str(unused.cache),
        "dropped": dropped,
        "rows": unused.rows,
        "bytes": unused.bytes,
        "taps": [tap._asdict() for tap in unused.taps],
        "runs": [str(run) for run in unused.runs],
    }


def text(unused: UnusedFeatures, dropped: bool) -> str:
    """Return the result as a person reads it."""
    from featcache.text import printable, table

    if not unused.taps:
        return "Every row belongs to an image of the cache: nothing to drop."
    rows = [[tap.tap, tap.rows, f"{tap.bytes / 1e6:.1f}", tap.kept] for tap in unused.taps]
    lines = [
        table(["tap", "rows", "MB", "rows that stay"], rows),
        _amounts(unused, "Dropped" if dropped else "Would drop"),
    ]
    for run in unused.runs:
        lines.append(f"{printable(str(run))} was made from other images than the cache has now, perhaps from these.")
    return "\n".join(lines)


def _amounts(unused: UnusedFeatures, verb: str) -> str:
    from featcache.text import counted, printable

    cache = printable(str(unused.cache))
    return f"{verb} {counted(unused.rows, 'row')} of images that {cache} does not list, {unused.bytes / 1e6:.1f} MB"
