"""A user's own Keras model as a backbone: a file, or a function that returns one.

A file is loaded in Keras' safe mode and not compiled, so nothing in it runs, unless the user trusts it. A function is
called if the user named it (`featcache.trust`). What Keras 2
wrote is made anew (`legacy`); a SavedModel is run as it is (`saved`). How pixels enter is known only where
the model begins with it (a layer that scales 0..255, uint8 input) or where featcache wrote it; otherwise the user has
to say, since a wrong guess would give worse features without a word. Of a .keras file all this is read without Keras,
so that a second extraction needs neither Keras nor the model.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from featcache.backbones import saved
from featcache.backbones.graph import bottlenecks
from featcache.backbones.registry import is_name
from featcache.backend import innermost_reason, start_keras, unknown_code
from featcache.errors import NotAModel, UsageError
from featcache.files import raise_if_of_the_system
from featcache.spec import BackboneSpec, Mode, Resize, choose, digest_of
from featcache.trust import current_folder_last, how_to_allow, is_allowed

FACTS = "featcache.json"  # in a model that featcache wrote
_NAMED = re.compile(r"[\w-]+:\w+=.*", re.DOTALL)  # of the registry, with options: they may name a file too
_FILE = re.compile(r"(?P<path>.*?\.(?:keras|h5|hdf5))(?::(?P<options>.*))?", re.IGNORECASE | re.DOTALL)
_FUNCTION = re.compile(r"(?P<path>[A-Za-z_][\w.]*:[A-Za-z_]\w*)(?::(?P<options>.*))?")
_AUGMENTING = re.compile(r"InputLayer|Random\w+|Resizing|CenterCrop")  # leave pixels between 0 and 255
_LEAST_MEAN = 4.0  # a Normalization about less takes something smaller than 0..255, too
_LARGEST_SCALE = 1 / 16  # a Rescaling of more takes something smaller than 0..255
_SOFTMAX = ("softmax", "log_softmax")
_PROBABILITIES = (*_SOFTMAX, "sigmoid")  # activations that tell scores from features
_SCORES = (*_PROBABILITIES, "linear")  # activations that make a last Dense a classifier
_PROPOSED = 5  # layers that are named where the classifier is not found


@dataclass(frozen=True)
class Facts:
    """What a model says of itself; None where it says nothing."""

    size: int | None
    mode: Mode | None
    resize: Resize | None


def parse(text: str) -> tuple[BackboneSpec, list[str]] | None:
    """Return the model that a text names and the options behind it, or None if it names one of the registry.

    >>> parse("models/mine.keras:mode=tf:size=96")[1]
    ['mode=tf', 'size=96']
    >>> parse("shop.networks:small")[0].weights
    'shop.networks:small'
    >>> parse("mobilenet_v2:weights=mine.h5")
    """
    if found := _folder(text):
        path, options = found
        return BackboneSpec(path.name, (), str(path), origin="file"), options
    if _NAMED.fullmatch(text):
        return None
    if match := _FILE.fullmatch(text):
        path = Path(match["path"])
        spec = BackboneSpec(path.stem, (), str(path.resolve()), origin="file")
    elif (match := _FUNCTION.fullmatch(text)) and not is_name(text.partition(":")[0]):
        spec = BackboneSpec(match["path"].rpartition(":")[2], (), match["path"], origin="import")
    else:
        _check_folder(text)
        return None
    return spec, [part for part in (match["options"] or "").split(":") if part]


def _folder(text: str) -> tuple[Path, list[str]] | None:
    """Return the SavedModel that a text begins with and the options behind it; None if it names none."""
    parts = text.split(":")
    for end in range(1, len(parts) + 1):
        path = ":".join(parts[:end])
        if path and not is_name(path) and saved.is_saved(Path(path)):
            return Path(path).resolve(), [part for part in parts[end:] if part]
    return None


def _check_folder(text: str) -> None:
    """Raise NotAModel if a text can only mean a folder, and it has no SavedModel in it."""
    path = text.partition(":")[0]
    if os.sep in path and Path(path).is_dir():
        raise NotAModel(f"{path} is a folder without {saved.GRAPH}. Name a SavedModel, a .keras or an .h5 file")


def facts_of(spec: BackboneSpec, size: int | None, trust: bool = False) -> Facts:
    """Return what the model says of itself. Raises NotAModel or UsageError in one line.

    size: what the user asks for, if anything. trust: run code that a file carries.
    """
    path = Path(spec.weights)
    config = _read(path, "config.json") if spec.origin == "file" else None
    try:
        found = None if config is None else _facts(spec, config)
    except (KeyError, TypeError, IndexError, AttributeError):
        found = None  # a configuration of another shape: Keras will know
    found = found or _facts_of(spec, load(spec, size, trust))
    ours = _read(path, FACTS) if spec.origin == "file" else None
    if ours is None:
        return found
    preprocess = json.loads(ours["tap"])["preprocess"]
    return Facts(preprocess["size"], found.mode, preprocess["resize"])


def mode_of(text: str) -> Mode:
    """Return the way in which pixels enter a model, as a user writes it. Raises UsageError."""
    found: Mode = choose("mode", text, get_args(Mode))
    return found


def load(spec: BackboneSpec, size: int | None, trust: bool = False) -> Any:
    """Return the model, anew each time. Raises NotAModel or UsageError in one line.

    trust: run code that a file carries, which is otherwise refused.
    """
    start_keras()
    import keras

    # Keras warns of how the model was written, and a function may print; standard output is for results.
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore", UserWarning)
        model = _called(spec.weights, size) if spec.origin == "import" else _loaded(Path(spec.weights), trust)
    if isinstance(model, keras.Sequential) and not getattr(model, "inputs", None):
        _check_inputs(spec, [])
    if not isinstance(model, keras.Model) or len(getattr(model, "inputs", None) or ()) == 0:
        raise NotAModel(f"{spec.weights} is no Keras model with a known input (functional or sequential)")
    if len(model.outputs) != 1:
        names = ", ".join(model.output_names)
        raise NotAModel(f"{spec.weights} has {len(model.outputs)} outputs ({names}). Save the part that gives one")
    _check_inputs(spec, [tuple(one.shape) for one in model.inputs])
    return model


def headless(model: Any) -> Any:
    """Return the model without its classifier: up to what enters the layer that makes its scores.

    That is a last Dense layer, or a convolution whose output becomes probabilities; it may stand in a nested model.
    """
    import keras

    classifier, features, _ = _classifier(model)
    if classifier is None:
        return model
    if isinstance(classifier, keras.Model):
        # Under another name: that of the nested model stands for what the whole of it gives.
        inner = headless(classifier)
        features = keras.Model(inner.inputs[0], inner.outputs[0], name=f"{classifier.name}_top")(features)
    return keras.Model(model.inputs[0], features, name=model.name)


def check_top(model: Any, owner: str) -> None:
    """Raise UsageError if a model gives probabilities and nothing tells what it makes them of. owner: for messages."""
    classifier, _, is_softmax = _classifier(model)
    if classifier is None and is_softmax:
        layers = ",".join(bottlenecks(model)[1:-1][-_PROPOSED:])
        raise UsageError(
            f"'{owner}' ends in probabilities, and featcache does not find the layer that makes them. Name the layer "
            f"whose output are the features, one of: --tap {layers}"
        )


def _classifier(model: Any) -> tuple[Any, Any, bool]:
    """Return the layer that makes a model's scores, the tensor that enters it, and whether a softmax follows.

    None for the layer if the model ends in none. It is a nested model if the layer is inside.
    """
    import keras

    layer, entering = _made_by(model.outputs[0])
    activations = {_activation(layer)}
    are_probabilities = _gives_probabilities(model)
    while entering is not None and _follows_scores(layer, are_probabilities):
        layer, entering = _made_by(entering)
        activations.add(_activation(layer))
    is_softmax = not activations.isdisjoint(_SOFTMAX)

    if isinstance(layer, keras.Model) and len(layer.inputs) == 1:
        inner, _, inner_softmax = _classifier(layer)
        return layer if inner is not None else None, entering, is_softmax or inner_softmax
    if isinstance(layer, keras.layers.Dense) and (are_probabilities or _activation(layer) in _SCORES):
        return layer, entering, is_softmax
    if isinstance(layer, (keras.layers.Conv2D, keras.layers.SeparableConv2D)) and are_probabilities:
        return layer, entering, is_softmax
    return None, None, is_softmax


def _gives_probabilities(model: Any) -> bool:
    """Return whether the output is probabilities: as they are, as the mean of a map of them, or in another shape."""
    import keras

    layers = keras.layers
    pooling = (layers.AveragePooling2D, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
    layer, entering = _made_by(model.outputs[0])
    while entering is not None and isinstance(layer, (*pooling, layers.Flatten, layers.Reshape, layers.Dropout)):
        layer, entering = _made_by(entering)
    if isinstance(layer, layers.Activation) and _activation(layer) == "linear" and entering is not None:
        layer, entering = _made_by(entering)  # gives the numbers another type, under mixed precision
    if isinstance(layer, keras.Model):
        return _gives_probabilities(layer)
    return _activation(layer) in _PROBABILITIES


def _follows_scores(layer: Any, are_probabilities: bool) -> bool:
    """Return whether a layer only makes other scores of scores. are_probabilities: it does of those behind it."""
    import keras

    layers = keras.layers
    if isinstance(layer, layers.Dropout) or _is_softmax(layer):
        return True
    if isinstance(layer, layers.Activation):
        return are_probabilities or _activation(layer) in _SCORES
    # These make features of features as well, so they count only between scores and their probabilities.
    pooling = (layers.AveragePooling2D, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
    shaping = (layers.Flatten, layers.Reshape, layers.Rescaling, layers.ReLU, layers.BatchNormalization)
    return are_probabilities and isinstance(layer, (*pooling, *shaping))


def _activation(layer: Any) -> str:
    return "softmax" if _is_softmax(layer) else getattr(getattr(layer, "activation", None), "__name__", "")


def _is_softmax(layer: Any) -> bool:
    return type(layer).__name__ in ("Softmax", "LogSoftmax")  # layers, and bare operations of the graph


def last_of(model: Any) -> str:
    """Return the name of the layer that a model ends in."""
    return str(_made_by(model.outputs[0])[0].name)


def check_not_quantized(model: Any, path: str) -> None:
    """Raise NotAModel if layers keep their weights in a coarser type: featcache computes from float32 weights."""
    modes = {str(getattr(layer, "quantization_mode", None)) for layer in model._flatten_layers()} - {"None"}
    if modes:
        raise NotAModel(
            f"{path} is quantized ({', '.join(sorted(modes))}), and featcache computes from the weights before that. "
            "Save the model before model.quantize()"
        )


def at_policy(model: Any, policy: str) -> Any:
    """Return the model with all layers computing by this policy (Keras' name of it), from the same weights."""
    import keras

    if all(layer.dtype_policy.name == policy for layer in model._flatten_layers(include_self=False)):
        return model

    def again(layer: Any) -> Any:
        return layer.__class__.from_config(layer.get_config() | {"dtype": policy})

    changed = keras.models.clone_model(model, clone_function=again, recursive=True)
    changed.set_weights(model.get_weights())
    return changed


def architecture(model: Any) -> str:
    """Return the SHA-256 of a model's configuration: without its name and without the precision it was saved in."""
    import keras

    config = json.loads(model.to_json())
    config.pop("compile_config", None)
    config["config"].pop("name", None)
    code = _code_of(model)
    content = [_without_dtypes(config), code] if code else _without_dtypes(config)
    classifier, _, _ = _classifier(model)
    if classifier is None or isinstance(classifier, keras.layers.Dense):
        return digest_of(content)
    # Earlier versions took the scores of such a model for its "top".
    return digest_of([content, {"top": classifier.name}])


def _code_of(model: Any) -> list[str]:
    """Return the source of the layers that are not Keras' own: what they compute stands nowhere else."""
    kinds = {type(layer) for layer in model._flatten_layers()}
    own_kinds = sorted(
        (kind for kind in kinds if not kind.__module__.startswith("keras.")), key=lambda kind: kind.__name__
    )
    try:
        return [inspect.getsource(kind) for kind in own_kinds]
    except (OSError, TypeError) as error:
        raise NotAModel(
            f"The source of layer {', '.join(kind.__name__ for kind in own_kinds)} cannot be read, so nothing tells "
            "when it changes. Define it in a module"
        ) from error


def _without_dtypes(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {key: _without_dtypes(value) for key, value in config.items() if key != "dtype"}
    return [_without_dtypes(one) for one in config] if isinstance(config, list) else config


def _made_by(tensor: Any) -> tuple[Any, Any]:
    """Return the layer that makes a tensor of the graph, and the (first) tensor that enters it."""
    layer, node, _ = tensor._keras_history
    entering = layer._inbound_nodes[node].input_tensors
    return layer, entering[0] if entering else None


def _loaded(path: Path, trust: bool) -> Any:
    if saved.is_saved(path):
        return saved.load(path, trust)
    if not path.is_file():
        raise UsageError(f"There is no model file {path}")
    model = _of_keras_2(path, trust)
    return _of_keras_3(path, trust) if model is None else model


def _of_keras_2(path: Path, trust: bool) -> Any:
    """Return the model of a file that Keras 2 wrote, None of another. Raises NotAModel in one line."""
    from featcache.backbones import legacy

    content = legacy.read(path)
    try:
        return None if content is None else legacy.model_of(content, trust)
    except legacy.Code as error:
        raise _carries_code(path) from error
    except NotAModel as error:
        raise NotAModel(f"{path} was written by Keras 2 and cannot be taken over: {error}") from error


def _carries_code(path: Path) -> NotAModel:
    return NotAModel(
        f"{path} carries code (a Lambda layer or the like), which featcache does not run unless told to trust the "
        "file: --trust (of extract, backbones import and show). Or rebuild the model in a function of yours and name "
        "that: package.module:function"
    )


def _of_keras_3(path: Path, trust: bool) -> Any:
    import keras

    try:
        with current_folder_last() if trust else nullcontext():
            model = keras.saving.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:  # Keras raises many kinds
        raise_if_of_the_system(path, error)
        cause, reason = error, " ".join(str(error).split())
    else:
        _check_no_folder(path, model)
        return model
    if not trust and ("unsafe" in reason or "safe_mode" in reason):
        raise _carries_code(path)
    if "No model config found" in reason:
        raise NotAModel(f"{path} holds weights and no model. Name their backbone: -b NAME --weights {path}")
    if name := unknown_code(cause):
        raise NotAModel(
            f"{path} has code of yours in it, {name}, which Keras does not find. Load the model in a function of a "
            "module that defines it, and name that function: -b package.module:function"
        )
    raise NotAModel(f"Keras cannot load {path}: {innermost_reason(cause)}")


def _check_no_folder(path: Path, model: Any) -> None:
    """Raise NotAModel if a part of the model lies in a folder elsewhere, which may change while the file does not."""
    import keras

    for layer in model._flatten_layers() if isinstance(model, keras.Model) else ():
        if isinstance(layer, keras.layers.TFSMLayer):
            raise NotAModel(
                f"{path} only refers to the SavedModel {layer.filepath}. Name that folder: -b {layer.filepath}"
            )


def _called(path: str, size: int | None) -> Any:
    """Return what `package.module:function` returns, if the user named it. Raises UsageError if only a file did."""
    from featcache.backbones.build import reproducibly

    if not is_allowed(path):
        raise UsageError(
            f"The backbone {path} is a function that a file names, and featcache calls no function for that. "
            f"{how_to_allow(path)}"
        )
    module, _, function = path.partition(":")
    with current_folder_last(), reproducibly(0):
        try:
            found = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"-b {path}: {error}. Name a function that can be imported from here") from error
        arguments = _arguments(path, found, size)
        try:
            return found(**arguments)
        except Exception as error:  # whatever a user's function raises
            reason = " ".join(str(error).split())[:200]
            raise NotAModel(f"-b {path}: the function raised {type(error).__name__}: {reason}") from error


def _arguments(path: str, function: Any, size: int | None) -> dict[str, int]:
    """Return what to call a function with: its size if it takes one. Raises UsageError if it takes something else."""
    parameters = inspect.signature(function).parameters if callable(function) else {}
    needed = {one.name for one in parameters.values() if one.default is one.empty and one.kind.value in (0, 1, 3)}
    if not callable(function) or needed - {"size"}:
        raise UsageError(f"-b {path}: takes a function that returns a Keras model, without arguments or with size=")
    if size is None and "size" in needed:
        raise UsageError(f"-b {path} takes images of any size; say which: {path}:size=224, or --size")
    return {"size": size} if size is not None and "size" in parameters else {}


def _check_inputs(spec: BackboneSpec, shapes: list[tuple[int | None, ...]]) -> None:
    """Raise NotAModel unless the model takes one batch of square RGB images."""
    if not shapes:
        raise NotAModel(
            f"{spec.weights} was never built, so nothing tells what it takes. Build it before you save it: "
            "model.build((None, 224, 224, 3))"
        )
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][3] != 3:
        raise NotAModel(
            f"{spec.weights} takes {' and '.join(map(str, shapes))}; a backbone takes one batch of RGB images, "
            "(None, size, size, 3)"
        )
    _, height, width, _ = shapes[0]
    if height != width:
        raise NotAModel(f"{spec.weights} takes images of {height} x {width}; featcache makes them square")


