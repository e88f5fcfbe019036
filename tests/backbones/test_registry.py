"""The contract suite over every registered backbone, and what the registry promises without Keras.

Each network is built once, at its smallest size and as for ImageNet, except that reading the weights
file is replaced by noting which file Keras asks for: so the weights stay random and nothing is downloaded.
"""

import gc
import importlib
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from itertools import groupby, product

import keras
import numpy as np
import pytest
from keras.src.applications import imagenet_utils
from keras.src.utils import file_utils

from featcache.backbones.blocks import block_names, blocks
from featcache.backbones.build import pretrained, reproducibly
from featcache.backbones.registry import REGISTRY, Entry, get, weights_file
from featcache.errors import UnknownBackbone

KERAS_ENTRIES = [entry for entry in REGISTRY.values() if entry.constructor]
# In the quick run one network speaks for each module of keras.applications.
SMALLEST = {
    min(entries, key=lambda entry: entry.params).name
    for _, group in groupby(KERAS_ENTRIES, key=lambda entry: entry.module)
    for entries in [list(group)]
}
LAST_BLOCK = {
    "mobilenet": "block_13",
    "mobilenet_v2": "block_16",
    "mobilenet_v3": "expanded_conv_1[04]",
    "efficientnet": "block7[a-d]",
    "efficientnet_v2": "block(6[hijlo]|7[eg])",
    "convnext": "stage_3_block_2",
    "resnet": "conv5_block3",
    "resnet_v2": "conv5_block3",
    "densenet": "conv5_block(16|32)",
    "inception_v3": "mixed10",
    "inception_resnet_v2": "block8_10",
    "xception": "block14",
    "nasnet": "cell_1[28]",
    "vgg16": "block5",
    "vgg19": "block5",
}
every_entry = pytest.mark.parametrize("entry", KERAS_ENTRIES, ids=lambda entry: entry.name)


@dataclass(frozen=True)
class Built:
    entry: Entry
    model: keras.Model
    files: list[str]  # what Keras asked for


def build(entry, size, **options):
    files = []

    def get_file(fname, *args, **kwargs):
        files.append(fname)
        return fname

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
        patch.setattr(file_utils, "get_file", get_file)
        patch.setattr(keras.Model, "load_weights", lambda model, path: None)
        constructor = getattr(keras.applications, entry.constructor)
        model = constructor(include_top=False, weights="imagenet", input_shape=(size, size, 3), **options)
    return Built(entry, model, files)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(entry, id=entry.name, marks=[] if entry.name in SMALLEST else pytest.mark.slow)
        for entry in KERAS_ENTRIES
    ],
)
def built(request):
    keras.backend.clear_session()
    yield build(request.param, request.param.min_size)
    keras.backend.clear_session()
    gc.collect()


def test_every_constructor_of_keras_is_registered_once():
    constructors = {name for name in dir(keras.applications) if name[0].isupper()}
    assert {entry.constructor for entry in KERAS_ENTRIES} == constructors
    assert len(KERAS_ENTRIES) == len(constructors) == 40


def test_the_last_feature_map_is_as_wide_as_declared(built):
    _, height, width, channels = built.model.output_shape
    assert channels == built.entry.width
    assert min(height, width) >= 1


def test_the_parameters_are_as_many_as_declared(built):
    assert built.model.count_params() == built.entry.params


def test_keras_asks_for_the_weights_file_that_we_name(built):
    assert built.files == [weights_file(built.entry, {}, built.entry.min_size)]


def test_the_network_of_a_file_is_the_one_that_keras_builds_for_imagenet(built, tmp_path, monkeypatch):
    file = tmp_path / built.files[0]
    file.touch()
    loaded = []
    monkeypatch.setattr(keras.Model, "load_weights", lambda model, path: loaded.append(path))
    size = built.entry.min_size
    with reproducibly(0), warnings.catch_warnings(action="ignore"):
        ours = pretrained(built.entry, file, include_top=False, input_shape=(size, size, 3))
    assert loaded == [str(file)]
    assert ours.get_config() == built.model.get_config()
    assert [layer.name for layer in ours.layers] == [layer.name for layer in built.model.layers]


class Asked(Exception):
    """Keras has asked for a file."""


SMALL_OF_EACH = {entry.module: entry for entry in reversed(KERAS_ENTRIES) if entry.params < 30e6}.values()


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.name, marks=[] if entry.name in SMALLEST else pytest.mark.slow)
        for entry in SMALL_OF_EACH
    ],
)
def test_keras_asks_for_the_weights_file_with_the_top_that_we_name(entry, monkeypatch):
    def get_file(fname, *args, **kwargs):
        raise Asked(fname)

    monkeypatch.setattr(file_utils, "get_file", get_file)
    with pytest.raises(Asked) as asked, warnings.catch_warnings(action="ignore"):
        getattr(keras.applications, entry.constructor)()
    assert asked.value.args == (weights_file(entry, {}, entry.size, top=True),)
    keras.backend.clear_session()


def test_blocks_follow_one_another_to_the_last(built):
    names = [layer.name for layer in built.model.layers]
    assert [name for name, _ in groupby(block_names(names))] == blocks(names)
    assert blocks(names)[0] == "stem"
    assert len(blocks(names)) > 2
    assert re.fullmatch(LAST_BLOCK[built.entry.module], blocks(names)[-1])


