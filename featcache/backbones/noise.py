"""Change layers that compute something else in training than in inference: random layers and batch normalisation.

Cached features come from inference. A model that starts from a head on them must compute the same features in training.
`training=False` at the call does not help: up to Keras 3.15 a functional model passes its own argument to its layers.
So the layers themselves are changed:

- `freeze_noise` sets the rates of dropout and Gaussian noise to 0 and freezes batch normalisation.
- `without_noise` replaces layers of a user's own model. A layer whose output in inference equals its input, such as
  RandomFlip or the user's own augmentation, becomes an Identity. A layer with dropout inside, such as attention, is
  rebuilt without it. Spectral normalisation is replaced by the layer that it wraps.

The new layers are Keras' own, so a saved model stays free of noise where plain Keras loads it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from featcache.errors import NotAModel

DROPOUTS = ("dropout", "recurrent_dropout")  # arguments of attention and recurrent layers
PROBE_SIZE = 8  # the length of axes that may have any length, when a layer is tried out


def freeze_noise(network: Any) -> None:
    """Make a network compute in training what it computes in inference, whatever is unfrozen later.

    Batch normalisation keeps its stored statistics only if the layer itself is frozen. Dropout is active even in a
    frozen network.
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
    """Return every layer in order, including those inside nested models and other layers, without the models."""
    import keras

    inner_layers = network.layers if isinstance(network, keras.Model) else network._layers
    layers = []
    for layer in inner_layers:
        if not isinstance(layer, keras.Model):
            layers.append(layer)
        layers += all_layers(layer)
    return layers


def without_noise(model: Any) -> Any:
    """Return a user's model with its random layers replaced; in inference it computes the same as before.

    Layers keep their names, so taps do, too. A model without random layers is returned as it is. Raises NotAModel if
    Keras cannot build the model without them.
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

    def new_input(tensor: Any) -> Any:
        name = tensor._keras_history.operation.name
        return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)

    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    new_inputs = keras.tree.map_structure(new_input, inputs)
    try:
        quiet = keras.models.clone_model(model, new_inputs, clone_function=replaced, recursive=True)
    except Exception as error:  # layers raise many kinds about shapes
        names = ", ".join(layer.name for layer in replacements)
        reason = " ".join(str(error).split())[:200]
        raise NotAModel(
            f"The model '{model.name}' cannot be built without its random layers ({names}), which in inference give "
            f"what they take: {reason}"
        ) from error

    # Layers that stay are shared with the old model, so only the new ones need their weights.
    for layer, replacement in replacements.items():
        if replacement.weights:
            weighted = layer.layer if isinstance(layer, keras.layers.SpectralNormalization) else layer
            replacement.set_weights(weighted.get_weights())
    return quiet


def _quiet(layer: Any) -> Any:
    """Return a new layer that always computes what this layer computes in inference; None if this layer can stay."""
    import keras

    if isinstance(layer, keras.layers.SpectralNormalization):
        wrapped = layer.layer
        return type(wrapped).from_config(wrapped.get_config() | {"name": layer.name})
    if isinstance(layer, (keras.layers.BatchNormalization, *_silenced_in_place())):
        return None  # `freeze_noise` changes these
    # Only layers that know of training, or hold other layers, can compute something else in it.
    if layer._call_has_training_arg or layer._layers:
        identity = _identity(layer)
        if identity is not None:
            return identity
    with suppress(NotImplementedError):  # the user's own layer may have no get_config
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
    """Return a layer whose output is its input, if this layer's output in inference is its input; else None.

    The layer is tried on random values, because the class of a user's own layer does not tell what it computes.
    """
    import keras

    if not layer._inbound_nodes or len(layer._inbound_nodes[0].input_tensors) != 1:
        return None
    [tensor] = layer._inbound_nodes[0].input_tensors
    shape = [PROBE_SIZE if length is None else length for length in (2, *tensor.shape[1:])]
    # Wide enough that a layer that clips to 0..255 or to -1..1 shows it.
    noise = np.random.default_rng(0).normal(0, 300, shape)
    values = keras.ops.cast(noise, tensor.dtype)
    try:
        output = layer(values, training=False)
    except Exception:  # the user's own layer may raise anything about these values
        return None

    settings = {"name": layer.name, "dtype": layer.dtype_policy.name}
    # Rescaling turns whole numbers into floats, as Keras' augmentations do; Identity keeps them.
    for identity in (keras.layers.Identity(**settings), keras.layers.Rescaling(1.0, **settings)):
        if _are_equal(output, identity(values)):
            return identity
    return None


def _are_equal(output: Any, expected: Any) -> bool:
    import keras

    to_numpy = keras.ops.convert_to_numpy
    if not keras.ops.is_tensor(output) or (output.shape, output.dtype) != (expected.shape, expected.dtype):
        return False
    return bool(np.array_equal(to_numpy(output), to_numpy(expected)))
