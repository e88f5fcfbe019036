"""The embedded backbone: a small residual network that has only ever seen letters.

`featcache quickstart` must show transfer offline, within the size of a Python package.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

SIZE = 32
WIDTH = 256
WEIGHTS = Path(__file__).with_name("glyphnet.npz")
_BLOCKS = ((32, 1), (64, 2), (64, 1), (128, 2))  # (channels, stride): maps of 16, 8, 8 and 4 pixels


def glyphnet(
    input_shape: tuple[int | None, int | None, int] = (SIZE, SIZE, 3), weights: str | Path | None = None
) -> keras.Model:
    """Return the network from images (N, H, W, 3) in [-1, 1] to its last feature map (N, H/8, W/8, WIDTH).

    weights: an npz as `save_weights` writes it, such as `WEIGHTS`; None leaves the network random.
    Raises ValueError if that file belongs to another network.
    """
    import keras

    inputs = keras.Input(input_shape, name="input")
    x = _conv_bn(inputs, _BLOCKS[0][0], 3, 2, "stem")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for number, (channels, stride) in enumerate(_BLOCKS, start=1):
        x = _block(x, channels, stride, f"block_{number}")
    x = _conv_bn(x, WIDTH, 4, 1, "out", padding="valid")
    model = keras.Model(inputs, keras.layers.ReLU(name="out_relu")(x), name="glyphnet")
    if weights is not None:
        load_weights(model, weights)
    return model


def save_weights(model: keras.Model, path: str | Path) -> None:
    """Write the weights of `model` as float16, one array a weight, named `layer/weight`."""
    arrays: dict[str, Any] = {name: np.asarray(weight, np.float16) for name, weight in _named(model).items()}
    np.savez(path, **arrays)


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Set the weights of `model` from an npz of `save_weights`, all or none.

    Raises ValueError, naming the first difference, if the names or shapes in it are not the model's.
    """
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name].astype(np.float32) for name in stored.files}
    expected = {name: tuple(weight.shape) for name, weight in _named(model).items()}
    for name in sorted(expected.keys() | arrays.keys()):
        found = arrays[name].shape if name in arrays else None
        if found != expected.get(name):
            raise ValueError(
                f"The weights in '{path}' do not fit the model '{model.name}': '{name}' has shape "
                f"{found} in the file and {expected.get(name)} in the model (None: not there)."
            )
    for name, weight in _named(model).items():
        weight.assign(arrays[name])


def _named(model: keras.Model) -> dict[str, keras.Variable]:
    return {f"{layer.name}/{weight.name}": weight for layer in model.layers for weight in layer.weights}


def _block(x: keras.KerasTensor, channels: int, stride: int, name: str) -> keras.KerasTensor:
    """Two 3x3 convolutions and a shortcut around them (He et al. 2016, the basic block)."""
    import keras

    shortcut = x
    if stride != 1 or x.shape[-1] != channels:
        shortcut = _conv_bn(x, channels, 1, stride, f"{name}_shortcut")
    x = keras.layers.ReLU(name=f"{name}_a_relu")(_conv_bn(x, channels, 3, stride, f"{name}_a"))
    x = _conv_bn(x, channels, 3, 1, f"{name}_b")
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([x, shortcut]))


def _conv_bn(
    x: keras.KerasTensor, channels: int, size: int, stride: int, name: str, padding: str = "same"
) -> keras.KerasTensor:
    import keras

    conv = keras.layers.Conv2D(
        channels, size, stride, padding, use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
    )
    return keras.layers.BatchNormalization(momentum=0.98, name=f"{name}_bn")(conv(x))
