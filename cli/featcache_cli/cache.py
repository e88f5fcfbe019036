"""featcache cache."""

from __future__ import annotations

import json as json_text
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache import trust
from featcache.settings import WhyOptions
from featcache_cli.base import App
from featcache_cli.complete import SPLITS, words
from featcache_cli.output import Allow, Force, Json, emit

if TYPE_CHECKING:
    from featcache.extraction.recheck import Recomputed

app = App(
    help="What a cache holds, whether it is whole, and caches for others. Example: featcache cache info photos.h5"
)

CacheFile = Annotated[Path, typer.Argument(metavar="CACHE.h5", help="A cache: a file, or a folder of parts.")]


@app.command("info")
def info_command(cache: CacheFile, json: Json = False) -> None:
    """Show images, splits and taps of a cache.

    Example: featcache cache info photos.h5
    """
    from featcache.cache.reader import Cache, stored_rows
    from featcache.text import counted, printable, table

    found = Cache.open(cache)
    stored = list(stored_rows(cache).values())
    taps = [
        json_text.loads(one.tap.to_json())
        | {
            "fingerprint": one.tap.fingerprint,
            "rows": len(one.at),
            "shape": list(one.shape),
            "made_by": [json_text.loads(maker) for maker in one.makers],
        }
        for one in stored
    ]
    outcomes = Counter(review.outcome for review in found.changes.reviews)
    facts = {
        "cache": str(cache),
        "root": str(found.root),
        "images": len(found.rows),
        "failed": [{"path": one.path, "status": one.status, "reason": one.reason} for one in found.failures],
        "classes": list(found.classes),
        "splits": dict(found.splits),
        "reviewed": dict(outcomes),
        "split_spec": asdict(found.split_spec),
        "taps": taps,
    }

    def text() -> str:
        splits = ", ".join(f"{count} {name}" for name, count in found.splits.items()) or "no labels"
        root = printable(str(found.root))
        head = f"{counted(len(found.rows), 'image')} of {root}, {len(found.failures)} without features; {splits}"
        rows = [
            [
                one.tap.name,
                len(one.at),
                "x".join(map(str, one.shape)),
                f"{one.row_bytes * len(one.at) / 1e6:.1f}",
                one.tap.precision,
                one.tap.fingerprint[:12],
            ]
            for one in stored
        ]
        reviewed = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        head += f"\nLabels reviewed: {reviewed}" if reviewed else ""
        return "\n".join([head, table(["tap", "rows", "features", "MB", "precision", "fingerprint"], rows)])

    emit(json, facts, text)


@app.command("verify")
def verify_command(
    cache: CacheFile,
    recompute: Annotated[
        int, typer.Option("--recompute", min=0, help="Also compute this many images of every tap again and compare.")
    ] = 0,
    allow: Allow = None,
    json: Json = False,
) -> None:
    """Check that every byte is what was written; exit 4 if not.

    Example: featcache cache verify photos.h5 --recompute 32
    """
    from featcache.cache.check import verify
    from featcache.cache.reader import Cache
    from featcache.errors import NotACache
    from featcache.text import printable

    trust.allow(*(allow or ()))
    found = verify(cache)
    if found.problems:
        raise NotACache("; ".join(found.problems))
    facts = {"cache": str(cache), "files": found.files, "rows": found.rows, "recomputed": []}
    lines = [f"{printable(str(cache))}: {found.rows} rows in {found.files} files are what was written."]
    if recompute:
        from featcache.extraction.recheck import recompute as compute_again

        opened = Cache.open(cache)
        again = compute_again(opened, recompute)
        facts["recomputed"] = [asdict(one) for one in again]
        lines += [
            f"{one.tap}: {one.rows} images computed again differ by {one.difference:.1e} standard deviations at most"
            if one.rows
            else f"{one.tap}: none of the images of the last extraction is in this tap, so nothing was compared"
            for one in again
        ]
        wrong = [one for one in again if not one.agrees(opened.taps[one.tap].precision)]
        if wrong:
            raise NotACache(f"{cache}: {_apart(wrong[0])}. Bring it up to date: featcache extract")
    emit(json, facts, lambda: "\n".join(lines))


