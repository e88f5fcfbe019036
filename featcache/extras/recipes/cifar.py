"""CIFAR-10 as its authors' Python batches (A. Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html) -> .npz.

The batches are pickles, which could run code: here they may name NumPy's arrays and nothing else.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from featcache.arrays import Classes, Pixels
from featcache.backend import keras_home
from featcache.errors import DataError, NoImages
from featcache.files import write_whole

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
SIDE = 32
_ARRAYS = {("numpy", "ndarray"), ("numpy", "dtype")}
_MAKER = ("numpy.core.multiarray", "numpy._core.multiarray")

Opened = Callable[[str], IO[bytes]]


def at_home() -> Path:
    """Return where CIFAR-10 lies under KERAS_HOME. Raises NoImages saying which file to put where."""
    folder = keras_home() / "datasets"
    known = (f"{BATCHES}-target/{BATCHES}", BATCHES, ARCHIVE, "cifar10.npz")  # the first is Keras' own
    for path in (folder / name for name in known):
        if path.exists():
            return path
    raise NoImages(
        f"CIFAR-10 is not on this machine. Put {ARCHIVE} (170 MB, https://www.cs.toronto.edu/~kriz/cifar.html) into "
        f"{folder}, as it is or unpacked to {BATCHES}; or say where it is: featcache recipe cifar PATH, also an .npz "
        "with x_train, y_train, x_test, y_test"
    )


def as_arrays(path: Path, out: Path, num_train: int, num_val: int) -> Path:
    """Return the .npz with the first training and validation images, equally many of each class.

    Training images come from data_batch_1 to 5 and validation images from test_batch, as in the tutorial. A path that
    is no folder or archive of batches is returned as it is. Raises DataError with the file's name if a batch cannot be
    read.
    """
    opened = _opener(path)
    if opened is None:
        return path
    if not out.exists():
        train = _first([_batch(opened, path, name) for name in TRAIN_BATCHES], num_train)
        val = _first([_batch(opened, path, "test_batch")], num_val)
        buffer = io.BytesIO()
        np.savez(buffer, x_train=train[0], y_train=train[1], x_val=val[0], y_val=val[1])
        write_whole(out, buffer.getvalue())
    return out


def _opener(path: Path) -> Opened | None:
    """Return what opens a batch by its name, None if the path has none."""
    for folder in (path, path / BATCHES):
        if (folder / TRAIN_BATCHES[0]).is_file():
            return lambda name: (folder / name).open("rb")
    if path.is_file() and path.name == ARCHIVE:
        return lambda name: _member(path, name)
    return None


def _member(path: Path, name: str) -> IO[bytes]:
    with tarfile.open(path) as archive:
        member = archive.extractfile(f"{BATCHES}/{name}")
        return io.BytesIO(b"" if member is None else member.read())


def _batch(opened: Opened, path: Path, name: str) -> tuple[Pixels, Classes]:
    """Return (N, 32, 32, 3) images and (N,) labels of one batch."""
    try:
        with opened(name) as file:
            content = _OnlyArrays(file, encoding="bytes").load()
        data, labels = np.asarray(content[b"data"]), np.asarray(content[b"labels"], dtype=np.int64)
        if data.dtype != np.uint8 or data.shape != (len(labels), 3 * SIDE * SIDE):
            raise ValueError(f"its data are {data.dtype} of shape {data.shape}")
        if labels.min() < 0 or labels.max() >= len(NAMES):
            raise ValueError(f"its labels run from {labels.min()} to {labels.max()}")
    except Exception as error:  # unpickling raises all sorts
        raise DataError(f"{name} in {path} is no batch of CIFAR-10: {error}. Download {ARCHIVE} again") from error
    return data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels


def _first(batches: list[tuple[Pixels, Classes]], count: int) -> tuple[Pixels, Any]:
    """Return the first images of all batches with the names of their classes, as many of each class."""
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    each = count // len(NAMES)
    rows = np.sort(np.concatenate([np.flatnonzero(labels == label)[:each] for label in range(len(NAMES))]))
    return np.ascontiguousarray(images[rows]), np.array(NAMES)[labels[rows]]


def _latin_1(text: str, encoding: str) -> bytes:
    return text.encode("latin-1")


class _OnlyArrays(pickle.Unpickler):
    """Reads plain values and NumPy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS:
            return getattr(np, name)
        if module in _MAKER and name == "_reconstruct":
            from numpy._core.multiarray import _reconstruct

            return _reconstruct
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them for Python 2
            return _latin_1
        raise pickle.UnpicklingError(f"it names {module}.{name}, which could run code")
