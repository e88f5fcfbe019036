"""Dense softmax heads with the interface of a scikit-learn classifier, alone or many trained together.

Training: AdamW or SGD over mini-batches whose order and initial weights come from `seed` alone, in NumPy, or in Keras
where that has an accelerator. The fitted weights are plain arrays, so that predicting and storing need no Keras.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from featcache.arrays import Classes, Floats
from featcache.heads.layers import dense, make_head
from featcache.heads.logits import softmax
from featcache.heads.solvers.dense import train
from featcache.heads.solvers.dense_keras import KerasEngine, on_accelerator
from featcache.heads.solvers.dense_steps import Data, Knobs, NumpyEngine, Recipe

UNITS = 512  # of the first layers that train side by side: more do not stay in the cache of a processor
WHOLE = (int, np.integer)
CLASSES = 32  # units that a linear head counts as, however many classes it has
ON_ACCELERATOR = 64  # times as many units


BELOW = {"learning_rate": np.inf, "weight_decay": np.inf, "momentum": 1, "dropout": 1, "label_smoothing": 1}
LEAST = {"epochs": 1, "batch_size": 1, "seed": 0, "patience": 1, "steps_per_epoch": 1}
OR_NONE = ("patience", "steps_per_epoch")  # may be None
CHOICES: dict[str, tuple[Any, ...]] = {
    "class_weight": (None, "balanced"),
    "optimizer": ("adamw", "sgd"),
    "nesterov": (False, True),
    "schedule": ("cosine", "constant"),
    "engine": ("auto", "numpy", "keras"),
}


class DenseSoftmax(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Softmax classifier, linear (`hidden=0`) or with layers of ReLU units: `hidden=256`, `(1024, 512)`, "1024-512".

    learning_rate: at the start, falling to 0 along a cosine unless the schedule is "constant". weight_decay: decoupled
    from the gradient, on kernels. momentum, nesterov: SGD's. dropout: of what the last layer takes.
    patience: hold out a tenth of each class, and stop after so many epochs in which its log loss was no better; the
    head is that of the best epoch. steps_per_epoch: of each epoch; None: as many as the images make, and 300 steps in
    all at least. class_weight "balanced": weigh each sample by the inverse frequency of its class.
    engine: "numpy", "keras", or "auto", Keras if it runs already and has an accelerator.
    """

    def __init__(
        self,
        hidden: int | str | Sequence[int] = 0,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-3,
        epochs: int = 40,
        batch_size: int = 64,
        class_weight: str | None = None,
        seed: int = 0,
        *,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        optimizer: str = "adamw",
        momentum: float = 0.9,
        nesterov: bool = False,
        schedule: str = "cosine",
        patience: int | None = None,
        steps_per_epoch: int | None = None,
        engine: str = "auto",
    ) -> None:
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.class_weight = class_weight
        self.seed = seed
        self.dropout = dropout
        self.label_smoothing = label_smoothing
        self.optimizer = optimizer
        self.momentum = momentum
        self.nesterov = nesterov
        self.schedule = schedule
        self.patience = patience
        self.steps_per_epoch = steps_per_epoch
        self.engine = engine

    def fit(self, X: Floats, y: Classes) -> DenseSoftmax:
        """Train on X (N, D) and labels y (N,). Raises ValueError if a parameter is not one."""
        train_together([self], X, y)
        return self

    def decision_function(self, X: Floats) -> Floats:
        """Return (N, K) logits."""
        return make_head(dense(self.kernels_, self.biases_), tap="").logits(np.asarray(X))

    def predict_proba(self, X: Floats) -> Floats:
        """Return (N, K) probabilities."""
        return softmax(self.decision_function(X))

    def predict(self, X: Floats) -> Classes:
        """Return (N,) labels."""
        return np.asarray(self.classes_[self.decision_function(X).argmax(axis=1)])

    def _sample_weights(self, index: Classes) -> Floats:
        if self.class_weight is None:
            return np.ones(len(index), dtype=np.float32)
        counts = np.bincount(index)
        return (len(index) / (len(counts) * counts))[index].astype(np.float32)


