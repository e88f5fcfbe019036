"""Train an assembled model and keep its best weights; the weights it starts with are epoch 0 and compete.

One loop for fine-tuning and for training from scratch, so that the two can be compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featcache.arrays import Classes, Floats
from featcache.assembly.assemble import logits_of
from featcache.spec import Progress, Tick
from featcache.sweeps.metrics import Metric, Score, better, log_loss, score
from featcache.tuning.data import ImageSet, in_order

Checkpoint = Callable[[], None]


@dataclass(frozen=True)
class Recipe:
    """How to train."""

    epochs: int = 10
    learning_rate: float = 1e-5
    weight_decay: float = 1e-4
    batch: int = 32
    patience: int = 3  # epochs without a better validation score before it stops
    class_weight: str | None = None
    metric: Metric = "accuracy"
    seed: int = 0
    max_seconds: float = math.inf


@dataclass(frozen=True)
class Epoch:
    """One line of the history; epoch 0 is the start."""

    epoch: int
    train_loss: float  # NaN at epoch 0
    val_loss: float
    val: Score
    seconds: float  # validation included; of the first epoch compilation too
    metric: Metric = "accuracy"

    def better_than(self, other: Epoch) -> bool:
        """Tell whether this epoch has the better validation score, or the same and the lower loss."""
        mine, theirs = (better(self.metric, epoch.val.value) for epoch in (self, other))
        return (mine, -self.val_loss) > (theirs, -other.val_loss)


def train(
    model: Any,
    train_set: ImageSet,
    val_set: ImageSet,
    recipe: Recipe,
    checkpoint: Checkpoint,
    progress: Progress,
) -> tuple[list[Epoch], Epoch]:
    """Train the trainable weights of `model`; leave it with its best weights; return the history and the best epoch.

    checkpoint: called whenever the model holds weights better than any before, epoch 0 included.
    Stops early after `patience` epochs without improvement, `max_seconds` after its first step, or when the loss is
    not finite.
    """
    logits = logits_of(model)
    _compile(logits, recipe)
    history = [_evaluate(logits, val_set, recipe, 0, math.nan)]
    best, weights = history[0], model.get_weights()
    checkpoint()
    rng = np.random.default_rng(recipe.seed)
    clock = _Clock(recipe.max_seconds)
    for number in range(1, recipe.epochs + 1):
        epoch_started = time.perf_counter()
        loss = _one_epoch(logits, train_set, recipe, rng.permutation(len(train_set)), clock)
        if not math.isfinite(loss):
            break
        found = _evaluate(logits, val_set, recipe, number, loss)
        found = replace(found, seconds=time.perf_counter() - epoch_started)
        if not math.isfinite(found.val_loss):
            break
        history.append(found)
        if found.better_than(best):
            best, weights = found, model.get_weights()
            checkpoint()
        progress(_tick(number, recipe, clock, f"val {found.val.value:.4f}, best {best.val.value:.4f}"))
        if clock.is_up or number - best.epoch >= recipe.patience:
            break
    model.set_weights(weights)
    return history, best


def predict_logits(model: Any, images: ImageSet, batch: int = 32) -> Floats:
    """Return (N, K) logits of a logits model; the last batch is filled up so that one shape is compiled."""
    found = []
    for pixels, _ in images.batches(in_order(images), batch):
        filled = np.concatenate([pixels, np.zeros((batch - len(pixels), *pixels.shape[1:]), np.uint8)])
        found.append(np.asarray(model.predict_on_batch(filled))[: len(pixels)])
    return np.concatenate(found)


def _compile(logits: Any, recipe: Recipe) -> None:
    import keras

    optimizer = keras.optimizers.AdamW(recipe.learning_rate, weight_decay=recipe.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    logits.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def _one_epoch(logits: Any, images: ImageSet, recipe: Recipe, order: Classes, clock: _Clock) -> float:
    """Train once over the images, or until time is up, and return the mean loss.

    All batches have one size, so that one shape is compiled: of 50 images in batches of at most 32 two times 25;
    what does not divide evenly, less than one image per batch, waits for another epoch.
    """
    weights = _class_weights(images.labels, recipe.class_weight)
    num_batches = math.ceil(len(order) / recipe.batch)
    size = len(order) // num_batches
    losses = []
    for pixels, labels in images.batches(order[: size * num_batches], size):
        losses.append(float(logits.train_on_batch(pixels, labels, sample_weight=weights[labels])))
        clock.tick()
        if not math.isfinite(losses[-1]) or clock.is_up:
            break
        logits.reset_metrics()
    return float(np.mean(losses))


def _tick(number: int, recipe: Recipe, clock: _Clock, note: str) -> Tick:
    """Return how far the training is: in epochs, or in seconds where time is what ends it."""
    if math.isinf(recipe.max_seconds):
        return Tick("train", number, recipe.epochs, note)
    limit = math.ceil(recipe.max_seconds)
    return Tick("train for equal time", limit if clock.is_up else min(int(clock.seconds), limit), limit, note)


class _Clock:
    """Counts from the end of the first step: compiling it is nobody's training."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._started: float | None = None

    def tick(self) -> None:
        """Note that a step has ended."""
        if self._started is None:
            self._started = time.perf_counter()

    @property
    def is_up(self) -> bool:
        """Tell whether the time is over."""
        return self.seconds > self._max_seconds

    @property
    def seconds(self) -> float:
        """Return the time since the first step ended."""
        return 0.0 if self._started is None else time.perf_counter() - self._started


def _class_weights(labels: Classes, class_weight: str | None) -> Floats:
    counts = np.bincount(labels)
    if class_weight is None:
        return np.ones(len(counts), dtype=np.float32)
    return (len(labels) / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


def _evaluate(logits: Any, images: ImageSet, recipe: Recipe, number: int, loss: float) -> Epoch:
    values = predict_logits(logits, images, recipe.batch)
    found = score(images.labels, values.argmax(axis=1), recipe.metric, values)
    return Epoch(number, loss, log_loss(values, images.labels), found, seconds=0.0, metric=recipe.metric)
