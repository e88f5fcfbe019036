"""A user's own Keras model as a backbone: a file, or a function that returns one.

A file is loaded in Keras' safe mode and not compiled, so nothing in it runs. How pixels enter is known only where
the model begins with it (a Rescaling or Normalization layer, uint8 input) or where featcache wrote it; otherwise the
user has to say, since a wrong guess would give worse features without a word.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from featcache.backbones.registry import is_name
from featcache.backend import start_keras
from featcache.errors import NotAModel, UsageError
from featcache.spec import BackboneSpec, Mode, canonical_json

SUFFIXES = (".keras", ".h5", ".hdf5")
FACTS = "featcache.json"  # in a model that featcache wrote
_FILE = re.compile(r"(?P<path>.*?(?:\.keras|\.h5|\.hdf5))(?::(?P<options>.*))?", re.IGNORECASE | re.DOTALL)
_FUNCTION = re.compile(r"(?P<path>[A-Za-z_][\w.]*:[A-Za-z_]\w*)(?::(?P<options>.*))?")
_BEGINNINGS = ("Rescaling", "Normalization")  # layers that turn pixels 0..255 into the network's input


@dataclass(frozen=True)
class Own:
    """A loaded model. size, mode: what it says of itself, None where it says nothing."""

    model: Any
    size: int | None
    mode: Mode | None
    architecture: str  # SHA-256 of its configuration

    @property
    def network(self) -> Any:
        """The model without its classifier: up to what enters a last Dense layer, if it ends in one."""
        import keras

        layers = [layer for layer in self.model.layers if not isinstance(layer, keras.layers.InputLayer)]
        while len(layers) > 1 and isinstance(layers[-1], (keras.layers.Activation, keras.layers.Softmax)):
            layers.pop()
        if len(layers) < 2 or not isinstance(layers[-1], keras.layers.Dense):
            return self.model
        before = layers[-1].input
        if isinstance(layers[-2], keras.layers.Dropout) and layers[-2].output is before:
            before = layers[-2].input
        return keras.Model(self.model.inputs, before, name=self.model.name)


def parse(text: str) -> tuple[BackboneSpec, list[str]] | None:
    """Return the model that a text names and the options behind it, or None if it names one of the registry.

    >>> parse("models/mine.keras:mode=tf:size=96")[1]
    ['mode=tf', 'size=96']
    >>> parse("shop.networks:small")[0].weights
    'shop.networks:small'
    >>> parse("mobilenet_v2:alpha=0.35")
    """
    if match := _FILE.fullmatch(text):
        path = Path(match["path"])
        spec = BackboneSpec(path.stem, (), str(path.resolve()), origin="file")
    elif (match := _FUNCTION.fullmatch(text)) and not is_name(text.partition(":")[0]):
        spec = BackboneSpec(match["path"].rpartition(":")[2], (), match["path"], origin="import")
    else:
        return None
    return spec, [part for part in (match["options"] or "").split(":") if part]


def load(spec: BackboneSpec) -> Own:
    """Return the model. Raises NotAModel or UsageError in one line; code in a file is not run."""
    if spec.origin == "import":
        return _checked(spec, _called(spec.weights), None)
    path = Path(spec.weights)
    if not path.is_file():
        raise UsageError(f"There is no model file {path}")
    status = path.stat()
    return _from_file(spec, (status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=4)
def _from_file(spec: BackboneSpec, stamp: tuple[int, int]) -> Own:
    start_keras()
    import keras

    path = Path(spec.weights)
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds
        reason = " ".join(str(error).split())
        if "unsafe" in reason or "safe_mode" in reason:
            raise NotAModel(
                f"{path} carries code (a Lambda layer or the like), which featcache does not run. Rebuild the model in "
                "a function of yours and name that: package.module:function"
            ) from error
        raise NotAModel(f"Keras cannot load {path}: {reason[:200]}") from error
    return _checked(spec, model, _facts(path))


def _called(path: str) -> Any:
    """Return what `package.module:function` returns. Modules of the current folder are found."""
    start_keras()
    module, _, function = path.partition(":")
    with _current_folder_first():
        try:
            found = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"-b {path}: {error}. Name a function that can be imported from here") from error
    if not callable(found) or any(one.default is one.empty for one in _arguments(found)):
        raise UsageError(f"-b {path}: takes a function without arguments that returns a Keras model")
    from featcache.backbones.build import reproducibly

    with reproducibly(0):
        return found()


def _arguments(function: Any) -> list[inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [one for one in inspect.signature(function).parameters.values() if one.kind in named]


@contextmanager
def _current_folder_first() -> Iterator[None]:
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path.remove(os.getcwd())


def _checked(spec: BackboneSpec, model: Any, facts: dict[str, Any] | None) -> Own:
    import keras

    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise NotAModel(f"{spec.weights} is no Keras model with a known input (functional or sequential)")
    shapes = [tuple(one.shape) for one in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][3] != 3:
        raise NotAModel(
            f"{spec.weights} takes {' and '.join(map(str, shapes))}; a backbone takes one batch of RGB images, "
            "(None, size, size, 3)"
        )
    _, height, width, _ = shapes[0]
    if height != width:
        raise NotAModel(f"{spec.weights} takes images of {height} x {width}; featcache makes them square")
    config = canonical_json(json.loads(model.to_json()))
    size = height if facts is None else int(facts["tap"]["preprocess"]["size"])
    return Own(model, size, _mode(model), hashlib.sha256(config.encode()).hexdigest())


def _mode(model: Any) -> Mode | None:
    """Return "inside" if the model itself turns pixels 0..255 into its input, else None: nobody knows."""
    layers = [layer for layer in model.layers if type(layer).__name__ != "InputLayer"]
    integer = str(model.inputs[0].dtype).startswith(("uint", "int"))
    return "inside" if integer or (layers and type(layers[0]).__name__ in _BEGINNINGS) else None


def _facts(path: Path) -> dict[str, Any] | None:
    """Return what featcache wrote into its own model files."""
    try:
        with zipfile.ZipFile(path) as archive:
            facts = json.loads(archive.read(FACTS))
            return {"tap": json.loads(facts["tap"])}
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError):
        return None