def train_together(heads: Sequence[DenseSoftmax], X: Floats, y: Classes) -> None:
    """Fit heads on X (N, D) and labels y (N,), as many at once as can: each becomes what `fit` would make it.

    n_epochs_ of a head is after how many epochs its weights were taken. Raises ValueError if a parameter is not one.
    """
    for head in heads:
        check(head)
    classes, index = np.unique(y, return_inverse=True)
    X = np.ascontiguousarray(X, dtype=np.float32)
    targets = np.eye(len(classes), dtype=np.float32)[index]
    for chunk in chunks(heads):
        streams = _streams([heads[at] for at in chunk])
        first = streams[0][0]
        if first.patience is not None and len(classes) == len(y):
            raise ValueError(f"patience holds out images of classes that have two; got {len(y)} of as many classes")
        data = Data(X, targets, first._sample_weights(index)[:, None])
        recipe = family(first)
        engine = KerasEngine if recipe.engine == "keras" else NumpyEngine
        trained = train(engine, recipe, _knobs(streams), [stream[0].seed for stream in streams], data)
        for head, found in zip((one for stream in streams for one in stream), trained, strict=True):
            head.classes_, head.n_features_in_, head.n_epochs_ = classes, X.shape[1], found.epochs
            head.kernels_, head.biases_ = found.kernels, found.biases


def family(head: DenseSoftmax) -> Recipe:
    """Return what heads must have in common to train together."""
    return Recipe(
        widths=widths(head.hidden),
        epochs=head.epochs,
        batch_size=head.batch_size,
        optimizer=head.optimizer,
        momentum=float(head.momentum),
        nesterov=head.nesterov,
        schedule=head.schedule,
        patience=head.patience,
        steps_per_epoch=head.steps_per_epoch,
        class_weight=head.class_weight,
        engine=engine_of(head.engine),
    )


def chunks(heads: Sequence[DenseSoftmax]) -> list[list[int]]:
    """Return which heads train in one computation: of one family, and so many that they stay in the cache.

    It depends on the heads alone. In NumPy a chunk is of one stream of mini-batches, for others share nothing with it;
    in Keras it has several streams with as many heads each.
    """
    members: dict[tuple[Recipe, object], list[int]] = {}
    for at, head in enumerate(heads):
        members.setdefault((family(head), _stream_of(head)), []).append(at)
    found: dict[object, list[int]] = {}
    for (recipe, stream), numbers in members.items():
        in_keras = recipe.engine == "keras"
        units = UNITS * (ON_ACCELERATOR if in_keras else 1)
        most = max(1, units // (recipe.widths or [CLASSES])[0])
        for number, piece in enumerate(np.array_split(numbers, -(-len(numbers) // most))):
            key = (recipe, number, len(piece)) if in_keras else (recipe, stream, number)
            found.setdefault(key, []).extend(int(at) for at in piece)
    return list(found.values())


def engine_of(asked: str) -> str:
    """Return "numpy" or "keras"."""
    if asked == "auto":
        return "keras" if on_accelerator() else "numpy"
    return asked


def widths(hidden: int | str | Sequence[int]) -> tuple[int, ...]:
    """Return the widths of the hidden layers. Raises ValueError.

    >>> widths(0), widths(256), widths("1024-512")
    ((), (256,), (1024, 512))
    """
    found: Sequence[Any] = [hidden] if isinstance(hidden, WHOLE) else hidden
    if isinstance(hidden, str):
        found = [int(one) if one.isdecimal() else None for one in hidden.split("-")]
    found = [] if list(found) == [0] else found
    if not all(isinstance(one, WHOLE) and one > 0 for one in found):
        raise ValueError(f"hidden takes 0, a width, or several such as '1024-512'; got {hidden!r}")
    return tuple(int(one) for one in found)


def check(head: DenseSoftmax) -> None:
    """Raise ValueError if a parameter of a head is not one."""
    widths(head.hidden)
    for name, below in BELOW.items():
        value = getattr(head, name)
        if not isinstance(value, (*WHOLE, float, np.floating)) or not 0 <= value < below:
            limit = "" if below == np.inf else f" to below {below}"
            raise ValueError(f"{name} is a number from 0{limit}; got {value!r}")
    for name, least in LEAST.items():
        value = getattr(head, name)
        if not ((isinstance(value, WHOLE) and value >= least) or (value is None and name in OR_NONE)):
            raise ValueError(f"{name} is a whole number from {least}; got {value!r}")
    for name, known in CHOICES.items():
        if getattr(head, name) not in known:
            raise ValueError(f"{name} is one of {', '.join(map(str, known))}; got {getattr(head, name)!r}")


def _stream_of(head: DenseSoftmax) -> object:
    """Return what heads must have in common to take the same input: of linear heads that has the dropout."""
    return head.seed, None if widths(head.hidden) else head.dropout


def _streams(heads: Sequence[DenseSoftmax]) -> list[list[DenseSoftmax]]:
    found: dict[object, list[DenseSoftmax]] = {}
    for head in heads:
        found.setdefault(_stream_of(head), []).append(head)
    return list(found.values())


def _knobs(streams: Sequence[Sequence[DenseSoftmax]]) -> Knobs:
    def of(name: str) -> Floats:
        return np.array([[getattr(head, name) for head in stream] for stream in streams], dtype=np.float32)

    return Knobs(*(of(name) for name in Knobs._fields))
