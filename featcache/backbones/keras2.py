"""Rebuild a model in Keras 3 from the configuration that Keras 2 stored. `legacy` fills in its weights.

Keras 3 reads few of these configurations. It fails at `axis: [3]`, `groups` of a depthwise convolution, nested models,
slashes in names and arithmetic on tensors (`TFOpLambda`). So this module makes every layer from its class in
`keras.layers`, with the settings that the class takes, and repeats the calls that connect the layers. Settings that
only matter in training (initialisers, regularisers, constraints) are left out. A setting that would make the layer
compute something else is refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from featcache.errors import NotAModel

Config = Mapping[str, Any]
NESTED = ("Sequential", "Functional", "Model")
CODE = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
_TRAINING = ("_initializer", "_regularizer", "_constraint")
_OF_KERAS_2 = {"batch_input_shape", "fused", "implementation", "rng_type", "build_config", "optional"}
_NEUTRAL = {"groups": 1, "shared_axes": None, "renorm_momentum": 0.99}  # settings that change nothing at this value
_RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}}
_OTHER_FUNCTION = ("hard_sigmoid",)  # clip(x/5 + 1/2) in Keras 2, clip(x/6 + 1/2) in Keras 3
_JOINED = {"add": "Add", "subtract": "Subtract", "multiply": "Multiply"}
_ACTIVATIONS = {"relu": "relu", "relu6": "relu6", "silu": "silu", "swish": "silu", "sigmoid": "sigmoid",
                "tanh": "tanh", "softmax": "softmax", "gelu": "gelu"}  # fmt: skip


@dataclass(frozen=True)
class RebuiltLayer:
    """A layer of a model, and for a nested model its layers."""

    name: str  # in the file
    kind: str  # its class in Keras 2
    layer: Any  # in Keras 3; None for an operation on tensors (TFOpLambda), which has no weights
    parts: tuple[RebuiltLayer, ...] = ()

    def leaves(self) -> Iterator[RebuiltLayer]:
        """Yield the layers that are not models, in order."""
        for part in self.parts:
            yield from part.leaves()
        if self.kind not in NESTED:
            yield self


class Code(NotAModel):
    """A layer carries code, which only runs if the user trusts the file."""


def model_of(data: Config, trust: bool = False) -> RebuiltLayer:
    """Return the model (or layer) of a configuration, with random weights. trust: make layers that carry code.

    Raises NotAModel in one line that names the layer and its class.
    """
    kind = data["class_name"]
    config = data["config"]
    if kind == "Sequential":
        return _sequential(config, trust)
    if kind in NESTED and "layers" in config:
        return _functional(config, trust)
    return RebuiltLayer(config["name"], kind, _layer(kind, config, trust))


def renamed(name: str) -> str:
    """Return a layer's name as Keras 3 allows it, without slashes.

    >>> renamed("conv1/bn")
    'conv1_bn'
    """
    return name.replace("/", "_")


def _sequential(config: Config | list[Config], trust: bool) -> RebuiltLayer:
    """Return a sequential model. Before Keras 2.2.3 its configuration was just the list of its layers."""
    import keras

    if isinstance(config, list):
        config = {"name": "sequential", "layers": config}
    name = config["name"]
    layers = config["layers"]
    parts = tuple(model_of(data, trust) for data in layers if data["class_name"] != "InputLayer")
    _check_unique(part.name for part in parts)

    stack = [part.layer for part in parts]
    shapes = [shape for shape in map(_input_shape, layers) if shape]
    shape = shapes[0] if shapes else config.get("build_input_shape")
    if shape:
        is_input = layers[0]["class_name"] == "InputLayer"
        dtype = layers[0]["config"].get("dtype") if is_input else None
        stack.insert(0, keras.Input(batch_shape=shape, dtype=str(dtype or "float32")))
    model = _make(name, "Sequential", lambda: keras.Sequential(stack, name=renamed(name)))
    return RebuiltLayer(name, "Sequential", model, parts)


def _input_shape(data: Config) -> Any:
    """Return the input shape that a layer states, or the first layer of a nested model; None if it states none."""
    config = data["config"]
    if data["class_name"] in NESTED:
        inner_layers = config if isinstance(config, list) else config["layers"]
        return _input_shape(inner_layers[0])
    return config.get("batch_input_shape")


def _functional(config: Config, trust: bool) -> RebuiltLayer:
    """Return a functional model. Its layers are called as the configuration lists their calls ("inbound_nodes")."""
    import keras

    graph = _CallGraph(config["layers"])
    parts: dict[str, RebuiltLayer] = {}
    for data in config["layers"]:
        name = data["config"]["name"]
        if data["class_name"] == "TFOpLambda":
            parts[name] = RebuiltLayer(name, "TFOpLambda", None)
        elif data["class_name"] != "InputLayer":
            parts[name] = model_of(data, trust)
    _check_unique(parts)

    graph.run(parts)
    inputs = graph.ends(config["input_layers"])
    outputs = graph.ends(config["output_layers"])
    model = keras.Model(inputs, outputs, name=renamed(config["name"]))
    return RebuiltLayer(config["name"], "Functional", model, tuple(parts.values()))


class _CallGraph:
    """The tensors of a functional model by (layer, number of the call, number of the output)."""

    def __init__(self, layers: Sequence[Config]) -> None:
        import keras

        self._layers = {data["config"]["name"]: data for data in layers}
        self._tensors: dict[tuple[str, int, int], Any] = {}
        for name, data in self._layers.items():
            if data["class_name"] == "InputLayer":
                shape = data["config"]["batch_input_shape"]
                dtype = data["config"].get("dtype") or "float32"
                self._tensors[name, 0, 0] = keras.Input(batch_shape=shape, dtype=dtype, name=renamed(name))

    def run(self, parts: Mapping[str, RebuiltLayer]) -> None:
        """Repeat every recorded call of every layer. Raises NotAModel if a call needs a tensor that nothing makes."""
        waiting = []
        for name in parts:
            nodes = self._layers[name].get("inbound_nodes", ())
            for number, node in enumerate(nodes, start=self._first_call(name)):
                waiting.append((name, number, node))

        # The file lists layers in no useful order, so call in rounds whatever has its inputs.
        while waiting:
            blocked = [call for call in waiting if not self._is_ready(call[2])]
            if len(blocked) == len(waiting):
                raise NotAModel(f"layer '{blocked[0][0]}' takes a tensor that no layer of the model makes")
            for name, number, node in waiting:
                if self._is_ready(node):
                    self._call(parts[name], number, node)
            waiting = blocked

    def ends(self, references: Any) -> Any:
        """Return the tensors of the model's inputs or outputs; one alone is not in a list."""
        if _is_reference(references):
            references = [references]
        tensors = [self._tensor(reference) for reference in references]
        return tensors[0] if len(tensors) == 1 else tensors

    def _tensor(self, reference: Any) -> Any:
        name, call, output = reference[:3]
        return self._tensors[name, call, output]

    def _first_call(self, name: str) -> int:
        """Return the number of a layer's first call in this graph.

        A nested model was called once already when it was made, so unless its call 0 is used here, it begins at 1.
        """
        if self._layers[name]["class_name"] not in NESTED:
            return 0
        references = _references(list(self._layers.values()))
        uses_call_0 = any(reference[:2] == [name, 0] for reference in references)
        return 0 if uses_call_0 else 1

    def _is_ready(self, node: Any) -> bool:
        return all((name, call, output) in self._tensors for name, call, output in _references(node))

    def _call(self, part: RebuiltLayer, number: int, node: Any) -> None:
        """Call a layer as its node says: a list of inputs [layer, call, output, settings], or one such input."""
        inputs = [node] if node and isinstance(node[0], str) else list(node)
        values = []
        settings: dict[str, Any] = {}
        for entry in inputs:
            # ["_CONSTANT_VALUE", -1, 2.0] stands for a number, where other entries name a tensor.
            is_constant = entry[0] == "_CONSTANT_VALUE"
            values.append(self._value(entry[2] if is_constant else entry[:3]))
            settings_of_entry = entry[3] if len(entry) > 3 else {}
            for key, value in settings_of_entry.items():
                settings[key] = self._value(value)

        if part.kind == "TFOpLambda":
            function = self._layers[part.name]["config"]["function"]
            outputs = _arithmetic(part.name, function, values, settings)
        else:
            arguments = {key: value for key, value in settings.items() if value is not None}
            first = values[0] if len(values) == 1 else values
            outputs = _make(part.name, part.kind, lambda: part.layer(first, **arguments))

        if not isinstance(outputs, (list, tuple)):
            outputs = [outputs]
        for position, tensor in enumerate(outputs):
            self._tensors[part.name, number, position] = tensor

    def _value(self, value: Any) -> Any:
        """Return a value with every reference in it replaced by its tensor."""
        if _is_reference(value):
            return self._tensor(value)
        if isinstance(value, list):
            return [self._value(item) for item in value]
        return value


