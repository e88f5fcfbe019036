"""featcache scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.settings import ScanOptions, as_flags
from featcache_cli.options import in_flags
from featcache_cli.output import (
    Force,
    Json,
    Quiet,
    emit,
    failures_document,
    in_shell,
    path_document,
    progress,
    remarks_in_flags,
)

if TYPE_CHECKING:
    from featcache.images.groups import Groups
    from featcache.images.manifest import Images

Where = Annotated[
    Path,
    typer.Argument(
        help="Folder of class folders, of train/val/test folders, or of images; or an archive (.zip, .tar, .tar.gz), a "
        "manifest (.csv, .tsv, .parquet), arrays (.npz, .npy).",
    ),
]
FEW = 12  # most names in a line; --json lists all


def command(
    images: Where,
    options: ScanOptions,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one HTML file with a few images of each class to look at.")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a folder holds: classes, counts, sizes, unreadable files, duplicates.

    Example: featcache scan photos/
    """
    from featcache.images.manifest import scan

    if html is not None:
        from featcache.extras.report.gallery import check_gallery

        check_gallery(images, html, force=force)
    with progress(quiet) as draw:
        manifest = scan(images, check=True, progress=draw, **vars(options))
    if manifest.layout != "flat":
        manifest.require_classes()
    page = ""
    if html is not None:
        from featcache.extras.report.gallery import write_gallery
        from featcache.text import printable

        with progress(quiet) as draw:
            write_gallery(manifest, html, force=force, progress=draw)
        page = f"\nTo look at: {printable(str(html))}"
    facts = document(manifest) | {"html": path_document(html)}
    next_line = f"\nNext: {_next_command(images, options)}"
    emit(json, facts, lambda: text(manifest) + page + next_line)


def _next_command(images: Path, options: ScanOptions) -> str:
    """Return the extraction of the same images, listed and split by the same options."""
    words = ["featcache", "extract", images, "-o", cache_name(images), *as_flags(ScanOptions, vars(options))]
    return " ".join(map(in_shell, words))


def cache_name(images: Path) -> str:
    """Return the usual name of the cache of some images: photos.h5 of photos/, photos.csv and photos.tar.gz."""
    name = images.resolve().name.partition(".")[0] or "images"
    return f"{name}.h5"


def document(manifest: Images) -> dict[str, Any]:
    """Return the table of images as it stands in JSON."""
    sizes = {f"{width}x{height}": count for (width, height), count in (manifest.sizes or {}).items()}
    return {
        "images": len(manifest.rows),
        "layout": manifest.layout,
        "classes": dict(manifest.classes),
        "splits": dict(manifest.splits),
        "unreadable": failures_document(manifest.unreadable),
        "duplicates": manifest.duplicates,
        "crossing": manifest.crossing,
        "groups": asdict(manifest.groups),
        "remarks": remarks_in_flags(manifest.remarks),
        "notes": remarks_in_flags(manifest.notes),
        "gaps": manifest.gaps,
        "one_image": manifest.singles,
        "without_label": list(manifest.stray),
        "others": dict(manifest.others),
        "sizes": sizes,
    }


def text(manifest: Images) -> str:
    """Return the table of images as a person reads it."""
    from featcache.images.groups import crossing_remark
    from featcache.text import counted, printable, table

    lines = [f"{counted(len(manifest.rows), 'image')} in {printable(str(manifest.read_from))} ({manifest.layout})"]
    if manifest.classes:
        lines.append(table(*manifest.class_table()))
    if manifest.sizes:
        widths, heights = zip(*manifest.sizes, strict=True)
        lines.append(f"Sizes from {min(widths)} x {min(heights)} to {max(widths)} x {max(heights)} pixels.")
    end = ":" if manifest.unreadable else "."
    lines.append(f"{len(manifest.unreadable)} unreadable{end}")
    for image in manifest.unreadable:
        lines.append(f"  {printable(image.path)}: {image.status}, {in_flags(printable(image.reason))}")
    lines += [f"{note}." for note in remarks_in_flags(manifest.notes)]
    end = ":" if manifest.duplicates else "."
    lines.append(f"{counted(len(manifest.duplicates), 'image')} found more than once, byte for byte{end}")
    lines += [f"  {'  '.join(map(printable, same))}" for same in manifest.duplicates]
    if manifest.crossing:
        lines.append(
            f"{len(manifest.crossing)} of them stand in more than one split, so scores on those splits are too good."
        )
    lines.append("After the extraction, featcache leaks also finds resized and re-encoded copies.")
    if manifest.groups.count:
        lines.append(f"{_groups(manifest.groups)}.")
    lines += [f"{printable(remark)}." for remark in remarks_in_flags(manifest.remarks)]
    if crossing := crossing_remark(manifest.rows, manifest.given):
        lines.append(f"{in_flags(printable(crossing))}.")
    lines += _rare(manifest)
    if manifest.stray:
        lines.append(f"Left out, without a label: {counted(len(manifest.stray), 'image')} beside the class folders.")
    if manifest.others:
        suffixes = ", ".join(f"{printable(suffix)} {count}" for suffix, count in manifest.others.items())
        lines.append(f"Not images by their suffix: {counted(sum(manifest.others.values()), 'file')} ({suffixes}).")
    return "\n".join(lines)


def _rare(manifest: Images) -> list[str]:
    """Return a line on classes of one image, and a line on other classes that lack a split."""
    lines = []
    if manifest.singles:
        counts = f"{len(manifest.singles)} of {len(manifest.classes)} classes have one image only"
        lines.append(f"{counts}, which trains and cannot judge: {_first(manifest.singles)}.")
    # A class of one image lacks the other splits anyway: the first line has named it.
    known = tuple(f"{name} has no " for name in manifest.singles)
    gaps = [gap for gap in manifest.gaps if not gap.startswith(known)]
    if gaps:
        lines.append(f"Few images: {_first(gaps, '; ')}.")
    return lines


def _first(names: Sequence[str], between: str = ", ") -> str:
    """Return the first few of many names.

    >>> _first(["a", "b"]), _first([str(number) for number in range(40)])
    ('a, b', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 28 more')
    """
    from featcache.text import printable

    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return between.join(map(printable, names[:FEW])) + more


def _groups(groups: Groups) -> str:
    """Return how many groups there are and how large they are.

    >>> from featcache.images.groups import Groups
    >>> _groups(Groups(count=20, least=1, most=6, ungrouped=3, crossing=0))
    '20 groups, 1 to 6 images each; 3 images without a group'
    """
    from featcache.text import counted

    images = counted(groups.most, "image")
    if groups.least < groups.most:
        images = f"{groups.least} to {images}"
    text = f"{groups.count} groups, {images} each" if groups.count > 1 else f"1 group of {images}"
    if groups.ungrouped:
        text += f"; {counted(groups.ungrouped, 'image')} without a group"
    return text
