"""featcache extract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli.output import Force, Json, Quiet, Trust, emit, in_shell, progress, say, without_download
from featcache_cli.scan import AllowOutside, GroupFrom, LabelColumn, PathColumn, Split, Where

if TYPE_CHECKING:
    from featcache.extraction import Estimate, Extracted


def command(
    images: Where,
    out: Annotated[Path, typer.Option("--out", "-o", help="The cache to make or bring up to date.")],
    force: Force = False,
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone", "-b", help="Names, options behind: mobilenet_v2:alpha=0.35,resnet50; or a model file"
        ),
    ] = "mobilenet_v2",
    tap: Annotated[
        str, typer.Option("--tap", help="Layers to read, comma between them; top is the last, auto one per block.")
    ] = "top",
    trust: Trust = False,
    pool: Annotated[str | None, typer.Option("--pool", help="avg, max, flatten or none. [default: avg]")] = None,
    size: Annotated[int | None, typer.Option("--size", help="Pixels a side. [default: the backbone's own]")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="imagenet, none (random) or a file. [default: imagenet]")
    ] = None,
    views: Annotated[
        str, typer.Option("--views", help="1, flip, or a number: the image, its mirror image, and seeded crops.")
    ] = "1",
    precision: Annotated[
        str, typer.Option("--precision", help="Of the network: float32, bfloat16 or float16")
    ] = "float32",
    dtype: Annotated[str, typer.Option("--dtype", help="Of stored features: float32 or float16.")] = "float32",
    engine: Annotated[
        str, typer.Option("--engine", help="auto, keras or openvino: auto takes what is faster and agrees with Keras.")
    ] = "auto",
    device: Annotated[
        str, typer.Option("--device", help="auto (all GPUs there are), cpu, gpu, or names: gpu:0,gpu:1")
    ] = "auto",
    resize: Annotated[str, typer.Option("--resize", help="stretch, crop or pad to a square.")] = "stretch",
    decode: Annotated[
        str, typer.Option("--decode", help="exact, or draft: large JPEGs at reduced scale, which is faster.")
    ] = "exact",
    bits: Annotated[
        int | None,
        typer.Option("--bits", help="Of 16-bit images, how many are in use: 12 where 4095 is white. [default: 16]"),
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="Images through the backbone at once, or auto.")] = "auto",
    layout: Annotated[
        str | None, typer.Option("--layout", help="file: one CACHE.h5; parts: a folder. [default: file]")
    ] = None,
    split: Split = None,
    group_from: GroupFrom = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the split. [default: 0]")] = None,
    allow_outside: AllowOutside = False,
    label_column: LabelColumn = None,
    path_column: PathColumn = None,
    apply: Annotated[
        Path | None, typer.Option("--apply", help="Labels as a reviewed CSV of featcache leaks --labels decides.")
    ] = None,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read every image again, and check every row; compute damaged ones again.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say what is missing, and what it would cost.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 4 if an image cannot be used.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run backbones once over the images and cache their features; compute only what is missing.

    Example: featcache extract photos/ -o photos.h5 -b mobilenet_v2
    """
    from featcache.extraction import Options, estimate, extract

    given = dict(locals())
    options = {name: given[name] for name in Options.__dataclass_fields__ if name in given}
    advice = "use -b glyphnet (needs no download) or --weights none (random)"
    with progress(quiet) as draw, without_download(advice):
        if dry_run:
            expected = estimate(images, out=out, progress=draw, **options)
            emit(json, asdict(expected), lambda: forecast(expected))
            return
        cache = extract(images, out=out, force=force, progress=draw, **options)
    name_failures(cache.report)
    emit(json, document(cache.report), lambda: text(cache.report, cache.classes))


def forecast(expected: Estimate) -> str:
    """Return the estimate as a person reads it."""
    from featcache.text import counted, printable

    lines = [
        f"{counted(expected.images, 'image')}: {expected.hits} cached, {expected.missing} to compute in about "
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
    from featcache.text import counted, printable, table

    lines = [
        counts(done),
        table(["tap", "features", "engine"], [[one.tap, one.width, one.engine] for one in done.taps]),
        f"Cache: {printable(done.cache)}",
        _next(in_shell(done.cache), classes),
    ]
    if done.stray:
        lines.insert(1, f"Left out, without a label: {counted(len(done.stray), 'image')} beside the class folders")
    if done.others:
        num_others = counted(sum(done.others.values()), "file")
        lines.insert(1, f"{num_others} not of an image by suffix (featcache scan names them)")
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
