"""Arrays as a source: each image is handed on as the bytes of a PGM or PPM file, so that all else is as for files.

An image's path is its number, behind its split where a file has one array for each: `000001`, `train/000001`.
What lies in .npy and .npz files is read an image at a time; nothing in them is ever unpickled.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featcache.errors import DataError, NoImages
from featcache.images.archives import BROKEN, Held, damaged, data_offset, unpacked
from featcache.images.decode import Undecodable
from featcache.images.folder import Stamp, reason_of, stamp_of
from featcache.images.listing import Listed, Listing, normalize_name, remarks_on_labels
from featcache.spec import SPLITS

AnyArray = npt.NDArray[Any]
Header = tuple[tuple[int, ...], bool, "np.dtype[Any]"]
HEADERS: dict[tuple[int, int], Callable[[Any], Header]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
PAIRS = (("x", "y"), ("X", "y"), ("images", "labels"))
# What makes uint8 or uint16 of other kinds of numbers, without a value that wraps round
_INTEGERS = (
    "x.astype('uint8') if all are 0 to 255; x.astype('uint16') if all are 0 to 65535 (extract with bits=12 if 4095 is "
    "white); else scale them: np.interp(x, (x.min(), x.max()), (0, 255)).astype('uint8')"
)
CURES = {"f": "(x * 255).astype('uint8') if they are 0 to 1", "i": _INTEGERS, "u": _INTEGERS, "b": "x * np.uint8(255)"}
KEYS = "x_train, y_train, x_val, y_val, x_test, y_test; or x, y; or images, labels"


@dataclass(frozen=True)
class Stack:
    """Images of one shape and type, and how to get at one of them."""

    shape: tuple[int, ...]  # (N, H, W), (N, H, W, 1) or (N, H, W, 3)
    dtype: np.dtype[Any]
    image: Callable[[int], AnyArray]


@dataclass(frozen=True)
class Stored:
    """An array that lies in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    held: Held
    offset: int

    def image(self, number: int) -> AnyArray:
        """Return one row of the first axis."""
        size = prod(self.shape[1:]) * self.dtype.itemsize
        data = self.held.read(size, self.offset + number * size)
        return np.frombuffer(data, self.dtype).reshape(self.shape[1:])

    def whole(self) -> AnyArray:
        """Return all of it."""
        data = self.held.read(prod(self.shape) * self.dtype.itemsize, self.offset)
        return np.frombuffer(data, self.dtype).reshape(self.shape)


class Part(NamedTuple):
    """A stack with what is known of each of its images; "" is nothing."""

    images: Stack | Stored
    labels: Sequence[str]
    splits: Sequence[str]
    groups: Sequence[str]


class ArraySource:
    """Images in arrays: one part, or one for each split under the split's name."""

    def __init__(self, location: Path | None, parts: Mapping[str, Part]) -> None:
        self.location = location
        self._parts = dict(parts)

    def listing(self) -> Listing:
        """Return all images with their labels, splits and groups."""
        files: list[Listed] = []
        spellings: dict[str, set[str]] = {}  # {label: how the arrays write it}
        for name, part in self._parts.items():
            for number, facts in enumerate(zip(part.labels, part.splits, part.groups, strict=True)):
                path = f"{name}/{number:06d}" if name else f"{number:06d}"
                label, split, group = facts
                files.append(Listed(path, normalize_name(label), split, normalize_name(group)))
                if label.strip():
                    spellings.setdefault(normalize_name(label), set()).add(label)
        files.sort()
        remarks = tuple(remarks_on_labels(spellings, "the arrays" if self.location is None else self.location.name))
        if any(file.split for file in files):
            return Listing("splits", files, [], remarks=remarks)
        return Listing("classes" if spellings else "flat", files, [], remarks=remarks)

    def read(self, path: str) -> bytes:
        """Return one image as the bytes of a PGM or PPM file."""
        name, _, number = path.rpartition("/")
        part = self._parts.get(name)
        if part is None or not number.isdecimal() or int(number) >= part.images.shape[0]:
            raise Undecodable("unreadable", "no such image in the arrays")
        try:
            return pnm(part.images.image(int(number)))
        except (OSError, ValueError) as error:
            raise Undecodable("unreadable", reason_of(error)) from error

    def stamp(self, path: str) -> Stamp:
        """Return the stamp of the file; arrays in memory may change without a trace and have none."""
        if self.location is None:
            raise Undecodable("unreadable", "an array in memory has no stamp")
        try:
            return stamp_of(os.stat(self.location))
        except OSError as error:
            raise Undecodable("unreadable", reason_of(error)) from error


