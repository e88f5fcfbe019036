"""Backbone + head -> one Keras model: uint8 images of any size in, probabilities out.

image -> resize -> preprocess -> backbone -> pool -> dense head -> logits -> softmax
"""

from __future__ import annotations

from typing import Any

from featcache.backbones.build import Backbone, entering, freeze_noise, pooled
from featcache.errors import ShapeMismatch
from featcache.heads.linear import DenseHead
from featcache.spec import Preprocess, Tap


def assemble(backbone: Backbone, tap: Tap, head: DenseHead | None, num_classes: int) -> Any:
    """Return the model; its layers "logits" and "probabilities" are what they say.

    Batch normalisation and dropout of the backbone are made to compute in training what they compute in
    inference. With head=None the backbone trains as it is and the head starts at random: for training from scratch.
    Raises ShapeMismatch if the head takes another number of features than the tap gives.
    """
    import keras

    image = keras.Input((None, None, 3), dtype="uint8", name="image")
    network = backbone.cut(tap.layer)
    if head is not None:
        freeze_noise(network)
    sized = _resizing(tap.preprocess)(keras.ops.cast(image, "float32"))
    features = pooled(network(entering(network, sized, tap.preprocess)), tap.pooling)
    sizes = [num_classes] if head is None else [kernel.shape[1] for kernel in head.kernels]
    if head is not None and features.shape[-1] != len(head.kernels[0]):
        raise ShapeMismatch(
            f"The head takes {len(head.kernels[0])} features, tap '{tap.name}' gives {features.shape[-1]}"
        )
    values = features
    for number, units in enumerate(sizes[:-1]):
        values = keras.layers.Dense(units, activation="relu", name=f"hidden_{number}")(values)
    logits = keras.layers.Dense(sizes[-1], name="logits")(values)
    model = keras.Model(image, keras.layers.Softmax(name="probabilities")(logits), name="featcache")
    if head is not None:
        for layer, kernel, bias in zip(head_layers(model), head.kernels, head.biases, strict=True):
            layer.set_weights([kernel, bias])
    return model


def head_layers(model: Any) -> list[Any]:
    """Return the Dense layers of the head, first to last."""
    return [layer for layer in model.layers if layer.name == "logits" or layer.name.startswith("hidden_")]


def backbone_of(model: Any) -> Any:
    """Return the backbone inside an assembled model."""
    return next(layer for layer in model.layers if hasattr(layer, "layers"))


def logits_of(model: Any) -> Any:
    """Return the same model up to its logits; it shares every weight."""
    import keras

    return keras.Model(model.input, model.get_layer("logits").output, name="logits")


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
        name="resize",
    )
