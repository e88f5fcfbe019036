"""One step of dense softmax heads of one shape, for all of them in one computation.

X (g, B, D) @ kernels (g, D, n * U): each of g streams of mini-batches feeds n heads that lie side by side, so that
they share the reading of the features and one large product. What follows the first layer is a product for each head.
Gradients are by hand, against an array namespace `xp`: NumPy here, keras.ops in dense_keras.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from featcache.arrays import Classes, Floats

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7  # those of Keras
RATIO = (1 - BETA_1) / (1 - BETA_2) ** 0.5
BLOCK = 1 << 16  # parameters that one update reads and writes while they are in the cache of a core


@dataclass(frozen=True)
class Recipe:
    """What heads have in common that train together."""

    widths: tuple[int, ...]  # of the hidden layers
    epochs: int
    batch_size: int
    optimizer: str  # "adamw" or "sgd"
    momentum: float
    nesterov: bool
    schedule: str  # "cosine" or "constant"
    patience: int | None
    steps_per_epoch: int | None
    class_weight: str | None
    engine: str  # "numpy" or "keras"


class Knobs(NamedTuple):
    """What each head has for itself: (g, n) each."""

    learning_rate: Any
    weight_decay: Any
    dropout: Any
    label_smoothing: Any


class Data(NamedTuple):
    """What all heads learn from."""

    X: Any  # (N, D)
    targets: Any  # (N, K), one-hot
    weights: Any  # (N, 1)


class Batch(NamedTuple):
    """The mini-batches of one step."""

    X: Any  # (g, B, D)
    targets: Any  # (g, 1, B, K)
    weights: Any  # (g, 1, B, 1), of each row in the loss
    mask: Any  # what the input of the last layer is multiplied by: (g, B, D) of linear heads, else (g, n, B, U)


class State(NamedTuple):
    """The parameters of all heads, kernel and bias in turn, and what the optimizer keeps of each.

    First layer: (g, D, n * U) and (g, 1, n * U). Later ones: (g, n, U, V) and (g, n, 1, V).
    """

    params: tuple[Any, ...]
    first: tuple[Any, ...]
    second: tuple[Any, ...]  # as many, zeros with SGD


def forward(xp: Any, params: Sequence[Any], X: Any, num_heads: int, mask: Any = None) -> tuple[list[Any], Any]:
    """Return what goes into each layer, and the logits (g, n, N, K), for X (g, N, D)."""
    last = len(params) - 2
    inputs = [X * mask if last == 0 and mask is not None else X]
    values = xp.matmul(inputs[0], params[0]) + params[1]
    values = xp.swapaxes(xp.reshape(values, (*values.shape[:2], num_heads, -1)), 1, 2)
    for at in range(2, len(params), 2):
        values = xp.maximum(values, 0)
        inputs.append(values * mask if at == last and mask is not None else values)
        values = xp.matmul(inputs[-1], params[at]) + params[at + 1]
    return inputs, values


def gradients(xp: Any, params: Sequence[Any], batch: Batch, knobs: Knobs) -> list[Any]:
    """Return the gradient of each parameter, in its shape, of the weighted cross-entropy of each head."""
    inputs, logits = forward(xp, params, batch.X, knobs.dropout.shape[1], batch.mask)
    delta = _error(xp, logits, batch.targets, knobs.label_smoothing[:, :, None, None]) * batch.weights
    found: list[Any] = []
    for at in reversed(range(1, len(inputs))):
        found[:0] = xp.matmul(xp.swapaxes(inputs[at], 2, 3), delta), xp.sum(delta, axis=2, keepdims=True)
        delta = xp.matmul(delta, xp.swapaxes(params[2 * at], 2, 3))
        if at == len(inputs) - 1 and batch.mask is not None:
            delta = delta * batch.mask
        delta = xp.where(inputs[at] > 0, delta, 0.0)
    delta = xp.reshape(xp.swapaxes(delta, 1, 2), (*batch.X.shape[:2], -1))
    return [xp.matmul(xp.swapaxes(inputs[0], 1, 2), delta), xp.sum(delta, axis=1, keepdims=True), *found]


def _error(xp: Any, logits: Any, targets: Any, smoothing: Any) -> Any:
    """Return probabilities less smoothed targets, (g, n, B, K)."""
    exponentials = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    wanted = targets * (1 - smoothing) + smoothing / logits.shape[-1]
    return exponentials / xp.sum(exponentials, axis=-1, keepdims=True) - wanted


def batch_of(xp: Any, data: Data, rows: Any, noise: Any, dropout: Any, scale: float) -> Batch:
    """Return the mini-batches of rows (g, B). noise: uniform in [0, 1), in the shape of the mask but for n.

    scale: what the loss, which is a mean over the rows, is multiplied by.
    """
    X, targets, weights = (xp.take(one, rows, axis=0) for one in data)
    mask = None
    if noise is not None:
        rate = dropout[:, :1, None] if len(noise.shape) == 3 else dropout[:, :, None, None]
        mask = xp.where(noise >= rate, 1 / (1 - rate), 0.0)
    return Batch(X, targets[:, None], weights[:, None] * (scale / rows.shape[1]), mask)


def spread(xp: Any, values: Any, param: Any) -> Any:
    """Return values (g, n) of the heads in a shape that multiplies a parameter of all heads."""
    if len(param.shape) == 3:
        return xp.repeat(values, param.shape[-1] // values.shape[1], axis=1)[:, None]
    return values[:, :, None, None]


def correction(count: int) -> float:
    """Return what Adam multiplies the learning rate by in step `count`, from 1."""
    return float((1 - BETA_2**count) ** 0.5 / (1 - BETA_1**count))


class NumpyEngine:
    """Heads in training, as arrays of NumPy that every step changes in place."""

    xp: Any = np
    worth: float = 1.0  # heads that have stopped leave once so large a part or less still trains

    def __init__(self, recipe: Recipe, data: Data, params: Sequence[Floats], knobs: Knobs) -> None:
        self.recipe = recipe
        self.data = Data(*(self.put(one) for one in data))
        zeros = [[np.zeros_like(one) for one in params] for _ in range(2)]
        self._begin(State(tuple(params), *(tuple(one) for one in zeros)), knobs)

    def put(self, array: Any) -> Any:
        """Return an array of NumPy as this engine computes with it."""
        return array

    def get(self, array: Any) -> Any:
        """Return what `put` gave as an array of NumPy."""
        return array

    def step(self, rows: Classes, noise: Floats | None, fraction: float, count: int) -> None:
        """Train on rows (g, B), at this fraction of the learning rates, in step `count`, from 1."""
        adam = self.recipe.optimizer == "adamw"
        batch = batch_of(np, self.data, rows, noise, self.knobs.dropout, 1 - BETA_1 if adam else 1.0)
        found = gradients(np, self.state.params, batch, self.knobs)
        rate = self.knobs.learning_rate * np.float32(fraction)
        factor = rate * np.float32(correction(count) * RATIO) if adam else rate
        shrink = 1 - self.knobs.weight_decay * rate
        for at, (gradient, *own) in enumerate(zip(found, *self.state, strict=True)):
            by, kept = (spread(np, one, gradient) for one in (factor, shrink))
            for some, param, first, second in _blocks(gradient, *own):
                if at % 2 == 0:
                    param *= kept  # biases do not decay
                if adam:
                    _adam(some, param, first, second, by)
                else:
                    _sgd(some, param, first, by, self.recipe)

    def log_loss(self, rows: Classes) -> Floats:
        """Return (g, n), the weighted log loss of rows (g, M), without dropout."""
        X, targets, weights = (self.xp.take(one, self.put(rows), axis=0) for one in self.data)
        logits = forward(self.xp, self.state.params, X, self._num_heads)[1]
        logits = logits - self.xp.max(logits, axis=-1, keepdims=True)
        own = self.xp.sum(logits * targets[:, None], axis=-1)  # (g, n, M), of the true class
        losses = self.get(self.xp.log(self.xp.sum(self.xp.exp(logits), axis=-1)) - own)
        return np.average(losses, axis=2, weights=np.broadcast_to(self.get(weights)[:, None, :, 0], losses.shape))

    def head(self, stream: int, number: int) -> list[Floats]:
        """Return the parameters of one head: kernel (D, U), bias (1, U), and so on."""
        return [_apart(self.get(one), self._num_heads)[stream, number].copy() for one in self.state.params]

    def keep(self, streams: Classes, numbers: Classes) -> None:
        """Go on with some streams (g,) and of each these heads (g, n)."""
        at = streams[:, None], numbers

        def some(param: Floats) -> Floats:
            return _side_by_side(_apart(param, self._num_heads)[at], param.ndim)

        state = State(*(tuple(some(self.get(one)) for one in part) for part in self.state))
        self._begin(state, Knobs(*(self.get(one)[at] for one in self.knobs)))

    def _begin(self, state: State, knobs: Knobs) -> None:
        self.state = State(*(tuple(self.put(one) for one in part) for part in state))
        self.knobs = Knobs(*(self.put(one) for one in knobs))

    @property
    def _num_heads(self) -> int:
        return int(self.knobs.dropout.shape[1])


def _apart(param: Floats, num_heads: int) -> Floats:
    """Return a parameter of all heads as (g, n, rows, columns)."""
    if param.ndim == 4:
        return param
    return param.reshape(*param.shape[:2], num_heads, -1).swapaxes(1, 2)


def _side_by_side(param: Floats, ndim: int) -> Floats:
    """Return what `_apart` gave in the number of dimensions that it had."""
    return param if ndim == 4 else param.swapaxes(1, 2).reshape(len(param), param.shape[2], -1)


def _blocks(*arrays: Floats) -> Iterator[list[Floats]]:
    """Yield the same rows of each array, as many as stay in the cache."""
    length = arrays[0].shape[-2]
    rows = max(1, BLOCK * length // arrays[0].size)
    for start in range(0, length, rows):
        yield [one[..., start : start + rows, :] for one in arrays]


def _adam(gradient: Floats, param: Floats, first: Floats, second: Floats, rate: Floats) -> None:
    """Update in place, and use up the gradient, which comes as 1 - BETA_1 of it: two passes over memory fewer.

    So second is RATIO squared times that of Keras, and rate RATIO times it.
    """
    first *= BETA_1
    first += gradient
    np.square(gradient, out=gradient)
    second *= BETA_2
    second += gradient
    np.sqrt(second, out=gradient)
    gradient += EPSILON * RATIO
    np.divide(first, gradient, out=gradient)
    gradient *= rate
    param -= gradient


def _sgd(gradient: Floats, param: Floats, first: Floats, rate: Floats, recipe: Recipe) -> None:
    gradient *= rate
    first *= recipe.momentum
    first -= gradient
    param += recipe.momentum * first - gradient if recipe.nesterov else first
