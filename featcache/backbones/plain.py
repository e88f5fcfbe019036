"""Turn any Keras model that ends in classes into a classifier from uint8 images to probabilities."""

from __future__ import annotations

from typing import Any

from featcache.backbones.build import entering
from featcache.errors import NotAModel
from featcache.spec import Preprocess


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


def _activation(model: Any) -> str:
    """Return the name of the function that a model ends in, even inside a nested model."""
    layer = model.outputs[0]._keras_history.operation
    while hasattr(layer, "layers"):
        layer = layer.outputs[0]._keras_history.operation
    activation = getattr(layer, "activation", None)
    return str(getattr(activation, "__name__", type(layer).__name__)).lower()
