"""The format of a cache, and the checks that a file must pass before anything is read from it.

    /                        attributes: format = "featcache", format_version, content_digest (SHA-256 of the names and
                             content digests of /images and of every tap)
    /images/path             (N,) bytes, relative to the root, as the file system spells them
    /images/label, group, split, digest, status, reason     (N,) bytes, UTF-8
    /images/given_group, given_split    (N,) bytes, only where `leaks --fix` has put images into larger groups: "=" and
                             the group and split that each of those had before; empty for all others
    /images/given_label, dropped_from   (N,) bytes, only where a review has changed labels: "=" and the label that
                             folder or manifest gives such an image, and the split that a dropped image was in
    /images/reviews          (R,) bytes, only where labels were reviewed: JSON, see `changes.Review`
    /images                  attributes: root, layout, split_spec (JSON), decode, content_digest; listing (JSON: the
                             table, if the images came from one, and the options that read it, or merged caches);
                             in a folder of parts rows_of (JSON: how many images each tap has rows of, by fingerprint)
    /taps/<tap>/features     (M, D) or (M, h, w, C), float32 or float16, contiguous
    /taps/<tap>/digest       (M,) bytes: SHA-256 of the image each row was computed from
    /taps/<tap>/made_by      (M,) uint8: which entry of `provenance` computed the row
    /taps/<tap>              attributes: tap (JSON: how the rows were made), fingerprint, provenance (JSON list),
                             content_digest (SHA-256 of tap, provenance, digest, made_by and features)

Attributes are bytes of fixed length, except the number format_version. Digests join the rows of a tap to the images;
an image with a status other than "ok" has no row.

CACHE.h5 is one such file. A cache may also be a folder: `cache.h5` holds the images, and parts hold the rows. A part
is a file without /images whose name contains the SHA-256 of its bytes. While an extraction into CACHE.h5 runs, its
parts are in CACHE.h5.parts.

To change the format: raise FORMAT_VERSION, keep reading every earlier version, write a golden file of the
new version with tests/cache/make_golden.py and add its row to tests/cache/test_golden.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import h5py
import numpy as np

from featcache.errors import CacheVersion, NotACache
from featcache.files import (
    TEMPORARY,
    ByteSource,
    Overtaken,
    Sink,
    cannot_read,
    make_folder,
    matching,
    overtake,
    raise_if_of_the_system,
    write_whole,
    writing,
)

FORMAT = "featcache"
FORMAT_VERSION = 2
READ_VERSIONS = (1, FORMAT_VERSION)
PARTS_SUFFIX = ".parts"
TABLE_NAME = "cache.h5"  # in a folder of parts: the file with the images
INDEX_NAME = "index.json"  # in a folder of parts: sizes, times and digests of the image files
LOCK_NAME = ".lock"
DAMAGED = ".damaged"  # the suffix of a part that was set aside
IMAGE_COLUMNS = ("path", "label", "group", "split", "digest", "status", "reason")
COLUMNS_OF_CHANGES = {  # in the file, each only where it is needed: see `changes.Changes`
    "given_group": "joined",
    "given_split": "moved",
    "given_label": "relabelled",
    "dropped_from": "dropped",
}
REVIEWS = "reviews"
IMAGE_FACTS = ("root", "layout", "split_spec", "decode")
LISTING = "listing"  # another fact, which caches of format 1 lack
ROWS_OF = "rows_of"
MAX_TEXT_BYTES = 2**20  # HDF5 itself takes attributes of up to 64 KiB
DIGEST_WIDTH = 64
SIGNATURE = b"\x89HDF\r\n\x1a\n"

FAULTS = (  # h5py and JSON raise almost anything on damaged files
    OSError,
    LookupError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    SystemError,
)

Fill = Callable[[Any], None]


def is_cache(path: Path) -> bool:
    """Return whether a file is a cache of any version, or an HDF5 file that is too damaged to tell."""
    with path.open("rb") as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            return False
    try:
        with h5py.File(path, "r", locking=False) as opened:
            return text_of(opened, "format") == FORMAT
    except FAULTS:
        return True  # reading it as a cache will say what is damaged


def is_foreign(table: Path) -> bool:
    """Return whether an existing file is something other than a cache. Raises DiskFault, or Overtaken if it is gone."""
    try:
        return not is_cache(table)
    except FileNotFoundError as error:
        raise Overtaken(table) from error
    except OSError as error:
        raise cannot_read(table, error) from error


def table_of(cache: Path) -> Path:
    """Return the file that holds the images of a cache."""
    return cache / TABLE_NAME if cache.is_dir() else cache


def parts_folder(cache: Path) -> Path:
    """Return the folder of the parts: rows that are not in the file with the images."""
    return cache if cache.is_dir() else cache.with_name(cache.name + PARTS_SUFFIX)


def looks_beside(cache: Path) -> Path:
    """Return the folder that records every look at the test split of a cache."""
    return cache / "looks" if cache.is_dir() else cache.with_name(f"{cache.name}.looks")


def part_files(cache: Path) -> list[Path]:
    """Return the parts of a cache, as they were at one moment.

    One listing may miss both a new part and the old parts that it replaced; two equal listings miss nothing.
    """
    folder = parts_folder(cache)
    previous_listing: list[Path] | None = None
    listing = matching(folder, "part-*.h5")
    while listing != previous_listing:
        previous_listing = listing
        listing = matching(folder, "part-*.h5")
    return listing


def is_begun(folder: Path) -> bool:
    """Return whether a folder holds only what an extraction writes there before its first part."""
    for path in folder.iterdir():
        is_ours = path.name in (INDEX_NAME, LOCK_NAME) or path.suffix == DAMAGED
        is_litter = TEMPORARY.fullmatch(path.name)
        if not is_ours and not is_litter:
            return False
    return True


def hdf5_version() -> str:
    """Return the version of the HDF5 library in use."""
    return str(h5py.version.hdf5_version)


@contextmanager
def reading(path: Path, state: str | None = None) -> Iterator[h5py.File]:
    """Open a file of a cache for reading. Raises NotACache, CacheVersion or DiskFault, naming the file.

    state: the state that the file had when it was last read; Overtaken is raised if it has changed since.
    """
    table = table_of(path)
    if not table.is_file():
        raise _no_cache(path)
    with _source_of(table) as source:
        if source.read(len(SIGNATURE)) != SIGNATURE:
            raise NotACache(
                f"{path} is not an HDF5 file, so it is no cache. Make one: featcache extract IMAGES -o CACHE.h5"
            )
        with _checked(source, table) as opened:
            if state not in (None, state_in(opened)):
                raise Overtaken(table)
            yield opened


def _no_cache(path: Path) -> NotACache:
    """Return the error for a path that holds no cache, with what to do about it."""
    extract = f"featcache extract IMAGES -o {quote(str(path))}"
    if not parts_folder(path).is_dir():
        return NotACache(f"No cache at {path}. Make one: {extract}")
    if not path.is_dir() or part_files(path) or (is_begun(path) and any(path.iterdir())):
        return NotACache(f"No cache at {path}. An extraction was begun; finish it: {extract}")
    try:
        cache_of_run = json.loads((path / "run.json").read_bytes())["settings"]["cache"]
    except (OSError, ValueError, KeyError, TypeError):
        return NotACache(
            f"{path} is a folder, not a cache. If it holds images, make a cache of them and give that: "
            f"featcache extract {quote(str(path))} -o CACHE.h5"
        )
    return NotACache(
        f"{path} is the folder of a run, not a cache (featcache show {quote(str(path))}). "
        f"Give the cache that the run was made from: {cache_of_run}"
    )


@contextmanager
def reading_part(path: Path) -> Iterator[h5py.File]:
    """Open a part for reading. Raises NotACache, DiskFault, or Overtaken if it is gone."""
    with _source_of(path) as source, _checked(source, path) as opened:
        yield opened


@contextmanager
def reading_all_of_part(path: Path) -> Iterator[h5py.File]:
    """Read a part into memory, compare its bytes with its name, and open it. Raises what `reading_part` raises.

    NotACache is proof of damage here: the disk gave all bytes, and they are not the bytes that were written.
    """
    with _source_of(path) as source:
        data = source.read()
    # Compare before HDF5 sees the bytes: it may read damaged ones without an error.
    if path.name != part_name(data):
        raise NotACache(
            f"{path} is damaged: its bytes do not match its name. "
            "Compute its rows again: run featcache extract with the images that it was made from"
        )
    with _checked(io.BytesIO(data), path) as opened:
        yield opened


def _source_of(path: Path) -> ByteSource:
    """Open a file. Raises DiskFault, or Overtaken if it is gone."""
    try:
        return ByteSource(path)
    except FileNotFoundError as error:
        raise Overtaken(path) from error


@contextmanager
def _checked(source: ByteSource | io.BytesIO, path: Path) -> Iterator[h5py.File]:
    """Open a source as HDF5. Errors of the system are not damage: the ByteSource reports them when it closes."""
    try:
        with _opened(source) as file:
            _check_version(file, path)
            yield file
    except FAULTS as error:
        raise_if_of_the_system(path, error)
        raise damaged(path, error) from error


def _opened(source: ByteSource | io.BytesIO) -> h5py.File:
    """Return the source as an open HDF5 file. Errors come without the traceback inside h5py.

    The frames of that traceback hold the objects through which HDF5 calls back into Python. If an error that nobody
    catches keeps them alive until the interpreter ends, HDF5 makes such a call then and crashes the process.
    """
    try:
        return h5py.File(source, "r")
    except BaseException as error:
        cause: BaseException | None = error
        while cause is not None:
            cause.__traceback__ = None
            cause = cause.__cause__ or cause.__context__
        raise


def damaged(path: Path, why: object) -> NotACache:
    """Return the error for a file whose content is not what was written."""
    reason = " ".join(str(why).split())[:300] or type(why).__name__
    return NotACache(f"{path} is damaged: {reason}. Move it away and run featcache extract again")


def part_name(data: bytes | memoryview) -> str:
    """Return the name of the part with these bytes."""
    return f"part-{hashlib.sha256(data).hexdigest()[:32]}.h5"


def write_part(folder: Path, fill: Fill) -> Path:
    """Build an HDF5 file in memory, write it whole or not at all under the hash of its bytes, and return its path."""
    # In memory, because the name is known only once all bytes are, and because HDF5 crashes on a full disk.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        _fill(file, fill)
    data = buffer.getbuffer()
    make_folder(folder)
    path = folder / part_name(data)
    write_whole(path, data)
    return path


def write_table(path: Path, before: str | None, fill: Callable[[Any, Callable[[], None]], None]) -> str:
    """Write an HDF5 file through plain file operations, in bounded memory, whole or not at all; return its state.

    `fill(file, check)` calls `check` now and then, which raises once the disk has failed. HDF5 itself must not notice
    the failure, since it crashes the process on a full disk (h5py#914).
    before: the state that the path must still have at the end; otherwise Overtaken is raised and nothing is changed.
    Overtaken is also raised if another process replaces the new file at once. So if two processes read the same file,
    only one of them writes it and the other reads it again, without any lock.
    """
    # HDF5 runs in another thread: Python raises Ctrl-C in the main thread, and an interrupted write crashes HDF5 too.
    with writing(path, lambda: state(path) == before) as sink, ThreadPoolExecutor(1) as hdf5_thread:
        building = hdf5_thread.submit(_build, sink, fill)
        try:
            written = building.result()
        except BaseException as error:
            sink.fail(error)
            raise
    # Another process may have compared the state before our file took its name, and rename its own file after.
    overtake(path)
    if state(path) != written:
        raise Overtaken(path)
    return written


def _build(sink: Sink, fill: Callable[[Any, Callable[[], None]], None]) -> str:
    try:
        with h5py.File(sink, "w") as file:
            _fill(file, lambda opened: fill(opened, sink.check))
            return state_in(file)
    except Exception:
        sink.check()  # if the disk failed, that is the error to report, not what HDF5 made of it
        raise


def _fill(file: Any, fill: Fill) -> None:
    put_text(file, "format", FORMAT)
    file.attrs["format_version"] = FORMAT_VERSION
    fill(file)
    # Last: it covers all groups that `fill` has written.
    put_text(file, "content_digest", held_digest(file, Path(file.name)))


def state(table: Path) -> str | None:
    """Return the digest that a file of a cache stores of its content; None if there is no file.

    For a file that is no cache, which --force may replace, the state identifies the file.
    """
    if not table.exists():
        return None
    if is_foreign(table):
        facts = table.stat()
        return f"no cache: {facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"
    with reading(table) as file:
        return state_in(file)


def state_in(file: Any) -> str:
    """Return the digest that an open file stores of its content."""
    return text_of(file, "content_digest")


def counted_rows(cache: Path) -> dict[str, int]:
    """Return {fingerprint: images with a row} as of the last merge of a folder of parts; {} for other caches."""
    if not table_of(cache).exists():
        return {}
    with reading(cache) as file:
        text = text_of(file["images"], ROWS_OF)
        return dict(json.loads(text)) if text else {}


def check_complete(file: Any, path: Path) -> None:
    """Raise NotACache if the file lacks a tap or the images, or if they do not match its digest."""
    if state_in(file) != held_digest(file, path):
        raise damaged(path, "it does not hold the taps and images that were written")


def held_digest(file: Any, path: Path) -> str:
    """Return the SHA-256 of the names and content digests of the images and of all taps."""
    groups = tap_groups(file, path)
    if "images" in file:
        groups.insert(0, file["images"])
    digests = [(group.name, text_of(group, "content_digest")) for group in groups]
    text = repr(digests)  # of a list of pairs: part of the format, like everything that is hashed here
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def tap_groups(file: Any, path: Path) -> list[Any]:
    """Return the groups of all taps in an open file, sorted by name. Does not follow links out of the file."""
    groups: dict[str, Any] = {}

    def visit(name: str, group: Any) -> None:
        if "fingerprint" in group.attrs:
            groups[name] = group

    if "taps" in file:
        # `visititems` follows no links, so no group of another file comes in.
        own_group(file, "taps", path).visititems(visit)
    return [groups[name] for name in sorted(groups)]


def strings(values: list[bytes]) -> np.ndarray[Any, Any]:
    """Return a column of fixed-length bytes, which every HDF5 reader understands."""
    width = max(map(len, values), default=1)
    return np.array(values, dtype=f"S{max(width, 1)}")


def put_text(node: Any, name: str, text: str | bytes) -> None:
    """Write an attribute as bytes of fixed length, since a damaged text of variable length can crash HDF5."""
    node.attrs[name] = np.bytes_(text if isinstance(text, bytes) else text.encode())


def text_of(node: Any, name: str) -> str:
    """Return an attribute that `put_text` wrote, or "" if there is none."""
    if name not in node.attrs:
        return ""
    # Ask for the type before reading: a damaged text of variable length can crash HDF5.
    attribute = node.attrs.get_id(name)
    if attribute.dtype.kind != "S" or attribute.shape != () or attribute.dtype.itemsize > MAX_TEXT_BYTES:
        return ""
    return os.fsdecode(bytes(node.attrs[name]))


def images_digest(group: Any) -> str:
    """Return the SHA-256 of the images' columns and facts as they stand in the file."""
    # What is absent adds nothing, so a cache without changes has the digest that earlier versions gave it.
    optional = [name for name in (*COLUMNS_OF_CHANGES, REVIEWS) if name in group]
    hashed = hashlib.sha256()
    for name in (*IMAGE_COLUMNS, *optional):
        column = group[name]
        # The type and the shape, so that no two tables give the same bytes.
        hashed.update(f"{name} {column.dtype} {column.shape}\0".encode())
        hashed.update(column[()].tobytes())
    for name in IMAGE_FACTS:
        hashed.update(os.fsencode(f"{name} {text_of(group, name)}\0"))
    if LISTING in group.attrs:
        hashed.update(os.fsencode(f"{LISTING} {text_of(group, LISTING)}\0"))
    hashed.update(text_of(group, ROWS_OF).encode())
    return hashed.hexdigest()


def own_group(parent: Any, name: str, path: Path) -> Any:
    """Return the group `name` of `parent`. Raises NotACache if it is missing or a link that may lead elsewhere."""
    # Ask for the link before following it: an external link would open another file.
    link = parent.get(name, getlink=True)
    group = parent.get(name) if isinstance(link, h5py.HardLink) else None
    if not isinstance(group, h5py.Group):
        raise NotACache(f"{path} has no group '{name}' in the file itself. It is damaged or not a cache of featcache")
    return group


def plain(group: Any, name: str, kind: str, ranks: tuple[int, ...], path: Path) -> Any:
    """Return the dataset `name` of `group`. Raises NotACache if it does not follow the format.

    It refuses links out of the file, external or virtual storage, filters, object types, other ranks, and shapes
    that are declared but not stored.
    """
    link = group.get(name, getlink=True)
    dataset = group.get(name) if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset):
        raise NotACache(
            f"{path} has no dataset '{group.name}/{name}' in the file itself. It is damaged or not a cache of featcache"
        )
    # Contiguous storage has no filters, so that a few stored bytes cannot unpack into a huge array.
    is_contiguous = dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
    is_plain = is_contiguous and dataset.external is None
    if not is_plain or dataset.dtype.kind != kind or dataset.ndim not in ranks:
        raise NotACache(f"{path}: dataset '{dataset.name}' is not a plain {ranks[0]}-dimensional array of the format")
    offset = dataset.id.get_offset()  # None if nothing is stored
    if dataset.nbytes and (offset is None or offset + dataset.nbytes > dataset.file.id.get_filesize()):
        raise NotACache(f"{path}: dataset '{dataset.name}' declares {dataset.nbytes} bytes that it does not hold")
    return dataset


def _check_version(file: Any, path: Path) -> None:
    if text_of(file, "format") != FORMAT:
        raise NotACache(
            f"{path} is an HDF5 file, but not a cache of featcache. Make one: featcache extract IMAGES -o CACHE.h5"
        )
    number = file.attrs.get_id("format_version")
    if number.dtype.kind not in "iu" or number.shape != ():
        raise NotACache(f"{path} is damaged: its format version is not a number. Run featcache extract again")
    version = int(file.attrs["format_version"])
    if version not in READ_VERSIONS:
        advice = "Upgrade featcache" if version > FORMAT_VERSION else "Extract again into another `out`"
        known = " and ".join(map(str, READ_VERSIONS))
        raise CacheVersion(f"{path} has cache format {version}; this featcache reads {known}. {advice}")