def _is_reference(value: Any) -> bool:
    """Return whether a value is [layer, call, output], perhaps with settings behind."""
    if not isinstance(value, list) or len(value) not in (3, 4) or not isinstance(value[0], str):
        return False
    return all(type(number) is int and number >= 0 for number in value[1:3])


def _references(value: Any) -> Iterator[list[Any]]:
    """Yield every [layer, call, output] within a value, settings included."""
    if _is_reference(value):
        yield value[:3]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _references(item)


def _layer(kind: str, config: Config, trust: bool) -> Any:
    """Return a layer of this class in Keras 3. Raises NotAModel if there is no such class or it lacks a setting."""
    import keras

    name = config["name"]
    layer_class: Any = getattr(keras.layers, kind, None)
    if kind in CODE and not (trust and kind == "Lambda"):
        raise Code(f"layer '{name}' ({kind}) carries code")
    if not _is_layer(layer_class):
        raise NotAModel(f"layer '{name}' is a {kind}, which Keras 3 does not have")
    if kind == "Lambda":
        # The user trusts this file, so Keras may unpack the bytecode of the function.
        with keras.src.saving.serialization_lib.SafeModeScope(False):
            return _make(name, kind, partial(layer_class.from_config, _lambda_settings(config)))
    settings = _settings(name, kind, layer_class, config)
    return _make(name, kind, partial(layer_class.from_config, settings))


