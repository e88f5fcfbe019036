"""Images wherever they are -> the manifest: path, label, group, split and digest of every image."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featcache.errors import ImagesChanged, TooFewClasses, UsageError
from featcache.images.array_source import memory_arrays
from featcache.images.decode import Undecodable, check_image
from featcache.images.groups import Groups, rule_of, summary
from featcache.images.groups import check as check_groups
from featcache.images.groups import remarks as group_remarks
from featcache.images.index import Index
from featcache.images.jpegs import pictures, spread
from featcache.images.kinds import notes
from featcache.images.listing import Layout, Listing
from featcache.images.sources import IN_MEMORY, Source, is_table, list_source
from featcache.images.splits import assign, carve
from featcache.images.tables import require_files
from featcache.notebook import MOST_ROWS, html, never_raising
from featcache.spec import SPLITS, Failure, ImageRow, Progress, SplitSpec, Tick, count_by, silent
from featcache.text import Table, counted

Size = tuple[int, int]
Seen = tuple[Size, frozenset[str]]  # an image's size and kinds
NUM_THREADS = 8
BLOCK = 32  # images that a thread reads at a time
TICK_S = 0.1


class Checked(NamedTuple):
    """What the images are like: how many there are of each size, and of each kind."""

    sizes: Counter[Size]
    kinds: Counter[str]


@dataclass(frozen=True)
class Images:
    """The manifest of one folder, archive, manifest file, or of arrays."""

    root: Path  # where `source` is; "<arrays>" for arrays in memory
    source: Source = field(repr=False, compare=False)
    layout: Layout
    rows: tuple[ImageRow, ...]  # sorted by path
    split_spec: SplitSpec
    unreadable: tuple[Failure, ...] = ()
    stray: tuple[str, ...] = ()  # images beside the class folders: no label, left out
    sizes: Mapping[tuple[int, int], int] | None = None  # {(width, height): count}, when checked
    others: Mapping[str, int] = field(default_factory=dict)  # files that are not looked at: how many of each suffix
    given: frozenset[str] = frozenset()  # paths whose split folders or a manifest give; of others a hash decides
    remarks: tuple[str, ...] = ()  # on what `group_from` does not do, and on what a table says and is not used
    kinds: Mapping[str, int] = field(default_factory=dict)  # {kind: count}, when checked: see `images.kinds`
    # What else than `root` and the split gives these rows again: {"table": "list.csv", "label_column": "species"},
    # by the names of the options of `scan`; None: unknown
    listing: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return f"Images({self.root}, {counted(len(self.rows), 'image')}, {counted(len(self.classes), 'class')})"

    @never_raising
    def _repr_html_(self) -> str:
        notes = [f"{failure.path}: {failure.status}, {failure.reason}" for failure in self.unreadable[:MOST_ROWS]]
        if self.duplicates:
            notes.append(f"{counted(len(self.duplicates), 'image')} found more than once, byte for byte.")
        title = f"{counted(len(self.rows), 'image')} in {self.read_from} ({self.layout})"
        tables = [self.class_table()] if self.classes else []
        rows = spread(self.rows)
        shown = pictures(partial(read_image, self.source), rows)
        if len(shown) < len(rows):
            notes.append(f"Of {counted(len(rows), 'picture')} {len(rows) - len(shown)} could not be read just now.")
        return html(title, *tables, pictures=shown, notes=notes)

    def class_table(self) -> Table:
        """Return the classes with their images in all and in each split."""
        splits = [name for name in SPLITS if name in self.splits]
        counts = Counter((row.label, row.split) for row in self.rows)
        rows: list[list[object]] = []
        for label, num_images in self.classes.items():
            rows.append([label, num_images, *(counts[label, split] for split in splits)])
        num_labelled = sum(self.classes.values())
        rows.append(["all", num_labelled, *(self.splits[split] for split in splits)])
        return Table(["class", "images", *splits], rows)

    @property
    def read_from(self) -> Path:
        """The folder, archive or table that the images came from."""
        table = (self.listing or {}).get("table")
        return self.root / table if table else self.root

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
        crossing = []
        for same in self.duplicates:
            splits = {split_of[path] for path in same}
            if len(splits) > 1:
                crossing.append(same)
        return crossing

    @property
    def groups(self) -> Groups:
        """How many groups there are, and how many of them stand in several splits."""
        return summary(self.rows)

    @property
    def gaps(self) -> list[str]:
        """What is missing in the splits: 'rose has no test image'."""
        present = {(row.label, row.split) for row in self.rows}
        splits = list(self.splits)
        gaps = []
        for label in self.classes:
            gaps += [f"{label} has no {split} image" for split in splits if (label, split) not in present]
        return gaps

    @property
    def notes(self) -> list[str]:
        """What to know of images that may not look as they are meant to: '8 of 8 images have several pages: ..'."""
        return notes(self.kinds, len(self.rows))

    def require_classes(self) -> Images:
        """Return self; raise TooFewClasses if a classifier cannot be trained on these labels."""
        if not self.classes:
            raise TooFewClasses(
                f"No image in {self.root} has a label. Put each class into its own folder, or give a table with a "
                "column 'label'"
            )
        if len(self.classes) < 2:
            raise TooFewClasses(
                f"{self.root} has one class only, '{next(iter(self.classes))}'. A classifier needs two classes"
            )
        return self

    @property
    def singles(self) -> list[str]:
        """Return the classes of one image, which trains, so that no image of them can judge."""
        return [label for label, count in self.classes.items() if count == 1]


def scan(
    root: str | Path | npt.NDArray[Any],
    *,
    labels: Any = None,
    splits: Any = None,
    groups: Any = None,
    split: SplitSpec | str | None = None,
    group_from: str | None = None,
    seed: int = 0,
    check: bool = False,
    allow_outside: bool = False,
    label_column: str | None = None,
    path_column: str | None = None,
    index: Path | None = None,
    rehash: bool = False,
    progress: Progress = silent,
) -> Images:
    """Return the manifest of the images at `root`, each with its digest and split.

    root: a folder, an archive (.zip, .tar, .tar.gz ...), a manifest (.csv, .tsv, .parquet), stored arrays (.npy,
    .npz), or an array (N, H, W), (N, H, W, 1) or (N, H, W, 3) of uint8 or uint16 with its labels, splits and groups.
    split: shares such as "70/15/15" (the default). Folders called train, val and test decide by themselves.
    group_from: "parent", "regex:PATTERN" or "csv:COLUMN" of a manifest: images of one group stay in one split, unless
    folders or a manifest put them into several; `groups` of the result counts those.
    check: decode every image, so that `unreadable` and `sizes` are known. allow_outside: a manifest may name files
    outside its folder. label_column, path_column: the columns of a manifest that have them, if they are not called
    "label" and "path". index: a file that remembers what was read; rehash: read everything all the same.
    Raises NoImages if there is none, UsageError if an option cannot be meant or `group_from` gives no group, DataError.
    """
    spec = split if isinstance(split, SplitSpec) else SplitSpec.parse(split or "70/15/15", seed)
    group_column, group_of = rule_of(group_from)
    columns = {"group_column": group_column, "label_column": label_column, "path_column": path_column}
    source, listing = _listed(root, (labels, splits, groups), allow_outside, columns)
    group_names = [group_of(file) for file in listing.files]
    if group_from is not None:
        # Before reading the files, which may take minutes: a rule that groups nothing is a mistake.
        check_groups(group_from, listing.files, group_names)
    remembered = Index(index, source)
    paths = [file.path for file in listing.files]
    digests, failures, checked = _read_all(remembered, paths, check, rehash, progress)
    remembered.save()

    table: Path | None = None
    if isinstance(root, (str, Path)) and is_table(Path(root)):
        table = Path(root)
    if table is not None and not digests:
        require_files(table, listing.files)

    rows: list[ImageRow] = []
    for file, group in zip(listing.files, group_names, strict=True):
        if file.path in digests:
            rows.append(ImageRow(file.path, file.label, group, file.split, digests[file.path]))
    has_val = listing.layout != "splits" or any(file.split in ("", "val") for file in listing.files)
    assigned = assign(rows, spec) if has_val else carve(rows, spec)
    # Without val, `carve` divides what the folders call train, so the folders have not decided about those images.
    fixed_paths = frozenset(row.path for row in rows if row.split and (has_val or row.split != "train"))

    remarks = listing.remarks
    if group_from is not None:
        remarks += group_remarks(group_from, listing.files, group_names)
    read_by = {
        "table": table.name if table else None,
        "path_column": path_column,
        "label_column": label_column,
        "group_from": group_from,
        "allow_outside": allow_outside or None,
    }
    return Images(
        root=source.location or IN_MEMORY,
        source=source,
        layout=listing.layout,
        rows=tuple(assigned),
        split_spec=spec,
        unreadable=tuple(failures),
        stray=tuple(listing.stray),
        sizes=dict(checked.sizes) if check else None,
        kinds=dict(checked.kinds),
        listing={name: value for name, value in read_by.items() if value is not None},
        others=dict(sorted(listing.others.items())),
        remarks=remarks,
        given=fixed_paths,
    )


def unlabelled(source: Source, paths: Sequence[str]) -> Images:
    """Return the manifest of these images of a source, each once and without label and split.

    Images whose bytes cannot be read are in `unreadable` only.
    """
    digests, failures, _ = _read_all(Index(None, source), list(dict.fromkeys(paths)), False, True, silent)
    rows = [ImageRow(path, "", "", "", digest) for path, digest in digests.items()]
    return Images(IN_MEMORY, source, "flat", tuple(sorted(rows)), SplitSpec(), tuple(failures))


def read_image(source: Source, row: ImageRow) -> bytes:
    """Return the bytes of an image of the manifest; raise ImagesChanged if they are gone or others."""
    path = f"{source.location or IN_MEMORY}/{row.path}"
    try:
        data = source.read(row.path)
    except Undecodable as error:
        raise ImagesChanged(
            f"{path} cannot be read ({error.reason}). If the folder has moved: `images=FOLDER`; else extract again"
        ) from error
    if hashlib.sha256(data).hexdigest() != row.digest:
        raise ImagesChanged(
            f"{path} is not the image that was cached. Bring the cache up to date: repeat the featcache extract that "
            "made it"
        )
    return data


def _listed(
    root: str | Path | npt.NDArray[Any],
    of_array: tuple[Any, Any, Any],
    allow_outside: bool,
    columns: Mapping[str, str | None],
) -> tuple[Source, Listing]:
    if isinstance(root, (str, Path)):
        if any(values is not None for values in of_array):
            raise UsageError(
                "`labels`, `splits` and `groups` go with an array; files have theirs from folders or a manifest"
            )
        return list_source(root, allow_outside=allow_outside, **columns)
    if columns["group_column"] is not None:
        raise UsageError("`group_from='csv:COLUMN'` goes with a manifest; give an array its `groups`")
    if columns["label_column"] is not None or columns["path_column"] is not None:
        raise UsageError("`label_column` and `path_column` go with a manifest; give an array its `labels`")
    source = memory_arrays(np.asarray(root), *of_array)
    return source, source.listing()


def _read_all(
    index: Index, paths: list[str], check: bool, rehash: bool, progress: Progress
) -> tuple[dict[str, str], list[Failure], Checked]:
    """Return the digests of the readable images, the failures of the others, and the sizes and kinds of images."""
    # What the index knows need not be read, unless all images are to be decoded or read again.
    digests = {} if check or rehash else index.known(paths)
    failures: list[Failure] = []
    checked = Checked(Counter(), Counter())
    unread = [path for path in paths if path not in digests]
    reported = time.perf_counter()
    for done, (path, digest, outcome) in enumerate(_in_threads(index, unread, check), 1 + len(digests)):
        if digest:
            digests[path] = digest
        if isinstance(outcome, Failure):
            failures.append(outcome)
        else:
            size, kinds = outcome
            checked.sizes[size] += 1
            checked.kinds.update(kinds)
        if time.perf_counter() - reported > TICK_S:
            reported = time.perf_counter()
            progress(Tick("scan", done, len(paths)))
    progress(Tick("scan", len(paths), len(paths)))
    return digests, failures, checked


def _in_threads(index: Index, paths: list[str], check: bool) -> Iterator[tuple[str, str, Seen | Failure]]:
    """Read a block of images at a time on each thread, and give them in order."""
    if not paths:
        return

    def read_block(block: list[str]) -> list[tuple[str, str, Seen | Failure]]:
        return [_read_one(index, path, check) for path in block]

    threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="scan")
    blocks = [paths[at : at + BLOCK] for at in range(0, len(paths), BLOCK)]
    try:
        for outcomes in threads.map(read_block, blocks):
            yield from outcomes
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _read_one(index: Index, path: str, check: bool) -> tuple[str, str, Seen | Failure]:
    digest = ""
    seen: Seen = ((0, 0), frozenset())
    try:
        data, digest = index.read(path)
        if check:
            seen = check_image(data)
    except Undecodable as error:
        # With its digest, if the bytes could be read: the image is then known, and only its pixels are not.
        return path, digest, Failure(path, digest, error.status, error.reason)
    return path, digest, seen
