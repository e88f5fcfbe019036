"""featcache cache."""

from __future__ import annotations

import json as json_text
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache import trust
from featcache.settings import WhyOptions
from featcache.text import counts_text
from featcache_cli import diff, gc
from featcache_cli.base import App
from featcache_cli.complete import SPLITS, words
from featcache_cli.options import in_flags
from featcache_cli.output import Allow, Force, Json, emit, failures_document, path_document

if TYPE_CHECKING:
    from featcache.cache.rows import TapRows
    from featcache.extraction.recheck import Recomputed

app = App(
    help="Show, check, compare, merge and export caches; the folder of kept networks. "
    "Example: featcache cache info photos.h5"
)

CacheFile = Annotated[Path, typer.Argument(metavar="CACHE.h5", help="A cache: a file, or a folder of parts.")]


@app.command("info")
def info_command(cache: CacheFile, json: Json = False) -> None:
    """Show images, splits and taps of a cache.

    Example: featcache cache info photos.h5
    """
    from featcache.cache.reader import Cache, stored_rows
    from featcache.cache.rows import tap_table
    from featcache.text import printable, table

    opened = Cache.open(cache)
    stored_taps = list(stored_rows(cache).values())
    outcomes = Counter(review.outcome for review in opened.changes.reviews)
    facts = {
        "cache": str(cache),
        "root": str(opened.root),
        "images": len(opened.rows),
        "failed": failures_document(opened.failures),
        "classes": list(opened.classes),
        "splits": dict(opened.splits),
        "reviewed": dict(outcomes),
        "split_spec": asdict(opened.split_spec),
        "taps": [_tap_document(stored) for stored in stored_taps],
    }

    def text() -> str:
        lines = [printable(opened.summary)]
        if outcomes:
            lines.append(f"Labels reviewed: {counts_text(dict(sorted(outcomes.items())))}")
        lines.append(table(*tap_table(stored_taps)))
        return "\n".join(lines)

    emit(json, facts, text)


def _tap_document(stored: TapRows) -> dict[str, Any]:
    """Return a tap, its rows and what made them as they stand in JSON."""
    return {
        **json_text.loads(stored.tap.to_json()),
        "fingerprint": stored.tap.fingerprint,
        "rows": len(stored.at),
        "shape": list(stored.shape),
        "made_by": [json_text.loads(maker) for maker in stored.makers],
    }


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
    from featcache.text import counted, printable

    trust.allow(*(allow or ()))
    verified = verify(cache)
    if verified.problems:
        raise NotACache("; ".join(verified.problems))
    facts = {"cache": str(cache), "files": verified.files, "rows": verified.rows, "recomputed": []}
    rows = f"{counted(verified.rows, 'row')} in {counted(verified.files, 'file')}"
    lines = [f"{printable(str(cache))}: {rows}, as they were written."]
    if recompute:
        from featcache.extraction.recheck import recompute as compute_again

        opened = Cache.open(cache)
        comparisons = compute_again(opened, recompute)
        for comparison in comparisons:
            if not comparison.agrees(opened.taps[comparison.tap].precision):
                raise NotACache(
                    f"{cache}: {_disagreement(comparison)}. Bring it up to date: repeat the featcache extract that "
                    "made it"
                )
        facts["recomputed"] = [asdict(comparison) for comparison in comparisons]
        lines += [_agreement(comparison) for comparison in comparisons]
    emit(json, facts, lambda: "\n".join(lines))


def _agreement(comparison: Recomputed) -> str:
    """Return how close the stored features of a tap are to the features computed now."""
    from featcache.text import counted

    if not comparison.rows:
        return f"{comparison.tap}: none of the images of the last extraction is in this tap, so nothing was compared"
    images = counted(comparison.rows, "image")
    return f"{comparison.tap}: {images} computed again, at most {comparison.difference:.1e} standard deviations apart"


def _disagreement(comparison: Recomputed) -> str:
    """Return how the stored features of a tap differ from the features computed now."""
    tap, changed = comparison.tap, comparison.changed
    if changed:
        return f"{len(changed)} images of tap '{tap}' are gone or have changed, such as {changed[0]}"
    return f"tap '{tap}' is {comparison.difference:.2g} standard deviations off what is computed now"


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
    explanation = why(opened, file, lambda path: open_source(opened.root).read(path))
    missing: list[str] = []
    if options.backbone is not None:
        from featcache.extraction import Options
        from featcache.extraction.recheck import lacking

        for request in Options(**vars(options)).requests():
            missing += lacking(request, opened)
    reviews = [review._asdict() | {"outcome": review.outcome} for review in explanation.reviews]
    taps = [asdict(tap) | {"reason": in_flags(tap.reason)} for tap in explanation.taps]
    facts = {"file": str(file), **asdict(explanation), "taps": taps, "reviews": reviews, "lacking": missing}

    def text() -> str:
        names = ", ".join(map(printable, explanation.same)) or "none"
        lines = [f"{printable(str(file))}: {explanation.digest[:12]}; images of the cache with these bytes: {names}"]
        for tap in explanation.taps:
            lines.append(f"{'hit ' if tap.hit else 'miss'}  {tap.tap}: {in_flags(printable(tap.reason))}")
        lines += [f"miss  {tap}" for tap in missing]
        for review in explanation.reviews:
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
    contents = f"{counted(len(merged.rows), 'image')}, {counted(len(merged.taps), 'tap')}"
    emit(json, facts, lambda: f"{contents}. Cache: {printable(str(out))}")


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
    from featcache.text import counted, printable

    rows = export(Cache.open(cache), out, tap, split, force=force)
    emit(json, {"file": str(out), "rows": rows}, lambda: f"{counted(rows, 'row')}. File: {printable(str(out))}")


app.command("gc")(gc.command)
app.command("diff")(diff.command)


@app.command("dir")
def dir_command(json: Json = False) -> None:
    """Show the folder of networks and digests that a later command starts with.

    All of it can be made again, 8-bit networks from the same images. FEATCACHE_HOME names another folder; set to
    nothing, it turns the folder off.

    Example: featcache cache dir
    """
    from featcache import home

    folder = home.home()
    emit(json, {"folder": path_document(folder)}, lambda: "turned off" if folder is None else str(folder))


@app.command("size")
def size_command(json: Json = False) -> None:
    """Show how much that folder holds.

    Example: featcache cache size
    """
    from featcache import home
    from featcache.text import counted, printable

    folder = home.home()
    entries = home.entries()
    num_bytes = sum(entry.num_bytes for entry in entries)
    facts = {"folder": path_document(folder), "files": len(entries), "bytes": num_bytes}

    def text() -> str:
        if folder is None:
            return "turned off"
        return f"{counted(len(entries), 'file')}, {num_bytes / 1e6:.1f} MB in {printable(str(folder))}"

    emit(json, facts, text)


@app.command("prune")
def prune_command(
    days: Annotated[
        float, typer.Option("--days", min=0, help="Remove only what was not used for this many days.")
    ] = 30.0,
    json: Json = False,
) -> None:
    """Remove what was not used for a month; with --days 0, everything.

    Later commands make what they need again, 8-bit networks from the same images.

    Example: featcache cache prune --days 0
    """
    from featcache import home
    from featcache.text import counted

    pruned = home.prune(days)
    num_bytes = sum(entry.num_bytes for entry in pruned)
    facts = {"files": len(pruned), "bytes": num_bytes}
    emit(json, facts, lambda: f"Removed {counted(len(pruned), 'file')}, {num_bytes / 1e6:.1f} MB")