def _is_layer(layer_class: Any) -> bool:
    import keras

    return inspect.isclass(layer_class) and issubclass(layer_class, keras.layers.Layer)


def _lambda_settings(config: Config) -> dict[str, Any]:
    """Return the settings of a Lambda layer as Keras 3 takes them: its bytecode, defaults and closure."""
    function = config["function"]
    if isinstance(function, list):
        code, defaults, closure = function
        bytecode = {"code": code, "defaults": defaults, "closure": closure}
        function = {"class_name": "__lambda__", "config": bytecode}
    arguments = config.get("arguments") or {}
    return {"name": renamed(config["name"]), "function": function, "arguments": arguments}


def _settings(name: str, kind: str, layer_class: Any, config: Config) -> dict[str, Any]:
    """Return the settings for Keras 3. Raises NotAModel for an unknown setting, unless its value changes nothing."""
    known = _setting_names(layer_class)
    settings = {}
    for keras_2_key, value in config.items():
        key = _RENAMED.get(kind, {}).get(keras_2_key, keras_2_key)
        if key in ("name", "dtype") or key.endswith(_TRAINING) or key in _OF_KERAS_2:
            continue
        if key in known:
            settings[key] = _setting(name, kind, key, value)
        elif value not in (None, False, _NEUTRAL.get(key, False)):
            raise NotAModel(f"layer '{name}' ({kind}) has {key}={value}, which Keras 3 does not know")

    dtype = config.get("dtype")
    if isinstance(dtype, Mapping):  # a policy such as mixed_float16
        dtype = dtype["config"]["name"]
    return settings | {"name": renamed(name), "dtype": str(dtype or "float32")}


def _setting_names(layer_class: Any) -> set[str]:
    """Return the names of the settings that a class of Keras 3 takes, itself or through its base classes."""
    names: set[str] = set()
    for base in layer_class.__mro__:
        if base is not object and "__init__" in vars(base):
            names.update(inspect.signature(base.__init__).parameters)
    return names


