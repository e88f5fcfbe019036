"""Write a small model.hdf5 with which to try a recipe, like the files that users of Keras 2 have."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featcache.backbones.build import reproducibly
from featcache.backend import start_keras


def write_small_model(path: Path) -> Path:
    """Write a small untrained model with a layer flatten_1 to `path`, unless there is a file already."""
    if path.exists():
        return path
    start_keras()
    import keras

    layers = keras.layers
    with reproducibly(0):
        model = keras.Sequential(
            [
                keras.Input((32, 32, 3)),
                layers.Rescaling(1 / 255),
                layers.Conv2D(8, 3, strides=2, activation="relu"),
                layers.Conv2D(16, 3, strides=2, activation="relu"),
                layers.Flatten(name="flatten_1"),
                layers.Dense(10, activation="softmax"),
            ]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.stem}.draft.h5")  # Keras 3 refuses to write a name that ends in .hdf5
    with _without_remarks():
        model.save(draft)
    os.replace(draft, path)
    return path


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Hide Keras' warning that HDF5 is outdated, since an outdated file is the purpose here."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("absl")
    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)
