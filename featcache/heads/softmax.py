"""Dense softmax heads with the interface of a scikit-learn classifier, trained alone or many together.

AdamW or SGD trains them on mini-batches, in NumPy, or in Keras if that has an accelerator. The order of the batches
and the initial weights depend on `seed` alone. The fitted weights are plain arrays, so that predicting and storing
need no Keras.

Stored heads name this class as `featcache.heads.softmax.DenseSoftmax`, so it must stay at this path.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from featcache.arrays import Classes, Floats
from featcache.heads.layers import dense, make_head
from featcache.heads.logits import softmax
from featcache.heads.solvers.dense import train
from featcache.heads.solvers.dense_keras import KerasHeadEngine, on_accelerator
from featcache.heads.solvers.dense_steps import Data, DenseRecipe, Knobs, NumpyEngine

MAX_UNITS = 512  # units of first layers side by side; more would not stay in the processor's cache
LINEAR_UNITS = 32  # units that a linear head counts as, however many classes it has
ACCELERATOR_FACTOR = 64  # an accelerator trains this many times as many units together
WHOLE = (int, np.integer)

# Valid values of the parameters: from 0 to below a limit, from a least whole number, or one of several choices.
BELOW = {"learning_rate": np.inf, "weight_decay": np.inf, "momentum": 1, "dropout": 1, "label_smoothing": 1}
LEAST = {"epochs": 1, "batch_size": 1, "seed": 0, "patience": 1, "steps_per_epoch": 1}
MAY_BE_NONE = ("patience", "steps_per_epoch")
CHOICES: dict[str, tuple[Any, ...]] = {
    "class_weight": (None, "balanced"),
    "optimizer": ("adamw", "sgd"),
    "nesterov": (False, True),
    "schedule": ("cosine", "constant"),
    "engine": ("auto", "numpy", "keras"),
}


class DenseSoftmax(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Softmax classifier, linear (`hidden=0`) or with layers of ReLU units: `hidden=256`, `(1024, 512)`, "1024-512".

    learning_rate: initial rate, which falls to 0 along a cosine unless schedule is "constant".
    weight_decay: decoupled from the gradient, on kernels only.
    momentum, nesterov: apply only to optimizer "sgd".
    dropout: rate on the input of the last layer.
    patience: hold out a tenth of each class, stop after this many epochs without a lower log loss on it, and keep the
        weights of the best epoch.
    steps_per_epoch: None takes as many as the images make, and at least 300 steps over all epochs.
    class_weight: "balanced" weighs each sample by the inverse frequency of its class.
    engine: "numpy", "keras", or "auto": Keras if it already runs in this process and has an accelerator.
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
        """Train on X (N, D) and labels y (N,). Raises ValueError if a parameter is invalid."""
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
        by_class = len(index) / (len(counts) * counts)
        return by_class[index].astype(np.float32)


def train_together(heads: Sequence[DenseSoftmax], X: Floats, y: Classes) -> None:
    """Fit heads on X (N, D) and labels y (N,), as many at once as possible. Each becomes what its `fit` would make it.

    A head's n_epochs_ is the epoch whose weights it has. Raises ValueError if a parameter is invalid.
    """
    for head in heads:
        check(head)
    classes, index = np.unique(y, return_inverse=True)
    X = np.ascontiguousarray(X, dtype=np.float32)
    targets = np.eye(len(classes), dtype=np.float32)[index]
    for chunk in chunks(heads):
        by_stream: dict[object, list[DenseSoftmax]] = {}
        for at in chunk:
            by_stream.setdefault(_stream_key(heads[at]), []).append(heads[at])
        streams = list(by_stream.values())
        first = streams[0][0]  # a chunk shares one recipe
        if first.patience is not None and len(classes) == len(y):
            raise ValueError(f"patience holds out images of classes that have two; got {len(y)} of as many classes")

        data = Data(X, targets, first._sample_weights(index)[:, None])
        recipe = recipe_of(first)
        engine = KerasHeadEngine if recipe.engine == "keras" else NumpyEngine
        seeds = [stream[0].seed for stream in streams]
        trained = train(engine, recipe, _knobs(streams), seeds, data)
        for head, result in zip(chain.from_iterable(streams), trained, strict=True):
            head.classes_ = classes
            head.n_features_in_ = X.shape[1]
            head.n_epochs_ = result.epochs
            head.kernels_ = result.kernels
            head.biases_ = result.biases


def recipe_of(head: DenseSoftmax) -> DenseRecipe:
    """Return the settings that heads must share to train together."""
    return DenseRecipe(
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
    """Return the numbers of the heads that train in one computation.

    They share a recipe, and there are few enough that their first layers stay in the cache. The result depends on the
    heads alone. In NumPy a chunk has one stream of mini-batches, because streams share no work. In Keras it has
    several streams with equally many heads, because one large step costs an accelerator little more than a small one.
    """
    members: dict[tuple[DenseRecipe, object], list[int]] = {}
    for number, head in enumerate(heads):
        members.setdefault((recipe_of(head), _stream_key(head)), []).append(number)

    by_key: dict[object, list[int]] = {}
    for (recipe, stream), numbers in members.items():
        in_keras = recipe.engine == "keras"
        max_units = MAX_UNITS * ACCELERATOR_FACTOR if in_keras else MAX_UNITS
        first_width = recipe.widths[0] if recipe.widths else LINEAR_UNITS
        max_heads = max(1, max_units // first_width)
        num_pieces = -(-len(numbers) // max_heads)  # rounded up
        for at, piece in enumerate(np.array_split(numbers, num_pieces)):
            # The key says which pieces train together: in Keras those of equal length, whatever their stream.
            key = (recipe, at, len(piece)) if in_keras else (recipe, stream, at)
            by_key.setdefault(key, []).extend(piece.tolist())
    return list(by_key.values())


def engine_of(engine: str) -> str:
    """Return "numpy" or "keras" for the parameter `engine`."""
    if engine == "auto":
        return "keras" if on_accelerator() else "numpy"
    return engine


def widths(hidden: int | str | Sequence[int]) -> tuple[int, ...]:
    """Return the widths of the hidden layers. Raises ValueError.

    >>> widths(0), widths(256), widths("1024-512")
    ((), (256,), (1024, 512))
    """
    sizes: Sequence[Any] = [hidden] if isinstance(hidden, WHOLE) else hidden
    if isinstance(hidden, str):
        sizes = [int(text) if text.isdecimal() else None for text in hidden.split("-")]
    if list(sizes) == [0]:
        return ()
    if not all(isinstance(size, WHOLE) and size > 0 for size in sizes):
        raise ValueError(f"hidden takes 0, a width, or several such as '1024-512'; got {hidden!r}")
    return tuple(int(size) for size in sizes)


def check(head: DenseSoftmax) -> None:
    """Raise ValueError if a parameter of a head is invalid."""
    widths(head.hidden)
    for name, below in BELOW.items():
        value = getattr(head, name)
        if not isinstance(value, (*WHOLE, float, np.floating)) or not 0 <= value < below:
            limit = "" if below == np.inf else f" to below {below}"
            raise ValueError(f"{name} is a number from 0{limit}; got {value!r}")
    for name, least in LEAST.items():
        value = getattr(head, name)
        if value is None and name in MAY_BE_NONE:
            continue
        if not isinstance(value, WHOLE) or value < least:
            raise ValueError(f"{name} is a whole number from {least}; got {value!r}")
    for name, known in CHOICES.items():
        if getattr(head, name) not in known:
            raise ValueError(f"{name} is one of {', '.join(map(str, known))}; got {getattr(head, name)!r}")


def _stream_key(head: DenseSoftmax) -> object:
    """Return what heads must share to read the same input: the seed, and for linear heads also the dropout."""
    return head.seed, None if widths(head.hidden) else head.dropout


def _knobs(streams: Sequence[Sequence[DenseSoftmax]]) -> Knobs:
    """Return the settings of each head, (g, n) each."""
    settings = attrgetter(*Knobs._fields)
    by_stream = [list(map(settings, stream)) for stream in streams]
    values = np.array(by_stream, dtype=np.float32)  # (g, n, number of settings)
    return Knobs(*np.moveaxis(values, 2, 0))
