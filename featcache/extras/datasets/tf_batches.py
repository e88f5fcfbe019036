"""A tf.data.Dataset, as `fit` and `predict` of Keras take it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features
from featcache.backend import start_keras
from featcache.cache.labelled import LabelledRows


def tf_batches(rows: LabelledRows, batch_size: int, seed: int | None) -> Any:
    """Return a dataset of batches (B, D) float32 and (B,) int64, with `class_names` as Keras' own datasets have.

    seed: of the order, which is another one in every epoch; None keeps the order of the cache.
    """
    start_keras()  # first, because TensorFlow would greet with many lines
    import tensorflow as tf

    epochs = count()

    def read_epoch() -> Iterator[tuple[Features, Classes]]:
        numbers = np.arange(len(rows))
        if seed is not None:
            np.random.default_rng([seed, next(epochs)]).shuffle(numbers)
        for start in range(0, len(rows), batch_size):
            yield rows.read(numbers[start : start + batch_size])

    signature = (tf.TensorSpec((None, *rows.shape), tf.float32), tf.TensorSpec((None,), tf.int64))
    dataset = tf.data.Dataset.from_generator(read_epoch, output_signature=signature)
    num_batches = math.ceil(len(rows) / batch_size)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_batches)).prefetch(tf.data.AUTOTUNE)
    dataset.class_names = list(rows.class_names)
    return dataset
