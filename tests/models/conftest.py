"""One trial of the toy run, and a network in which batch normalisation and dropout make noise."""

from __future__ import annotations

import numpy as np
import pytest

from featcache.backbones.build import Backbone
from featcache.spec import BackboneSpec, Preprocess, Tap
from featcache.sweeps import Chosen, Run

SIZE = 8


@pytest.fixture(scope="session")
def logreg(toy_run: Run) -> Chosen:
    """Return a trial of logistic regression on the toy run."""
    return next(toy_run[trial.trial] for trial in toy_run.trials if trial.params == {"C": 0.01})


@pytest.fixture
def noisy() -> tuple[Backbone, Tap]:
    """Return a small network, with statistics that are not those of any batch, and its tap."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    inner = keras.Sequential([keras.Input((SIZE, SIZE, 4)), layers.SpatialDropout2D(0.5, name="inner_dropout")])
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.BatchNormalization(name="block_1_bn")(layers.Conv2D(4, 3, padding="same", name="block_1_conv")(image))
    x = layers.Conv2D(5, 3, name="block_2_conv")(inner(layers.Dropout(0.5, name="block_1_dropout")(x)))
    network = keras.Model(image, layers.BatchNormalization(name="block_2_bn")(x), name="noisy")
    rng = np.random.default_rng(0)
    network.set_weights([rng.uniform(0.1, 0.5, value.shape) for value in network.get_weights()])
    network.trainable = False
    spec = BackboneSpec("glyphnet", weights="none")
    return Backbone(spec, network, "digest"), Tap("noisy/top", spec, "digest", "top", "avg", Preprocess(SIZE))
