"""A folder -> the image files in it, with the label and the split that their folders say.

Three layouts: class folders (`roses/1.jpg`), split folders of class folders (`train/roses/1.jpg`), and a
flat folder without labels. Links are followed; hidden files are not looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from featcache.errors import DataError, NoImages

Layout = Literal["classes", "splits", "flat"]

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".avif",
        ".jp2",
        ".j2k",
        ".jpx",
        ".heic",
        ".heif",
        ".ppm",
        ".pgm",
        ".pbm",
    ]
)
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class Listed(NamedTuple):
    """One image file: where it is, and what its folders say."""

    path: str  # relative to the root, "/" between folders
    label: str
    split: str


class Listing(NamedTuple):
    """What a folder holds."""

    layout: Layout
    files: list[Listed]
    stray: list[str]  # images beside the class folders, so without a label


def list_images(root: Path) -> Listing:
    """Return the images under `root`, sorted by the bytes of their paths.

    Raises NoImages if the folder is missing or holds none, DataError if one inside it cannot be listed.
    """
    if not root.is_dir():
        found = "is a file, not a folder" if root.exists() else "does not exist"
        raise NoImages(f"The image folder {root} {found}. Give a folder of class folders, or of images")
    paths = sorted(_walk(root), key=os.fsencode)
    if not paths:
        raise NoImages(f"No images in {root}. They are looked for by suffix: {' '.join(sorted(SUFFIXES))}")
    folders = {path.split("/", 1)[0] for path in paths if "/" in path}
    if not folders:
        return Listing("flat", [Listed(path, "", "") for path in paths], [])
    splits = _split_folders(folders, paths)
    depth = 1 if splits else 0
    inside = [path for path in paths if path.count("/") > depth and (not splits or path.split("/", 1)[0] in splits)]
    stray = sorted({*paths} - {*inside}, key=os.fsencode)
    return Listing("splits" if splits else "classes", [_listed(path, depth) for path in inside], stray)


def _listed(path: str, depth: int) -> Listed:
    folders = path.split("/")
    return Listed(path, folders[depth], SPLIT_NAMES[folders[0].lower()] if depth else "")


def _split_folders(folders: set[str], paths: list[str]) -> set[str]:
    """Return the train/val/test folders, if these are splits and not classes that happen to be called so.

    Splits hold class folders, train is among them, and other folders beside them are tolerated only if there
    are two: what lies in those has no label.
    """
    known = {folder for folder in folders if folder.lower() in SPLIT_NAMES}
    has_train = any(SPLIT_NAMES[folder.lower()] == "train" for folder in known)
    holds_classes = any(path.count("/") > 1 and path.split("/", 1)[0] in known for path in paths)
    return known if has_train and holds_classes and (known == folders or len(known) > 1) else set()


def _walk(root: Path, folder: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Yield the paths of all images; links to folders are followed, but not into a folder one is in already."""
    status = os.stat(root / folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in _entries(root / folder):
        path = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry):
            yield from _walk(root, path, (*above, here))
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and os.path.isfile(entry):
            yield path


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(
            f"The folder {folder} cannot be listed: {error.strerror}. Make it readable or move it away"
        ) from error