def _facts(spec: BackboneSpec, model: Mapping[str, Any]) -> Facts:
    """Return what the configuration of a model says. Raises NotAModel, or KeyError and the like if it is another."""
    layers = list(_flat(model["config"]["layers"]))
    inputs = [one["config"] for one in model["config"]["layers"] if one["class_name"] == "InputLayer"]
    _check_inputs(spec, [tuple(one["batch_shape"]) for one in inputs])
    first = next((one for one in layers if not _AUGMENTING.fullmatch(one["class_name"])), None)
    scaled = first is not None and _takes_bytes(first)
    return Facts(inputs[0]["batch_shape"][1], "inside" if scaled or "int" in str(inputs[0]["dtype"]) else None, None)


def _facts_of(spec: BackboneSpec, model: Any) -> Facts:
    """Return what a model says, also one whose configuration does not list its layers."""
    try:
        return _facts(spec, json.loads(model.to_json()))
    except (KeyError, TypeError, IndexError, AttributeError, NotImplementedError):
        return Facts(model.inputs[0].shape[1], "inside" if "int" in str(model.inputs[0].dtype) else None, None)


def _flat(layers: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the configuration of every layer, those of nested models in place."""
    for layer in layers:
        if "layers" in layer["config"]:
            yield from _flat(layer["config"]["layers"])
        else:
            yield layer


def _takes_bytes(layer: Mapping[str, Any]) -> bool:
    """Tell whether a first layer is one that is fed with pixels 0..255."""
    config = layer["config"]
    if layer["class_name"] == "Rescaling":
        scale = config["scale"]
        return all(abs(one) <= _LARGEST_SCALE for one in (scale if isinstance(scale, list) else [scale]))
    mean = config.get("mean")  # None where the layer was adapted: then the statistics are weights
    return layer["class_name"] == "Normalization" and mean is not None and bool(np.max(mean) > _LEAST_MEAN)


def _read(path: Path, member: str) -> Any:
    """Return a JSON member of a .keras file, None if there is none to be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(member))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise_if_of_the_system(path, error)
        return None
