"""Backbones + head -> one Keras model: uint8 images of any size in, probabilities out.

image -> resize -> preprocess -> backbone -> pool -> head -> logits -> softmax

Several taps of one backbone come from one network; several backbones stand side by side. All layers are Keras' own,
so that plain Keras loads the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.arrays import Floats
from featcache.backbones.build import Backbone, entering, pooled
from featcache.backbones.noise import freeze_noise
from featcache.errors import ShapeMismatch
from featcache.heads import layers as kinds
from featcache.spec import Preprocess, Tap

RESIZE, FEATURES, LOGITS = "resize", "features", "logits"
HEAD = (LOGITS, "head_")  # how the names of all layers of a head begin


@dataclass(frozen=True)
class Part:
    """One backbone of a model, and the taps that the head reads of it."""

    backbone: Backbone
    taps: tuple[Tap, ...]


def assemble(
    parts: Sequence[Part], head: kinds.Head | None, num_classes: int, order: Sequence[str] | None = None
) -> Any:
    """Return the model; its layers "logits" and "probabilities" are what they say.

    All parts take images of one size. Batch normalisation and dropout of the backbones are made to compute in training
    what they compute in inference. With head=None the backbones train as they are and a linear head starts at random:
    for training from scratch. order: the names of the taps as their features stand side by side; None: that of the
    parts. Raises ShapeMismatch if the head takes another number of features than the taps give.
    """
    import keras

    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    sized = _resizing(parts[0].taps[0].preprocess)(keras.ops.cast(image, "float32"))
    by_tap: dict[str, Any] = {}
    for number, part in enumerate(parts):
        by_tap |= _features(part, sized, number, head is not None)
    found = [by_tap[name] for name in order or by_tap]
    together = keras.layers.Identity if len(found) == 1 else keras.layers.Concatenate
    features = together(name=FEATURES)(found[0] if len(found) == 1 else found)
    logits = keras.layers.Dense(num_classes, name=LOGITS)(features) if head is None else grown(head, features)
    return keras.Model(image, keras.layers.Softmax(name="probabilities")(logits), name="featcache")


def grown(head: kinds.Head, features: Any) -> Any:
    """Return the logits (N, K) of a head as Keras layers on features (N, D).

    Raises ShapeMismatch if it takes another number.
    """
    if head.takes != features.shape[-1]:
        raise ShapeMismatch(f"The head takes {head.takes} features, tap '{head.tap}' gives {features.shape[-1]}")
    values, last = features, len(head.layers) - 1
    for number, layer in enumerate(head.layers):
        values = _GROWN[type(layer)](layer, values, LOGITS if number == last else f"head_{number}")
    return values


def backbones_of(model: Any) -> list[Any]:
    """Return the backbones inside an assembled model."""
    return [layer for layer in model.layers if hasattr(layer, "layers")]


def head_layers(model: Any) -> list[Any]:
    """Return the layers of the head that have weights, first to last."""
    return [one for one in model.layers if one.weights and one.name.startswith(HEAD)]


def logits_of(model: Any) -> Any:
    """Return the same model up to its logits; it shares every weight."""
    import keras

    return keras.Model(model.input, model.get_layer(LOGITS).output, name=LOGITS)


def _features(part: Part, sized: Any, number: int, still: bool) -> dict[str, Any]:
    """Return {tap: its pooled features} of a part."""
    name = part.backbone.network.name + (f"_{number}" if number else "")
    network = part.backbone.tapped([tap.layer for tap in part.taps], name)
    if still:
        network.trainable = False
        freeze_noise(network)
    maps = network(entering(network, sized, part.taps[0].preprocess))
    return {tap.name: pooled(one, tap.pooling) for one, tap in zip(maps, part.taps, strict=True)}


def _dense(layer: kinds.Dense, values: Any, name: str) -> Any:
    import keras

    made = keras.layers.Dense(layer.kernel.shape[1], layer.activation, name=name)
    return _with(made, values, layer.kernel, layer.bias)


def _affine(layer: kinds.Affine, values: Any, name: str) -> Any:
    import keras

    return keras.layers.Rescaling(layer.scale.tolist(), layer.offset.tolist(), name=name)(values)


def _unit(layer: kinds.Unit, values: Any, name: str) -> Any:
    import keras

    return keras.layers.UnitNormalization(name=name)(values)


def _squares(layer: kinds.Squares, values: Any, name: str) -> Any:
    import keras

    squares = keras.layers.Multiply(name=f"{name}_squares")([values, values])
    return keras.layers.Concatenate(name=name)([values, squares])


def _nearness(layer: kinds.Nearness, values: Any, name: str) -> Any:
    """exp(2 gamma x s - gamma |s|^2 - gamma |x|^2), the last as one more value with a weight of its own."""
    import keras

    length = keras.layers.Dot(axes=1, name=f"{name}_length")([values, values])
    beside = keras.layers.Concatenate(name=f"{name}_beside")([values, length])
    kernel = layer.gamma * np.vstack([2 * layer.support.T, -np.ones((1, len(layer.support)))])
    made = keras.layers.Dense(len(layer.support), "exponential", name=name)
    return _with(made, beside, kernel, -layer.gamma * (layer.support**2).sum(axis=1))


def _votes(layer: kinds.Votes, values: Any, name: str) -> Any:
    """Votes are steps, which do not train; the sums of decisions within them do."""
    import keras

    def summed(some: Any, name: str) -> Any:
        made = keras.layers.Dense(layer.num_classes, use_bias=False, trainable=False, name=name)
        return _with(made, some, layer.signs)

    total, votes = summed(values, f"{name}_sums"), summed(keras.ops.sign(values), f"{name}_votes")
    within = total / (3 * (keras.ops.abs(total) + 1))
    votes = keras.layers.Rescaling(0.5, (layer.num_classes - 1) / 2, name=f"{name}_counts")(votes)
    return keras.layers.Add(name=name)([votes, within])


_GROWN: dict[type, Any] = {
    kinds.Dense: _dense,
    kinds.Affine: _affine,
    kinds.Unit: _unit,
    kinds.Squares: _squares,
    kinds.Nearness: _nearness,
    kinds.Votes: _votes,
}


def _with(layer: Any, values: Any, *weights: Floats) -> Any:
    """Return what a layer gives for values, once it has these weights."""
    given = layer(values)
    layer.set_weights(list(weights))
    return given


def _resizing(preprocess: Preprocess) -> Any:
    """Resize as near to the decoder as Keras can: bilinear and antialiased. Images of the size stay as they are."""
    import keras

    return keras.layers.Resizing(
        preprocess.size,
        preprocess.size,
        interpolation="bilinear",
        antialias=True,
        crop_to_aspect_ratio=preprocess.resize == "crop",
        pad_to_aspect_ratio=preprocess.resize == "pad",
        name=RESIZE,
    )
