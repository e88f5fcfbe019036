"""A user's own Keras model as a backbone: a file, or a function that returns one.

A file is loaded in Keras' safe mode and not compiled, so none of its code runs unless the user trusts it. A function is
called only if the user named it (`featcache.trust`). `legacy` rebuilds what Keras 2 wrote, `saved` runs a SavedModel.

featcache knows how pixels enter a model only if the model shows it (its first layer scales 0..255, or its input is
uint8) or if featcache wrote the model. Otherwise the user has to say, because a wrong guess would give worse features
without an error. All this is read from a .keras file without Keras, so that a second extraction needs neither Keras
nor the model.
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
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from featcache.backbones import hub, saved
from featcache.backbones.graph import bottlenecks
from featcache.backbones.registry import is_name
from featcache.backend import innermost_reason, start_keras, unknown_code
from featcache.errors import NotAModel, UsageError
from featcache.files import raise_if_of_the_system
from featcache.spec import BackboneSpec, Interpolation, Mode, Resize, choose, digest_of
from featcache.trust import current_folder_last, how_to_allow, is_allowed

FACTS = "featcache.json"  # in a model that featcache wrote
_NAMED = re.compile(r"[\w-]+:\w+=.*", re.DOTALL)  # a name of the registry with options, which may name a file, too
_FILE = re.compile(r"(?P<path>.*?\.(?:keras|h5|hdf5))(?::(?P<options>.*))?", re.IGNORECASE | re.DOTALL)
_FUNCTION = re.compile(r"(?P<path>[A-Za-z_][\w.]*:[A-Za-z_]\w*)(?::(?P<options>.*))?")
_AUGMENTING = re.compile(r"InputLayer|Random\w+|Resizing|CenterCrop")  # layers that keep the range of pixels
_LEAST_MEAN = 4.0  # a Normalization with a smaller mean takes other values than 0..255
_LARGEST_SCALE = 1 / 16  # so does a Rescaling with a larger scale
_SOFTMAX = ("softmax", "log_softmax")
_PROBABILITIES = (*_SOFTMAX, "sigmoid")  # only scores have these activations, never features
_SCORES = (*_PROBABILITIES, "linear")  # a last Dense layer with one of these is a classifier
_NUM_PROPOSED = 5  # layers that a message names if the classifier is not found


@dataclass(frozen=True)
class Facts:
    """How a model takes its images; None for what it does not show."""

    size: int | None
    mode: Mode | None
    resize: Resize | None
    interpolation: Interpolation = "bilinear"


def parse(text: str) -> tuple[BackboneSpec, list[str]] | None:
    """Return the user's own model that a text names and the options behind it; None if it names none.

    >>> parse("models/mine.keras:mode=tf:size=96")[1]
    ['mode=tf', 'size=96']
    >>> parse("shop.networks:small")[0].weights
    'shop.networks:small'
    >>> parse("mobilenet_v2:weights=mine.h5")
    """
    if text.startswith(hub.PREFIX):
        return None
    # A SavedModel first: its folder may have a name like a file's.
    if folder_and_options := _saved_folder(text):
        folder, options = folder_and_options
        return BackboneSpec(folder.name, (), str(folder), origin="file"), options
    if _NAMED.fullmatch(text):
        return None
    first_part = text.partition(":")[0]
    if match := _FILE.fullmatch(text):
        path = Path(match["path"])
        spec = BackboneSpec(path.stem, (), str(path.resolve()), origin="file")
    elif (match := _FUNCTION.fullmatch(text)) and not is_name(first_part):
        function = match["path"].rpartition(":")[2]
        spec = BackboneSpec(function, (), match["path"], origin="import")
    elif os.sep in first_part and Path(first_part).is_dir():
        # Such a text can only mean a folder, and there is no SavedModel in it.
        raise NotAModel(f"{first_part} is a folder without {saved.GRAPH}. Name a SavedModel, a .keras or an .h5 file")
    else:
        return None
    options = (match["options"] or "").split(":")
    return spec, [option for option in options if option]


def _saved_folder(text: str) -> tuple[Path, list[str]] | None:
    """Return the SavedModel that a text begins with and the options behind it; None if it names none."""
    parts = text.split(":")  # a path may have colons in it, too, so try longer and longer ones
    for end in range(1, len(parts) + 1):
        path = ":".join(parts[:end])
        if path and not is_name(path) and saved.is_saved(Path(path)):
            options = [part for part in parts[end:] if part]
            return Path(path).resolve(), options
    return None


def facts_of(spec: BackboneSpec, size: int | None, trust: bool = False) -> Facts:
    """Return how a model takes its images. Raises NotAModel or UsageError in one line.

    size: the size that the user requested, if any. trust: run code that a file carries.
    """
    path = Path(spec.weights)
    # A .keras file shows it without Keras. Any other model must be loaded for that, which takes seconds.
    config = _read_json(path, "config.json") if spec.origin == "file" else None
    facts = None
    if config is not None:
        # A configuration that is built in another way is no error here: Keras may be able to load it.
        with suppress(KeyError, TypeError, IndexError, AttributeError):
            facts = _facts_in(spec, config)
    if facts is None:
        facts = _facts_of_model(spec, load(spec, size, trust))

    ours = _read_json(path, FACTS) if spec.origin == "file" else None
    if ours is None:
        return facts
    preprocess = json.loads(ours["tap"])["preprocess"]
    interpolation = choose("interpolation", preprocess.get("interpolation", "bilinear"), get_args(Interpolation))
    return Facts(preprocess["size"], facts.mode, preprocess["resize"], interpolation)


def stated_classes(spec: BackboneSpec) -> list[str] | None:
    """Return the names of a model's classes, which only a file that featcache wrote states; None for other models."""
    facts = _read_json(Path(spec.weights), FACTS) if spec.origin == "file" else None
    return None if facts is None else list(facts["classes"])


