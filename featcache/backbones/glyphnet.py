"""The embedded backbone: a small residual network that was trained on letters and never saw a digit.

`featcache quickstart` shows transfer without network, so the weights must come with the package. Four
residual blocks (He et al. 2016, https://arxiv.org/abs/1512.03385) and a 4x4 convolution over what is
left: at 32x32 the last feature map is 1x1, so that pooling it keeps where the strokes were.
`benchmarks/train_glyphnet.py` trained it: 576,000 letters of 274 classes (Latin, Greek, Cyrillic) in the
fonts of matplotlib, warped, thickened, thinned and seen at 8 or 16 pixels; 809 s on two shared cores.

What `python benchmarks/train_glyphnet.py` (seed 0, 36 epochs) printed: accuracy of a linear probe
(C=0.1) after 5 examples of each of 10 classes, mean and standard deviation over 20 draws, and on
30 % of the digits after the other 70 %.

    letters of 40 held-out classes, frozen    .943 +- .016
    digits, raw pixels                        .834 +- .021    70 %: .972
    digits, random weights                    .769 +- .024    70 %: .956
    digits, frozen                            .959 +- .008    70 %: .989

No digit was trained on. The form of the last layer was chosen on the held-out letters (the digits
agreed); the digits were read off for five configurations in all, this one included.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

SIZE = 32  # pixels; another input of at least this size works too
WIDTH = 256  # features
WEIGHTS = Path(__file__).with_name("glyphnet.npz")
_BLOCKS = ((32, 1), (64, 2), (64, 1), (128, 2))  # (channels, stride): maps of 16, 8, 8 and 4 pixels


def glyphnet(
    input_shape: tuple[int | None, int | None, int] = (SIZE, SIZE, 3), weights: str | Path | None = None
) -> keras.Model:
    """Return the network from images (N, H, W, 3) in [-1, 1] to its last feature map (N, h, w, WIDTH).

    h = ceil(H / 8) - 3, and so w: 1x1 from images of 32x32.
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
    x = keras.layers.ReLU(name="out_relu")(x)
    model = keras.Model(inputs, x, name="glyphnet")
    if weights is not None:
        load_weights(model, weights)
    return model


def save_weights(model: keras.Model, path: str | Path) -> None:
    """Write the weights of `model` as float16 arrays, which are named `layer/weight`."""
    arrays: dict[str, Any] = {name: np.asarray(weight, np.float16) for name, weight in _named(model).items()}
    np.savez(path, **arrays)


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Set the weights of `model` from an npz of `save_weights`, all or none.

    Raises ValueError, naming the first difference, if the names or shapes in it are not the model's.
    """
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name].astype(np.float32) for name in stored.files}
    expected = {name: tuple(weight.shape) for name, weight in _named(model).items()}
    # Compare all before the first is set, so that the model changes as a whole or not at all.
    for name in sorted(expected.keys() | arrays.keys()):
        shape = arrays[name].shape if name in arrays else None
        if shape != expected.get(name):
            raise ValueError(
                f"The weights in '{path}' do not fit the model '{model.name}': '{name}' has shape "
                f"{shape} in the file and {expected.get(name)} in the model (None: not there)."
            )
    for name, weight in _named(model).items():
        weight.assign(arrays[name])


def _named(model: keras.Model) -> dict[str, keras.Variable]:
    named: dict[str, keras.Variable] = {}
    for layer in model.layers:
        for weight in layer.weights:
            named[f"{layer.name}/{weight.name}"] = weight
    return named


def _block(x: keras.KerasTensor, channels: int, stride: int, name: str) -> keras.KerasTensor:
    """Two 3x3 convolutions and a shortcut around them (He et al. 2016, the basic block)."""
    import keras

    shortcut = x
    if stride != 1 or x.shape[-1] != channels:
        shortcut = _conv_bn(x, channels, 1, stride, f"{name}_shortcut")
    x = _conv_bn(x, channels, 3, stride, f"{name}_a")
    x = keras.layers.ReLU(name=f"{name}_a_relu")(x)
    x = _conv_bn(x, channels, 3, 1, f"{name}_b")
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _conv_bn(
    x: keras.KerasTensor, channels: int, size: int, stride: int, name: str, padding: str = "same"
) -> keras.KerasTensor:
    import keras

    x = keras.layers.Conv2D(
        channels, size, stride, padding, use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    return keras.layers.BatchNormalization(momentum=0.98, name=f"{name}_bn")(x)
