"""A backbone with its top, as it was trained on ImageNet, and what the 1,000 classes are called."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.backbones import inventory
from featcache.backbones.build import entering, pretrained, reproducibly
from featcache.backbones.parse import Request, requests
from featcache.backbones.registry import SIZES, Entry, get, weights_file
from featcache.backbones.weights import Chatter, check_download, check_writable
from featcache.backend import keras_home, start_keras
from featcache.errors import FeatcacheError, UsageError, WeightsMismatch, WeightsMissing
from featcache.spec import Preprocess

CLASS_INDEX = "imagenet_class_index.json"
CLASS_INDEX_URL = f"https://storage.googleapis.com/download.tensorflow.org/data/{CLASS_INDEX}"
CLASS_INDEX_MD5 = "c2c37ea517e94d9795004a39431a14cb"
NUM_CLASSES = 1000
SMALL = 32
PUT_ANEW = "Move it away and run the same command with network, or put Keras' own file there"


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


def imagenet_classifier(backbone: str = "vgg16", *, random: bool = False, small: bool = False) -> Classifier:
    """Return a network of `keras.applications` with its top.

    random: random weights, and numbers for names where the names are not on this machine. small: small images, too.
    Raises WeightsMissing saying which files to put where, WeightsMismatch if one is damaged, UsageError.
    """
    files, request = imagenet_files(backbone), _request(backbone)
    start_keras()
    import keras

    entry, size = get(request.spec.name), SMALL if small else request.preprocess.size
    options = dict(request.spec.options) | {"input_shape": (size, size, 3)}
    if random:
        with reproducibly(0):
            network = getattr(keras.applications, entry.constructor)(weights=None, **options)
    else:
        if size not in (entry.size, *SIZES.get(entry.module, ())):
            raise UsageError(f"'{entry.name}' with its top takes images of {entry.size} pixels; got size {size}")
        network = _downloaded(lambda: _with_top(entry, files[0], options), files[0], files)
    has_names = not small and (not random or (keras_home() / "models" / CLASS_INDEX).exists())
    names = class_names([] if random else files) if has_names else [f"class {number}" for number in range(NUM_CLASSES)]
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


def _with_top(entry: Entry, file: Path, options: Mapping[str, Any]) -> Any:
    """Return the network with the weights of a file, which Keras downloads first if it is missing."""
    import keras

    if not file.exists():
        check_download(file)
        getattr(keras.applications, entry.constructor)(weights="imagenet", **options)
    inventory.check(file, if_damaged=PUT_ANEW, if_other=PUT_ANEW)
    with reproducibly(0):
        return pretrained(entry, file, **options)


def _class_names() -> list[str]:
    index = keras_home() / "models" / CLASS_INDEX
    if not index.exists():
        check_writable(index)
        start_keras()
        import keras

        keras.utils.get_file(
            CLASS_INDEX, CLASS_INDEX_URL, cache_subdir="models", cache_dir=keras_home(), file_hash=CLASS_INDEX_MD5
        )
    inventory.check_digest(index, CLASS_INDEX_MD5, PUT_ANEW)
    names = json.loads(index.read_text())
    return [names[str(number)][1] for number in range(NUM_CLASSES)]


def _downloaded(make: Callable[[], Any], file: Path, files: Sequence[Path]) -> Any:
    """Call what takes a file of Keras' or downloads it; say in one line what is wrong if that fails."""
    try:
        with redirect_stdout(Chatter()):
            return make()
    except FeatcacheError:
        raise
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
