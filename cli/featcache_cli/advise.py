"""featcache advise."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli.output import Json, Quiet, emit, progress

if TYPE_CHECKING:
    from featcache.sweeps import Advice


def command(
    cache: Annotated[Path, typer.Argument(help="A CACHE.h5 with labels.")], json: Json = False, quiet: Quiet = False
) -> None:
    """Say which of the four cases of transfer learning this is, with the numbers that say so, and what to do.

    Example: featcache advise photos.h5
    """
    from featcache.sweeps import advise

    with progress(quiet) as draw:
        found = advise(cache, progress=draw)
    emit(json, document(found), lambda: text(found))


def document(found: Advice) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    return {**asdict(found), "cache": str(found.cache), "case": found.case}


def text(found: Advice) -> str:
    """Return the result as a person reads it."""
    from featcache.text import counted, interval, table

    rows = [
        [one.tap, one.width, interval(one.left_out, *one.interval), f"{one.fitted:.3f}", f"{one.gap:.3f}"]
        for one in found.curve
    ]
    return "\n".join(
        [
            f"{counted(found.images, 'training image')} of {counted(found.classes, 'class')}, "
            f"{found.least} of the smallest.",
            "",
            table(["tap", "width", "ridge, one left out [95 %]", "fitted", "gap"], rows),
            "",
            f"Case: {found.case}",
            *(f"- {line}" for line in found.why),
            "",
            *found.do,
            *(f"Next: {line}" for line in found.commands),
        ]
    )
