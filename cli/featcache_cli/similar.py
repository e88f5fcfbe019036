"""featcache similar."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featcache import trust
from featcache.settings import SimilarOptions
from featcache_cli.output import Allow, Force, Json, Quiet, emit, path_document, progress

if TYPE_CHECKING:
    from featcache.extras.similar import Similar


def command(
    cache: Annotated[Path, typer.Argument(metavar="CACHE.h5", help="The cache with the images to compare with.")],
    query: Annotated[str, typer.Argument(help="A photo, in the cache or not; or the path of an image in the cache.")],
    options: SimilarOptions,
    html: Annotated[Path | None, typer.Option("--html", help="Write one HTML file with the pictures.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the list to this CSV file.")] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="With --html: where the images are now, if they have moved.")
    ] = None,
    allow: Allow = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the images of a cache that look most like a photo, by the cosine of their features.

    Example: featcache similar photos.h5 photo.jpg --html similar.html
    """
    from featcache.cache.reader import Cache
    from featcache.extras.similar import check_similar_csv, similar, write_similar_csv
    from featcache.text import printable

    trust.allow(*(allow or ()))
    opened = Cache.open(cache)
    # Files that must be kept are refused before anything is computed.
    if csv is not None:
        check_similar_csv(opened, query, csv, force=force)
    if html is not None:
        from featcache.extras.similar.similar_page import check_similar_page, write_similar_page

        check_similar_page(opened, query, html, force=force)
    with progress(quiet) as draw:
        result = similar(opened, query, progress=draw, **vars(options))
        if csv is not None:
            write_similar_csv(result, csv, force=force)
        if html is not None:
            write_similar_page(result, html, images=images, force=force, progress=draw)
    facts = document(result) | {"csv": path_document(csv), "html": path_document(html)}
    lines = [f"To look at: {printable(str(html))}"] if html is not None else []
    lines += [f"Table: {printable(str(csv))}"] if csv is not None else []
    emit(json, facts, lambda: "\n".join([text(result), *lines]))


def document(result: Similar) -> dict[str, Any]:
    """Return the result as it stands in JSON."""
    return {
        "cache": str(result.cache),
        "tap": result.tap,
        "query": result.query,
        "compared": result.compared,
        "computed": result.computed,
        "similar": [asdict(image) for image in result.images],
    }


def text(result: Similar) -> str:
    """Return the result as a person reads it."""
    from featcache.text import counted, table

    images = counted(result.compared, "image")
    if not result.images:
        return "There is no other image to compare with."
    rows = [[image.path, image.label, image.split, f"{image.similarity:.3f}"] for image in result.images]
    return f"Nearest of {images} by {result.tap}:\n" + table(["image", "label", "split", "similarity"], rows)
