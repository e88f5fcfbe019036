"""What Keras 2 wrote down of a model -> the same model in Keras 3, with weights yet to be placed.

Keras 3 reads few of these configurations: `axis: [3]`, `groups` of a depthwise convolution, models within models,
slashes in names and arithmetic on tensors (`TFOpLambda`) stop it. Here every layer is made by its class in
`keras.layers` from the settings that class knows, and the graph is called anew. What only matters in training
(initialisers, regularisers, constraints) is left out; what would compute something else is refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_SAME_AT = {"groups": 1, "shared_axes": None, "renorm_momentum": 0.99}  # settings that say nothing at this value
_RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}}
_OTHER_FUNCTION = ("hard_sigmoid",)  # clip(x/5 + 1/2) in Keras 2, clip(x/6 + 1/2) in Keras 3
_JOINED = {"add": "Add", "subtract": "Subtract", "multiply": "Multiply"}
_ACTIVATIONS = {"relu": "relu", "relu6": "relu6", "silu": "silu", "swish": "silu", "sigmoid": "sigmoid",
                "tanh": "tanh", "softmax": "softmax", "gelu": "gelu"}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One layer of a model: as the file calls it, and as it is in Keras 3; of a nested model its parts, too."""

    name: str
    kind: str  # its class in Keras 2
    layer: Any
    parts: tuple[Part, ...] = ()

    def leaves(self) -> Iterator[Part]:
        """Yield the layers that are no models, in order."""
        for one in self.parts:
            yield from one.leaves()
        if self.kind not in NESTED:
            yield self


def model_of(config: Config, trust: bool = False) -> Part:
    """Return the model of a configuration, with random weights. trust: make layers that carry code.

    Raises NotAModel in one line that names the layer and its class.
    """
    return _made(config, trust)


def renamed(name: str) -> str:
    """Return a layer's name as Keras 3 allows it.

    >>> renamed("conv1/bn")
    'conv1_bn'
    """
    return name.replace("/", "_")


def _made(data: Config, trust: bool) -> Part:
    kind, config = data["class_name"], data["config"]
    if kind == "Sequential":
        return _sequential(config, trust)
    if kind in NESTED and "layers" in config:
        return _functional(config, trust)
    return Part(config["name"], kind, _layer(kind, config, trust))


def _sequential(config: Config | list[Config], trust: bool) -> Part:
    """Return a sequential model; before Keras 2.2.3 its configuration was the list of its layers."""
    import keras

    named: Config = {"name": "sequential", "layers": config} if isinstance(config, list) else config
    listed = [one for one in named["layers"] if one["class_name"] != "InputLayer"]
    parts = tuple(_made(one, trust) for one in listed)
    shape = next((_shape(one) for one in named["layers"] if _shape(one)), named.get("build_input_shape"))
    _check_unique(part.name for part in parts)
    begin = [keras.Input(batch_shape=shape, dtype=_input_dtype(named["layers"]))] if shape else []
    model = _tried(named["name"], "Sequential", lambda: keras.Sequential(
        [*begin, *(part.layer for part in parts)], name=renamed(named["name"])
    ))  # fmt: skip
    return Part(named["name"], "Sequential", model, parts)


def _shape(data: Config) -> Any:
    """Return the shape that a layer says it is fed with, of a nested model that of its first layer."""
    if data["class_name"] in NESTED:
        inner = data["config"] if isinstance(data["config"], list) else data["config"]["layers"]
        return _shape(inner[0])
    return data["config"].get("batch_input_shape")


def _input_dtype(layers: Sequence[Config]) -> str:
    first = layers[0]
    return str(first["config"].get("dtype") or "float32") if first["class_name"] == "InputLayer" else "float32"


def _functional(config: Config, trust: bool) -> Part:
    """Return a functional model, its layers called as the configuration lists their calls ("nodes")."""
    import keras

    parts: dict[str, Part] = {}
    graph = _Graph(config["layers"])
    for data in config["layers"]:
        if data["class_name"] == "TFOpLambda":
            parts[data["config"]["name"]] = Part(data["config"]["name"], "TFOpLambda", None)
        elif data["class_name"] != "InputLayer":
            parts[data["config"]["name"]] = _made(data, trust)
    _check_unique(parts)
    graph.run(parts)
    ends = [[graph.tensor(one) for one in _listed(config[key])] for key in ("input_layers", "output_layers")]
    inputs, outputs = (end[0] if len(end) == 1 else end for end in ends)
    model = keras.Model(inputs, outputs, name=renamed(config["name"]))
    listed = [data["config"]["name"] for data in config["layers"]]
    return Part(config["name"], "Functional", model, tuple(parts[name] for name in listed if name in parts))


