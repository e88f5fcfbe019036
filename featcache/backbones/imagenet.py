"""Load a network that was trained on ImageNet as its classifier, with the names of its 1,000 classes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.backbones import efficientnet_lite, inventory
from featcache.backbones.build import constructor_of, entering, pretrained, reproducibly
from featcache.backbones.parse import Request, requests
from featcache.backbones.registry import SIZES, Entry, get
from featcache.backbones.weights import Chatter, check_download, check_writable, imagenet_file
from featcache.backend import keras_home, start_keras
from featcache.errors import FeatcacheError, NotDownloaded, UsageError, WeightsMismatch
from featcache.spec import Preprocess

CLASS_INDEX = "imagenet_class_index.json"
CLASS_INDEX_URL = f"https://storage.googleapis.com/download.tensorflow.org/data/{CLASS_INDEX}"
CLASS_INDEX_MD5 = "c2c37ea517e94d9795004a39431a14cb"
NUM_CLASSES = 1000
SMALL = 32  # pixels of the images for random weights
REPLACE_FILE = "Move it away and run the same command with network, or put Keras' own file there"


@dataclass(frozen=True)
class ImageNetClassifier:
    """A model and the names of its classes."""

    model: Any  # keras.Model: (N, size, size, 3) uint8 -> (N, K) probabilities
    names: list[str]
    preprocess: Preprocess


def imagenet_files(backbone: str = "vgg16") -> list[Path]:
    """Return the files that classifying needs: the weights, and the names of the classes.

    Raises UsageError if the network has no ImageNet weights.
    """
    request = _request(backbone)
    entry = get(request.spec.name)
    weights = imagenet_file(entry, dict(request.spec.options), request.preprocess.size, top=True)
    if weights is None:
        raise UsageError(f"'{backbone}' was never trained on ImageNet. Name another: featcache backbones list")
    return [weights, keras_home() / "models" / CLASS_INDEX]


def imagenet_preprocess(backbone: str) -> Preprocess:
    """Return how images enter a network that was trained on ImageNet. Does not start Keras."""
    preprocess = _request(backbone).preprocess
    return Preprocess(preprocess.size, mode=preprocess.mode)


def imagenet_classifier(backbone: str = "vgg16", *, random: bool = False, small: bool = False) -> ImageNetClassifier:
    """Return a network that was trained on ImageNet with its classifier.

    random: random weights, and numbers for class names where the file of names is missing. small: small images too.
    Raises WeightsMissing, which says where to put which files, WeightsMismatch if one is damaged, UsageError.
    """
    files = imagenet_files(backbone)
    weights_path, index_path = files
    request = _request(backbone)
    start_keras()
    import keras

    entry = get(request.spec.name)
    size = SMALL if small else request.preprocess.size
    options = dict(request.spec.options) | {"input_shape": (size, size, 3)}
    if random:
        with reproducibly(0):
            network = constructor_of(entry)(weights=None, **options)
    else:
        if size not in (entry.size, *SIZES.get(entry.module, ())):
            raise UsageError(f"'{entry.name}' with its top takes images of {entry.size} pixels; got size {size}")
        network = _load_or_explain(lambda: _with_top(entry, weights_path, options), weights_path, files)

    has_names = not small and (not random or index_path.exists())
    names = [f"class {number}" for number in range(NUM_CLASSES)]
    if has_names:
        names = class_names([] if random else files)

    preprocess = Preprocess(size, mode=request.preprocess.mode)
    pixels = keras.Input((size, size, 3), dtype="uint8")
    ready = entering(network, keras.ops.cast(pixels, "float32"), preprocess)
    return ImageNetClassifier(keras.Model(pixels, network(ready)), names, preprocess)


def class_names(files: Sequence[Path] = ()) -> list[str]:
    """Return the names of ImageNet's 1,000 classes. Raises WeightsMissing, which names all missing `files`."""
    index = keras_home() / "models" / CLASS_INDEX
    return list(_load_or_explain(_class_names, index, files or [index]))


def _request(backbone: str) -> Request:
    request, *others = requests(backbone)
    if others or request.spec.origin != "registry" or request.spec.weights != "imagenet":
        raise UsageError(
            f"`imagenet` takes one network that was trained on ImageNet, such as mobilenet_v2; got '{backbone}'"
        )
    return request


def _with_top(entry: Entry, file: Path, options: Mapping[str, Any]) -> Any:
    """Return the network with the weights in a file. Keras downloads the file first if it is missing."""
    if not file.exists():
        efficientnet_lite.require_installed(entry.name)
        check_download(file)
        # Only for the download: the network is built below, from the file that was checked.
        constructor_of(entry)(weights="imagenet", **options)
    if not entry.package:  # EfficientNet-Lite checks its own file
        inventory.check(file, if_damaged=REPLACE_FILE, if_other=REPLACE_FILE)
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
    inventory.check_digest(index, CLASS_INDEX_MD5, REPLACE_FILE)
    names = json.loads(index.read_text())
    return [names[str(number)][1] for number in range(NUM_CLASSES)]


def _load_or_explain(load: Callable[[], Any], file: Path, files: Sequence[Path]) -> Any:
    """Return what `load` reads from `file`, or downloads to it. Raises one of our errors, in one line, if it fails.

    files: all files that the user needs, so that the message names everything that is missing.
    """
    try:
        with redirect_stdout(Chatter()):
            return load()
    except FeatcacheError:
        raise
    except Exception as error:  # Keras raises many kinds, even plain Exception
        reason = " ".join(str(error).split())
        missing = [_with_url(needed, file, reason) for needed in files if not needed.exists()]
        if missing:
            is_network = file != keras_home() / "models" / CLASS_INDEX
            instead = f"; {efficientnet_lite.alternative()}" if is_network else ""
            raise NotDownloaded(
                f"No network, and what names ImageNet's classes is not on this machine. Put {' and '.join(missing)} "
                f"into {keras_home() / 'models'} (KERAS_HOME is {os.environ.get('KERAS_HOME', 'not set')})"
                f"{instead}"
            ) from error
        raise WeightsMismatch(f"{file} cannot be used: {reason[:120]}. Delete it and put it there again") from error


def _with_url(needed: Path, failed: Path, reason: str) -> str:
    """Return the name of a file with its address, which Keras' message gives for the file that failed."""
    if needed == keras_home() / "models" / CLASS_INDEX:
        return f"{needed.name} ({CLASS_INDEX_URL})"
    url = re.search(r"https?://[^\s:]+", reason)
    if needed != failed or url is None:
        return needed.name
    return f"{needed.name} ({url[0]})"
