"""featcache scan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache.settings import ScanOptions
from featcache_cli.output import Force, Json, Quiet, emit, progress

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
FEW = 12  # names that a line has; --json has all


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
    """Say what is there: classes, counts, sizes, unreadable files, duplicates.

    Example: featcache scan photos/
    """
    from featcache.images.manifest import scan

    if html is not None:
        from featcache.extras.report.gallery import check_gallery

        check_gallery(images, html, force=force)
    with progress(quiet) as draw:
        found = scan(images, check=True, progress=draw, **vars(options))
    if found.layout != "flat":
        found.require_classes()
    page = "" if html is None else _write_page(found, html, force, quiet)
    emit(json, document(found) | {"html": None if html is None else str(html)}, lambda: text(found) + page)


def _write_page(found: Images, html: Path, force: bool, quiet: bool) -> str:
    """Write the page and return the line that says where it is."""
    from featcache.extras.report.gallery import write_gallery
    from featcache.text import printable

    with progress(quiet) as draw:
        write_gallery(found, html, force=force, progress=draw)
    return f"\nTo look at: {printable(str(html))}"


def document(found: Images) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    return {
        "images": len(found.rows),
        "layout": found.layout,
        "classes": dict(found.classes),
        "splits": dict(found.splits),
        "unreadable": [{"path": one.path, "status": one.status, "reason": one.reason} for one in found.unreadable],
        "duplicates": found.duplicates,
        "crossing": found.crossing,
        "groups": asdict(found.groups),
        "remarks": list(found.remarks),
        "notes": found.notes,
        "gaps": found.gaps,
        "one_image": found.singles,
        "without_label": list(found.stray),
        "others": dict(found.others),
        "sizes": {f"{width}x{height}": count for (width, height), count in (found.sizes or {}).items()},
    }


def text(found: Images) -> str:
    """Return the result as a person reads it."""
    from featcache.images.groups import crossing_remark
    from featcache.spec import SPLITS
    from featcache.text import counted, printable, table

    lines = [f"{counted(len(found.rows), 'image')} in {printable(str(found.read_from))} ({found.layout})"]
    if found.classes:
        split_names = [name for name in SPLITS if name in found.splits]
        counts = {(row.label, row.split): 0 for row in found.rows}
        for row in found.rows:
            counts[row.label, row.split] += 1
        rows = [
            [name, total, *(counts.get((name, one), 0) for one in split_names)] for name, total in found.classes.items()
        ]
        rows.append(["all", sum(found.classes.values()), *(found.splits[one] for one in split_names)])
        lines.append(table(["class", "images", *split_names], rows))
    if found.sizes:
        widths, heights = zip(*found.sizes, strict=True)
        lines.append(f"Sizes from {min(widths)} x {min(heights)} to {max(widths)} x {max(heights)} pixels.")
    lines.append(f"{len(found.unreadable)} unreadable" + (":" if found.unreadable else "."))
    lines += [f"  {printable(one.path)}: {one.status}, {printable(one.reason)}" for one in found.unreadable]
    lines += [f"{note}." for note in found.notes]
    lines.append(f"{counted(len(found.duplicates), 'image')} found more than once" + (":" if found.duplicates else "."))
    lines += [f"  {'  '.join(map(printable, same))}" for same in found.duplicates]
    if found.crossing:
        lines.append(
            f"{len(found.crossing)} of them stand in more than one split, so scores on those splits are too good."
        )
    if found.groups.count:
        lines.append(f"{_groups(found.groups)}.")
    lines += [f"{printable(remark)}." for remark in found.remarks]
    if crossing := crossing_remark(found.rows, found.given):
        lines.append(f"{printable(crossing)}.")
    lines += _rare(found)
    if found.stray:
        lines.append(f"Left out, without a label: {counted(len(found.stray), 'image')} beside the class folders.")
    if found.others:
        suffixes = ", ".join(f"{printable(suffix)} {count}" for suffix, count in found.others.items())
        lines.append(f"{counted(sum(found.others.values()), 'file')} not of an image by suffix: {suffixes}.")
    return "\n".join(lines)


def _rare(found: Images) -> list[str]:
    """Return a line on classes of one image, and one on other classes that lack a split."""
    lines = []
    if found.singles:
        lines.append(
            f"{len(found.singles)} of {len(found.classes)} classes have one image only, which trains and cannot judge: "
            f"{_first(found.singles)}."
        )
    of_singles = tuple(f"{name} has no " for name in found.singles)
    gaps = [gap for gap in found.gaps if not gap.startswith(of_singles)]
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

    sizes = str(groups.most) if groups.least == groups.most else f"{groups.least} to {groups.most}"
    images = "image" if sizes == "1" else "images"
    text = f"{groups.count} groups, {sizes} {images} each" if groups.count > 1 else f"1 group of {sizes} {images}"
    return f"{text}; {counted(groups.ungrouped, 'image')} without a group" if groups.ungrouped else text