def mode_of(text: str) -> Mode:
    """Return the mode that a user writes, which says how pixels enter a model. Raises UsageError."""
    mode: Mode = choose("mode", text, get_args(Mode))
    return mode


def load(spec: BackboneSpec, size: int | None, trust: bool = False) -> Any:
    """Return a new instance of the model. Raises NotAModel or UsageError in one line.

    trust: run code that a file carries, which is refused otherwise.
    """
    start_keras()
    import keras

    # Keras warns how the model was written, and a function may print. Standard output is only for results.
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore", UserWarning)
        model = _called(spec.weights, size) if spec.origin == "import" else _loaded(Path(spec.weights), trust)
    inputs = getattr(model, "inputs", None) or []
    if isinstance(model, keras.Sequential) and not inputs:
        _check_inputs(spec, [])  # raises, and says how to build a sequential model
    if not isinstance(model, keras.Model) or not inputs:
        raise NotAModel(f"{spec.weights} is not a Keras model with a known input (functional or sequential)")
    if len(model.outputs) != 1:
        names = ", ".join(model.output_names)
        raise NotAModel(f"{spec.weights} has {len(model.outputs)} outputs ({names}). Save a part with only one output")
    _check_inputs(spec, [tuple(tensor.shape) for tensor in model.inputs])
    return model


def headless(model: Any) -> Any:
    """Return the model without its classifier: up to the input of the layer that makes its scores.

    That layer is the last Dense layer, or a convolution whose output becomes probabilities. A nested model may hold it.
    """
    import keras

    classifier, features, _ = _classifier(model)
    if classifier is None:
        return model
    if isinstance(classifier, keras.Model):
        # It needs another name: a tap of the nested model's name reads the output of the complete nested model.
        inner = headless(classifier)
        features = keras.Model(inner.inputs[0], inner.outputs[0], name=f"{classifier.name}_top")(features)
    return keras.Model(model.inputs[0], features, name=model.name)


def check_top(model: Any, owner: str) -> None:
    """Raise UsageError if a model gives probabilities but its classifier is not found. owner: its name for messages."""
    classifier, _, is_softmax = _classifier(model)
    if classifier is None and is_softmax:
        inner_layers = bottlenecks(model)[1:-1]
        raise UsageError(
            f"'{owner}' ends in probabilities, and featcache does not find the layer that makes them. Name the layer "
            f"whose output are the features, one of: `tap='{','.join(inner_layers[-_NUM_PROPOSED:])}'`"
        )


def _classifier(model: Any) -> tuple[Any, Any, bool]:
    """Return the layer that makes a model's scores, its input tensor, and whether a softmax follows.

    The layer is None if the model does not end in scores, and a nested model if that contains the layer.
    """
    import keras

    # Walk back from the output, past all layers that only turn scores into other scores.
    layer, layer_input = origin_of(model.outputs[0])
    activations = {_activation(layer)}
    # A pooling or a Reshape counts as such a layer only where probabilities follow, so ask that first.
    are_probabilities = gives_probabilities(model)
    while layer_input is not None and _follows_scores(layer, are_probabilities):
        layer, layer_input = origin_of(layer_input)
        activations.add(_activation(layer))
    is_softmax = not activations.isdisjoint(_SOFTMAX)

    if isinstance(layer, keras.Model) and len(layer.inputs) == 1:
        inner_classifier, _, inner_softmax = _classifier(layer)
        classifier = None if inner_classifier is None else layer
        return classifier, layer_input, is_softmax or inner_softmax
    if isinstance(layer, keras.layers.Dense) and (are_probabilities or _activation(layer) in _SCORES):
        return layer, layer_input, is_softmax
    if isinstance(layer, (keras.layers.Conv2D, keras.layers.SeparableConv2D)) and are_probabilities:
        return layer, layer_input, is_softmax
    return None, None, is_softmax


