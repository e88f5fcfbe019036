"""Every layer can be read where it stands: bare operations, models inside models; and what auto takes without names."""

import keras
import numpy as np
import pytest

from featcache.backbones.build import Backbone, build, feature_model, pooled
from featcache.backbones.graph import auto_layers, output_of
from featcache.backbones.parse import requests
from featcache.errors import UnknownBlock, UsageError
from featcache.spec import BackboneSpec

layers = keras.layers


def chain(*steps, size=16):
    return keras.Sequential([keras.Input((size, size, 3)), *steps])


@pytest.fixture
def residual():
    """Return a network of stages of 8, 4 and 2 pixels, the sums of the first two bare operations."""
    x = image = keras.Input((16, 16, 3))
    for at in range(3):
        x = layers.Conv2D(4, 3, strides=2, padding="same", name=f"down_{at}")(x)
        x = x + layers.Conv2D(4, 3, padding="same", name=f"branch_{at}")(x)
    return keras.Model(image, layers.ReLU(name="last")(x))


def test_a_bare_operation_can_be_read(residual):
    [first, *_] = [one.name for one in residual.operations if one.name.startswith("add")]
    pixels = np.ones((1, 16, 16, 3), np.float32)
    down, branch = (residual.get_layer(f"{name}_0") for name in ("down", "branch"))
    cut = Backbone(BackboneSpec("x"), residual, "").cut(first)
    assert np.allclose(cut(pixels), down(pixels) + branch(down(pixels)))


def test_a_model_inside_a_model_is_read_where_it_stands():
    inner = chain(layers.Conv2D(4, 3, name="conv"), size=8)
    inner = keras.Model(inner.inputs[0], inner.outputs[0], name="inner")
    outer = chain(layers.AveragePooling2D(2, name="pool"), inner, layers.GlobalAveragePooling2D())
    pixels = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    cut = Backbone(BackboneSpec("x"), outer, "").cut("inner")
    assert np.allclose(cut(pixels), inner(outer.get_layer("pool")(pixels)), atol=1e-6)
    assert auto_layers(outer) == ["pool", "inner", "top"]


def test_a_layer_that_is_used_twice_is_no_tap():
    image, conv = keras.Input((16, 16, 3)), layers.Conv2D(3, 1, name="shared")
    network = keras.Model(image, conv(conv(image)))
    with pytest.raises(UsageError, match=r"^Layer 'shared' of backbone 'mine' has 2 outputs; a tap reads one$"):
        output_of(network, "shared", "mine")


def test_an_unknown_layer_is_refused_with_near_names(residual):
    with pytest.raises(UnknownBlock, match=r"^Backbone 'mine' has no layer 'dwn_1' \(did you mean .*down_1"):
        output_of(residual, "dwn_1", "mine")


def test_where_no_block_has_a_name_auto_takes_the_end_of_every_map_size(residual):
    sums = [one.name for one in residual.operations if one.name.startswith("add")]
    assert auto_layers(residual) == [*sums[:2], "top"]  # not the branches, and not the last: that is "top"
    network = chain(
        layers.Conv2D(4, 3, padding="same"),
        layers.MaxPooling2D(name="pool"),
        layers.Conv2D(4, 3, padding="same", name="conv"),
        layers.MaxPooling2D(),
        layers.ReLU(name="relu"),
        layers.Flatten(),
        layers.Dense(5),
    )
    assert auto_layers(network) == ["conv", "relu", "top"]
    assert auto_layers(chain(layers.Flatten(), layers.Dense(5))) == ["top"]


def test_what_a_shortcut_goes_around_is_no_end():
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="conv")(image)
    around = layers.Conv2D(4, 3, strides=2, padding="same")(layers.ReLU(name="branch")(x))
    x = layers.Add(name="sum")([around, layers.AveragePooling2D(2)(x)])
    assert auto_layers(keras.Model(image, layers.GlobalMaxPooling2D()(x))) == ["conv", "sum", "top"]


def test_auto_of_a_backbone_by_name_is_one_layer_per_block():
    assert build(BackboneSpec("glyphnet", weights="none"), 32, "avg").auto_layers() == [
        "block_1_relu", "block_2_relu", "block_3_relu", "top"
    ]  # fmt: skip


PIXELS = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
TOKENS = (layers.Conv2D(4, 4, strides=4), layers.Reshape((16, 4)))
MAPS = (layers.Conv2D(4, 4, strides=4),)
VECTORS = (*MAPS, layers.Flatten(), layers.Dense(7, activation="relu"))


@pytest.mark.parametrize(
    ("steps", "pool", "shape", "reduce"),
    [
        (MAPS, "avg", (2, 4), lambda x: x.mean(axis=(1, 2))),
        (MAPS, "max", (2, 4), lambda x: x.max(axis=(1, 2))),
        (MAPS, "flatten", (2, 64), lambda x: x.reshape(2, -1)),
        (MAPS, "none", (2, 4, 4, 4), lambda x: x),
        (TOKENS, "avg", (2, 4), lambda x: x.mean(axis=1)),
        (TOKENS, "max", (2, 4), lambda x: x.max(axis=1)),
        (TOKENS, "flatten", (2, 64), lambda x: x.reshape(2, -1)),
        (TOKENS, "none", (2, 16, 4), lambda x: x),
        *((VECTORS, pool, (2, 7), lambda x: x) for pool in ("avg", "max", "flatten", "none")),
    ],
)
def test_maps_tokens_and_vectors_are_pooled_as_asked(tmp_path, steps, pool, shape, reduce):
    model = chain(*(layer.from_config(layer.get_config()) for layer in steps))
    model.save(tmp_path / "mine.keras")
    [request] = requests(f"{tmp_path / 'mine.keras'}:mode=unit", pool=pool)
    backbone = build(request.spec, 16, request.pooling)
    found = feature_model(backbone, request.taps("w")).predict_on_batch(PIXELS)
    expected = reduce(model.predict_on_batch(PIXELS.astype(np.float32) / 255))
    assert (found.shape, found.dtype) == (shape, np.float32)
    assert np.allclose(found, expected, atol=1e-5)


def test_what_is_of_reduced_precision_is_pooled_in_float32():
    maps = keras.Input((4, 4, 2), dtype="bfloat16")
    assert {pooled(maps, pool).dtype for pool in ("avg", "max", "flatten", "none")} == {"float32"}


def test_without_pooling_the_top_of_a_backbone_is_its_last_feature_map():
    [request] = requests("glyphnet:weights=none:size=40", pool="none", tap="block_2_relu,top")
    backbone = build(request.spec, 40, "none")
    two, top = feature_model(backbone, request.taps("w")).outputs
    assert (two.shape, top.shape) == ((None, 10, 10, 64), (None, 2, 2, 256))
