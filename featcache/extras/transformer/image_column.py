"""What users of scikit-learn call X, where each sample is an image -> a source of bytes and one path per sample."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featcache.errors import DataError, NotImages
from featcache.images.array_source import AnyArray, memory_arrays
from featcache.images.folder import FolderSource
from featcache.images.memory import IN_MEMORY, MemorySource
from featcache.images.sources import Source

TAKES = (
    "a list of paths, of Pillow images or of arrays (H, W, 3), one array (N, H, W, 3), or one column of a data frame"
)
NUMBERS = "biufc"  # kinds of dtypes
LONGEST_SAMPLE = 60  # characters of a sample in a message


class ImageColumn(NamedTuple):
    """N images in order."""

    source: Source
    paths: Sequence[str]  # (N,), as `source` reads them; of images in memory their numbers
    in_files: bool

    def name(self, path: str) -> str:
        """Return what a message calls an image."""
        return path if self.in_files else f"image {int(path)}"


def column_name(X: Any) -> str | None:
    """Return the name of the column if X is a data frame, else None. Raises NotImages if it has several columns."""
    if not hasattr(X, "columns"):
        return None
    names = [str(name) for name in X.columns]
    if len(names) != 1:
        raise NotImages(
            f"A data frame with {len(names)} columns ({', '.join(names[:5])}); images stand in one. Choose it: "
            "X[['path']], or a ColumnTransformer"
        )
    return names[0]


def image_column(X: Any) -> ImageColumn:
    """Return the images of X. Raises NotImages, with what to do, if it is anything but images."""
    try:
        column = _column(X)
    except NotImages:
        raise
    except DataError as error:  # arrays of another shape or kind of number
        raise NotImages(str(error)) from error
    if not column.paths:
        raise NotImages(f"No images: X has 0 sample(s), and a minimum of 1 is required. Give {TAKES}")
    return column


def _column(X: Any) -> ImageColumn:
    if isinstance(X, (str, bytes, os.PathLike)):
        raise NotImages(
            f"X is the text '{os.fsdecode(X)}', not a list of images. For all files of a folder: "
            "sorted(pathlib.Path('photos').rglob('*.jpg'))"
        )
    if column_name(X) is not None:
        X = X[X.columns[0]]
    if isinstance(X, IN_MEMORY[1]):
        raise NotImages("X is one Pillow image, not a list of images. Put it into a list: [image]")
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if not isinstance(X, (list, tuple)) and hasattr(X, "__array__"):
        X = np.asarray(X)
    if isinstance(X, np.ndarray):
        if X.dtype.kind in NUMBERS:
            return _stack(X)
        X = _flat(X)
    if not isinstance(X, Iterable):
        raise NotImages(f"X is of type {type(X).__name__}. Give {TAKES}")
    return _listed(list(X))


def _stack(images: AnyArray) -> ImageColumn:
    """Return the images (N, H, W), (N, H, W, 1) or (N, H, W, 3) of one array."""
    if images.ndim == 3 and images.shape[2] in (1, 3):
        raise NotImages(
            f"An array of shape {images.shape} may be one image or {len(images)} narrow ones. Give X[None] for one "
            "image, X[..., None] for grey ones"
        )
    source = memory_arrays(images, None, None, None)
    return ImageColumn(source, [f"{number:06d}" for number in range(len(images))], in_files=False)


def _flat(samples: AnyArray) -> AnyArray:
    """Return an array (N,) or (N, 1) of paths or images as (N,)."""
    if samples.ndim == 2 and samples.shape[1] == 1:
        return samples[:, 0]
    if samples.ndim != 1:
        raise NotImages(f"X is an array of shape {samples.shape} and type {samples.dtype}. Give {TAKES}")
    return samples


def _listed(samples: Sequence[Any]) -> ImageColumn:
    in_memory = bool(samples) and isinstance(samples[0], IN_MEMORY)
    kinds = IN_MEMORY if in_memory else (str, bytes, os.PathLike)
    for number, sample in enumerate(samples):
        if not isinstance(sample, kinds):
            first = "an image" if in_memory else "a path"
            wanted = f"{first}, as the first is" if number else "a path or an image"
            text = " ".join(repr(sample).split())[:LONGEST_SAMPLE]
            raise NotImages(f"Sample {number} is {text} ({type(sample).__name__}), not {wanted}. Give {TAKES}")
    if in_memory:
        source = MemorySource(samples)
        return ImageColumn(source, source.paths, in_files=False)
    return ImageColumn(FolderSource(Path()), [str(os.fsdecode(path)) for path in samples], in_files=True)
