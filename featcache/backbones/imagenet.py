"""A backbone with its top, as it was trained on ImageNet, and what the 1,000 classes are called."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.backbones.build import entering, reproducibly
from featcache.backbones.parse import Request, requests
from featcache.backbones.registry import get, weights_file
from featcache.backbones.weights import Chatter, keras_home
from featcache.backend import start_keras
from featcache.errors import UsageError, WeightsMismatch, WeightsMissing
from featcache.spec import Preprocess

CLASS_INDEX = "imagenet_class_index.json"
CLASS_INDEX_URL = f"https://storage.googleapis.com/download.tensorflow.org/data/{CLASS_INDEX}"
CLASS_INDEX_MD5 = "c2c37ea517e94d9795004a39431a14cb"
NUM_CLASSES = 1000
SMALL = 32


@dataclass(frozen=True)
class Classifier:
    """(N, size, size, 3) uint8 -> (N, K) probabilities, and what the classes are called."""

    model: Any  # keras.Model
    names: list[str]
    preprocess: Preprocess


def imagenet_files(backbone: str = "vgg16") -> list[Path]:
    """Return the files that naming ImageNet's classes needs: weights and names.

    Raises UsageError if there is no such network.
    """
    request = _request(backbone)
    weights = weights_file(get(request.spec.name), dict(request.spec.options), request.preprocess.size, top=True)
    if weights is None:
        raise UsageError(f"'{backbone}' was never trained on ImageNet. Name another: featcache backbones list")
    return [keras_home() / "models" / weights, keras_home() / "models" / CLASS_INDEX]


def imagenet_classifier(backbone: str = "vgg16", *, random: bool = False) -> Classifier:
    """Return a network of `keras.applications` with its top. random: random weights, small images, numbers for names.

    Raises WeightsMissing saying which files to put where, WeightsMismatch if one is damaged, UsageError.
    """
    files, request = imagenet_files(backbone), _request(backbone)
    start_keras()
    import keras

    size = SMALL if random else request.preprocess.size
    make = getattr(keras.applications, get(request.spec.name).constructor)
    options = dict(request.spec.options) | {"input_shape": (size, size, 3)}
    with reproducibly(0):
        network = make(weights=None, **options) if random else _downloaded(lambda: make(**options), files[0], files)
    names = [f"class {number}" for number in range(NUM_CLASSES)] if random else class_names(files)
    preprocess = Preprocess(size, mode=request.preprocess.mode)
    pixels = keras.Input((size, size, 3), dtype="uint8")
    ready = entering(network, keras.ops.cast(pixels, "float32"), preprocess)
    return Classifier(keras.Model(pixels, network(ready)), names, preprocess)


def class_names(files: Sequence[Path] = ()) -> list[str]:
    """Return the names of ImageNet's 1,000 classes. Raises WeightsMissing, which names all of `files` that lack."""
    index = keras_home() / "models" / CLASS_INDEX
    return list(_downloaded(_class_names, index, files or [index]))


def _request(backbone: str) -> Request:
    found = requests(backbone)
    if len(found) > 1 or found[0].spec.origin != "registry" or found[0].spec.weights != "imagenet":
        raise UsageError(f"--imagenet takes one network of keras.applications, such as mobilenet_v2; got '{backbone}'")
    return found[0]


def _class_names() -> list[str]:
    start_keras()
    import keras

    file = keras.utils.get_file(
        CLASS_INDEX, CLASS_INDEX_URL, cache_subdir="models", cache_dir=keras_home(), file_hash=CLASS_INDEX_MD5
    )
    index = json.loads(Path(file).read_text())
    return [index[str(number)][1] for number in range(NUM_CLASSES)]


def _downloaded(make: Callable[[], Any], file: Path, files: Sequence[Path]) -> Any:
    """Call what takes a file of Keras' or downloads it; say in one line what is wrong if that fails."""
    try:
        with redirect_stdout(Chatter()):
            return make()
    except Exception as error:  # Keras raises all sorts, plain Exception too
        reason = " ".join(str(error).split())
        url = re.search(r"https?://[^\s:]+", reason)
        urls = {file: f" ({url[0]})" if url else "", keras_home() / "models" / CLASS_INDEX: f" ({CLASS_INDEX_URL})"}
        if lacking := [f"{one.name}{urls.get(one, '')}" for one in files if not one.exists()]:
            raise WeightsMissing(
                f"No network, and what names ImageNet's classes is not on this machine. Put {' and '.join(lacking)} "
                f"into {keras_home() / 'models'} (KERAS_HOME is {os.environ.get('KERAS_HOME', 'not set')})"
            ) from error
        raise WeightsMismatch(f"{file} cannot be used: {reason[:120]}. Delete it and put it there anew") from error
