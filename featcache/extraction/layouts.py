"""Whether a cache is one file or a folder of parts, and where the index of its image files lies."""

from __future__ import annotations

from pathlib import Path

from featcache.cache.layout import INDEX_NAME, is_begun, part_files, table_of
from featcache.errors import UsageError
from featcache.images.index import is_index
from featcache.spec import choose as one_of

LAYOUTS = ("file", "parts")


def is_in_parts(out: Path, layout: str | None) -> bool:
    """Return whether the cache is, or will be, a folder of parts. Raises UsageError if `layout` contradicts it."""
    if layout is not None:
        one_of("layout", layout, LAYOUTS)
    if not out.exists():
        return layout == "parts"
    has_no_rows = out.is_dir() and not table_of(out).exists() and not part_files(out)
    if has_no_rows and not (is_begun(out) and is_index(index_of(out, layout))):
        raise UsageError(f"{out} is a folder, not a cache. Give `out` the name of a file, such as {out.name}.h5")
    if layout is not None and (layout == "parts") != out.is_dir():
        kind = "folder of parts" if out.is_dir() else "file"
        raise UsageError(f"{out} is a {kind}; for `layout={layout}` use another `out`")
    return out.is_dir()


def index_of(out: Path, layout: str | None) -> Path:
    """Return the path of the index of image files: beside the cache, or in its folder."""
    in_parts = out.is_dir() or layout == "parts"
    return out / INDEX_NAME if in_parts else out.with_name(f"{out.name}.index")
