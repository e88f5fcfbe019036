"""The certificate holds for every network of the registry, in inference and in what `fit` sees."""

import gc

import keras
import numpy as np
import pytest

from featcache.backbones.build import build, feature_model
from featcache.backbones.registry import REGISTRY
from featcache.heads.layers import Dense, make_head
from featcache.models.assemble import ModelPart, assemble, backbones_of, logits_of
from featcache.models.certificate import TOLERANCE, certify
from featcache.spec import BackboneSpec, Preprocess, Tap
from featcache.tuning.stages import unfreeze


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in REGISTRY.items() if entry.constructor])
def test_parity_holds_with_everything_unfrozen(name):
    entry = REGISTRY[name]
    backbone = build(BackboneSpec(name, weights="none"), entry.min_size, "avg")
    preprocess = Preprocess(entry.min_size, mode=entry.mode)
    tap = Tap("t", backbone.spec, backbone.weights_digest, "top", "avg", preprocess)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, entry.min_size, entry.min_size, 3), dtype=np.uint8)
    features = np.asarray(feature_model(backbone, [tap]).predict_on_batch(pixels))
    assert features.shape == (8, entry.width)
    # random networks shrink or blow up their input: a head on standardised features, none of them dead
    scale = features.astype(np.float64).std(axis=0)[:, None]
    kernel = np.where(scale > 1e-3 * scale.max(), rng.normal(0, 1, (entry.width, 3)) / np.maximum(scale, 1e-30), 0)
    kernel /= np.sqrt(entry.width)
    head = make_head([Dense(kernel, -features.mean(axis=0) @ kernel)], "t")
    logits = head.logits(features.astype(np.float64))
    assert logits.std() > 0.1
    model = assemble([ModelPart(backbone, (tap,))], head, 3)
    unfreeze(backbones_of(model)[0], "all")
    assert certify(model, pixels, logits).inference <= TOLERANCE
    # against inference run the same way: untrained, the deepest networks turn the rounding of another way into anything
    in_inference, in_training = (
        keras.ops.convert_to_numpy(logits_of(model)(pixels, training=training)) for training in (False, True)
    )
    assert np.abs(in_training - in_inference).max() <= TOLERANCE
    del model, backbone
    keras.backend.clear_session()
    gc.collect()