def _apart(found: Recomputed) -> str:
    """Return in what a tap is not what is computed now."""
    if found.changed:
        return f"{len(found.changed)} images of tap '{found.tap}' are gone or others, such as {found.changed[0]}"
    return f"tap '{found.tap}' is {found.difference:.2g} standard deviations off what is computed now"


@app.command("why")
def why_command(
    cache: CacheFile,
    file: Annotated[Path, typer.Argument(help="An image file, or an image as the cache names it.")],
    options: WhyOptions,
    json: Json = False,
) -> None:
    """Say whether an extraction would compute this file, and why.

    Example: featcache cache why photos.h5 photos/roses/1.jpg
    """
    from featcache.cache.check import why
    from featcache.cache.reader import Cache
    from featcache.images.sources import open_source
    from featcache.text import printable

    opened = Cache.open(cache)
    found = why(opened, file, lambda path: open_source(opened.root).read(path))
    missing: list[str] = []
    if options.backbone is not None:
        from featcache.extraction import Options
        from featcache.extraction.recheck import lacking

        asked = Options(**vars(options))
        for request in asked.requests():
            missing += lacking(request, opened)
    reviews = [review._asdict() | {"outcome": review.outcome} for review in found.reviews]
    facts = {"file": str(file), **asdict(found), "reviews": reviews, "lacking": missing}

    def text() -> str:
        names = ", ".join(map(printable, found.same)) or "none"
        lines = [f"{printable(str(file))}: {found.digest[:12]}; images of the cache with these bytes: {names}"]
        lines += [f"{'hit ' if one.hit else 'miss'}  {one.tap}: {printable(one.reason)}" for one in found.taps]
        lines += [f"miss  {one}" for one in missing]
        for review in found.reviews:
            change = f" to '{review.new_label}'" if review.outcome == "changed" else ""
            reviewed = f"Label '{review.label}' was {review.outcome}{change} by a review on {review.at[:10]}"
            lines.append(printable(reviewed))
        return "\n".join(lines)

    emit(json, facts, text)


@app.command("merge")
def merge_command(
    caches: Annotated[list[Path], typer.Argument(metavar="CACHE.h5...", help="The caches to put together.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The cache to write.")],
    force: Force = False,
    json: Json = False,
) -> None:
    """Put the caches of several machines together.

    Example: featcache cache merge one.h5 two.h5 -o both.h5
    """
    from featcache.cache.exchange import merge_caches
    from featcache.text import counted, printable

    merged = merge_caches(caches, out, force=force)
    facts = {"cache": str(out), "images": len(merged.rows), "taps": list(merged.taps)}
    emit(
        json,
        facts,
        lambda: (
            f"{counted(len(merged.rows), 'image')}, {counted(len(merged.taps), 'tap')}. Cache: {printable(str(out))}"
        ),
    )


@app.command("export")
def export_command(
    cache: CacheFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="A file that ends in .npz or .parquet.")],
    force: Force = False,
    tap: Annotated[str | None, typer.Option("--tap", help="Which tap. [default: the only one]")] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="train, val or test. [default: all images]", autocompletion=words(*SPLITS)),
    ] = None,
    json: Json = False,
) -> None:
    """Write the features with labels, splits and paths for NumPy or pandas.

    Example: featcache cache export photos.h5 -o photos.npz
    """
    from featcache.cache.exchange import export
    from featcache.cache.reader import Cache
    from featcache.text import printable

    rows = export(Cache.open(cache), out, tap, split, force=force)
    emit(json, {"file": str(out), "rows": rows}, lambda: f"{rows} rows. File: {printable(str(out))}")