def memory_arrays(images: AnyArray, labels: Any, splits: Any, groups: Any) -> ArraySource:
    """Return the source of an array in memory. Raises DataError saying what to do if it cannot be used as it is."""
    stack = Stack(images.shape, images.dtype, lambda number: np.asarray(images[number]))
    _check(stack, "The array")
    columns = [_names(values, len(images), what) for what, values in (("splits", splits), ("groups", groups))]
    unknown = {*columns[0]} - {*SPLITS, ""}
    if unknown:
        raise DataError(f"splits= has '{min(unknown)}'. Name them train, val or test, or '' to leave it to featcache")
    (labels,) = _labels([labels], [len(images)], "labels")
    return ArraySource(None, {"": Part(stack, labels, *columns)})


def stored_arrays(path: Path) -> ArraySource:
    """Return the source of a .npy file, or of a .npz file of images and labels, split or not. Raises DataError."""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".npz":
                return ArraySource(path, _parts(_Npz(path, file), path))
            held = Held(file)
            stack = _stored(held, 0, held.stamp().size)
    except (*BROKEN, Undecodable) as error:
        raise damaged(path, error) from error
    _check(stack, str(path))
    nothing = [""] * stack.shape[0]
    return ArraySource(path, {"": Part(stack, nothing, nothing, nothing)})


def pnm(image: AnyArray) -> bytes:
    """Return an image as PGM or PPM; 16 bits are written big endian, as these formats want it.

    >>> pnm(np.zeros((1, 2), np.uint8))
    b'P5\\n2 1\\n255\\n\\x00\\x00'
    """
    height, width = image.shape[:2]
    kind = "P6" if image.shape[2:] == (3,) else "P5"
    top, samples = (255, "u1") if image.dtype.itemsize == 1 else (65535, ">u2")
    return f"{kind}\n{width} {height}\n{top}\n".encode() + image.astype(samples).tobytes()


