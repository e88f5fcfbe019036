"""featcache advise."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli.output import Json, Quiet, emit, progress, remarks_in_flags

if TYPE_CHECKING:
    from featcache.sweeps import Advice


def command(
    cache: Annotated[Path, typer.Argument(help="A CACHE.h5 with labels.")], json: Json = False, quiet: Quiet = False
) -> None:
    """Say which of the four cases of transfer learning this is, with the numbers behind it, and what to do.

    Example: featcache advise photos.h5
    """
    from featcache.sweeps import advise

    with progress(quiet) as draw:
        advice = advise(cache, progress=draw)
    emit(json, document(advice), lambda: text(advice))


def document(advice: Advice) -> dict[str, Any]:
    """Return the advice as it stands in JSON."""
    why, do = remarks_in_flags(advice.why), remarks_in_flags(advice.do)
    return {**asdict(advice), "cache": str(advice.cache), "case": advice.case, "why": why, "do": do}


def text(advice: Advice) -> str:
    """Return the advice as a person reads it."""
    from featcache.text import counted, interval, table

    rows = []
    joined = () if advice.joined is None else (advice.joined,)
    for tap in (*advice.curve, *joined):
        left_out = interval(tap.left_out, *tap.interval)
        rows.append([tap.tap, tap.width, left_out, f"{tap.fitted:.3f}", f"{tap.gap:.3f}"])

    images = counted(advice.images, "training image")
    lines = [
        f"{images} of {counted(advice.classes, 'class')}, {advice.least} of the smallest.",
        "",
        table(["tap", "width", "ridge, one left out [95 %]", "fitted", "gap"], rows),
        "",
        f"Case: {advice.case}",
    ]
    lines += [f"- {reason}" for reason in remarks_in_flags(advice.why)]
    lines += ["", *remarks_in_flags(advice.do)]
    lines += [f"Next: {command_line}" for command_line in advice.commands]
    return "\n".join(lines)
