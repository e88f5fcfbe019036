"""A head as plain arrays, layer by layer: the form in which every head is handed to Keras.

Each layer turns (N, D) values into (N, E). Consecutive affine layers are merged, so that a scaler, a projection, a
linear classifier and its temperature become a single `Dense`, which is what fine-tuning needs
(LP-FT: Kumar et al. 2022, https://arxiv.org/abs/2202.10054).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from featcache.arrays import Floats
from featcache.errors import ShapeMismatch

Activation = Literal["linear", "relu", "tanh", "sigmoid"]


@dataclass(frozen=True)
class Dense:
    """activation(values (N, D) @ kernel (D, E) + bias (E,)), as in a Keras `Dense`."""

    kernel: Floats
    bias: Floats
    activation: Activation = "linear"

    @property
    def widths(self) -> tuple[int | None, int | None]:
        """Return how many values it takes and gives."""
        return self.kernel.shape[0], self.kernel.shape[1]

    def __call__(self, values: Floats) -> Floats:
        """Return (N, E)."""
        return _activated(values @ self.kernel + self.bias, self.activation)


@dataclass(frozen=True)
class Affine:
    """values (N, D) * scale + offset, each (D,)."""

    scale: Floats
    offset: Floats

    @classmethod
    def standardising(cls, mean: Floats, scale: Floats) -> Affine:
        """Return (values - mean) / scale: `StandardScaler.mean_` and `.scale_`, (D,) in feature units."""
        return cls(1 / scale, -mean / scale)

    @property
    def widths(self) -> tuple[int | None, int | None]:
        """Return how many values it takes and gives."""
        return len(self.scale), len(self.scale)

    def __call__(self, values: Floats) -> Floats:
        """Return (N, D)."""
        return values * self.scale + self.offset


@dataclass(frozen=True)
class Unit:
    """Rows scaled to length 1, as by scikit-learn's `Normalizer`. A row of zeros stays zero."""

    @property
    def widths(self) -> tuple[int | None, int | None]:
        """Return (None, None): it accepts any number of values, and returns as many."""
        return None, None

    def __call__(self, values: Floats) -> Floats:
        """Return (N, D)."""
        length = np.linalg.norm(values, axis=1, keepdims=True)
        return values / np.where(length > 0, length, 1)


@dataclass(frozen=True)
class Squares:
    """Values followed by their squares, (N, 2 D), so that a `Dense` can compute a quadratic form."""

    width: int

    @property
    def widths(self) -> tuple[int | None, int | None]:
        """Return how many values it takes and gives."""
        return self.width, 2 * self.width

    def __call__(self, values: Floats) -> Floats:
        """Return (N, 2 D)."""
        return np.hstack([values, values**2])


@dataclass(frozen=True)
class Nearness:
    """exp(-gamma |value - support|^2) to each of S support vectors, (N, S): the RBF kernel."""

    support: Floats  # (S, D)
    gamma: float

    @property
    def widths(self) -> tuple[int | None, int | None]:
        """Return how many values it takes and gives."""
        return self.support.shape[1], self.support.shape[0]

    def __call__(self, values: Floats) -> Floats:
        """Return (N, S)."""
        from sklearn.metrics.pairwise import rbf_kernel

        return np.asarray(rbf_kernel(values, self.support, self.gamma))


@dataclass(frozen=True)
class Votes:
    """Scores (N, K) of K classes from decisions (N, P) between each pair, P = K (K - 1) / 2, as in `SVC`.

    A decision above 0 is a vote for the first class of the pair. Classes with equal votes are ordered by the sum t of
    their decisions, squeezed by t / (3 (|t| + 1)) into less than a third of a vote either way.
    """

    num_classes: int

    @property
    def widths(self) -> tuple[int | None, int | None]:
        """Return how many values it takes and gives."""
        return self.num_classes * (self.num_classes - 1) // 2, self.num_classes

    @property
    def signs(self) -> Floats:
        """Return (P, K): 1 for the first class of each pair, -1 for the second."""
        first, second = np.triu_indices(self.num_classes, 1)
        eye = np.eye(self.num_classes)
        return np.asarray(eye[first] - eye[second])

    def __call__(self, values: Floats) -> Floats:
        """Return (N, K)."""
        # Each class meets K - 1 others: wins - losses = 2 wins - (K - 1).
        outcomes = np.where(values > 0, 1.0, -1.0)  # of each pair, for its first class
        wins_minus_losses = outcomes @ self.signs
        votes = (wins_minus_losses + self.num_classes - 1) / 2
        total = values @ self.signs
        return np.asarray(votes + total / (3 * (np.abs(total) + 1)))