def _setting(name: str, kind: str, key: str, value: Any) -> Any:
    """Return a setting's value as Keras 3 takes it. The layer inside TimeDistributed is a setting, too."""
    if key == "axis" and kind == "BatchNormalization" and isinstance(value, list) and len(value) == 1:
        return value[0]
    if isinstance(value, str) and value in _OTHER_FUNCTION:
        raise NotAModel(f"layer '{name}' ({kind}) has {key}={value}, which is another function in Keras 3")
    if not isinstance(value, Mapping):
        return value
    if key.endswith("layer") and value.get("class_name") not in (*NESTED, *CODE):
        return _inner_layer(value)
    raise NotAModel(f"layer '{name}' ({kind}) has {key}={str(value)[:80]}, which Keras 3 does not know")


def _inner_layer(data: Config) -> dict[str, Any]:
    """Return the configuration of the layer inside a layer (TimeDistributed, Bidirectional)."""
    import keras

    kind = data["class_name"]
    config = data["config"]
    layer_class = getattr(keras.layers, kind, None)
    if not _is_layer(layer_class):
        raise NotAModel(f"layer '{config['name']}' is a {kind}, which Keras 3 does not have")
    settings = _settings(config["name"], kind, layer_class, config)
    return {"module": "keras.layers", "class_name": kind, "config": settings, "registered_name": None}


def _arithmetic(name: str, function: str, values: list[Any], settings: dict[str, Any]) -> Any:
    """Return the tensor of an operation on tensors and numbers, made by a layer of that name. Raises NotAModel.

    function: as Keras 2 calls it, "math.multiply". settings: "y", the second operand, and others, which must be None.
    """
    import keras

    layers = keras.layers
    keras_3_name = renamed(name)
    operation = function.rpartition(".")[2]
    if operation == "truediv":
        operation = "divide"
    unknown = NotAModel(f"layer '{name}' (TFOpLambda) computes tf.{function}, which has no layer in Keras 3")
    x = values[0]
    y = settings.pop("y", None)
    if any(value is not None for value in settings.values()) or len(values) != 1:
        raise unknown

    if y is None:
        if operation not in _ACTIVATIONS:
            raise unknown
        return layers.Activation(_ACTIVATIONS[operation], name=keras_3_name)(x)

    if isinstance(x, keras.KerasTensor) and isinstance(y, keras.KerasTensor):
        if operation not in _JOINED:
            raise unknown
        return getattr(layers, _JOINED[operation])(name=keras_3_name)([x, y])

    is_constant_second = not isinstance(x, (int, float, list))
    # A tensor and a constant make a line, which a Rescaling layer computes.
    tensor, constant = (x, y) if is_constant_second else (y, x)
    line = _line(operation, np.asarray(constant, np.float64), is_constant_second)
    if line is None:
        raise unknown
    scale, offset = line
    return layers.Rescaling(scale, offset, name=keras_3_name)(tensor)


def _line(operation: str, constant: Any, is_constant_second: bool) -> tuple[Any, Any] | None:
    """Return (scale, offset) such that the operation is x * scale + offset; None if there are none.

    constant: a number, or an array of one for each channel. is_constant_second: x - constant rather than constant - x.
    """
    scale: Any = 1.0
    offset: Any = 0.0
    if operation == "add":
        offset = constant
    elif operation == "multiply":
        scale = constant
    elif operation == "subtract" and is_constant_second:
        offset = -constant
    elif operation == "subtract":
        scale = -1.0
        offset = constant
    elif operation == "divide" and is_constant_second and constant.all():
        scale = 1 / constant
    else:
        return None
    return np.asarray(scale).tolist(), np.asarray(offset).tolist()


def _check_unique(names: Iterable[str]) -> None:
    """Raise NotAModel if two layers get the same name without slashes."""
    original_names: dict[str, str] = {}
    for name in names:
        new_name = renamed(name)
        other = original_names.setdefault(new_name, name)
        if other != name:
            raise NotAModel(f"layers '{other}' and '{name}' would both be called '{new_name}'")


def _make(name: str, kind: str, make: Callable[[], Any]) -> Any:
    """Return what `make` returns. Raises NotAModel, which names the layer, whatever Keras raises."""
    try:
        return make()
    except NotAModel:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise NotAModel(f"layer '{name}' ({kind}) of Keras 2 does not fit Keras 3: {reason}") from error
