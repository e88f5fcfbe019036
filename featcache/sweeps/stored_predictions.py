"""Files with the predictions of a trial, or of a fine-tuned model, on the images that chose."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Classes
from featcache.errors import NotARun
from featcache.files import raise_if_of_the_system, read_arrays, write_arrays
from featcache.sweeps.metrics import Predictions
from featcache.sweeps.tap_data import TapData

PREDICTIONS = frozenset({"predicted", "loss", "confidence"})  # the arrays of a file
NOT_JUDGED = -1  # in place of a predicted class: the image stayed in the training of all folds


def save_predictions(path: Path, predictions: Predictions, data: TapData) -> None:
    """Write the class of each image and, if the head gives it, the confidence, in the order of the images.

    Under cross-validation these are all images of train; those that choose nothing get the class NOT_JUDGED.
    """
    arrays: dict[str, Any] = {"predicted": predictions.predicted.astype(np.int32)}
    if predictions.loss is not None:
        arrays |= {"loss": predictions.loss, "confidence": predictions.confidence}

    if data.is_split:
        order = np.argsort(data.choosing)
        arrays = {name: values[order] for name, values in arrays.items()}
    else:
        for name, values in arrays.items():
            of_train = np.full(data.num_train, NOT_JUDGED, values.dtype)
            of_train[data.choosing] = values
            arrays[name] = of_train
    write_arrays(path, arrays)


def read_predictions(path: Path, truth: Classes, required: Collection[str], do: str) -> Predictions:
    """Return the predictions in a file, of images with the labels `truth`. required: the arrays that it must have.

    Raises NotARun, with what to `do`, if it is damaged or about other images.
    """
    try:
        arrays = read_arrays(path)
        # The checksums of a zip do not cover its names: an array under another name must not count as absent.
        if not set(required) <= arrays.keys() <= PREDICTIONS:
            raise ValueError(f"its arrays are {', '.join(sorted(map(ascii, arrays)))}")
        lengths = {len(values) for values in arrays.values()}
    except Exception as error:  # a damaged file can raise anything
        raise_if_of_the_system(path, error)
        raise NotARun(f"Cannot read the predictions {path}: {error}. {do}") from error
    if lengths != {len(truth)}:
        raise NotARun(f"{path} does not fit the images of its run. {do}")
    return Predictions(truth, **arrays)
