"""featcache extract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli.output import Json, Quiet, emit, progress, say
from featcache_cli.scan import GroupFrom, Split

if TYPE_CHECKING:
    from featcache.extraction import Extracted


def command(
    images: Annotated[Path, typer.Argument(help="Folder of class folders, of train/val/test folders, or of images.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The cache to make or bring up to date.")],
    backbone: Annotated[
        str, typer.Option("--backbone", "-b", help="Names, with options: mobilenet_v2:alpha=0.35,resnet50")
    ] = "mobilenet_v2",
    tap: Annotated[str, typer.Option("--tap", help="Layers to read, comma between them; top is the last.")] = "top",
    pool: Annotated[str | None, typer.Option("--pool", help="avg, max or flatten. [default: avg]")] = None,
    size: Annotated[int | None, typer.Option("--size", help="Pixels a side. [default: the backbone's own]")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="imagenet, none (random) or a file. [default: imagenet]")
    ] = None,
    resize: Annotated[str, typer.Option("--resize", help="stretch, crop or pad to a square.")] = "stretch",
    batch: Annotated[int, typer.Option("--batch", help="Images through the backbone at once.")] = 32,
    split: Split = None,
    group_from: GroupFrom = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the split. [default: 0]")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 4 if an image cannot be used.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run backbones once over the images and cache their features; compute only what is missing.

    Example: featcache extract photos/ -o photos.h5 -b mobilenet_v2
    """
    from featcache.extraction import extract

    with progress(quiet) as draw:
        cache = extract(
            images,
            backbone,
            out=out,
            tap=tap,
            weights=weights,
            size=size,
            pool=pool,
            resize=resize,
            split=split,
            group_from=group_from,
            seed=seed,
            batch=batch,
            strict=strict,
            progress=draw,
        )
    name_failures(cache.report)
    emit(json, document(cache.report), lambda: text(cache.report))


def document(done: Extracted) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    return {
        "cache": done.cache,
        "images": done.images,
        "hits": done.hits,
        "computed": done.computed,
        "failed": [{"path": one.path, "status": one.status, "reason": one.reason} for one in done.failed],
        "taps": [
            {"tap": one.tap, "width": one.width, "precision": one.precision, "engine": one.engine} for one in done.taps
        ],
        "seconds": round(done.seconds, 3),
        "images_per_s": round(done.images_per_s, 2),
    }


def name_failures(done: Extracted) -> None:
    """Say on stderr which images were skipped, and why."""
    from featcache.reports.table import printable

    for one in done.failed:
        say(f"skipped {printable(one.path)}: {one.status}, {printable(one.reason)}")


def text(done: Extracted) -> str:
    """Return the result as a person reads it."""
    from featcache.reports.table import printable, table

    rate = f", {done.images_per_s:.1f} images/s" if done.computed else ""
    lines = [
        f"{done.images} images: {done.hits} cached, {done.computed} computed, {len(done.failed)} skipped; "
        f"{done.seconds:.1f} s{rate}",
        table(["tap", "features", "engine"], [[one.tap, one.width, one.engine] for one in done.taps]),
        f"Cache: {printable(done.cache)}",
        f"Next: featcache sweep {printable(done.cache)}",
    ]
    return "\n".join(lines)