class _Npz:
    """The arrays of a .npz file by their names; what is compressed in it is unpacked to a file without a name."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._held = path, Held(file)
        try:
            self._zip = zipfile.ZipFile(file)
        except Exception as error:  # zipfile raises many kinds on damaged files
            raise damaged(path, error) from error
        self._infos = {info.filename.removesuffix(".npy"): info for info in self._zip.infolist()}

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def __iter__(self) -> Any:
        return iter(self._infos)

    def __getitem__(self, name: str) -> Stored:
        info = self._infos[name]
        if info.compress_type == zipfile.ZIP_STORED:
            return _stored(self._held, data_offset(self._held, info.header_offset), info.file_size)
        held = unpacked(self._zip.open(info), self._path)
        return _stored(held, 0, held.stamp().size)


def _parts(arrays: _Npz, path: Path) -> dict[str, Part]:
    known = [(split, (f"x_{split}", f"y_{split}")) for split in SPLITS] + [("", pair) for pair in PAIRS]
    there = [(part, pair) for part, pair in known if pair[0] in arrays]
    names = dict(there) if there and there[0][0] else dict(there[:1])
    if not names:
        raise DataError(f"{path} has the arrays {', '.join(arrays)}; featcache reads {KEYS}. Save them by these names")
    stacks = {part: arrays[x] for part, (x, _) in names.items()}
    for part, stack in stacks.items():
        _check(stack, f"{names[part][0]} in {path}")
    given = [arrays[y].whole() if y in arrays else None for _, y in names.values()]
    labels = _labels(given, [stack.shape[0] for stack in stacks.values()], f"y in {path}")
    return {
        part: Part(stack, found, [part] * len(found), [""] * len(found))
        for (part, stack), found in zip(stacks.items(), labels, strict=True)
    }


def _stored(held: Held, start: int, size: int) -> Stored:
    """Return the array whose .npy form begins there and has that size. Raises ValueError."""
    with held.reopened() as file:
        file.seek(start)
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"version {version} of the .npy format")
        shape, by_columns, dtype = _header(HEADERS[version], file)
        offset = file.tell()
    if dtype.hasobject:
        raise ValueError("Python objects, which could run code; save plain numbers or strings")
    if by_columns and len(shape) > 1:
        raise ValueError("columns first (Fortran order); save np.ascontiguousarray(x)")
    if prod(shape) * dtype.itemsize > size - (offset - start):
        raise ValueError(f"the file ends before the array of shape {shape} does")
    return Stored(shape, dtype, held, offset)


def _header(read: Callable[[Any], Header], file: IO[bytes]) -> Header:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        try:
            return read(file)
        except Exception as error:  # NumPy's own tokenizer raises kinds that it does not name
            raise ValueError(f"its header cannot be read: {error}") from error


def _check(stack: Stack | Stored, where: str) -> None:
    """Raise DataError, saying what to do, if these are no images as they are."""
    shape, dtype = stack.shape, stack.dtype
    if dtype.kind != "u" or dtype.itemsize > 2:
        cure = CURES.get(dtype.kind, "they are no numbers of pixels")
        raise DataError(f"{where} holds {dtype}, images are uint8 or uint16, 0 being black. Convert them: {cure}")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)) or 0 in shape[1:]:
        first = len(shape) == 4 and shape[1] in (1, 3)
        cure = "Put the channels last: np.moveaxis(x, 1, -1)" if first else "Reshape it"
        raise DataError(f"{where} has shape {shape}, images are (N, H, W), (N, H, W, 1) or (N, H, W, 3). {cure}")
    if not shape[0]:
        raise NoImages(f"{where} has no images: its shape is {shape}")


def _labels(given: Sequence[Any], counts: Sequence[int], where: str) -> list[list[str]]:
    """Return the names of the labels of several parts; whole numbers get zeros in front, so that they sort as numbers.

    >>> _labels([[2, 10], None], [2, 1], "labels")
    [['02', '10'], ['']]
    """
    arrays = [None if values is None else np.asarray(values) for values in given]
    whole = [array for array in arrays if array is not None and array.dtype.kind in "iub" and array.size]
    digits = max((len(str(int(array.max()))) for array in whole), default=1)
    if any(array.min() < 0 for array in whole):
        raise DataError(f"{where}: labels are names or numbers from 0; the least is {min(a.min() for a in whole)}")
    return [_names(array, count, where, digits) for array, count in zip(arrays, counts, strict=True)]


def _names(values: Any, count: int, where: str, digits: int = 0) -> list[str]:
    if values is None:
        return [""] * count
    array = np.asarray(values)
    if array.shape not in ((count,), (count, 1)):
        cure = " One column for each class? np.argmax(y, axis=1)" if array.ndim == 2 else ""
        raise DataError(f"{where}: {count} images, but values of shape {array.shape}. Give one for each image.{cure}")
    if array.dtype.kind in "iub":
        return [f"{int(value):0{digits}d}" for value in array.ravel()]
    if array.dtype.kind == "S":
        return [value.decode("utf-8", "surrogateescape") for value in array.ravel().tolist()]
    if array.dtype.kind == "U" or all(isinstance(value, str) for value in array.ravel()):
        return [str(value) for value in array.ravel()]
    raise DataError(f"{where}: values of type {array.dtype}. Give whole numbers or strings")