class _Graph:
    """The tensors of a functional model by (layer, call, output), made in the order in which they can be."""

    def __init__(self, layers: Sequence[Config]) -> None:
        import keras

        self._layers = {data["config"]["name"]: data for data in layers}
        self._begin = {name: self._first_call(name) for name in self._layers}
        self._tensors: dict[tuple[str, int, int], Any] = {}
        for name, data in self._layers.items():
            if data["class_name"] == "InputLayer":
                config = data["config"]
                shape, dtype = config["batch_input_shape"], config.get("dtype") or "float32"
                self._tensors[name, 0, 0] = keras.Input(batch_shape=shape, dtype=dtype, name=renamed(name))

    def run(self, parts: Mapping[str, Part]) -> None:
        """Call every layer as often as it was called, each after what it takes. Raises NotAModel."""
        waiting = [
            (name, self._begin[name] + at, node)
            for name in parts
            for at, node in enumerate(self._layers[name].get("inbound_nodes", ()))
        ]
        while waiting:
            left = [call for call in waiting if not self._ready(call[2])]
            if len(left) == len(waiting):
                raise NotAModel(f"layer '{left[0][0]}' takes what no layer of the model gives")
            for name, at, node in waiting:
                if self._ready(node):
                    self._call(parts[name], at, node)
            waiting = left

    def tensor(self, reference: Any) -> Any:
        """Return what a reference [layer, call, output] means."""
        name, call, output = reference[:3]
        return self._tensors[name, call, output]

    def _first_call(self, name: str) -> int:
        """Return the number of a layer's first call: a nested model was called once when it was made."""
        if self._layers[name]["class_name"] not in NESTED:
            return 0
        return 0 if any(one[:2] == [name, 0] for one in _references(list(self._layers.values()))) else 1

    def _ready(self, node: Any) -> bool:
        return all((name, call, output) in self._tensors for name, call, output in _references(node))

    def _call(self, part: Part, at: int, node: Any) -> None:
        taken = [node] if node and isinstance(node[0], str) else list(node)
        settings = {key: self._value(value) for one in taken for key, value in (one[3:] or [{}])[0].items()}
        values = [self._value(one[2] if one[0] == "_CONSTANT_VALUE" else one[:3]) for one in taken]
        if part.kind == "TFOpLambda":
            given = _arithmetic(part.name, self._layers[part.name]["config"]["function"], values, settings)
        else:
            known = {key: value for key, value in settings.items() if value is not None}
            first = values[0] if len(values) == 1 else values
            given = _tried(part.name, part.kind, lambda: part.layer(first, **known))
        for output, tensor in enumerate(given if isinstance(given, (list, tuple)) else [given]):
            self._tensors[part.name, at, output] = tensor

    def _value(self, value: Any) -> Any:
        if _is_reference(value):
            return self.tensor(value)
        return [self._value(one) for one in value] if isinstance(value, list) else value


def _is_reference(value: Any) -> bool:
    """Tell whether a value is [layer, call, output]."""
    is_list = isinstance(value, list) and len(value) in (3, 4)
    return is_list and isinstance(value[0], str) and all(type(one) is int and one >= 0 for one in value[1:3])


def _references(value: Any) -> Iterator[list[Any]]:
    """Yield every [layer, call, output] within a value, settings included."""
    if _is_reference(value):
        yield value[:3]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _references(one)


def _listed(references: Any) -> list[Any]:
    return [references] if _is_reference(references) else list(references)


def _layer(kind: str, config: Config, trust: bool) -> Any:
    """Return a layer of its class in Keras 3. Raises NotAModel where there is none, or it knows a setting not."""
    import keras

    name = config["name"]
    made_by: Any = getattr(keras.layers, kind, None)
    if kind in CODE and not (trust and kind == "Lambda"):
        raise Code(f"layer '{name}' ({kind}) carries code")
    if not _is_layer(made_by):
        raise NotAModel(f"layer '{name}' is a {kind}, which Keras 3 does not have")
    if kind == "Lambda":
        with keras.src.saving.serialization_lib.SafeModeScope(False):
            return _tried(name, kind, partial(made_by.from_config, _of_lambda(config)))
    settings = _settings(name, kind, made_by, config)
    return _tried(name, kind, partial(made_by.from_config, settings))


def _is_layer(made_by: Any) -> bool:
    import keras

    return inspect.isclass(made_by) and issubclass(made_by, keras.layers.Layer)


class Code(NotAModel):
    """A layer carries code, which is only run on trust."""


def _of_lambda(config: Config) -> dict[str, Any]:
    """Return the settings of a Lambda layer as Keras 3 has them: its bytecode, defaults and closure."""
    function = config["function"]
    if isinstance(function, list):
        code, defaults, closure = function
        function = {"class_name": "__lambda__", "config": {"code": code, "defaults": defaults, "closure": closure}}
    return {"name": renamed(config["name"]), "function": function, "arguments": config.get("arguments") or {}}


