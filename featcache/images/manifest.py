"""A folder of images -> the manifest: path, label, group, split and digest of every image."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from featcache.errors import ImagesChanged, TooFewClasses, UsageError
from featcache.images.decode import Undecodable, image_size, upright_rgb
from featcache.images.listing import Layout, Listed, list_images
from featcache.images.splits import assign
from featcache.spec import Failure, ImageRow, Progress, SplitSpec, Tick, count_by, silent

GroupOf = Callable[[Listed], str]
NUM_THREADS = 8


@dataclass(frozen=True)
class Images:
    """The manifest of one folder."""

    root: Path
    layout: Layout
    rows: tuple[ImageRow, ...]  # sorted by path
    split_spec: SplitSpec
    unreadable: tuple[Failure, ...] = ()
    stray: tuple[str, ...] = ()  # images beside the class folders: no label, left out
    sizes: Mapping[tuple[int, int], int] | None = None  # {(width, height): count}, when checked

    def __repr__(self) -> str:
        return f"Images({self.root}, {len(self.rows)} images, {len(self.classes)} classes)"

    @property
    def classes(self) -> Mapping[str, int]:
        """Number of images per label."""
        return count_by([row.label for row in self.rows if row.label])

    @property
    def splits(self) -> Mapping[str, int]:
        """Number of images per split."""
        return count_by([row.split for row in self.rows if row.split])

    @property
    def duplicates(self) -> list[list[str]]:
        """Paths of files with the same bytes, one list per content."""
        paths = defaultdict(list)
        for row in self.rows:
            paths[row.digest].append(row.path)
        return [same for digest, same in paths.items() if digest and len(same) > 1]

    @property
    def crossing(self) -> list[list[str]]:
        """Paths of files with the same bytes in several splits: only folders of splits can put them there."""
        split_of = {row.path: row.split for row in self.rows}
        return [same for same in self.duplicates if len({split_of[path] for path in same}) > 1]

    @property
    def gaps(self) -> list[str]:
        """What is missing in the splits: 'rose has no test image'."""
        found = {(row.label, row.split) for row in self.rows}
        return [
            f"{name} has no {split} image"
            for name in self.classes
            for split in self.splits
            if (name, split) not in found
        ]

    def require_classes(self) -> Images:
        """Return self; raise TooFewClasses if a classifier cannot be trained on these labels."""
        if not self.classes:
            raise TooFewClasses(f"{self.root} is a flat folder without labels. Put each class into a folder of its own")
        if len(self.classes) < 2:
            raise TooFewClasses(
                f"{self.root} has one class only, '{next(iter(self.classes))}'. A classifier needs two class folders"
            )
        for label, count in self.classes.items():
            if count < 2:
                raise TooFewClasses(
                    f"Class '{label}' in {self.root} has one image; one to train on and one to test on are the least. "
                    "Add images or move the folder away"
                )
        return self


def scan(
    root: str | Path,
    *,
    split: SplitSpec | str | None = None,
    group_from: str | None = None,
    seed: int = 0,
    check: bool = False,
    progress: Progress = silent,
) -> Images:
    """Return the manifest of the images under `root`, each with its digest and split.

    split: shares such as "70/15/15" (the default). Folders called train, val and test decide by themselves.
    group_from: "parent" or "regex:PATTERN": images of one group stay in one split.
    check: decode every image, so that `unreadable` and `sizes` are known.
    Raises NoImages if there is none, UsageError if an option cannot be meant.
    """
    root = Path(root)
    spec = split if isinstance(split, SplitSpec) else SplitSpec.parse(split or "70/15/15", seed)
    group_of = _group_rule(group_from)
    listing = list_images(root)
    digests, failures, sizes = _read_all(root, [file.path for file in listing.files], check, progress)
    carve = listing.layout == "splits" and not any(file.split == "val" for file in listing.files)
    rows = [_row(file, digests[file.path], group_of, carve) for file in listing.files if file.path in digests]
    share = replace(spec, train=100 - spec.val, test=0) if carve else spec
    return Images(root, listing.layout, tuple(assign(rows, share)), spec, tuple(failures), tuple(listing.stray), sizes)


def read_image(root: Path, row: ImageRow) -> bytes:
    """Return the bytes of an image of the manifest; raise ImagesChanged if they are gone or others."""
    path = root / row.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImagesChanged(
            f"{path} cannot be read ({error.strerror}). If the folder has moved: --images FOLDER; else extract again"
        ) from error
    if hashlib.sha256(data).hexdigest() != row.digest:
        raise ImagesChanged(f"{path} is not the image that was cached. Bring the cache up to date: featcache extract")
    return data


def _row(file: Listed, digest: str, group_of: GroupOf, carve: bool) -> ImageRow:
    decided = "" if carve and file.split == "train" else file.split
    return ImageRow(file.path, file.label, group_of(file), decided, digest)


def _group_rule(group_from: str | None) -> GroupOf:
    if group_from is None:
        return lambda file: ""
    if group_from == "parent":
        return _parent
    kind, _, pattern = group_from.partition(":")
    if kind != "regex" or not pattern:
        raise UsageError(f"--group-from takes parent or regex:PATTERN; got '{group_from}'")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--group-from: '{pattern}' is no regular expression ({error})") from error

    def group_of(file: Listed) -> str:
        match = compiled.search(file.path)
        return "" if match is None else (match.group(1) if compiled.groups else match.group())

    return group_of


def _parent(file: Listed) -> str:
    """Return the folder inside the class folder, `roses/plant_7/1.jpg`; an image straight in its class has no group."""
    folders = file.path.split("/")[:-1]
    return "/".join(folders) if folders and folders[-1] != file.label else ""


def _read_all(
    root: Path, paths: list[str], check: bool, progress: Progress
) -> tuple[dict[str, str], list[Failure], Mapping[tuple[int, int], int] | None]:
    digests: dict[str, str] = {}
    failures: list[Failure] = []
    sizes: dict[tuple[int, int], int] = defaultdict(int)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for path, (digest, found) in zip(paths, threads.map(lambda p: _read_one(root, p, check), paths), strict=True):
            if not isinstance(found, Failure) or digest:
                digests[path] = digest
            if isinstance(found, Failure):
                failures.append(found)
            else:
                sizes[found] += 1
            progress(Tick("scan", len(digests), len(paths)))
    return digests, failures, dict(sizes) if check else None


def _read_one(root: Path, path: str, check: bool) -> tuple[str, tuple[int, int] | Failure]:
    try:
        data = (root / path).read_bytes()
    except OSError as error:
        return "", Failure(path, "", "unreadable", error.strerror or str(error))
    digest = hashlib.sha256(data).hexdigest()
    if not check:
        return digest, (0, 0)
    try:
        size = image_size(data)
        upright_rgb(data)
    except Undecodable as error:
        return digest, Failure(path, digest, error.status, error.reason)
    return digest, size
