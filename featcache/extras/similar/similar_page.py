"""One HTML file with a query and the images that are nearest to it. It needs no other file and runs no script."""

from __future__ import annotations

from pathlib import Path

from featcache.cache.reader import Cache
from featcache.extras.report.pictures import bits_of, picture, pictures_of, source_of
from featcache.extras.report.templates import has_mark, page_text, templates
from featcache.extras.similar.searching import Similar
from featcache.files import write_whole
from featcache.images.folder import FolderSource
from featcache.images.sources import Source
from featcache.outputs import Kind, check_output
from featcache.spec import ImageRow, Progress, silent
from featcache.text import printable

MARK = b'<meta name="generator" content="featcache similar">'
SIMILAR_PAGE = Kind("page of featcache similar", lambda path: has_mark(path, MARK))


def check_similar_page(cache: Cache, query: str | Path, out: str | Path, *, force: bool = False) -> None:
    """Raise early what `write_similar_page` would raise: UsageError, DiskFault."""
    check_output(Path(out), SIMILAR_PAGE, inputs=[cache.path, cache.root, Path(query)], force=force)


def write_similar_page(
    result: Similar,
    out: str | Path,
    *,
    images: str | Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> None:
    """Write the page.

    images: where the images of the cache lie now, if they have moved. force: replace what lies at `out` even if it is
    no such page. Raises UsageError, DiskFault, NoImages if there is nothing at `images`.
    """
    from markupsafe import Markup

    cache = Cache.open(result.cache)
    check_similar_page(cache, result.query, out, force=force)
    source = source_of(cache, images)
    row_of = {row.path: row for row in cache.rows}
    pictures = pictures_of(source, [row_of[image.path] for image in result.images], bits_of(cache), progress)
    cells = []
    for image, data in zip(result.images, pictures, strict=True):
        cells.append(
            {
                "path": printable(image.path),
                "label": printable(image.label),
                "split": image.split,
                "similarity": image.similarity,
                "data": data,
            }
        )
    page = (
        templates()
        .get_template("similar.html")
        .render(
            name=printable(cache.path.name),
            query=printable(result.query),
            query_data=_picture_of_query(result, source, bits_of(cache)),
            tap=printable(result.tap),
            compared=result.compared,
            cells=cells,
            style=Markup(page_text("page.css")),
        )
    )
    # Again, because making pictures takes a while and another file may lie there by now.
    check_similar_page(cache, result.query, out, force=force)
    write_whole(Path(out), page.encode("utf-8", "replace"))


def _picture_of_query(result: Similar, source: Source | None, bits: int) -> str | None:
    """Return the query as a data URI: the photo here, or the image of the cache; None if it is gone."""
    row = ImageRow(result.query, "", "", "", result.digest)
    return picture(FolderSource(Path()), row, bits) or picture(source, row, bits)
