"""A folder -> the image files in it, with the label and the split that their folders say.

Three layouts: class folders (`roses/1.jpg`), split folders of class folders (`train/roses/1.jpg`), and a
flat folder without labels. Links are followed; hidden files are not looked at. What stands in an archive is
arranged by the same rules.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
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
        ".hif",
        ".apng",
        ".mpo",
        ".jpf",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    ]
)
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test", "evaluation": "test",
}  # fmt: skip
# Names of data sets stand around them: train2017 of COCO, seg_train of Intel's scenes, test_set, validation-images
_SPLIT_FOLDER = re.compile(
    rf"(?:[a-z]+[-_])?(?P<split>{'|'.join(SPLIT_NAMES)})(?:[-_]?(?:\d+|set|images|data))?", re.IGNORECASE
)
NOT_IMAGES = "__MACOSX"  # where macOS puts what its archives say about files


class Listed(NamedTuple):
    """One image: where it is, and what its folders or its manifest say."""

    path: str  # relative to the root, "/" between folders
    label: str
    split: str
    group: str = ""


class Listing(NamedTuple):
    """What a folder, an archive or a manifest holds."""

    layout: Layout
    files: list[Listed]
    stray: list[str]  # images beside the class folders, so without a label
    others: Mapping[str, int] = MappingProxyType({})  # files that are not looked at: how many of each suffix
    remarks: tuple[str, ...] = ()  # sentences on what a manifest says and is not used, or is used otherwise


def list_images(root: Path) -> Listing:
    """Return the images under `root`, sorted by the bytes of their paths.

    Raises NoImages if the folder is missing or holds none, DataError if one inside it cannot be listed or two class
    folders differ in case only.
    """
    if not root.is_dir():
        problem = "is a file, not a folder" if root.exists() else "does not exist"
        raise NoImages(f"The image folder {root} {problem}. Give a folder of class folders, or of images")
    return arrange(_walk(str(root)), str(root))


def arrange(names: Iterable[str], where: str, *, refused: Iterable[str] = (), strip: bool = False) -> Listing:
    """Return the images among these files by layout, sorted by the bytes of their paths.

    refused: names to list without a label, because nothing will be read from them. strip: ignore a single folder
    around everything. Raises NoImages, DataError.
    """
    paths: list[str] = []
    others = Counter[str]()  # how many files of each suffix
    for name in names:
        if is_image(name):
            paths.append(name)
        elif not _is_hidden(name):
            others[os.path.splitext(name)[1].lower() or "none"] += 1
    paths.sort(key=os.fsencode)
    unread = [Listed(path, "", "") for path in sorted(refused, key=os.fsencode)]
    if not paths and not unread:
        raise NoImages(f"No images in {where}. They are looked for by suffix: {' '.join(sorted(SUFFIXES))}")

    folders = _first_folders(paths)
    splits = _split_folders(folders, paths)
    above = ""
    if strip and not splits and len(folders) == 1 and all("/" in path for path in paths):
        # Archives often have everything in one folder of their name, which is no class.
        above = f"{folders.pop()}/"
        inside = [path.removeprefix(above) for path in paths]
        folders = _first_folders(inside)
        splits = _split_folders(folders, inside)

    if not folders:
        return Listing("flat", [Listed(path, "", "") for path in paths] + unread, [], others)
    if not splits:
        _require_no_splits(folders, where)
    labelled = _labelled(paths, above, splits)
    _require_distinct({file.label for file in labelled}, where)
    stray = sorted({*paths} - {file.path for file in labelled}, key=os.fsencode)
    return Listing("splits" if splits else "classes", labelled + unread, stray, others)


def _first_folders(paths: Iterable[str]) -> set[str]:
    return {path.partition("/")[0] for path in paths if "/" in path}


def is_image(path: str) -> bool:
    """Return whether a file counts as an image, by its name alone.

    >>> is_image("roses/1.JPG"), is_image("roses/._1.jpg"), is_image("__MACOSX/roses/1.jpg")
    (True, False, False)
    """
    return os.path.splitext(path)[1].lower() in SUFFIXES and not _is_hidden(path)


def normalize_name(text: str) -> str:
    """Return a label or a group without blanks around it and in Unicode's composed form, so that it has one spelling.

    >>> normalize_name("cafe\u0301 ") == "caf\u00e9"
    True
    """
    return unicodedata.normalize("NFC", text.strip())


def remarks_on_labels(spellings: Mapping[str, Collection[str]], where: str) -> Iterator[str]:
    """Yield a sentence on labels that are written in several ways and are one class, and on those that may be.

    spellings: {label: how it was written}. Case can be meant, as in tables of letters, so that it tells classes apart.
    """
    several = [sorted(written) for _, written in sorted(spellings.items()) if len(written) > 1]
    if several:
        names = ", ".join(ascii(spelling) for spelling in several[0])
        yield (
            f"{names} of {where} look the same and are one class{_more_such(several)}: they differ only in blanks at "
            "their ends, or in how Unicode writes a letter"
        )
    labels_of: dict[str, list[str]] = {}
    for label in sorted(spellings):
        labels_of.setdefault(label.casefold(), []).append(label)
    alike = [labels for labels in labels_of.values() if len(labels) > 1]
    if alike:
        names = ", ".join(f"'{label}'" for label in alike[0])
        yield (
            f"The labels {names} of {where} differ only in case and are different classes{_more_such(alike)}. If one "
            "class is meant, write it in one way"
        )


def _more_such(sets: list[list[str]]) -> str:
    return f" ({len(sets) - 1} more such)" if len(sets) > 1 else ""


def _is_hidden(path: str) -> bool:
    return path[:1] == "." or "/." in path or f"/{NOT_IMAGES}/" in f"/{path}"


def _labelled(paths: list[str], above: str, splits: Mapping[str, str]) -> list[Listed]:
    labelled = []
    for path in paths:
        folders = path[len(above) :].split("/")[:-1]
        split = ""
        if splits and folders:
            split = splits.get(folders.pop(0), "")
            if not split:
                continue  # a folder beside the folders of the splits
            if folders and splits.get(folders[0]) == split:
                folders.pop(0)  # train/train/roses/1.jpg, as archives within archives unpack
        if folders:
            labelled.append(Listed(path, folders[0], split))
    return labelled


def _split_folders(folders: set[str], paths: list[str]) -> dict[str, str]:
    """Return {folder: its split} of the train/val/test folders, if these are splits and not classes of such names.

    Splits hold class folders, train is among them, and other folders beside them are tolerated only if there
    are two: what lies in those has no label.
    """
    splits = _named_like_splits(folders)
    has_others = splits.keys() != folders
    if "train" not in splits.values() or (has_others and len(splits) < 2):
        return {}
    for path in paths:
        first, *inside = path.split("/")[:-1]
        if first in splits and any(folder not in splits for folder in inside):
            return splits
    return {}


def _named_like_splits(folders: Iterable[str]) -> dict[str, str]:
    """Return {folder: its split}. Names that only contain the word count where train has another split beside it.

    >>> _named_like_splits(["train2017", "val2017"])
    {'train2017': 'train', 'val2017': 'val'}
    >>> _named_like_splits(["steam_train", "tram"])
    {}
    """
    exact: dict[str, str] = {}
    alike: dict[str, str] = {}
    for folder in folders:
        if folder.lower() in SPLIT_NAMES:
            exact[folder] = SPLIT_NAMES[folder.lower()]
        match = _SPLIT_FOLDER.fullmatch(folder)
        if match:
            alike[folder] = SPLIT_NAMES[match["split"].lower()]
    return alike if len(set(alike.values())) > 1 else exact


def _require_no_splits(folders: set[str], where: str) -> None:
    """Raise DataError if all folders are named like splits, but hold no class folders: nothing says the labels."""
    splits = _named_like_splits(folders)
    if splits.keys() == folders and "train" in splits.values() and len(splits) > 1:
        names = ", ".join(ascii(folder) for folder in sorted(folders))
        raise DataError(
            f"The folders {names} in {where} are splits, but their images lie in no class folders, so they have no "
            "labels. Make a folder per class in each (train/roses/1.jpg), or give a table with path, label and split"
        )


def _require_distinct(labels: set[str], where: str) -> None:
    """Raise DataError if two class folders would be one on a system that does not tell their names apart."""
    alike: dict[str, str] = {}
    for label in sorted(labels):
        other = alike.setdefault(unicodedata.normalize("NFC", label).casefold(), label)
        if other != label:
            raise DataError(
                f"The class folders {other!a} and {label!a} in {where} differ only in case or in how Unicode writes "
                "them, and are one folder on other systems. Rename one, or move the images of both into one"
            )


def _walk(root: str, folder: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Yield the paths of all files. Links to folders are followed, unless they lead back to a folder above."""
    path = f"{root}/{folder}" if folder else root
    status = os.stat(path)
    folder_id = (status.st_dev, status.st_ino)
    if folder_id in above:
        return
    for entry in _entries(path):
        name = f"{folder}/{entry.name}" if folder else entry.name
        if entry.name[:1] == "." or entry.name == NOT_IMAGES:
            continue
        if _leads_to(entry.is_dir):
            yield from _walk(root, name, (*above, folder_id))
        elif _leads_to(entry.is_file):
            yield name


def _leads_to(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(
            f"The folder {folder} cannot be listed: {error.strerror}. Make it readable or move it away"
        ) from error
