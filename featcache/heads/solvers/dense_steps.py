"""Make one training step of many dense softmax heads of one shape at the same time.

Each of g streams of mini-batches feeds n heads, which lie side by side in the first layer:

    X (g, B, D) @ kernel (g, D, n U) -> (g, B, n U)

so n heads share one reading of the features and one large product, which is where the time goes (D is the largest
dimension). Later layers are one product for each head: (g, n, B, U) @ (g, n, U, V).

Gradients are written out here, for an array namespace `xp`: NumPy in this file, keras.ops in dense_keras. Shapes:
g streams, n heads of a stream, B rows of a mini-batch, D features, U and V units, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from featcache.arrays import Classes, Floats

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7  # as in Keras
MOMENT_RATIO = (1 - BETA_1) / (1 - BETA_2) ** 0.5  # see `_adam`
BLOCK_PARAMETERS = 1 << 16  # parameters that one update reads and writes while they are in the core's cache


@dataclass(frozen=True)
class DenseRecipe:
    """The settings that heads must share to be trained together."""

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
    """The settings that each head has for itself, (g, n) each."""

    learning_rate: Any
    weight_decay: Any
    dropout: Any
    label_smoothing: Any


class Data(NamedTuple):
    """The images that all heads learn from."""

    X: Any  # (N, D)
    targets: Any  # (N, K), one-hot or probabilities
    weights: Any  # (N, 1)


class Batch(NamedTuple):
    """The mini-batches of one step."""

    X: Any  # (g, B, D)
    targets: Any  # (g, 1, B, K)
    weights: Any  # (g, 1, B, 1), the factor of each row in the loss
    mask: Any  # dropout's factor on the input of the last layer: (g, B, D) of linear heads, else (g, n, B, U)


class HeadTrainingState(NamedTuple):
    """The parameters of all heads, kernel and bias in turn, and the optimizer's moments of each.

    First layer: (g, D, n U) and (g, 1, n U). Later layers: (g, n, U, V) and (g, n, 1, V).
    """

    params: tuple[Any, ...]
    first: tuple[Any, ...]  # Adam's first moment, or SGD's velocity
    second: tuple[Any, ...]  # Adam's second moment; zeros for SGD


def forward(xp: Any, params: Sequence[Any], X: Any, num_heads: int, mask: Any = None) -> tuple[list[Any], Any]:
    """Return the input of each layer, and the logits (g, n, N, K), for X (g, N, D)."""
    last = len(params) - 2
    values = X
    inputs: list[Any] = []
    for at in range(0, len(params), 2):
        if at > 0:
            values = xp.maximum(values, 0)
        if at == last and mask is not None:
            values = values * mask
        inputs.append(values)
        values = xp.matmul(values, params[at]) + params[at + 1]
        if at == 0:
            # (g, N, n U) -> (g, n, N, U): the heads part after the layer that they share
            values = xp.reshape(values, (*values.shape[:2], num_heads, -1))
            values = xp.swapaxes(values, 1, 2)
    return inputs, values


def gradients(xp: Any, params: Sequence[Any], batch: Batch, knobs: Knobs) -> list[Any]:
    """Return the gradient of each parameter, in its shape, of the weighted cross-entropy of each head.

    For a layer y = h W + b with dL/dy = delta: dL/dW = h' delta, dL/db = sum of delta over the rows, and
    dL/dh = delta W', which ReLU passes on where h > 0. At the logits, delta = (softmax - targets) * weights.
    """
    inputs, logits = forward(xp, params, batch.X, knobs.dropout.shape[1], batch.mask)

    # softmax - targets, where smoothing gives each class the same small share of the target
    exponentials = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
    probabilities = exponentials / xp.sum(exponentials, axis=-1, keepdims=True)
    smoothing = knobs.label_smoothing[:, :, None, None]
    smoothed = batch.targets * (1 - smoothing) + smoothing / logits.shape[-1]
    delta = (probabilities - smoothed) * batch.weights  # (g, n, B, K)

    later_layers: list[Any] = []
    for at in reversed(range(1, len(inputs))):
        kernel_gradient = xp.matmul(xp.swapaxes(inputs[at], 2, 3), delta)
        bias_gradient = xp.sum(delta, axis=2, keepdims=True)
        later_layers = [kernel_gradient, bias_gradient, *later_layers]
        delta = xp.matmul(delta, xp.swapaxes(params[2 * at], 2, 3))
        if at == len(inputs) - 1 and batch.mask is not None:
            delta = delta * batch.mask
        delta = xp.multiply(delta, inputs[at] > 0)

    # (g, n, B, U) -> (g, B, n U), side by side again for the first layer
    delta = xp.reshape(xp.swapaxes(delta, 1, 2), (*batch.X.shape[:2], -1))
    first_kernel = xp.matmul(xp.swapaxes(inputs[0], 1, 2), delta)
    first_bias = xp.sum(delta, axis=1, keepdims=True)
    return [first_kernel, first_bias, *later_layers]


def batch_of(xp: Any, data: Data, rows: Any, noise: Any, dropout: Any, scale: float) -> Batch:
    """Return the mini-batches of rows (g, B).

    noise: uniform in [0, 1), (g, B, D) for linear heads, else (g, 1, B, U): all heads of a stream drop by the same
    noise. scale: factor on the loss, which is a mean over the rows.
    """
    X, targets, weights = (xp.take(array, rows, axis=0) for array in data)
    mask = None
    if noise is not None:
        is_linear = len(noise.shape) == 3  # the linear heads of a stream share its rate: see `train`
        rate = dropout[:, :1, None] if is_linear else dropout[:, :, None, None]
        # Inverted dropout: what stays grows by 1 / (1 - rate), so that prediction needs no factor.
        mask = xp.where(noise >= rate, 1 / (1 - rate), 0.0)
    row_weights = weights[:, None] * (scale / rows.shape[1])
    return Batch(X, targets[:, None], row_weights, mask)


def spread(xp: Any, values: Any, param: Any) -> Any:
    """Return values (g, n) of the heads in a shape that multiplies a parameter of all heads."""
    if len(param.shape) == 3:
        if values.shape[1] == 1:
            return values[:, :, None]  # one number for a whole parameter, which NumPy multiplies twice as fast
        # The first layer has its heads side by side: repeat each head's value for its units, (g, 1, n U).
        units = param.shape[-1] // values.shape[1]
        return xp.repeat(values, units, axis=1)[:, None]
    return values[:, :, None, None]


def correction(count: int) -> float:
    """Return the factor on Adam's learning rate in step `count`, from 1, for moments that start at zero.

    Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, end of section 2: sqrt(1 - beta_2^t) / (1 - beta_1^t).
    """
    return float((1 - BETA_2**count) ** 0.5 / (1 - BETA_1**count))


class NumpyEngine:
    """Heads in training as NumPy arrays, which every step changes in place."""

    xp: Any = np
    shrink_below: float = 1.0  # heads that have stopped are removed once at most this share still trains

    def __init__(self, recipe: DenseRecipe, data: Data, params: Sequence[Floats], knobs: Knobs) -> None:
        self.recipe = recipe
        self.data = Data(*(self.put(array) for array in data))
        # Two sets of zeros, not one: NumPy changes both moments in place.
        first = tuple(np.zeros_like(param) for param in params)
        second = tuple(np.zeros_like(param) for param in params)
        self._begin(HeadTrainingState(tuple(params), first, second), knobs)

    def put(self, array: Any) -> Any:
        """Return a NumPy array as this engine's kind of array."""
        return array

    def get(self, array: Any) -> Any:
        """Return this engine's array as a NumPy array."""
        return array

    def step(self, rows: Classes, noise: Floats | None, fraction: float, count: int) -> None:
        """Train on rows (g, B), at this fraction of the learning rates, in step `count`, from 1."""
        adam = self.recipe.optimizer == "adamw"
        # For Adam the loss is multiplied by 1 - BETA_1, which saves a pass over every gradient: see `_adam`.
        scale = 1 - BETA_1 if adam else 1.0
        batch = batch_of(np, self.data, rows, noise, self.knobs.dropout, scale)
        by_param = gradients(np, self.state.params, batch, self.knobs)
        rate = self.knobs.learning_rate * np.float32(fraction)
        factor = rate
        if adam:
            factor = rate * np.float32(correction(count) * MOMENT_RATIO)
        # AdamW's decay, apart from the gradient (Loshchilov and Hutter 2019): param -= rate decay param
        shrink = 1 - self.knobs.weight_decay * rate

        for at, arrays in enumerate(zip(by_param, *self.state, strict=True)):
            is_kernel = at % 2 == 0
            factor_of_param = spread(np, factor, arrays[0])
            shrink_of_param = spread(np, shrink, arrays[0])
            for gradient, param, first, second in _cache_blocks(*arrays):
                if is_kernel:  # biases do not decay
                    param *= shrink_of_param
                if adam:
                    _adam(gradient, param, first, second, factor_of_param)
                else:
                    _sgd(gradient, param, first, factor_of_param, self.recipe)

    def log_loss(self, rows: Classes) -> Floats:
        """Return the weighted log loss of rows (g, M), without dropout, as (g, n)."""
        xp = self.xp
        X, targets, weights = (xp.take(array, self.put(rows), axis=0) for array in self.data)
        _, logits = forward(xp, self.state.params, X, self._num_heads)
        # -log softmax of the true class = log sum exp(logits) - its logit, for logits of at most 0
        logits = logits - xp.max(logits, axis=-1, keepdims=True)
        log_sum = xp.log(xp.sum(xp.exp(logits), axis=-1))
        true_logit = xp.sum(logits * targets[:, None], axis=-1)
        losses = self.get(log_sum - true_logit)  # (g, n, M)
        row_weights = self.get(weights)[:, None, :, 0]
        return np.average(losses, axis=2, weights=np.broadcast_to(row_weights, losses.shape))

    def head(self, stream: int, number: int) -> list[Floats]:
        """Return the parameters of one head: kernel (D, U), bias (1, U), and so on."""
        params = [by_head(self.get(param), self._num_heads) for param in self.state.params]
        return [param[stream, number].copy() for param in params]

    def keep(self, streams: Classes, numbers: Classes) -> None:
        """Continue only with these streams (g,), and in each of them with these heads (g, n)."""
        kept = streams[:, None], numbers
        parts = []
        for part in self.state:
            arrays = [self._kept_heads(self.get(array), kept) for array in part]
            parts.append(tuple(arrays))
        knobs = Knobs(*(self.get(knob)[kept] for knob in self.knobs))
        self._begin(HeadTrainingState(*parts), knobs)

    def _kept_heads(self, param: Floats, kept: tuple[Classes, Classes]) -> Floats:
        """Return a parameter with only some heads, in the shape that it had: see `HeadTrainingState`."""
        separate = by_head(param, self._num_heads)[kept]
        if param.ndim == 4:
            return separate
        # (g, n, D, U) -> (g, D, n U): side by side again
        return separate.swapaxes(1, 2).reshape(len(separate), separate.shape[2], -1)

    def _begin(self, state: HeadTrainingState, knobs: Knobs) -> None:
        parts = []
        for part in state:
            parts.append(tuple(self.put(array) for array in part))
        self.state = HeadTrainingState(*parts)
        self.knobs = Knobs(*(self.put(knob) for knob in knobs))

    @property
    def _num_heads(self) -> int:
        return int(self.knobs.dropout.shape[1])


