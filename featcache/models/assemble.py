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

INPUT, RESIZE, FEATURES, LOGITS = "image", "resize", "features", "logits"
HEAD = (LOGITS, "head_")  # the names of all layers of a head begin with these


@dataclass(frozen=True)
class ModelPart:
    """One backbone of a model, and the taps that the head reads from it."""

    backbone: Backbone
    taps: tuple[Tap, ...]

    def network(self, name: str) -> Any:
        """Return the backbone up to the taps, which are its outputs."""
        return self.backbone.tapped([tap.layer for tap in self.taps], name)


def assemble(
    parts: Sequence[ModelPart], head: kinds.Head | None, num_classes: int, order: Sequence[str] | None = None
) -> Any:
    """Return the model; its layers "logits" and "probabilities" give what their names say.

    All parts take images of one size. In training, batch normalisation and dropout of the backbones compute what they
    compute in inference. With head=None the backbones train as they are, and a linear head starts at random: for
    training from scratch. order: the names of the taps in the order in which their features are joined; None: the order
    of the parts. Raises ShapeMismatch if the head takes another number of features than the taps give.
    """
    import keras

    image = keras.Input((None, None, 3), dtype="uint8", name=INPUT)
    resize = _resizing(parts[0].taps[0].preprocess)
    # Cast first: resizing uint8 would round what the backbone sees.
    resized = resize(keras.ops.cast(image, "float32"))
    by_tap: dict[str, Any] = {}
    for number, part in enumerate(parts):
        by_tap |= _features(part, resized, number, is_still=head is not None)
    ordered = [by_tap[name] for name in order or by_tap]
    if len(ordered) == 1:
        features = keras.layers.Identity(name=FEATURES)(ordered[0])  # so that the layer always has this name
    else:
        features = keras.layers.Concatenate(name=FEATURES)(ordered)
    logits = keras.layers.Dense(num_classes, name=LOGITS)(features) if head is None else grown(head, features)
    probabilities = keras.layers.Softmax(name="probabilities")(logits)
    return keras.Model(image, probabilities, name="featcache")


def grown(head: kinds.Head, features: Any) -> Any:
    """Return the logits (N, K) of a head as Keras layers on features (N, D).

    Raises ShapeMismatch if the head takes another number of features.
    """
    if head.takes != features.shape[-1]:
        raise ShapeMismatch(f"The head takes {head.takes} features, tap '{head.tap}' gives {features.shape[-1]}")
    last = len(head.layers) - 1
    values = features
    for number, layer in enumerate(head.layers):
        name = LOGITS if number == last else f"head_{number}"
        grow = _GROWN[type(layer)]
        values = grow(layer, values, name)
    return values


def backbones_of(model: Any) -> list[Any]:
    """Return the backbones inside an assembled model."""
    return [layer for layer in model.layers if hasattr(layer, "layers")]


def head_layers(model: Any) -> list[Any]:
    """Return the layers of the head that have weights, first to last."""
    return [layer for layer in model.layers if layer.weights and layer.name.startswith(HEAD)]


def logits_of(model: Any) -> Any:
    """Return the same model up to its logits; it shares every weight."""
    import keras

    return keras.Model(model.input, model.get_layer(LOGITS).output, name=LOGITS)


def of_one_size(model: Any, size: int, batch: int | None = None) -> Any:
    """Return the model for (batch, size, size, 3) uint8, which shares all weights. batch: None for any number.

    It has no resizing layer, which only TensorFlow can run.
    """
    import keras

    rest = keras.Model(model.get_layer(RESIZE).output, model.output, name="rest")
    image = keras.Input(batch_shape=(batch, size, size, 3), dtype="uint8", name=INPUT)
    # The model casts before it resizes, so the rest takes float32.
    outputs = rest(keras.ops.cast(image, "float32"))
    return keras.Model(image, outputs, name="featcache")


def _features(part: ModelPart, resized: Any, number: int, is_still: bool) -> dict[str, Any]:
    """Return {tap: its pooled features} of a part. is_still: whether it computes in training as in inference."""
    name = part.backbone.network.name
    if number:  # two backbones may have one name, which Keras refuses
        name += f"_{number}"
    network = part.network(name)
    if is_still:
        # The head was fitted on features from inference; training must begin with the same ones.
        network.trainable = False
        freeze_noise(network)
    maps = network(entering(network, resized, part.taps[0].preprocess))
    return {tap.name: pooled(tensor, tap.pooling) for tensor, tap in zip(maps, part.taps, strict=True)}


def _dense(layer: kinds.Dense, values: Any, name: str) -> Any:
    import keras

    dense = keras.layers.Dense(layer.kernel.shape[1], layer.activation, name=name)
    return _with(dense, values, layer.kernel, layer.bias)


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
    """Return exp(-gamma |x - s|^2) for each support s, (N, M).

    The square is expanded: exp(2 gamma x.s - gamma |s|^2 - gamma |x|^2). The first term and the last are one product,
    of [x, |x|^2] with the kernel [2 gamma s, -gamma]; the middle one is the bias.
    """
    import keras

    num_support = len(layer.support)
    squared_length = keras.layers.Dot(axes=1, name=f"{name}_length")([values, values])
    inputs = keras.layers.Concatenate(name=f"{name}_beside")([values, squared_length])
    of_length = -np.ones((1, num_support))
    kernel = layer.gamma * np.vstack([2 * layer.support.T, of_length])  # (D + 1, M)
    bias = -layer.gamma * (layer.support**2).sum(axis=1)
    dense = keras.layers.Dense(num_support, "exponential", name=name)
    return _with(dense, inputs, kernel, bias)


def _votes(layer: kinds.Votes, values: Any, name: str) -> Any:
    """Return the votes (N, K) of one-against-one decisions (N, P), with their sums to break ties.

    A sum s of decisions enters as s / (3 (|s| + 1)), which is less than 1/3: it never outweighs a vote. Votes are
    steps, so only the sums pass on a gradient.
    """
    import keras

    def signed_sum(decisions: Any, name: str) -> Any:
        dense = keras.layers.Dense(layer.num_classes, use_bias=False, trainable=False, name=name)
        return _with(dense, decisions, layer.signs)

    total = signed_sum(values, f"{name}_sums")
    difference = signed_sum(keras.ops.sign(values), f"{name}_votes")
    # Two sums differ by less than 2/3 here, and numbers of votes by at least 1.
    within = total / (3 * (keras.ops.abs(total) + 1))
    # Wins minus losses in K - 1 decisions -> wins: (difference + K - 1) / 2.
    votes = keras.layers.Rescaling(0.5, (layer.num_classes - 1) / 2, name=f"{name}_counts")(difference)
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
    """Return the output of a layer for values, with these weights."""
    output = layer(values)  # the call builds the layer, which has no weights to set before
    layer.set_weights(list(weights))
    return output


def _resizing(preprocess: Preprocess) -> Any:
    """Return the layer that resizes as the decoder does, as nearly as Keras can: antialiased.

    Images that have the size already stay unchanged.
    """
    import keras

    return keras.layers.Resizing(
        preprocess.size,
        preprocess.size,
        interpolation=preprocess.interpolation,
        antialias=True,
        crop_to_aspect_ratio=preprocess.resize == "crop",
        pad_to_aspect_ratio=preprocess.resize == "pad",
        name=RESIZE,
    )
