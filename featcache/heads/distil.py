"""Train a dense head to imitate a head that has no exact form as layers.

The student learns the teacher's probabilities (knowledge distillation: Hinton et al. 2015,
https://arxiv.org/abs/1503.02531) on the images that the teacher was fitted on, and on mixtures of their features, two
images at a time (Zhang et al. 2018, https://arxiv.org/abs/1710.09412). On its own training images a forest is almost
always certain; the mixtures show the student how the teacher decides between them.
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
from featcache.heads.solvers.dense_steps import Data, DenseRecipe, Knobs, NumpyEngine

log = logging.getLogger(__name__)

WIDTH = 512
MIXTURES = 8  # for each image
MAX_ROWS = 50_000  # images and mixtures together
RECIPE = DenseRecipe(
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
    """Return a dense head with one hidden layer that imitates a fitted pipeline.

    features: (N, D), on which the pipeline was fitted.
    """
    log.info("Teaching a dense head on %d images", len(features))
    X = np.concatenate([features, _mixtures(features, seed)]).astype(np.float32)
    targets = _teacher_probabilities(estimator, X, temperature).astype(np.float32)

    mean = X.mean(axis=0, dtype=np.float64)
    scale = X.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 0, scale, 1)  # a feature that never varies stays as it is
    standardise = Affine.standardising(mean, scale)
    equal_weights = np.ones((len(X), 1), np.float32)
    data = Data(standardise(X).astype(np.float32), targets, equal_weights)

    # One stream with one head: (1, 1) each.
    zero = np.zeros((1, 1), np.float32)
    knobs = Knobs(zero + LEARNING_RATE, zero + WEIGHT_DECAY, dropout=zero, label_smoothing=zero)
    [student] = train(NumpyEngine, RECIPE, knobs, [seed], data)
    return make_head([standardise, *dense(student.kernels, student.biases)], tap)


def _mixtures(features: Features, seed: int) -> Features:
    """Return (M, D), each row a mixture of two images' features in random shares."""
    num_images = len(features)
    count = max(0, min(MIXTURES * num_images, MAX_ROWS - num_images))
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, num_images, (2, count))
    share = rng.random((count, 1), dtype=np.float32)
    mixtures = share * features[first] + (1 - share) * features[second]
    return np.asarray(mixtures)


def _teacher_probabilities(estimator: Any, X: Features, temperature: float) -> Floats:
    """Return the teacher's probabilities (N, K): 0 and 1 if it can only predict classes."""
    if hasattr(estimator, "decision_function") or hasattr(estimator, "predict_proba"):
        return softmax(decision_logits(estimator, X) / temperature)
    is_class = estimator.predict(X)[:, None] == estimator.classes_[None, :]
    return np.asarray(is_class, dtype=np.float64)
