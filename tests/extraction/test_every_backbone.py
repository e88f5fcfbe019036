"""The contract of every backbone: our features are those of its constructor, its preprocess_input and model.predict."""

import gc
import warnings

import keras
import numpy as np
import pytest

from featcache.backbones.build import build
from featcache.backbones.parse import requests
from featcache.backbones.registry import REGISTRY
from featcache.extraction.engines import choose

CASES = [(one.name, "avg") for one in REGISTRY.values() if one.constructor]
CASES += [("mobilenet_v2", "max"), ("convnext_tiny", "max")]  # ConvNeXt normalises after pooling


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pool"), CASES)
def test_features_are_those_of_the_constructor_and_predict(name, pool):
    entry = REGISTRY[name]
    size = entry.min_size
    [request] = requests(f"{entry.name}:weights=none:size={size}", pool=pool)
    backbone = build(request.spec, size, pool)
    pixels = np.random.default_rng(0).integers(0, 256, (5, size, size, 3), np.uint8)
    engine = choose(lambda precision: backbone, request.taps("w"), pixels, engine="keras", batch=3)
    [features] = engine.forward(pixels)
    constructor = getattr(keras.applications, entry.constructor)
    with warnings.catch_warnings(action="ignore"):
        reference = constructor(include_top=False, weights=None, input_shape=(size, size, 3), pooling=pool)
    reference.set_weights(backbone.network.get_weights())
    ready = getattr(keras.applications, entry.module).preprocess_input(pixels.astype(np.float32))
    expected = reference.predict(ready, verbose=0)
    assert expected.shape == (5, entry.width)
    assert np.abs(expected).max() > 0
    assert np.abs(features - expected).max() <= 1e-4 * np.abs(expected).max()
    keras.backend.clear_session()
    gc.collect()
