"""The certificate holds for every network of the registry, in inference and in what `fit` sees."""

import gc

import keras
import numpy as np
import pytest

from featcache.assembly.assemble import assemble, backbone_of
from featcache.assembly.certificate import certify
from featcache.backbones.build import build, feature_model
from featcache.backbones.registry import REGISTRY
from featcache.heads.linear import DenseHead
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
    # random networks shrink or blow up their input: a head on standardised features, as a sweep makes it
    kernel = rng.normal(0, 1, (entry.width, 3)) / (features.std(axis=0)[:, None] + 1e-12) / np.sqrt(entry.width)
    head = DenseHead((kernel,), (-features.mean(axis=0) @ kernel,), "t")
    logits = head.logits(features.astype(np.float64))
    assert logits.std() > 0.1
    model = assemble(backbone, tap, head, 3)
    unfreeze(backbone_of(model), "all")
    certificate = certify(model, pixels, logits)
    assert certificate.passed, certificate
    del model, backbone
    keras.backend.clear_session()
    gc.collect()
