"""A place with images, whatever it is -> a source of bytes and a listing: folder, archive, arrays, or a manifest."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

from featcache.errors import ImagesChanged, NoImages, UsageError
from featcache.images.archives import Archive, TarSource, ZipSource
from featcache.images.array_source import ArraySource, stored_arrays
from featcache.images.folder import MAX_FILE_BYTES, FolderSource, Source, Stamp
from featcache.images.listing import Listing, arrange, list_images
from featcache.images.tables import TABLES, list_table

__all__ = ["IN_MEMORY", "MAX_FILE_BYTES", "Source", "Stamp", "holds_images", "list_source", "open_source"]

IN_MEMORY = Path("<arrays>")  # stands where the root of a cache would, of images that were arrays
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARRAYS = (".npy", ".npz")


KINDS: dict[tuple[str, ...], Callable[[Path], Source]] = {
    (".zip",): ZipSource,
    TARS: TarSource,
    ARRAYS: stored_arrays,
    TABLES: lambda path: FolderSource(path.parent),
}


def open_source(location: str | Path) -> Source:
    """Return the source of the images at a place; for a manifest it is the manifest's folder.

    Takes a folder, .zip, .tar (also .gz, .bz2, .xz), .npy, .npz, .csv, .tsv or .parquet.
    Raises NoImages if there is nothing of the kind, DataError if it is damaged.
    """
    path = Path(location)
    if path.name == IN_MEMORY.name and not path.exists():
        raise ImagesChanged("The images of this cache were arrays in memory. Give them again: images=fc.scan(arrays)")
    # Folders first: a folder may have a name like an archive's.
    if path.is_dir():
        return FolderSource(path)
    if not path.is_file():
        kind = "file" if path.suffix else "image folder"
        raise NoImages(f"The {kind} {path} does not exist. Give a folder of class folders, or of images")
    for suffixes, opened in KINDS.items():
        if path.name.lower().endswith(suffixes):
            return opened(path)
    known = ", ".join(chain.from_iterable(KINDS))
    raise NoImages(
        f"{path} is a file, not a folder, and none that holds images ({known}). Give a folder of class folders, or of "
        "images"
    )


def holds_images(path: Path) -> bool:
    """Return whether a file holds or names images, by its name."""
    return any(path.name.lower().endswith(suffixes) for suffixes in KINDS)


def is_table(path: Path) -> bool:
    """Return whether a file is a manifest, by its name."""
    return path.name.lower().endswith(TABLES) and path.is_file()


def list_source(
    location: str | Path,
    *,
    allow_outside: bool = False,
    group_column: str | None = None,
    label_column: str | None = None,
    path_column: str | None = None,
) -> tuple[Source, Listing]:
    """Return the source at a place and what it holds.

    allow_outside: a manifest may name files outside its folder. group_column, label_column, path_column: the columns of
    a manifest that are read, if they are not called as usual.
    """
    path = Path(location)
    source = open_source(location)
    columns = {"group_column": group_column, "label_column": label_column, "path_column": path_column}
    if is_table(path):
        return source, list_table(path, allow_outside=allow_outside, **columns)
    options = {
        "group_column": "`group_from=csv:COLUMN`",
        "label_column": "`label_column`",
        "path_column": "`path_column`",
    }
    for name, option in options.items():
        if columns[name] is not None:
            raise UsageError(f"{option} goes with a manifest (.csv, .tsv, .parquet), not with {path}")
    if isinstance(source, ArraySource):
        return source, source.listing()
    if isinstance(source, Archive):
        return source, arrange(source.names, str(path), refused=source.refused, strip=True)
    return source, list_images(path)
