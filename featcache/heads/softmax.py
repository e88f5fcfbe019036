"""Dense softmax heads trained in Keras, with the interface of a scikit-learn classifier.

Training: AdamW with a cosine schedule over mini-batches whose order and initial weights come from `seed`
alone. The fitted weights are plain arrays, so that predicting, storing and loading need no Keras.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from featcache.arrays import Classes, Floats
from featcache.backend import start_keras
from featcache.heads.linear import DenseHead, softmax

MIN_STEPS = 300  # a handful of images makes one step an epoch, and 40 of those train nothing


class DenseSoftmax(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Softmax classifier, linear (`hidden=0`) or with one hidden layer of `hidden` ReLU units.

    learning_rate: at the start, falling to 0 along a cosine. weight_decay: AdamW's, on kernels.
    balanced: weigh each sample by the inverse frequency of its class.
    """

    def __init__(
        self,
        hidden: int = 0,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-3,
        epochs: int = 40,
        batch_size: int = 64,
        class_weight: str | None = None,
        seed: int = 0,
    ) -> None:
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.class_weight = class_weight
        self.seed = seed

    def fit(self, X: Floats, y: Classes) -> DenseSoftmax:
        """Train on X (N, D) and labels y (N,)."""
        self.classes_, index = np.unique(y, return_inverse=True)
        X = np.asarray(X, dtype=np.float32)
        batch = min(self.batch_size, len(X))
        steps = max(MIN_STEPS, self.epochs * (len(X) // batch))
        model = self._model(X.shape[1], len(self.classes_), steps)
        weights = self._sample_weights(index)
        for rows in self._rows(len(X), batch, steps):
            model.train_on_batch(X[rows], index[rows], sample_weight=weights[rows])
        values = model.get_weights()
        self.kernels_, self.biases_ = tuple(values[0::2]), tuple(values[1::2])
        return self

    def decision_function(self, X: Floats) -> Floats:
        """Return (N, K) logits."""
        return DenseHead(self.kernels_, self.biases_, tap="").logits(np.asarray(X))

    def predict_proba(self, X: Floats) -> Floats:
        """Return (N, K) probabilities."""
        return softmax(self.decision_function(X))

    def predict(self, X: Floats) -> Classes:
        """Return (N,) labels."""
        return np.asarray(self.classes_[self.decision_function(X).argmax(axis=1)])

    def _model(self, num_features: int, num_classes: int, steps: int) -> Any:
        start_keras()
        import keras

        def dense(units: int, activation: str | None, seed: int) -> Any:
            start = keras.initializers.GlorotUniform(seed=seed)
            return keras.layers.Dense(units, activation=activation, kernel_initializer=start)

        hidden = [dense(self.hidden, "relu", 2 * self.seed + 1)] if self.hidden else []
        model = keras.Sequential([keras.Input((num_features,)), *hidden, dense(num_classes, None, 2 * self.seed)])
        rate = keras.optimizers.schedules.CosineDecay(self.learning_rate, steps)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=self.weight_decay)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    def _rows(self, num_rows: int, batch: int, steps: int) -> Any:
        """Yield the rows of each mini-batch; every epoch is a new permutation, its incomplete batch left out."""
        rng = np.random.default_rng(self.seed)
        per_epoch = max(1, num_rows // batch)
        for step in range(steps):
            if step % per_epoch == 0:
                order = rng.permutation(num_rows)
            at = step % per_epoch * batch
            yield order[at : at + batch]

    def _sample_weights(self, index: Classes) -> Floats:
        if self.class_weight is None:
            return np.ones(len(index), dtype=np.float32)
        counts = np.bincount(index)
        return (len(index) / (len(counts) * counts))[index].astype(np.float32)
