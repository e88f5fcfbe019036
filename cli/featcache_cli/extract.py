"""featcache extract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.settings import ExtractOptions
from featcache_cli.output import Force, Json, Quiet, emit, in_shell, progress, say, without_download
from featcache_cli.scan import Where

if TYPE_CHECKING:
    from featcache.extraction import Estimate, Extracted


def command(
    images: Where,
    out: Annotated[Path, typer.Option("--out", "-o", help="The cache to make or bring up to date.")],
    options: ExtractOptions,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say what is missing, and what it would cost.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run backbones once over the images and cache their features; compute only what is missing.

    Example: featcache extract photos/ -o photos.h5 -b mobilenet_v2
    """
    from featcache.extraction import estimate, extract

    advice = "use -b glyphnet (needs no download) or --weights none (random)"
    with progress(quiet) as draw, without_download(advice):
        if dry_run:
            expected = estimate(images, out=out, progress=draw, **vars(options))
            emit(json, asdict(expected), lambda: forecast(expected))
            return
        cache = extract(images, out=out, force=force, progress=draw, **vars(options))
    name_failures(cache.report)
    emit(json, document(cache.report), lambda: text(cache.report, cache.classes))


def forecast(expected: Estimate) -> str:
    """Return the estimate as a person reads it."""
    from featcache.text import printable

    lines = [
        f"{expected.images} images: {expected.hits} cached, {expected.missing} to compute in about "
        f"{expected.seconds:.0f} s.",
        f"{printable(expected.cache)} would grow by {expected.bytes / 1e6:.1f} MB; "
        f"its disk has {expected.free_bytes / 1e6:.0f} MB free. Taps: {', '.join(expected.taps)}",
    ]
    return "\n".join([*lines, *(f"{note}." for note in expected.notes)])


def document(done: Extracted) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    return {
        "cache": done.cache,
        "images": done.images,
        "hits": done.hits,
        "computed": done.computed,
        "copies": done.copies,
        "failed": [{"path": one.path, "status": one.status, "reason": one.reason} for one in done.failed],
        "others": dict(done.others),
        "without_label": list(done.stray),
        "groups": asdict(done.groups),
        "remarks": list(done.remarks),
        "notes": list(done.notes),
        "taps": [
            {"tap": one.tap, "width": one.width, "precision": one.precision, "engine": one.engine} for one in done.taps
        ],
        "seconds": round(done.seconds, 3),
        "images_per_s": round(done.images_per_s, 2),
    }


def name_failures(done: Extracted) -> None:
    """Say on stderr which images were skipped, and why, and which groups and copies stand in several splits."""
    from featcache.text import printable

    for one in done.failed:
        say(f"skipped {printable(one.path)}: {one.status}, {printable(one.reason)}")
    for remark in (*done.remarks, *done.notes):
        say(printable(remark))


def text(done: Extracted, classes: Sequence[str]) -> str:
    """Return the result as a person reads it. classes: those of the cache."""
    from featcache.text import printable, table

    lines = [
        counts(done),
        table(["tap", "features", "engine"], [[one.tap, one.width, one.engine] for one in done.taps]),
        f"Cache: {printable(done.cache)}",
        _next(in_shell(done.cache), classes),
    ]
    if done.stray:
        lines.insert(1, f"{len(done.stray)} images beside the class folders have no label and are left out")
    if done.others:
        lines.insert(1, f"{sum(done.others.values())} files are no images by their suffix (featcache scan names them)")
    return "\n".join(lines)


def counts(done: Extracted) -> str:
    """Return how many images there were, and how fast they were computed."""
    from featcache.text import counted

    rate = f", {done.images_per_s:.1f} images/s" if done.computed else ""
    copies = f"{done.copies} {'copy' if done.copies == 1 else 'copies'}, " if done.copies else ""
    return (
        f"{counted(done.images, 'image')}: {done.hits} cached, {done.computed} computed, "
        f"{copies}{len(done.failed)} skipped; "
        f"{done.seconds:.1f} s{rate}"
    )


def _next(cache: str, classes: Sequence[str]) -> str:
    """Return the line that says what to do now; a sweep takes two classes."""
    if len(classes) > 1:
        return f"Next: featcache sweep {cache}, after featcache leaks if images may be there twice"
    labels = f"all labels are {classes[0]!r}" if classes else "no image has a label"
    return (
        f"Next: {labels}, so there is nothing to sweep. Look for copies: featcache leaks {cache}; use the features: "
        f"featcache cache export {cache} -o FILE.npz. When class folders or a table give the labels, extract again: no "
        "feature is computed twice"
    )
