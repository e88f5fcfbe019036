"""The format of CACHE.h5, and the checks that a file must pass before anything is read from it.

    /                        attributes: format = "featcache", format_version
    /images/path             (N,) bytes, relative to the root, as the file system spells them
    /images/label, group, split, digest, status, reason     (N,) bytes, UTF-8
    /images                  attributes: root, layout, split_spec (JSON), decode
    /taps/<tap>/features     (M, D) float32, contiguous
    /taps/<tap>/digest       (M,) bytes: SHA-256 of the image each row was computed from
    /taps/<tap>              attributes: tap (JSON: how the rows were made), fingerprint, provenance (JSON)

Attributes are bytes of fixed length, but for the number format_version. Rows of a tap are joined to images by
digest; an image with status other than "ok" has no row.

To change the format: raise FORMAT_VERSION, keep reading every earlier version, write a golden file of the
new version with tests/cache/make_golden.py and add its row to tests/cache/test_golden.py.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featcache.errors import CacheVersion, NotACache
from featcache.files import write_whole

FORMAT = "featcache"
FORMAT_VERSION = 1
PARTS_SUFFIX = ".parts"
IMAGE_COLUMNS = ("path", "label", "group", "split", "digest", "status", "reason")
MAX_DECLARED_RATIO = 1000  # an honest file stores its arrays; one that declares a thousand times its size is a bomb


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Open a cache or a part for reading. Raises NotACache or CacheVersion, naming the file."""
    if not path.is_file():
        begun = path.with_name(path.name + PARTS_SUFFIX).is_dir()
        how = "An extraction was begun; finish it" if begun else "Make one"
        raise NotACache(f"No cache at {path}. {how}: featcache extract IMAGES -o {path}")
    if not h5py.is_hdf5(path):
        raise NotACache(
            f"{path} is not an HDF5 file, so no featcache cache. Make one: featcache extract IMAGES -o CACHE.h5"
        )
    try:
        with h5py.File(path, "r", locking=False) as file:
            _check_version(file, path)
            yield file
    except (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:  # h5py and JSON
        raise NotACache(f"{path} is damaged: {error}. Move it away and run featcache extract again") from error


def write(path: Path, fill: Any) -> None:
    """Build an HDF5 file in memory with `fill(file)` and write it whole or not at all.

    HDF5 itself never touches the disk: on a full one it crashes the process (h5py#914).
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        put_text(file, "format", FORMAT)
        file.attrs["format_version"] = FORMAT_VERSION
        fill(file)
    write_whole(path, buffer.getvalue())


def strings(values: list[bytes]) -> np.ndarray[Any, Any]:
    """Return fixed-length bytes, which every HDF5 reader understands."""
    return np.array(values, dtype=f"S{max(map(len, values), default=1) or 1}")


def put_text(node: Any, name: str, text: str | bytes) -> None:
    """Write an attribute as bytes of fixed length: HDF5 can crash the process on a damaged one of variable length."""
    node.attrs[name] = np.bytes_(text if isinstance(text, bytes) else text.encode())


def text_of(node: Any, name: str) -> str:
    """Return an attribute that `put_text` wrote, or "" if there is none of that kind."""
    if name not in node.attrs or node.attrs.get_id(name).dtype.kind != "S":
        return ""
    return os.fsdecode(bytes(node.attrs[name]))


def own_group(parent: Any, name: str, path: Path) -> Any:
    """Return the group `name` of `parent`; raise NotACache if there is none, or a link that may lead out."""
    link = parent.get(name, getlink=True)
    group = parent.get(name) if isinstance(link, h5py.HardLink) else None
    if not isinstance(group, h5py.Group):
        raise NotACache(f"{path} has no group '{name}' of its own. It is damaged or no featcache cache")
    return group


def plain(group: Any, name: str, kind: str, rank: int, path: Path) -> Any:
    """Return the dataset `name` of `group` if it is what the format says; raise NotACache if not.

    Refused: links out of the file, external or virtual storage, object types, other ranks, and shapes
    declared far beyond what is stored.
    """
    link = group.get(name, getlink=True)
    dataset = group.get(name) if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset):
        raise NotACache(f"{path} has no dataset '{group.name}/{name}' of its own. It is damaged or no featcache cache")
    outside = dataset.external is not None or dataset.is_virtual
    if outside or dataset.dtype.kind != kind or dataset.ndim != rank:
        raise NotACache(f"{path}: dataset '{dataset.name}' is not a plain {rank}-dimensional array of the format")
    if dataset.nbytes > max(2**30, MAX_DECLARED_RATIO * max(dataset.id.get_storage_size(), 1)):
        raise NotACache(f"{path}: dataset '{dataset.name}' declares {dataset.nbytes} bytes that it does not hold")
    return dataset


def _check_version(file: Any, path: Path) -> None:
    if text_of(file, "format") != FORMAT:
        raise NotACache(
            f"{path} is an HDF5 file, but not one of featcache. Make one: featcache extract IMAGES -o CACHE.h5"
        )
    number = file.attrs.get_id("format_version")
    if number.dtype.kind not in "iu" or number.shape != ():
        raise NotACache(f"{path} is damaged: its format version is no number. Run featcache extract again")
    version = int(file.attrs["format_version"])
    if version != FORMAT_VERSION:
        raise CacheVersion(
            f"{path} has cache format {version}; this featcache reads {FORMAT_VERSION}. "
            + ("Upgrade featcache" if version > FORMAT_VERSION else "Extract again with -o NEW.h5")
        )