def gives_probabilities(model: Any) -> bool:
    """Return whether the output is probabilities: as they are, as the mean of a map of them, or in another shape."""
    import keras

    layers = keras.layers
    pooling = (layers.AveragePooling2D, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
    layer, layer_input = origin_of(model.outputs[0])
    while layer_input is not None and isinstance(layer, (*pooling, layers.Flatten, layers.Reshape, layers.Dropout)):
        layer, layer_input = origin_of(layer_input)
    if isinstance(layer, layers.Activation) and _activation(layer) == "linear" and layer_input is not None:
        layer, layer_input = origin_of(layer_input)  # gives the numbers another type, under mixed precision
    if isinstance(layer, keras.Model):
        return gives_probabilities(layer)
    return _activation(layer) in _PROBABILITIES


def _follows_scores(layer: Any, are_probabilities: bool) -> bool:
    """Return whether a layer turns scores into other scores. are_probabilities: the layers behind it make those."""
    import keras

    layers = keras.layers
    if isinstance(layer, layers.Dropout) or _is_softmax(layer):
        return True
    if isinstance(layer, layers.Activation):
        return are_probabilities or _activation(layer) in _SCORES
    # These layers also occur between features, so they count only if probabilities follow.
    pooling = (layers.AveragePooling2D, layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
    shaping = (layers.Flatten, layers.Reshape, layers.Rescaling, layers.ReLU, layers.BatchNormalization)
    return are_probabilities and isinstance(layer, (*pooling, *shaping))


def _activation(layer: Any) -> str:
    """Return the name of a layer's activation function, "" if it has none."""
    if _is_softmax(layer):
        return "softmax"
    return getattr(getattr(layer, "activation", None), "__name__", "")


def _is_softmax(layer: Any) -> bool:
    return type(layer).__name__ in ("Softmax", "LogSoftmax")  # a layer or a bare operation


def last_of(model: Any) -> str:
    """Return the name of the layer that a model ends in."""
    layer, _ = origin_of(model.outputs[0])
    return str(layer.name)


def check_not_quantized(model: Any, path: str) -> None:
    """Raise NotAModel if the model is quantized, because featcache computes from float32 weights."""
    modes = {str(getattr(layer, "quantization_mode", None)) for layer in model._flatten_layers()} - {"None"}
    if modes:
        raise NotAModel(
            f"{path} is quantized ({', '.join(sorted(modes))}), and featcache needs the float32 weights. Save the "
            "model before model.quantize()"
        )


def at_policy(model: Any, policy: str) -> Any:
    """Return the model with all layers under this dtype policy, such as "mixed_bfloat16", and with the same weights."""
    import keras

    # Building a model again may fail for a user's own layers, so one that computes in this way already stays as it is.
    if all(layer.dtype_policy.name == policy for layer in model._flatten_layers(include_self=False)):
        return model

    def with_policy(layer: Any) -> Any:
        return layer.__class__.from_config(layer.get_config() | {"dtype": policy})

    clone = keras.models.clone_model(model, clone_function=with_policy, recursive=True)
    clone.set_weights(model.get_weights())
    return clone


def architecture(model: Any) -> str:
    """Return the SHA-256 of a model's configuration, without its name and the precision in which it was saved."""
    import keras

    config = json.loads(model.to_json())
    config.pop("compile_config", None)
    config["config"].pop("name", None)
    code = _code_of(model)
    content = [_without_dtypes(config), code] if code else _without_dtypes(config)
    classifier, _, _ = _classifier(model)
    if classifier is None or isinstance(classifier, keras.layers.Dense):
        return digest_of(content)
    # For such a model, earlier versions of featcache cached the scores as "top". Another digest keeps the two apart.
    return digest_of([content, {"top": classifier.name}])


def has_code(model: Any) -> bool:
    """Return whether a model computes by code that is not Keras' own, so that its file does not tell everything."""
    import keras

    for layer in model._flatten_layers():
        if not _is_of_library(type(layer)) or isinstance(layer, (keras.layers.Lambda, keras.layers.TFSMLayer)):
            return True
    return _names_code(json.loads(model.to_json()))


def _names_code(config: Any) -> bool:
    """Return whether the configuration of a model names anything but Keras' own, such as an activation function."""
    if isinstance(config, list):
        return any(_names_code(item) for item in config)
    if not isinstance(config, dict):
        return False
    if {"module", "class_name"} <= config.keys() and str(config["module"]).partition(".")[0] not in hub.LIBRARIES:
        return True
    return any(_names_code(value) for value in config.values())


def _is_of_library(layer_class: type) -> bool:
    """Return whether a class is of Keras or keras-hub."""
    return layer_class.__module__.partition(".")[0] in hub.LIBRARIES


def _code_of(model: Any) -> list[str]:
    """Return the source of the user's own layer classes, because the configuration does not say what they compute."""
    classes = {type(layer) for layer in model._flatten_layers()}
    own_classes = [layer_class for layer_class in classes if not _is_of_library(layer_class)]
    # Sorted, since a set has no order and the digest must be the same in every process.
    own_classes.sort(key=lambda layer_class: layer_class.__name__)
    try:
        return [inspect.getsource(layer_class) for layer_class in own_classes]
    except (OSError, TypeError) as error:
        names = ", ".join(layer_class.__name__ for layer_class in own_classes)
        raise NotAModel(
            f"The source of layer {names} cannot be read, so featcache cannot notice when it changes. Define it in a "
            "module"
        ) from error


def _without_dtypes(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {key: _without_dtypes(value) for key, value in config.items() if key != "dtype"}
    if isinstance(config, list):
        return [_without_dtypes(item) for item in config]
    return config


def origin_of(tensor: Any) -> tuple[Any, Any]:
    """Return the layer that makes a tensor of the graph, and its (first) input; None if it is the model's input."""
    layer, node, _ = tensor._keras_history
    inputs = layer._inbound_nodes[node].input_tensors
    return layer, inputs[0] if inputs else None


def _loaded(path: Path, trust: bool) -> Any:
    if saved.is_saved(path):
        return saved.load(path, trust)
    if not path.is_file():
        raise UsageError(f"There is no model file {path}")
    model = _load_keras_2(path, trust)
    return _load_keras_3(path, trust) if model is None else model


def _load_keras_2(path: Path, trust: bool) -> Any:
    """Return the model of a file that Keras 2 wrote, None for any other file. Raises NotAModel in one line."""
    from featcache.backbones import legacy

    content = legacy.read(path)
    if content is None:
        return None
    try:
        return legacy.model_of(content, trust)
    except legacy.Code as error:
        raise _carries_code(path) from error
    except NotAModel as error:
        raise NotAModel(f"{path} was written by Keras 2 and cannot be converted: {error}") from error


def _carries_code(path: Path) -> NotAModel:
    return NotAModel(
        f"{path} carries code (a Lambda layer or the like), which featcache does not run unless told to trust the "
        "file: `trust=True` (of extract, backbones import and show). Or rebuild the model in a function and name that: "
        "package.module:function"
    )


def _load_keras_3(path: Path, trust: bool) -> Any:
    import keras

    hub.check_installed(path)
    try:
        # The code of a trusted file may import the user's modules from here.
        with current_folder_last() if trust else nullcontext():
            model = keras.saving.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:  # Keras raises many kinds
        raise_if_of_the_system(path, error)
        cause = error  # `error` itself ends with this block
        reason = " ".join(str(error).split())
    else:
        _check_no_folder(path, model)
        return model
    # First the causes that the user can remove, each with its remedy.
    if not trust and ("unsafe" in reason or "safe_mode" in reason):
        raise _carries_code(path)
    if "No model config found" in reason:
        raise NotAModel(f"{path} holds weights but no model. Name their backbone: `backbone=NAME`, `weights='{path}'`")
    if name := unknown_code(cause):
        raise NotAModel(
            f"{path} has code of yours in it, {name}, which Keras does not find. Write a function that loads the "
            "model, in the module that defines this code, and name it: `backbone='package.module:function'`"
        )
    raise NotAModel(f"Keras cannot load {path}: {innermost_reason(cause)}")


def _check_no_folder(path: Path, model: Any) -> None:
    """Raise NotAModel if a part of the model is in another folder, which may change while the file stays the same."""
    import keras

    for layer in model._flatten_layers() if isinstance(model, keras.Model) else ():
        if isinstance(layer, keras.layers.TFSMLayer):
            raise NotAModel(
                f"{path} only refers to the SavedModel {layer.filepath}. Name that folder: "
                f"`backbone='{layer.filepath}'`"
            )


def _called(path: str, size: int | None) -> Any:
    """Return what `package.module:function` returns, if the user named it. Raises UsageError if only a file did."""
    from featcache.backbones.build import reproducibly

    if not is_allowed(path):
        raise UsageError(
            f"The backbone {path} is a function that a file names, and featcache calls only functions that you name. "
            f"{how_to_allow(path)}"
        )
    module, _, function = path.partition(":")
    # From one seed, so that a function without stored weights gives the same ones each time.
    with current_folder_last(), reproducibly(0):
        try:
            make_model = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"`backbone='{path}'`: {error}. Name a function that can be imported from here") from error
        arguments = _arguments(path, make_model, size)
        try:
            return make_model(**arguments)
        except Exception as error:  # whatever a user's function raises
            reason = " ".join(str(error).split())[:200]
            raise NotAModel(f"`backbone='{path}'`: the function raised {type(error).__name__}: {reason}") from error


def _arguments(path: str, function: Any, size: int | None) -> dict[str, int]:
    """Return the arguments for a user's function: size, if it takes one. Raises UsageError if it needs others."""
    parameters = inspect.signature(function).parameters if callable(function) else {}
    # *args and **kwargs do not need an argument.
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = set()
    for parameter in parameters.values():
        if parameter.default is parameter.empty and parameter.kind not in variadic:
            required.add(parameter.name)
    if not callable(function) or required - {"size"}:
        raise UsageError(
            f"`backbone` takes a function that returns a Keras model, without arguments or with size=; got {path}"
        )
    if size is None and "size" in required:
        raise UsageError(f"{path} takes images of any size; choose one: {path}:size=224, or `size`")
    return {"size": size} if size is not None and "size" in parameters else {}


def _check_inputs(spec: BackboneSpec, shapes: list[tuple[int | None, ...]]) -> None:
    """Raise NotAModel unless the model takes one batch of square RGB images."""
    if not shapes:
        raise NotAModel(
            f"{spec.weights} was never built, so its input is unknown. Build it before you save it: "
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


def _facts_in(spec: BackboneSpec, model: Mapping[str, Any]) -> Facts:
    """Return what a model's configuration shows. Raises NotAModel; KeyError and the like if it is built otherwise."""
    outer_layers = model["config"]["layers"]
    layers = list(_flat(outer_layers))
    inputs = [layer["config"] for layer in outer_layers if layer["class_name"] == "InputLayer"]
    _check_inputs(spec, [tuple(config["batch_shape"]) for config in inputs])
    [image] = inputs

    # The first layer that changes the range of the pixels tells which range the model takes.
    computing = [layer for layer in layers if not _AUGMENTING.fullmatch(layer["class_name"])]
    scales_itself = bool(computing) and _takes_bytes(computing[0])
    takes_whole_numbers = "int" in str(image["dtype"])
    mode: Mode | None = "inside" if scales_itself or takes_whole_numbers else None
    return Facts(image["batch_shape"][1], mode, None)


def _facts_of_model(spec: BackboneSpec, model: Any) -> Facts:
    """Return what a loaded model shows. Its input tells, if its configuration does not list its layers."""
    try:
        return _facts_in(spec, json.loads(model.to_json()))
    except (KeyError, TypeError, IndexError, AttributeError, NotImplementedError):
        image = model.inputs[0]
        mode: Mode | None = "inside" if "int" in str(image.dtype) else None
        return Facts(image.shape[1], mode, None)


def _flat(layers: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the configuration of every layer; a nested model is replaced by its layers."""
    for layer in layers:
        if "layers" in layer["config"]:
            yield from _flat(layer["config"]["layers"])
        else:
            yield layer


def _takes_bytes(layer: Mapping[str, Any]) -> bool:
    """Return whether a first layer scales pixels 0..255."""
    config = layer["config"]
    if layer["class_name"] == "Rescaling":
        scales = config["scale"] if isinstance(config["scale"], list) else [config["scale"]]
        return all(abs(scale) <= _LARGEST_SCALE for scale in scales)
    if layer["class_name"] == "Normalization":
        mean = config.get("mean")  # None if the layer was adapted, for then its statistics are weights
        return mean is not None and bool(np.max(mean) > _LEAST_MEAN)
    return False


def _read_json(path: Path, member: str) -> Any:
    """Return a JSON member of a .keras file; None if the file or the member cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(member))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise_if_of_the_system(path, error)
        return None