def _settings(name: str, kind: str, made_by: Any, config: Config) -> dict[str, Any]:
    """Return the settings for Keras 3. Raises NotAModel for one that it does not know and that says something."""
    known, found = _known(made_by), {}
    for old, value in config.items():
        key = _RENAMED.get(kind, {}).get(old, old)
        if key in ("name", "dtype") or key.endswith(_TRAINING) or key in _OF_KERAS_2:
            continue
        if key in known:
            found[key] = _plain(name, kind, key, value)
        elif value not in (None, False, _SAME_AT.get(key, False)):
            raise NotAModel(f"layer '{name}' ({kind}) has {key}={value}, which Keras 3 does not know")
    return found | {"name": renamed(name), "dtype": _policy(config.get("dtype"))}


def _known(made_by: Any) -> set[str]:
    """Return the names of the settings that a class of Keras 3 takes."""
    inits = [one.__init__ for one in made_by.__mro__ if "__init__" in vars(one) and one is not object]
    return {key for init in inits for key in inspect.signature(init).parameters}


def _plain(name: str, kind: str, key: str, value: Any) -> Any:
    """Return a setting's value as Keras 3 takes it; wrapped layers are settings too."""
    if key == "axis" and kind == "BatchNormalization" and isinstance(value, list) and len(value) == 1:
        return value[0]
    if isinstance(value, str) and value in _OTHER_FUNCTION:
        raise NotAModel(f"layer '{name}' ({kind}) has {key}={value}, which is another function in Keras 3")
    if not isinstance(value, Mapping):
        return value
    if key.endswith("layer") and value.get("class_name") not in (*NESTED, *CODE):
        return _wrapped(value)
    raise NotAModel(f"layer '{name}' ({kind}) has {key}={str(value)[:80]}, which Keras 3 does not know")


def _wrapped(data: Config) -> dict[str, Any]:
    """Return the configuration of a layer within a layer (TimeDistributed, Bidirectional)."""
    import keras

    kind, config = data["class_name"], data["config"]
    made_by = getattr(keras.layers, kind, None)
    if not _is_layer(made_by):
        raise NotAModel(f"layer '{config['name']}' is a {kind}, which Keras 3 does not have")
    settings = _settings(config["name"], kind, made_by, config)
    return {"module": "keras.layers", "class_name": kind, "config": settings, "registered_name": None}


def _policy(dtype: Any) -> str:
    return str(dtype["config"]["name"]) if isinstance(dtype, Mapping) else str(dtype or "float32")


def _arithmetic(name: str, function: str, values: list[Any], settings: dict[str, Any]) -> Any:
    """Return the tensor of an operation on tensors and numbers, as a layer of that name. Raises NotAModel."""
    import keras

    operation = {"truediv": "divide"}.get(function.rpartition(".")[2], function.rpartition(".")[2])
    unknown = NotAModel(f"layer '{name}' (TFOpLambda) computes tf.{function}, which has no layer in Keras 3")
    one, two = values[0], settings.pop("y", None)
    if any(value is not None for value in settings.values()) or len(values) != 1:
        raise unknown
    layers, named = keras.layers, {"name": renamed(name)}
    if two is None and operation in _ACTIVATIONS:
        return layers.Activation(_ACTIVATIONS[operation], **named)(one)
    if isinstance(one, keras.KerasTensor) and isinstance(two, keras.KerasTensor):
        if operation not in _JOINED:
            raise unknown
        return getattr(layers, _JOINED[operation])(**named)([one, two])
    line = None if two is None else _line(operation, one, two)
    if line is None:
        raise unknown
    scale, offset, tensor = line
    return layers.Rescaling(scale, offset, **named)(tensor)


def _line(operation: str, one: Any, two: Any) -> tuple[Any, Any, Any] | None:
    """Return scale, offset and tensor of an operation of a tensor and numbers; None if it is no straight line."""
    first = not isinstance(one, (int, float, list))
    tensor, number = (one, two) if first else (two, one)
    constant = np.asarray(number, np.float64)
    found: dict[str, tuple[Any, Any]] = {
        "add": (1.0, constant),
        "multiply": (constant, 0.0),
        "subtract": (1.0, -constant) if first else (-1.0, constant),
    }
    if operation == "divide" and first and constant.all():
        found["divide"] = (1 / constant, 0.0)
    if operation not in found:
        return None
    scale, offset = (np.asarray(value).tolist() for value in found[operation])
    return scale, offset, tensor


def _check_unique(names: Any) -> None:
    """Raise NotAModel if two layers would have one name without slashes."""
    seen: dict[str, str] = {}
    for name in names:
        if seen.setdefault(renamed(name), name) != name:
            raise NotAModel(f"layers '{seen[renamed(name)]}' and '{name}' would both be called '{renamed(name)}'")


def _tried(name: str, kind: str, make: Callable[[], Any]) -> Any:
    """Return what `make` returns. Raises NotAModel naming the layer, whatever Keras raises."""
    try:
        return make()
    except NotAModel:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise NotAModel(f"layer '{name}' ({kind}) of Keras 2 does not fit Keras 3: {reason}") from error