def test_the_last_block_can_be_trained(built):
    last = block_names([layer.name for layer in built.model.layers])
    assert any(
        layer.trainable_weights for layer, block in zip(built.model.layers, last, strict=True) if block == last[-1]
    )


@every_entry
def test_one_pixel_less_than_the_smallest_size_is_refused(entry):
    with pytest.raises(ValueError, match=f"at least {entry.min_size}x{entry.min_size}"):
        build(entry, entry.min_size - 1)


class _Asked(Exception):
    pass


@every_entry
def test_the_default_size_is_that_of_keras(entry, monkeypatch):
    def obtain_input_shape(input_shape, default_size, **kwargs):
        raise _Asked(default_size)

    if entry.module == "mobilenet_v3":  # has no default; its weights were trained at 224
        assert "_224_" in weights_file(entry, {}, entry.size)
        return
    module = importlib.import_module(getattr(keras.applications, entry.constructor).__module__)
    monkeypatch.setattr(imagenet_utils, "obtain_input_shape", obtain_input_shape)
    assert module.imagenet_utils is imagenet_utils
    with pytest.raises(_Asked, match=f"^{entry.size}$"):
        getattr(keras.applications, entry.constructor)(weights=None)


def _as_the_mode_says(mode, pixels):
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return {
        "tf": pixels / 127.5 - 1,
        "caffe": pixels[..., ::-1] - np.array([103.939, 116.779, 123.68]),
        "torch": (pixels / 255 - mean) / deviation,
        "inside": pixels,
    }[mode]


@every_entry
def test_pixels_become_input_as_the_mode_says(entry):
    pixels = np.array([[[[0, 127.5, 255]]]])
    preprocess_input = getattr(keras.applications, entry.module).preprocess_input
    np.testing.assert_allclose(preprocess_input(pixels.copy()), _as_the_mode_says(entry.mode, pixels))


VARIANTS = [
    *(("mobilenet", {"alpha": a}, s) for a, s in product((0.25, 0.5, 0.75, 1.0), (128, 160, 192, 224, 100))),
    *(
        ("mobilenet_v2", {"alpha": a}, s)
        for a, s in product((0.35, 0.5, 0.75, 1.0, 1.3, 1.4), (96, 128, 160, 192, 224, 100))
    ),
    *(
        (name, options, 224)
        for name, options in product(
            ("mobilenet_v3_small", "mobilenet_v3_large"),
            ({"alpha": 0.75}, {"alpha": 1.0}, {"minimalistic": True}),
        )
    ),
]


@pytest.fixture
def one_block_is_enough(monkeypatch):
    """The name of the file comes after the whole network: leave out its blocks."""
    for module, block in [
        ("mobilenet", "_depthwise_conv_block"),
        ("mobilenet_v2", "_inverted_res_block"),
        ("mobilenet_v3", "_inverted_res_block"),
    ]:
        monkeypatch.setattr(f"keras.src.applications.{module}.{block}", lambda x, *args, **kwargs: x)


@pytest.mark.parametrize(("name", "options", "size"), VARIANTS)
@pytest.mark.usefixtures("one_block_is_enough")
def test_the_weights_file_follows_the_options(name, options, size):
    entry = get(name)
    assert set(options) <= set(entry.options)
    assert build(entry, size, **options).files == [weights_file(entry, options, size)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenet", {"alpha": 0.35}),
        ("mobilenet", {"depth_multiplier": 2}),
        ("mobilenet_v2", {"alpha": 0.25}),
        ("mobilenet_v3_small", {"alpha": 0.5}),
        ("mobilenet_v3_large", {"alpha": 0.75, "minimalistic": True}),
    ],
)
def test_options_that_were_never_trained_have_no_weights_file(name, options):
    assert weights_file(get(name), options, 224) is None
    with pytest.raises(ValueError, match="If imagenet weights are being loaded"):
        build(get(name), 224, **options)


def test_the_embedded_backbone_has_no_weights_file():
    assert weights_file(get("glyphnet"), {}, 32) is None


@pytest.mark.parametrize("entry", REGISTRY.values(), ids=REGISTRY)
def test_a_backbone_is_found_however_it_is_spelt(entry):
    spellings = {entry.name, entry.name.upper(), entry.name.replace("_", "-"), entry.name.replace("_", "")}
    assert {get(spelling) for spelling in spellings | {entry.constructor or entry.name}} == {entry}


def test_an_unknown_backbone_is_refused_with_near_names():
    message = r"^Unknown backbone 'mobilnet_v2' \(did you mean mobilenet_v2, .+\?\)\. All names: featcache backbones"
    with pytest.raises(UnknownBackbone, match=message):
        get("mobilnet_v2")


def test_a_name_near_to_none_is_refused_without_a_guess():
    message = r"^Unknown backbone 'qqq'\. All names: featcache backbones list$"
    with pytest.raises(UnknownBackbone, match=message):
        get("qqq")


def test_names_are_known_without_importing_keras():
    code = (
        "import sys, featcache.backbones.blocks, featcache.backbones.registry\n"
        "sys.exit(bool({'keras', 'tensorflow', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
