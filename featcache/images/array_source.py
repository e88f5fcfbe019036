"""Arrays as a source: each image is passed on as the bytes of a PGM or PPM file, so the rest works as for files.

An image's path is its number, after its split if a file has an array per split: `000001`, `train/000001`.
Images in .npy and .npz files are read one at a time, and nothing in these files is ever unpickled. They are read with
`pread` instead of `np.load(mmap_mode="r")`: a file that was cut off is then an error of one image, while reading such a
mapping kills the process (SIGBUS); and NumPy cannot map the members of an .npz file.
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
# How to convert other numbers to uint8 or uint16 without values that wrap around
_INTEGERS = (
    "x.astype('uint8') if all are 0 to 255; x.astype('uint16') if all are 0 to 65535 (extract with bits=12 if 4095 is "
    "white); else scale them: np.interp(x, (x.min(), x.max()), (0, 255)).astype('uint8')"
)
CURES = {"f": "(x * 255).astype('uint8') if they are 0 to 1", "i": _INTEGERS, "u": _INTEGERS, "b": "x * np.uint8(255)"}
KEYS = "x_train, y_train, x_val, y_val, x_test, y_test; or x, y; or images, labels"


@dataclass(frozen=True)
class Stack:
    """Images of one shape and type in memory, and how to read one of them."""

    shape: tuple[int, ...]  # (N, H, W), (N, H, W, 1) or (N, H, W, 3)
    dtype: np.dtype[Any]
    image: Callable[[int], AnyArray]


@dataclass(frozen=True)
class StoredArray:
    """An array in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    held: Held
    offset: int

    def image(self, number: int) -> AnyArray:
        """Return one row of the first axis."""
        size = prod(self.shape[1:]) * self.dtype.itemsize
        data = self.held.read(size, self.offset + number * size)
        return np.frombuffer(data, self.dtype).reshape(self.shape[1:])

    def all_rows(self) -> AnyArray:
        """Return the whole array."""
        data = self.held.read(prod(self.shape) * self.dtype.itemsize, self.offset)
        return np.frombuffer(data, self.dtype).reshape(self.shape)


class LabelledStack(NamedTuple):
    """Images with their labels, splits and groups; "" where there is none."""

    images: Stack | StoredArray
    labels: Sequence[str]
    splits: Sequence[str]
    groups: Sequence[str]


class ArraySource:
    """Images in arrays. stacks: {split: images}, or {"": images} if the arrays are not split."""

    def __init__(self, location: Path | None, stacks: Mapping[str, LabelledStack]) -> None:
        self.location = location
        self._stacks = dict(stacks)

    def listing(self) -> Listing:
        """Return all images with their labels, splits and groups."""
        files: list[Listed] = []
        spellings: dict[str, set[str]] = {}  # {label: how the arrays write it}
        for name, stack in self._stacks.items():
            folder = f"{name}/" if name else ""
            columns = zip(stack.labels, stack.splits, stack.groups, strict=True)
            for number, (label, split, group) in enumerate(columns):
                path = f"{folder}{number:06d}"
                files.append(Listed(path, normalize_name(label), split, normalize_name(group)))
                if label.strip():
                    spellings.setdefault(normalize_name(label), set()).add(label)
        files.sort()
        where = "the arrays" if self.location is None else self.location.name
        remarks = tuple(remarks_on_labels(spellings, where))
        if any(file.split for file in files):
            return Listing("splits", files, [], remarks=remarks)
        return Listing("classes" if spellings else "flat", files, [], remarks=remarks)

    def read(self, path: str) -> bytes:
        """Return one image as the bytes of a PGM or PPM file."""
        name, _, number = path.rpartition("/")
        stack = self._stacks.get(name)
        if stack is None or not number.isdecimal() or int(number) >= stack.images.shape[0]:
            raise Undecodable("unreadable", "no such image in the arrays")
        try:
            return pnm(stack.images.image(int(number)))
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
    split_names = _names(splits, len(images), "splits")
    group_names = _names(groups, len(images), "groups")
    unknown = set(split_names) - {*SPLITS, ""}
    if unknown:
        raise DataError(f"splits= has '{min(unknown)}'. Name them train, val or test, or '' to leave it to featcache")
    (label_names,) = _labels([labels], [len(images)], "labels")
    return ArraySource(None, {"": LabelledStack(stack, label_names, split_names, group_names)})


def stored_arrays(path: Path) -> ArraySource:
    """Return the source of a .npy file, or of a .npz file of images and labels, split or not. Raises DataError."""
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".npz":
                return ArraySource(path, _stacks(_Npz(path, file), path))
            held = Held(file)
            stack = _stored(held, 0, held.stamp().size)
    except (*BROKEN, Undecodable) as error:
        raise damaged(path, error) from error
    _check(stack, str(path))
    nothing = [""] * stack.shape[0]
    return ArraySource(path, {"": LabelledStack(stack, nothing, nothing, nothing)})


def pnm(image: AnyArray) -> bytes:
    """Return an image as PGM or PPM; these formats have 16-bit values in big-endian order.

    >>> pnm(np.zeros((1, 2), np.uint8))
    b'P5\\n2 1\\n255\\n\\x00\\x00'
    """
    height, width = image.shape[:2]
    kind = "P6" if image.shape[2:] == (3,) else "P5"  # colour or grey
    white = 255
    stored_dtype = "u1"
    if image.dtype.itemsize > 1:
        white = 65535
        stored_dtype = ">u2"
    header = f"{kind}\n{width} {height}\n{white}\n"
    return header.encode() + image.astype(stored_dtype).tobytes()


