"""Layers that compute something else in training than in inference: random ones, and those that follow their batches.

Cached features are those of inference, so a model that starts from a head on them has to compute the same in training.
`training=False` at the call does not do it: up to Keras 3.15 a functional model hands its own argument to its layers.
So the layers themselves are changed:

- Dropout and Gaussian noise are set to none, batch normalisation is frozen (`freeze_noise`).
- A layer that gives in inference what it takes, such as RandomFlip or an augmentation of the user's own, becomes an
  Identity. Layers with a dropout of their own inside, such as attention, are made again without it, and spectral
  normalisation leaves the layer that it wraps (`without_noise`).

All are layers of Keras, so a model that is saved stays quiet where plain Keras loads it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from featcache.errors import NotAModel

DROPOUTS = ("dropout", "recurrent_dropout")  # arguments of attention and of recurrent layers
PROBE_SIZE = 8  # stands for sizes that a layer leaves open


def freeze_noise(network: Any) -> None:
    """Make a network compute in training what it computes in inference, whatever is unfrozen later.

    Batch normalisation stays on its stored statistics only if its layers are frozen themselves, and frozen
    networks still drop out.
    """
    import keras

    layers = keras.layers
    for layer in all_layers(network):
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False
        elif isinstance(layer, layers.GaussianNoise):
            layer.stddev = 0.0
        elif isinstance(layer, _silenced_in_place()):
            layer.rate = 0.0


def all_layers(network: Any) -> list[Any]:
    """Return every layer in order, those of nested models and those inside other layers too; not the models."""
    import keras

    found = []
    for layer in network.layers if isinstance(network, keras.Model) else network._layers:
        if not isinstance(layer, keras.Model):
            found.append(layer)
        found += all_layers(layer)
    return found


def without_noise(model: Any) -> Any:
    """Return a user's model with its random layers replaced: in inference it computes what it did, from its weights.

    Layers keep their names, so that taps do. The model itself is returned if it has no such layer. Raises NotAModel if
    the others do not fit together without them.
    """
    import keras

    replacements: dict[Any, Any] = {}
    for layer in all_layers(model):
        replacement = _quiet(layer)
        if replacement is not None:
            replacements[layer] = replacement
    if not replacements:
        return model

    def replaced(layer: Any) -> Any:
        return replacements.get(layer, layer)

    def entered(pixels: Any) -> Any:
        name = pixels._keras_history.operation.name
        return keras.Input(batch_shape=pixels.shape, dtype=pixels.dtype, name=name)

    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    pixels = keras.tree.map_structure(entered, inputs)
    try:
        quiet = keras.models.clone_model(model, pixels, clone_function=replaced, recursive=True)
    except Exception as error:  # layers raise what they like about shapes
        names = ", ".join(layer.name for layer in replacements)
        raise NotAModel(
            f"The model '{model.name}' cannot be built without its random layers ({names}), which in inference give "
            f"what they take: {' '.join(str(error).split())[:200]}"
        ) from error
    for layer, replacement in replacements.items():
        if replacement.weights:
            weighted = layer.layer if isinstance(layer, keras.layers.SpectralNormalization) else layer
            replacement.set_weights(weighted.get_weights())
    return quiet


def _quiet(layer: Any) -> Any:
    """Return a new layer that does in both modes what this one does in inference; None if this one can stay."""
    import keras

    if isinstance(layer, keras.layers.SpectralNormalization):
        return type(layer.layer).from_config(layer.layer.get_config() | {"name": layer.name})
    if isinstance(layer, (keras.layers.BatchNormalization, *_silenced_in_place())):
        return None
    if (layer._call_has_training_arg or layer._layers) and (identity := _identity(layer)) is not None:
        return identity
    with suppress(NotImplementedError):  # a layer of the user's without get_config
        config = layer.get_config()
        dropouts = {name: 0.0 for name in DROPOUTS if config.get(name)}
        if dropouts:
            return type(layer).from_config(config | dropouts)
    return None


def _silenced_in_place() -> tuple[Any, ...]:
    import keras

    layers = keras.layers
    return layers.Dropout, layers.GaussianDropout, layers.AlphaDropout, layers.GaussianNoise


def _identity(layer: Any) -> Any:
    """Return a layer that gives what it takes, if this one does so in inference; else None.

    It is run for it on random values: what a layer of the user's does, its class does not tell.
    """
    import keras

    if not layer._inbound_nodes or len(layer._inbound_nodes[0].input_tensors) != 1:
        return None
    [entering] = layer._inbound_nodes[0].input_tensors
    shape = [PROBE_SIZE if length is None else length for length in (2, *entering.shape[1:])]
    values = keras.ops.cast(np.random.default_rng(0).normal(0, 300, shape), entering.dtype)
    try:
        given = layer(values, training=False)
    except Exception:  # whatever a layer of the user's raises about these values
        return None
    how = {"name": layer.name, "dtype": layer.dtype_policy.name}
    # The second turns whole numbers into floats, as layers of Keras do.
    for identity in (keras.layers.Identity(**how), keras.layers.Rescaling(1.0, **how)):
        if _equal(given, identity(values)):
            return identity
    return None


def _equal(one: Any, other: Any) -> bool:
    import keras

    if not keras.ops.is_tensor(one) or (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return bool(np.array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other)))