def by_head(param: Floats, num_heads: int) -> Floats:
    """Return a parameter of all heads as (g, n, rows, columns)."""
    if param.ndim == 4:
        return param
    return param.reshape(*param.shape[:2], num_heads, -1).swapaxes(1, 2)


def _cache_blocks(*arrays: Floats) -> Iterator[list[Floats]]:
    """Yield the same rows of each array, few enough to stay in the core's cache through all passes of an update."""
    num_rows = arrays[0].shape[-2]
    step = max(1, BLOCK_PARAMETERS * num_rows // arrays[0].size)
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        yield [array[..., rows, :] for array in arrays]


def _adam(gradient: Floats, param: Floats, first: Floats, second: Floats, rate: Floats) -> None:
    """Update in place, without temporary arrays, and overwrite the gradient.

    The gradient arrives as h = (1 - BETA_1) g, which saves two passes over memory. Then

        first  = BETA_1 first + h              Adam's m
        second = BETA_2 second + h^2           Adam's v times MOMENT_RATIO^2, since Adam adds (1 - BETA_2) g^2
        param -= rate first / (sqrt(second) + EPSILON MOMENT_RATIO)

    which is Adam's step if `rate` is MOMENT_RATIO times Adam's.
    """
    first *= BETA_1
    first += gradient
    np.square(gradient, out=gradient)
    second *= BETA_2
    second += gradient
    np.sqrt(second, out=gradient)
    gradient += EPSILON * MOMENT_RATIO
    np.divide(first, gradient, out=gradient)
    gradient *= rate
    param -= gradient


def _sgd(gradient: Floats, param: Floats, first: Floats, rate: Floats, recipe: DenseRecipe) -> None:
    """Update in place as Keras does: v = momentum v - rate g; param += v, or momentum v - rate g with Nesterov."""
    gradient *= rate
    first *= recipe.momentum
    first -= gradient
    if recipe.nesterov:
        param += recipe.momentum * first - gradient
    else:
        param += first
