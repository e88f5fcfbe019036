"""Features equal the reference: the constructor, its own preprocess_input and model.predict on the same pixels."""

import numpy as np
import pytest
from tiny import TOY

from featcache.backbones.build import build
from featcache.backbones.parse import requests
from featcache.extraction import extract
from featcache.extraction.engines import KerasEngine, PixelEngine, provenance, weights_source_of
from featcache.images.decode import decode
from featcache.spec import BackboneSpec, Preprocess

POOLS = {
    "avg": lambda maps: maps.mean(axis=(1, 2)),
    "max": lambda maps: maps.max(axis=(1, 2)),
    "flatten": lambda maps: maps.reshape(len(maps), -1),
}
MOBILENET = "mobilenet_v2:alpha=0.35:weights=none:size=32"


def pixels_of(cache, size, resize="stretch"):
    preprocess = Preprocess(size, resize)
    return np.stack([decode((cache.root / row.path).read_bytes(), preprocess) for row in cache.rows])


def largest_relative_difference(found, reference):
    return np.abs(found - reference).max() / np.abs(reference).max()


def test_glyphnet_gives_what_its_network_gives(toy):
    network = build(BackboneSpec("glyphnet", weights="none"), 32, "avg").network
    reference = POOLS["avg"](network.predict(pixels_of(toy, 32) / np.float32(127.5) - 1, verbose=0))
    assert largest_relative_difference(toy.features(toy.rows, f"{TOY}/top"), reference) < 1e-4


def test_mobilenet_gives_what_its_constructor_and_preprocessing_give(photos, tmp_path):
    import keras

    cache = extract(photos, MOBILENET, out=tmp_path / "cache.h5", resize="crop")
    network = build(BackboneSpec("mobilenet_v2", (("alpha", 0.35),), "none"), 32, "flatten").network
    reference_network = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(32, 32, 3), alpha=0.35, pooling="avg"
    )
    reference_network.set_weights(network.get_weights())
    pixels = pixels_of(cache, 32, "crop").astype(np.float32)
    reference = reference_network.predict(keras.applications.mobilenet_v2.preprocess_input(pixels), verbose=0)
    assert largest_relative_difference(cache.features(cache.rows), reference) < 1e-4


@pytest.mark.parametrize("pool", POOLS)
def test_a_layer_inside_gives_its_own_pooled_maps_also_beside_others(photos, tmp_path, pool):
    import keras

    layers = ["block_1_relu", "block_3_relu", "top"]
    cache = extract(photos, TOY, out=tmp_path / "cache.h5", tap=layers, pool=pool)
    network = build(BackboneSpec("glyphnet", weights="none"), 32, "flatten").network
    inputs = pixels_of(cache, 32) / np.float32(127.5) - 1
    for tap, layer in zip(sorted(cache.taps), layers, strict=True):
        output = network.get_layer(layer).output if layer != "top" else network.output
        maps = keras.Model(network.input, output).predict(inputs, verbose=0)
        assert largest_relative_difference(cache.features(cache.rows, tap), POOLS[pool](maps)) < 1e-4


def test_pixels_are_the_pixels_between_0_and_1(toy):
    reference = pixels_of(toy, 8).reshape(90, -1) / 255
    assert np.allclose(toy.features(toy.rows, "pixels:size=8/top"), reference, atol=1e-7)


def test_pixels_come_as_float32_in_rows():
    (features,) = PixelEngine().forward(np.full((2, 4, 4, 3), 255, np.uint8))
    assert (features.shape, features.dtype, features.min()) == ((2, 48), np.float32, 1.0)


def test_an_image_has_the_same_features_in_every_batch_and_at_every_place():
    (request,) = requests(TOY)
    engine = KerasEngine(build(request.spec, 32, "avg"), request.taps("w"), batch=8)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    (whole,) = engine.forward(images)
    assert np.array_equal(engine.forward(images[3:5])[0], whole[3:5])
    assert np.array_equal(engine.forward(images[::-1])[0], whole[::-1])


def test_an_engine_gives_float32_of_the_images_alone():
    (request,) = requests(TOY)
    engine = KerasEngine(build(request.spec, 32, "avg"), request.taps("w"), batch=8)
    (features,) = engine.forward(np.zeros((3, 32, 32, 3), np.uint8))
    assert (features.shape, features.dtype) == ((3, 256), np.float32)


def test_provenance_remembers_where_the_weights_came_from():
    made_by = provenance(PixelEngine(), BackboneSpec("glyphnet", weights="none", seed=4), 32)
    assert weights_source_of(made_by).startswith("random seed 4 keras ")
    assert weights_source_of("{}") is None