class _Npz:
    """The arrays of a .npz file by their names. Compressed arrays are unpacked to a temporary file without a name."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._held = Held(file)
        try:
            self._zip = zipfile.ZipFile(file)
        except Exception as error:  # zipfile raises many kinds on damaged files
            raise damaged(path, error) from error
        self._infos = {info.filename.removesuffix(".npy"): info for info in self._zip.infolist()}

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    def __iter__(self) -> Any:
        return iter(self._infos)

    def __getitem__(self, name: str) -> StoredArray:
        info = self._infos[name]
        if info.compress_type == zipfile.ZIP_STORED:
            start = data_offset(self._held, info.header_offset)
            return _stored(self._held, start, info.file_size)
        held = unpacked(self._zip.open(info), self._path)
        return _stored(held, 0, held.stamp().size)


def _stacks(arrays: _Npz, path: Path) -> dict[str, LabelledStack]:
    """Return {split: images} of a .npz file, or {"": images} if it is not split. Raises DataError."""
    names: dict[str, tuple[str, str]] = {}  # {split: (array of images, array of labels)}
    for split in SPLITS:
        if f"x_{split}" in arrays:
            names[split] = (f"x_{split}", f"y_{split}")
    is_split = bool(names)
    for x, y in PAIRS:
        # Images that are in no split are read too, and get a split from their content.
        if x in arrays and (is_split or not names):
            names[""] = (x, y)
    if not names:
        raise DataError(f"{path} has the arrays {', '.join(arrays)}; featcache reads {KEYS}. Save them by these names")

    images: dict[str, StoredArray] = {}
    label_values: list[AnyArray | None] = []
    for split, (x, y) in names.items():
        images[split] = arrays[x]
        _check(images[split], f"{x} in {path}")
        label_values.append(arrays[y].all_rows() if y in arrays else None)
    # All splits together: the names of whole numbers have as many digits as the largest of them.
    counts = [stack.shape[0] for stack in images.values()]
    labels = _labels(label_values, counts, f"y in {path}")
    stacks: dict[str, LabelledStack] = {}
    for (split, stack), names_of_split in zip(images.items(), labels, strict=True):
        num_images = len(names_of_split)
        stacks[split] = LabelledStack(stack, names_of_split, [split] * num_images, [""] * num_images)
    return stacks


def _stored(held: Held, start: int, size: int) -> StoredArray:
    """Return the array whose .npy file begins at `start` and has `size` bytes. Raises ValueError."""
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
    return StoredArray(shape, dtype, held, offset)


def _header(read: Callable[[Any], Header], file: IO[bytes]) -> Header:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        try:
            return read(file)
        except Exception as error:  # NumPy's own tokenizer raises kinds that it does not name
            raise ValueError(f"its header cannot be read: {error}") from error


def _check(stack: Stack | StoredArray, where: str) -> None:
    """Raise DataError, saying what to do, if an array cannot be used as images."""
    shape = stack.shape
    dtype = stack.dtype
    if dtype.kind != "u" or dtype.itemsize > 2:
        cure = CURES.get(dtype.kind, "they are no numbers of pixels")
        raise DataError(f"{where} holds {dtype}, images are uint8 or uint16, 0 being black. Convert them: {cure}")
    has_channels = len(shape) == 4
    has_odd_channels = has_channels and shape[3] not in (1, 3)
    if len(shape) not in (3, 4) or has_odd_channels or 0 in shape[1:]:
        are_channels_first = has_channels and shape[1] in (1, 3)
        cure = "Put the channels last: np.moveaxis(x, 1, -1)" if are_channels_first else "Reshape it"
        raise DataError(f"{where} has shape {shape}, images are (N, H, W), (N, H, W, 1) or (N, H, W, 3). {cure}")
    if not shape[0]:
        raise NoImages(f"{where} has no images: its shape is {shape}")


def _labels(columns: Sequence[Any], counts: Sequence[int], where: str) -> list[list[str]]:
    """Return the names of the labels of several stacks; whole numbers get zeros in front, so that they sort as numbers.

    >>> _labels([[2, 10], None], [2, 1], "labels")
    [['02', '10'], ['']]
    """
    arrays = [None if values is None else np.asarray(values) for values in columns]
    num_digits = 1
    smallest = 0
    for array in arrays:
        if array is not None and array.size and array.dtype.kind in "iub":
            num_digits = max(num_digits, len(str(int(array.max()))))
            smallest = min(smallest, int(array.min()))
    if smallest < 0:
        raise DataError(f"{where}: labels are names or numbers from 0; the least is {smallest}")
    return [_names(array, count, where, num_digits) for array, count in zip(arrays, counts, strict=True)]


def _names(values: Any, count: int, where: str, num_digits: int = 0) -> list[str]:
    """Return one name per image; "" for all of them if there are no values. Raises DataError."""
    if values is None:
        return [""] * count
    array = np.asarray(values)
    if array.shape not in ((count,), (count, 1)):
        cure = " One column for each class? np.argmax(y, axis=1)" if array.ndim == 2 else ""
        raise DataError(f"{where}: {count} images, but values of shape {array.shape}. Give one for each image.{cure}")
    if array.dtype.kind in "iub":
        return [f"{int(value):0{num_digits}d}" for value in array.ravel()]
    if array.dtype.kind == "S":
        return [value.decode("utf-8", "surrogateescape") for value in array.ravel().tolist()]
    if array.dtype.kind == "U" or all(isinstance(value, str) for value in array.ravel()):
        return [str(value) for value in array.ravel()]
    raise DataError(f"{where}: values of type {array.dtype}. Give whole numbers or strings")
