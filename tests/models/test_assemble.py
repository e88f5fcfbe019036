from itertools import pairwise

import keras
import numpy as np
import pytest

from featcache.backbones.build import feature_model
from featcache.backbones.noise import all_layers
from featcache.errors import ShapeMismatch
from featcache.heads.layers import dense, make_head
from featcache.heads.logits import softmax
from featcache.models.assemble import ModelPart, assemble, backbones_of, head_layers, logits_of
from featcache.models.certificate import certify
from featcache.spec import Preprocess
from featcache.tuning.stages import unfreeze

from .conftest import SIZE

PIXELS = np.random.default_rng(1).integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8)


def head_of(*sizes):
    rng = np.random.default_rng(2)
    shapes = list(pairwise(sizes))
    layers = dense([rng.normal(0, 1, s) for s in shapes], [rng.normal(0, 1, s[1]) for s in shapes])
    return make_head(layers, "t")


@pytest.mark.parametrize("sizes", [(5, 3), (5, 7, 2), (5, 7, 6, 4)])
def test_the_model_computes_what_the_head_computes_on_features(sizes, noisy):
    backbone, tap = noisy
    features = feature_model(backbone, [tap]).predict_on_batch(PIXELS)
    head = head_of(*sizes)
    model = assemble([ModelPart(backbone, (tap,))], head, sizes[-1])
    expected = head.logits(features)
    np.testing.assert_allclose(logits_of(model).predict_on_batch(PIXELS), expected, atol=1e-4)
    np.testing.assert_allclose(model.predict_on_batch(PIXELS), softmax(expected), atol=1e-5)
    assert len(head_layers(model)) == len(sizes) - 1


@pytest.mark.parametrize("what", ["none", "last", "all"])
def test_training_sees_what_inference_sees_whatever_is_unfrozen(what, noisy):
    backbone, tap = noisy
    model = assemble([ModelPart(backbone, (tap,))], head_of(5, 3), 3)
    unfreeze(backbones_of(model)[0], what)
    logits = logits_of(model)
    inference = logits.predict_on_batch(PIXELS)
    np.testing.assert_allclose(logits(PIXELS, training=True), inference, atol=1e-4)
    assert certify(model, PIXELS, inference).passed


def test_dropout_in_nested_networks_is_stilled_too(noisy):
    backbone, tap = noisy
    model = assemble([ModelPart(backbone, (tap,))], head_of(5, 3), 3)
    rates = {one.name: one.rate for one in all_layers(backbones_of(model)[0]) if hasattr(one, "rate")}
    assert rates == {"block_1_dropout": 0.0, "inner_dropout": 0.0}


def test_from_scratch_everything_trains_and_makes_noise(noisy):
    backbone, tap = noisy
    model = assemble([ModelPart(backbone, (tap,))], None, 3)
    model.trainable = True
    logits = logits_of(model)
    assert np.abs(np.asarray(logits(PIXELS, training=True)) - logits.predict_on_batch(PIXELS)).max() > 0.1


def test_a_head_of_another_tap_is_refused(noisy):
    backbone, tap = noisy
    with pytest.raises(ShapeMismatch, match=r"The head takes 6 features, tap 't' gives 5"):
        assemble([ModelPart(backbone, (tap,))], head_of(6, 3), 3)


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_images_of_the_right_size_pass_as_they_are_and_others_are_resized(resize, noisy):
    backbone, tap = noisy
    object.__setattr__(tap, "preprocess", Preprocess(SIZE, resize))
    model = assemble([ModelPart(backbone, (tap,))], head_of(5, 3), 3)
    sized = keras.Model(model.input, model.get_layer("resize").output)
    assert (np.asarray(sized.predict_on_batch(PIXELS)) == PIXELS).all()
    assert model.predict_on_batch(np.zeros((2, 31, 17, 3), np.uint8)).shape == (2, 3)
