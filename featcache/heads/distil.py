"""A head that has no exact form as layers -> a dense head that says what it says.

The teacher is asked about the images it was fitted on and about mixtures of their features two by two, so that the
student learns what it says between them too, where a forest is not sure of what it has seen (knowledge distillation:
Hinton et al. 2015, https://arxiv.org/abs/1503.02531; mixtures: Zhang et al. 2018, https://arxiv.org/abs/1710.09412).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from featcache.arrays import Features, Floats
from featcache.heads.absorb import decision_logits
from featcache.heads.layers import Affine, Head, dense, make_head
from featcache.heads.logits import softmax
from featcache.heads.solvers.dense import train
from featcache.heads.solvers.dense_steps import Data, Knobs, NumpyEngine, Recipe

log = logging.getLogger(__name__)

WIDTH = 512
MIXTURES = 8  # for each image
MOST_ROWS = 50_000  # that the student learns from
RECIPE = Recipe(
    widths=(WIDTH,),
    epochs=30,
    batch_size=64,
    optimizer="adamw",
    momentum=0.9,
    nesterov=False,
    schedule="cosine",
    patience=None,
    steps_per_epoch=None,
    class_weight=None,
    engine="numpy",
)
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-4


def distilled(estimator: Any, features: Features, tap: str, temperature: float = 1.0, seed: int = 0) -> Head:
    """Return a dense head with one hidden layer that mimics a fitted pipeline, from the features (N, D) it saw."""
    log.info("Teaching a dense head on %d images", len(features))
    X = np.concatenate([features, _mixtures(features, seed)]).astype(np.float32)
    targets = _asked(estimator, X, temperature).astype(np.float32)
    mean, scale = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    standardise = Affine.standardising(mean, np.where(scale > 0, scale, 1))
    data = Data(standardise(X).astype(np.float32), targets, np.ones((len(X), 1), np.float32))
    knobs = Knobs(*(np.array([[value]], np.float32) for value in (LEARNING_RATE, WEIGHT_DECAY, 0, 0)))
    [found] = train(NumpyEngine, RECIPE, knobs, [seed], data)
    return make_head([standardise, *dense(found.kernels, found.biases)], tap)


def _mixtures(features: Features, seed: int) -> Features:
    """Return (M, D): features of two images each, in random shares."""
    rng = np.random.default_rng(seed)
    count = max(0, min(MIXTURES * len(features), MOST_ROWS - len(features)))
    one, other = rng.integers(0, len(features), (2, count))
    share = rng.random((count, 1), dtype=np.float32)
    return np.asarray(share * features[one] + (1 - share) * features[other])


def _asked(estimator: Any, X: Features, temperature: float) -> Floats:
    """Return (N, K) probabilities of the teacher, all on one class where it knows no other way."""
    if hasattr(estimator, "decision_function") or hasattr(estimator, "predict_proba"):
        return softmax(decision_logits(estimator, X) / temperature)
    return np.asarray(estimator.predict(X)[:, None] == estimator.classes_[None, :], dtype=np.float64)
