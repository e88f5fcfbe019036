"""featcache extract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.settings import ExtractOptions
from featcache_cli.options import in_flags
from featcache_cli.output import (
    Force,
    Json,
    Quiet,
    emit,
    failures_document,
    in_shell,
    progress,
    remarks_in_flags,
    say,
    without_download,
)
from featcache_cli.scan import Where

if TYPE_CHECKING:
    from featcache.extraction import Estimate, Extracted


def command(
    images: Where,
    out: Annotated[Path, typer.Option("--out", "-o", help="The cache to make or bring up to date.")],
    options: ExtractOptions,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only print what is missing and what it would cost.")
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
            plan = estimate(images, out=out, progress=draw, **vars(options))
            facts = asdict(plan) | {"notes": remarks_in_flags(plan.notes)}
            emit(json, facts, lambda: forecast(plan))
            return
        cache = extract(images, out=out, force=force, progress=draw, **vars(options))
    name_failures(cache.report)
    emit(json, document(cache.report), lambda: text(cache.report, cache.classes))


def forecast(plan: Estimate) -> str:
    """Return the estimate as a person reads it."""
    from featcache.text import counted, printable

    images = counted(plan.images, "image")
    growth = f"{printable(plan.cache)} would grow by {plan.bytes / 1e6:.1f} MB"
    lines = [
        f"{images}: {plan.hits} cached, {plan.missing} to compute in about {plan.seconds:.0f} s.",
        f"{growth}; its disk has {plan.free_bytes / 1e6:.0f} MB free. Taps: {', '.join(plan.taps)}",
    ]
    lines += [f"{note}." for note in remarks_in_flags(plan.notes)]
    return "\n".join(lines)


def document(report: Extracted) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    return {
        "cache": report.cache,
        "images": report.images,
        "hits": report.hits,
        "computed": report.computed,
        "copies": report.copies,
        "failed": failures_document(report.failed),
        "others": dict(report.others),
        "without_label": list(report.stray),
        "groups": asdict(report.groups),
        "remarks": remarks_in_flags(report.remarks),
        "notes": remarks_in_flags(report.notes),
        "taps": [
            {"tap": tap.tap, "width": tap.width, "precision": tap.precision, "engine": tap.engine}
            for tap in report.taps
        ],
        "seconds": round(report.seconds, 3),
        "images_per_s": round(report.images_per_s, 2),
    }


def name_failures(report: Extracted) -> None:
    """Print on stderr which images were skipped, and why, and which groups and copies are in several splits."""
    from featcache.text import printable

    for image in report.failed:
        say(f"skipped {printable(image.path)}: {image.status}, {in_flags(printable(image.reason))}")
    for remark in (*report.remarks, *report.notes):
        say(in_flags(printable(remark)))


def text(report: Extracted, classes: Sequence[str]) -> str:
    """Return the result as a person reads it. classes: the classes of the cache."""
    from featcache.text import counted, printable, table

    lines = [counts(report)]
    if report.others:
        num_others = counted(sum(report.others.values()), "file")
        lines.append(f"Not images by their suffix: {num_others} (featcache scan lists the suffixes)")
    if report.stray:
        lines.append(f"Left out, without a label: {counted(len(report.stray), 'image')} beside the class folders")
    rows = [[tap.tap, tap.width, tap.engine] for tap in report.taps]
    lines.append(table(["tap", "features", "engine"], rows))
    lines.append(f"Cache: {printable(report.cache)}")
    lines += _next(report.cache, report.taps[0].tap, classes)
    return "\n".join(lines)


def counts(report: Extracted) -> str:
    """Return the numbers of images, cached, computed and skipped, and the speed."""
    from featcache.text import counted

    parts = [f"{report.hits} cached", f"{report.computed} computed"]
    if report.copies:
        noun = "copy" if report.copies == 1 else "copies"
        parts.append(f"{report.copies} {noun}")
    parts.append(f"{len(report.failed)} skipped")
    rate = f", {report.images_per_s:.1f} images/s" if report.computed else ""
    return f"{counted(report.images, 'image')}: {', '.join(parts)}; {report.seconds:.1f} s{rate}"


def _next(cache: str, tap: str, classes: Sequence[str]) -> list[str]:
    """Return the lines with the next command. A sweep needs two classes."""
    path = in_shell(cache)
    if len(classes) > 1:
        return [
            f"If the same photo may be there twice, resized or saved again, look first: featcache leaks {path}",
            f"Next: featcache sweep {path}",
        ]
    labels = f"all labels are {classes[0]!r}" if classes else "no image has a label"
    exported = in_shell(Path(cache).with_suffix(".npz"))
    return [
        f"There is nothing to sweep, since {labels}. When class folders or a table give the labels, extract again: no "
        "feature is computed twice.",
        f"To use the features: featcache cache export {path} -o {exported} --tap {in_shell(tap)}",
        f"Next: featcache leaks {path}",
    ]
