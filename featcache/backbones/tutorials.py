"""Two networks that recipes need and that are no backbones: VGG16 with its top, and a small model.hdf5 to try with."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.backbones.build import preprocessed, reproducibly
from featcache.backbones.weights import Chatter, damage, keras_home
from featcache.backend import start_keras
from featcache.errors import WeightsMismatch, WeightsMissing
from featcache.spec import Preprocess

WEIGHTS = "vgg16_weights_tf_dim_ordering_tf_kernels.h5"
WEIGHTS_URL = f"https://storage.googleapis.com/tensorflow/keras-applications/vgg16/{WEIGHTS}"
CLASS_INDEX = "imagenet_class_index.json"
CLASS_INDEX_URL = f"https://storage.googleapis.com/download.tensorflow.org/data/{CLASS_INDEX}"
CLASS_INDEX_MD5 = "c2c37ea517e94d9795004a39431a14cb"
NUM_CLASSES = 1000
SIZE, SMALL = 224, 32


@dataclass(frozen=True)
class Classifier:
    """(N, size, size, 3) uint8 -> (N, K) probabilities, and what the classes are called."""

    model: Any  # keras.Model
    names: list[str]
    preprocess: Preprocess


def imagenet_files() -> dict[Path, str]:
    """Return the files that naming ImageNet's classes needs, and where each is to be had."""
    folder = keras_home() / "models"
    return {folder / WEIGHTS: WEIGHTS_URL, folder / CLASS_INDEX: CLASS_INDEX_URL}


def imagenet_classifier(*, random: bool = False) -> Classifier:
    """Return VGG16 with its top. random: random weights, small images, and numbers for names.

    Raises WeightsMissing saying which files to put where, WeightsMismatch if one is damaged.
    """
    start_keras()
    import keras

    size = SMALL if random else SIZE
    names = [f"class {number}" for number in range(NUM_CLASSES)] if random else _downloaded(_class_names)
    vgg16 = keras.applications.VGG16
    with reproducibly(0):
        network = vgg16(weights=None, input_shape=(size, size, 3)) if random else _downloaded(vgg16)
    preprocess = Preprocess(size, mode="caffe")
    pixels = keras.Input((size, size, 3), dtype="uint8")
    entering = preprocessed(keras.ops.cast(pixels, "float32"), preprocess)
    return Classifier(keras.Model(pixels, network(entering)), names, preprocess)


def write_small_model(path: Path) -> Path:
    """Write a small untrained model with a layer flatten_1, as a user of Keras 2 had one, unless it is there."""
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
                layers.Dense(5, activation="softmax"),
            ]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.stem}.draft.h5")  # Keras 3 writes no name that ends in .hdf5
    with _without_remarks():
        model.save(draft)
    os.replace(draft, path)
    return path


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep Keras from saying that HDF5 is of yesterday, which is what it is written for here."""

    def nothing(record: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("absl")
    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


def _class_names() -> list[str]:
    import keras

    file = keras.utils.get_file(
        CLASS_INDEX, CLASS_INDEX_URL, cache_subdir="models", cache_dir=keras_home(), file_hash=CLASS_INDEX_MD5
    )
    index = json.loads(Path(file).read_text())
    return [index[str(number)][1] for number in range(NUM_CLASSES)]


def _downloaded(make: Any) -> Any:
    """Call what takes a file of Keras' or downloads it; say in one line what is wrong if that fails."""
    try:
        with redirect_stdout(Chatter()):
            return make()
    except Exception as error:  # Keras raises all sorts, plain Exception too
        reason = " ".join(str(error).split())[:120]
        files = imagenet_files()
        if lacking := [f"{file.name} ({url})" for file, url in files.items() if not file.exists()]:
            raise WeightsMissing(
                f"No network, and VGG16 with its top is not on this machine. Put {' and '.join(lacking)} into "
                f"{keras_home() / 'models'} (KERAS_HOME is {os.environ.get('KERAS_HOME', 'not set')})"
            ) from error
        broken = next((file for file in files if file.suffix == ".h5" and damage(file)), next(iter(files)))
        raise WeightsMismatch(f"{broken} cannot be used: {reason}. Delete it and put it there anew") from error
