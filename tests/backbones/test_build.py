import random
from dataclasses import replace

import numpy as np
import pytest

from featcache.backbones.build import build, check_size, feature_model
from featcache.backbones.noise import all_layers, freeze_noise
from featcache.backbones.parse import requests
from featcache.backbones.registry import get
from featcache.errors import UnknownBlock, UsageError
from featcache.spec import BackboneSpec

RANDOM = BackboneSpec("glyphnet", weights="none")


@pytest.fixture(scope="module")
def glyphnet():
    return build(RANDOM, 32, "avg")


def images(count=4, size=32):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def test_one_seed_gives_the_same_random_network(glyphnet):
    assert build(RANDOM, 32, "avg").weights_digest == glyphnet.weights_digest
    assert build(replace(RANDOM, seed=1), 32, "avg").weights_digest != glyphnet.weights_digest


def test_building_leaves_the_callers_random_numbers_alone(glyphnet):
    random.seed(5)
    expected = random.random()
    random.seed(5)
    build(RANDOM, 32, "avg")
    assert random.random() == expected


def test_the_network_is_frozen(glyphnet):
    assert glyphnet.network.trainable_weights == []


def test_changing_one_weight_changes_the_digest():
    from featcache.backbones.build import _digest

    network = build(RANDOM, 32, "avg").network
    before, values = _digest(network), network.get_weights()
    values[0].flat[0] += 1e-6
    network.set_weights(values)
    assert _digest(network) != before


def test_building_says_nothing_on_stdout(capfd):
    build(RANDOM, 32, "avg")
    assert capfd.readouterr().out == ""


def test_a_cut_is_the_network_up_to_the_layer(glyphnet):
    assert glyphnet.cut("top") is glyphnet.network
    assert glyphnet.cut("block_1_relu").output.shape == (None, 16, 16, 32)


def test_an_unknown_layer_is_refused_with_near_names(glyphnet):
    with pytest.raises(UnknownBlock, match=r"'glyphnet' has no layer 'blok_1_relu' \(did you mean block_1_relu"):
        glyphnet.cut("blok_1_relu")


def test_a_size_under_the_least_is_refused():
    check_size(get("xception"), 71)
    with pytest.raises(UsageError, match=r"'xception' takes images of at least 71 pixels; got `size=70`"):
        build(BackboneSpec("xception", weights="none"), 70, "avg")


def test_an_option_that_the_constructor_refuses_is_a_usage_error():
    with pytest.raises(UsageError, match=r"'mobilenet' cannot be built as asked: "):
        build(BackboneSpec("mobilenet", (("alpha", -1.0),), "none"), 32, "avg")


def test_pixels_in_features_out(glyphnet):
    (request,) = requests("glyphnet:weights=none", tap="block_2_relu,top")
    model = feature_model(glyphnet, request.taps("w"))
    assert (model.input.dtype, model.input.shape) == ("uint8", (None, 32, 32, 3))
    assert [output.shape for output in model.outputs] == [(None, 64), (None, 256)]


def test_without_noise_training_computes_what_inference_computes():
    import keras

    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]),
            keras.layers.Dropout(0.5),
            keras.layers.SpatialDropout2D(0.5),
        ]
    )
    inputs = np.random.default_rng(0).normal(3, 2, (16, 8, 8, 3)).astype(np.float32)
    assert not np.allclose(network(inputs, training=True), network(inputs, training=False), atol=1e-5)
    freeze_noise(network)
    inference = np.asarray(network(inputs, training=False))
    assert np.allclose(network(inputs, training=True), inference, atol=1e-5)
    assert [type(layer).__name__ for layer in all_layers(network)][:3] == ["Conv2D", "BatchNormalization", "Dropout"]


@pytest.mark.parametrize("name", [pytest.param("mobilenet_v2", marks=pytest.mark.slow), "glyphnet"])
def test_at_reduced_precision_features_are_pooled_in_float32(name):
    (request,) = requests(f"{name}:weights=none:size=64", precision="bfloat16")
    backbone = build(request.spec, 64, "avg", "bfloat16")
    features = np.asarray(feature_model(backbone, request.taps("w")).predict_on_batch(images(size=64)))
    assert features.dtype == np.float32
    bits = features.view(np.uint32) & 0xFFFF  # zeros in every number that was a bfloat16 at the end
    assert (bits[features != 0] != 0).mean() > 0.5
