"""Turn any Keras model that ends in classes into a classifier from uint8 images to probabilities."""

from __future__ import annotations

from typing import Any

from featcache.backbones import own
from featcache.backbones.build import entering
from featcache.errors import NotAModel
from featcache.spec import Preprocess

PROBABILITIES = ("softmax", "logsoftmax", "log_softmax", "sigmoid")  # functions that turn logits into probabilities


def as_classifier(model: Any, preprocess: Preprocess) -> tuple[Any, int, str]:
    """Return the model from uint8 images to probabilities, its number of classes, and what is assumed about it.

    A single output becomes two classes, logits become probabilities. Raises NotAModel if it does not end in classes.
    """
    import keras

    shape = model.outputs[0].shape
    if len(shape) != 2 or shape[1] is None:
        raise NotAModel(f"{model.name} gives {tuple(shape)} for each batch, not one value for each class")
    pixels = keras.Input((preprocess.size, preprocess.size, 3), dtype="uint8")
    inputs = entering(model, keras.ops.cast(pixels, "float32"), preprocess)
    outputs, note = _as_probabilities(model(inputs), _activation(model), shape[1])
    return keras.Model(pixels, outputs), int(outputs.shape[1]), note


def _as_probabilities(outputs: Any, activation: str, width: int) -> tuple[Any, str]:
    import keras

    if activation == "softmax":
        return outputs, ""
    if width == 1:
        shares = outputs
        how = "the probability"
        if activation != "sigmoid":
            shares = keras.ops.sigmoid(outputs)
            how = "the logit"
        both = keras.ops.concatenate([1 - shares, shares], axis=1)
        return both, f"its one output is assumed to be {how} of class 1"
    if activation == "sigmoid":
        return outputs, "it ends in a sigmoid, so its probabilities do not add up to 1"
    return keras.ops.softmax(outputs), f"it ends in '{activation}'; its outputs are assumed to be logits"


def as_logits(model: Any) -> Any | None:
    """Return a classifier up to its logits (N, K), without the softmax or sigmoid that it ends in; weights are shared.

    A single output becomes two classes: softmax([0, z]) is [1 - sigmoid(z), sigmoid(z)]. None if no softmax of logits
    gives the outputs: a sigmoid for each of several classes, or a mean of probabilities. The model itself gives logits
    afterwards, too, if its last layer makes probabilities by an activation.
    """
    import keras

    scores, activation = _without_activation(model)
    [output] = scores.outputs
    is_softmax = activation != "sigmoid" or output.shape[-1] == 1
    if len(output.shape) != 2 or own.gives_probabilities(scores) or not is_softmax:
        return None
    logits = keras.ops.cast(output, "float32")
    if output.shape[-1] == 1:
        logits = keras.ops.concatenate([keras.ops.zeros_like(logits), logits], axis=1)
    return keras.Model(model.inputs[0], logits)


def _without_activation(model: Any) -> tuple[Any, str]:
    """Return the model without a softmax or sigmoid at its end, and the name of the function that it ends in."""
    import keras

    output = _end_of(model)
    layer, layer_input = own.origin_of(output)
    name = _activation(model)
    if isinstance(layer, keras.Model):
        inner, name = _without_activation(layer)
        output = inner(layer_input)
    elif name in PROBABILITIES and getattr(layer, "weights", None):
        layer.activation = keras.activations.linear
    elif name in PROBABILITIES:
        output = layer_input  # the layer or bare operation does nothing else
    return keras.Model(model.inputs[0], output), name


def _end_of(model: Any) -> Any:
    """Return the last tensor of a model, before layers that change no number in inference.

    Under mixed precision a linear activation often ends a model: it only gives the numbers another type.
    """
    import keras

    output = model.outputs[0]
    layer, layer_input = own.origin_of(output)
    while isinstance(layer, keras.layers.Dropout) or (
        isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.linear
    ):
        output = layer_input
        layer, layer_input = own.origin_of(output)
    return output


def _activation(model: Any) -> str:
    """Return the name of the function that a model ends in, even inside a nested model."""
    layer, _ = own.origin_of(_end_of(model))
    if hasattr(layer, "layers"):
        return _activation(layer)
    activation = getattr(layer, "activation", None)
    return str(getattr(activation, "__name__", type(layer).__name__)).lower()
