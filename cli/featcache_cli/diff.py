"""featcache cache diff."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache_cli.output import LISTED, Json, emit

if TYPE_CHECKING:
    from featcache.cache.differing import CacheDifference, ImageDifference, TapDifference

DIFFERENT = 3  # exit code


def command(
    a: Annotated[Path, typer.Argument(metavar="A.h5", help="A cache: a file, or a folder of parts.")],
    b: Annotated[Path, typer.Argument(metavar="B.h5", help="Another cache.")],
    json: Json = False,
) -> None:
    """Show which images, labels, groups, splits and taps of two caches differ; exit 3 if any do.

    Features are compared by their fingerprints, and images by their paths and digests.

    Example: featcache cache diff old.h5 new.h5
    """
    from featcache.cache.differing import differences

    different = differences(a, b)
    emit(json, document(a, b, different), lambda: text(a, b, different))
    if different:
        raise typer.Exit(DIFFERENT)


def document(a: Path, b: Path, different: CacheDifference) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    taps = [
        {
            "tap": tap.tap,
            "facts": {name: {"a": first, "b": second} for name, (first, second) in tap.facts.items()},
            "rows": {"a": tap.rows[0], "b": tap.rows[1]},
        }
        for tap in different.taps
    ]
    return {
        "a": str(a),
        "b": str(b),
        "equal": not different,
        "images": {
            "only_in_a": list(different.images_only_in_a),
            "only_in_b": list(different.images_only_in_b),
            "changed": [image._asdict() for image in different.content],
        },
        "labels": [image._asdict() for image in different.labels],
        "groups": [image._asdict() for image in different.groups],
        "splits": [image._asdict() for image in different.splits],
        "taps": {
            "only_in_a": list(different.taps_only_in_a),
            "only_in_b": list(different.taps_only_in_b),
            "changed": taps,
        },
    }


def text(a: Path, b: Path, different: CacheDifference) -> str:
    """Return the result as a person reads it."""
    from featcache.text import printable

    if not different:
        return "Images, labels, groups, splits and taps are equal."
    lines: list[str] = []
    for cache, images, taps in (
        (a, different.images_only_in_a, different.taps_only_in_a),
        (b, different.images_only_in_b, different.taps_only_in_b),
    ):
        name = printable(str(cache))
        lines += _listed(f"Images only in {name}", images)
        lines += _listed(f"Taps only in {name}", taps)
    short = [image._replace(a=image.a[:12], b=image.b[:12]) for image in different.content]
    lines += _changes("Images with other bytes", short)
    lines += _changes("Other labels", different.labels)
    lines += _changes("Other groups", different.groups)
    lines += _changes("Other splits", different.splits)
    lines += [_tap(tap) for tap in different.taps]
    return "\n".join(lines)


def _listed(title: str, names: Sequence[str]) -> list[str]:
    from featcache.text import printable

    if not names:
        return []
    more = [f"  and {len(names) - LISTED} more: --json lists all"] if len(names) > LISTED else []
    return [f"{title}: {len(names)}", *(f"  {printable(name)}" for name in names[:LISTED]), *more]


def _changes(title: str, images: Sequence[ImageDifference]) -> list[str]:
    return _listed(title, [f"{image.path}: {image.a or 'none'} -> {image.b or 'none'}" for image in images])


def _tap(tap: TapDifference) -> str:
    """Return what differs in a tap."""
    from featcache.text import printable

    differing = [f"{name} ({first} -> {second})" for name, (first, second) in tap.facts.items()]
    if tap.rows[0] != tap.rows[1]:
        differing.append(f"images with features ({tap.rows[0]} -> {tap.rows[1]})")
    return printable(f"Tap {tap.tap}: {'; '.join(differing)}")