Layer = Dense | Affine | Unit | Squares | Nearness | Votes


@dataclass(frozen=True)
class Head:
    """Layers from raw features (N, D) to logits (N, K)."""

    layers: tuple[Layer, ...]
    tap: str  # the source of the features, such as "mobilenet_v2/top", or several joined by +

    @property
    def takes(self) -> int:
        """Return how many features it takes."""
        return next(layer.widths[0] for layer in self.layers if layer.widths[0] is not None)

    def logits(self, features: Floats) -> Floats:
        """Return (N, K) for raw features (N, D). Raises ShapeMismatch if D is not `takes`."""
        if features.shape[1] != self.takes:
            raise ShapeMismatch(f"The head on tap '{self.tap}' takes {self.takes} features; got {features.shape[1]}")
        values = features
        for layer in self.layers:
            values = layer(values)
        return values


def make_head(layers: Sequence[Layer], tap: str) -> Head:
    """Return the head of these layers, with consecutive affine layers merged.

    Raises ShapeMismatch if a layer does not take as many values as the layer before it gives.

    >>> twice, sums = Affine(np.full(2, 2.0), np.ones(2)), Dense(np.ones((2, 1)), np.zeros(1))
    >>> make_head([twice, sums], "toy/gap").layers
    (Dense(kernel=array([[2.],
           [2.]]), bias=array([2.]), activation='linear'),)
    """
    merged: list[Layer] = []
    width: int | None = None  # of the values so far
    for layer in layers:
        taken, returned = layer.widths
        if None not in (width, taken) and width != taken:
            raise ShapeMismatch(
                f"The head on tap '{tap}' does not fit together: its {type(layer).__name__} layer takes {taken} values "
                f"and gets {width}. Sweep again, so that all steps are fitted on one cache"
            )
        if returned is not None:
            width = returned
        joined = _merge(merged[-1], layer) if merged else None
        if joined is None:
            merged.append(layer)
        else:
            merged[-1] = joined
    return Head(tuple(merged), tap)


def dense(kernels: Sequence[Floats], biases: Sequence[Floats], activation: Activation = "relu") -> tuple[Layer, ...]:
    """Return dense layers with this activation between them; the last is linear."""
    layers = [Dense(kernel, bias, activation) for kernel, bias in zip(kernels, biases, strict=True)]
    return *layers[:-1], replace(layers[-1], activation="linear")


def _merge(first: Layer, then: Layer) -> Layer | None:
    """Return one layer that computes then(first(x)) if both are affine, else None.

    (x K1 + b1) K2 + b2 = x (K1 K2) + (b1 K2 + b2), where an `Affine` has the diagonal kernel diag(scale).
    """
    if not isinstance(then, (Dense, Affine)) or not isinstance(first, (Dense, Affine)):
        return None
    if isinstance(first, Dense) and first.activation != "linear":
        return None
    if isinstance(then, Affine):
        if isinstance(first, Affine):
            return Affine(first.scale * then.scale, first.offset * then.scale + then.offset)
        return Dense(first.kernel * then.scale, first.bias * then.scale + then.offset)
    if isinstance(first, Affine):
        kernel = first.scale[:, None] * then.kernel
        bias = first.offset @ then.kernel + then.bias
    else:
        kernel = first.kernel @ then.kernel
        bias = first.bias @ then.kernel + then.bias
    return Dense(kernel, bias, then.activation)


def _activated(values: Floats, activation: Activation) -> Floats:
    if activation == "relu":
        return np.maximum(values, 0)
    if activation == "tanh":
        return np.asarray(np.tanh(values))
    if activation == "sigmoid":
        from scipy.special import expit

        return np.asarray(expit(values))
    return values
