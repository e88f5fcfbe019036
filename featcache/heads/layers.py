"""A head as plain arrays, layer by layer: what every head that can be handed to Keras comes down to.

Each layer turns (N, D) values into (N, E). Affine layers that follow one another are one, so that a scaler, a
projection, a linear classifier and its temperature become a single `Dense`, as fine-tuning wants it
(LP-FT: Kumar et al. 2022, https://arxiv.org/abs/2202.10054). Zero variance, whitening and missing classes included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """Rows of length 1, as scikit-learn's `Normalizer` makes them; a row of zeros stays one."""

    @property
    def widths(self) -> tuple[int | None, int | None]:
        """Return that it takes and gives any number."""
        return None, None

    def __call__(self, values: Floats) -> Floats:
        """Return (N, D)."""
        length = np.linalg.norm(values, axis=1, keepdims=True)
        return values / np.where(length > 0, length, 1)


@dataclass(frozen=True)
class Squares:
    """Values and their squares beside them, (N, 2 D): what a quadratic form needs before a `Dense`."""

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
    """Scores (N, K) of K classes from decisions (N, K (K - 1) / 2) between each two, as `SVC` gives them.

    A decision above 0 is a vote for the first of the two; within a vote the sum of decisions orders the classes.
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
        total = values @ self.signs
        votes = (np.where(values > 0, 1.0, -1.0) @ self.signs + self.num_classes - 1) / 2
        return np.asarray(votes + total / (3 * (np.abs(total) + 1)))


Layer = Dense | Affine | Unit | Squares | Nearness | Votes


@dataclass(frozen=True)
class Head:
    """Layers from raw features (N, D) to logits (N, K)."""

    layers: tuple[Layer, ...]
    tap: str  # where the features come from, e.g. "mobilenet_v2/top", or several joined by +

    @property
    def takes(self) -> int:
        """Return how many features it takes."""
        return next(taken for taken, _ in (layer.widths for layer in self.layers) if taken is not None)

    def logits(self, features: Floats) -> Floats:
        """Return (N, K) for raw features (N, D). Raises ShapeMismatch if D is another."""
        if features.shape[1] != self.takes:
            raise ShapeMismatch(f"The head on tap '{self.tap}' takes {self.takes} features; got {features.shape[1]}")
        values = features
        for layer in self.layers:
            values = layer(values)
        return values


def make_head(layers: Sequence[Layer], tap: str) -> Head:
    """Return the head of these layers, neighbours that are affine made one.

    Raises ShapeMismatch if a layer takes another number of values than the one before it gives.

    >>> twice, sums = Affine(np.full(2, 2.0), np.ones(2)), Dense(np.ones((2, 1)), np.zeros(1))
    >>> make_head([twice, sums], "toy/gap").layers
    (Dense(kernel=array([[2.],
           [2.]]), bias=array([2.]), activation='linear'),)
    """
    found: list[Layer] = []
    width: int | None = None
    for layer in layers:
        taken, given = layer.widths
        if None not in (width, taken) and width != taken:
            raise ShapeMismatch(
                f"The head on tap '{tap}' does not fit together: its {type(layer).__name__} layer takes {taken} values "
                f"and gets {width}. Fit all steps on one cache: featcache sweep"
            )
        width = width if given is None else given
        joined = _joined(found[-1], layer) if found else None
        found[-1:] = [*found[-1:], layer] if joined is None else [joined]
    return Head(tuple(found), tap)


def dense(kernels: Sequence[Floats], biases: Sequence[Floats], activation: Activation = "relu") -> tuple[Layer, ...]:
    """Return layers with this activation between them; the last is linear."""
    last = len(kernels) - 1
    pairs = zip(kernels, biases, strict=True)
    return tuple(Dense(*one, "linear" if at == last else activation) for at, one in enumerate(pairs))


def _joined(first: Layer, then: Layer) -> Layer | None:
    """Return the one layer that does what two affine ones do, or None if they are not."""
    if not isinstance(then, (Dense, Affine)) or not isinstance(first, (Dense, Affine)):
        return None
    if isinstance(first, Dense) and first.activation != "linear":
        return None
    if isinstance(then, Affine):
        if isinstance(first, Affine):
            return Affine(first.scale * then.scale, first.offset * then.scale + then.offset)
        return Dense(first.kernel * then.scale, first.bias * then.scale + then.offset)
    if isinstance(first, Affine):
        kernel = then.kernel * first.scale[:, None]
        return Dense(kernel, first.offset @ then.kernel + then.bias, then.activation)
    return Dense(first.kernel @ then.kernel, first.bias @ then.kernel + then.bias, then.activation)


def _activated(values: Floats, activation: Activation) -> Floats:
    if activation == "relu":
        return np.maximum(values, 0)
    if activation == "tanh":
        return np.asarray(np.tanh(values))
    if activation == "sigmoid":
        from scipy.special import expit

        return np.asarray(expit(values))
    return values
