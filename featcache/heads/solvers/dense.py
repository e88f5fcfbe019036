"""Train dense softmax heads of one shape together: each becomes what it would become alone.

Each head has its own learning rate, weight decay, dropout, label smoothing and seed, and may stop early by itself.
Initial weights, the order of mini-batches, dropout and the images held out depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.heads.solvers.dense_steps import Data, DenseRecipe, Knobs, NumpyEngine

MIN_STEPS = 300  # with a handful of images an epoch is one step, and 40 steps train nothing
# Streams of random numbers of a seed, by what they are for. The seed itself orders the mini-batches.
START, DROPOUT, HELD_OUT = 1, 2, 3


@dataclass(frozen=True)
class TrainedHead:
    """One trained head: kernels (D, U), (U, K) and biases (U,), (K,), as they were after `epochs` epochs."""

    kernels: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    epochs: int


def mini_batches(seed: int, num_rows: int, batch: int, steps: int) -> Iterator[Classes]:
    """Yield the rows of each mini-batch. Every epoch is a new permutation, whose incomplete last batch is left out."""
    rng = np.random.default_rng(seed)
    per_epoch = max(1, num_rows // batch)
    for step in range(steps):
        step_of_epoch = step % per_epoch
        if step_of_epoch == 0:
            order = rng.permutation(num_rows)
        start = step_of_epoch * batch
        yield order[start : start + batch]


def initial_kernels(seed: int, sizes: Sequence[int]) -> list[Features]:
    """Return Glorot's uniform kernels for layers of these sizes, from the features to the classes.

    Limit sqrt(6 / (fan_in + fan_out)): Glorot and Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html.
    """
    rng = np.random.default_rng((seed, START))
    kernels = []
    for shape in pairwise(sizes):
        limit = (6 / sum(shape)) ** 0.5
        kernels.append(rng.uniform(-limit, limit, shape).astype(np.float32))
    return kernels


def held_out(seed: int, index: Classes) -> Classes:
    """Return the rows of a tenth of each class, for index (N,): at least one row of a class with two, never all."""
    rng = np.random.default_rng((seed, HELD_OUT))
    rows = []
    for number in range(index.max() + 1):
        members = np.flatnonzero(index == number)
        count = 0
        if len(members) > 1:
            count = max(1, round(len(members) / 10))
        rows.append(rng.permutation(members)[:count])
    return np.sort(np.concatenate(rows))


def train(
    engine: type[NumpyEngine], recipe: DenseRecipe, knobs: Knobs, seeds: Sequence[int], data: Data
) -> list[TrainedHead]:
    """Train heads in g streams of n each, and return them stream after stream.

    knobs: (g, n) each. seeds: one for each stream. The linear heads of a stream share its dropout rate, because
    dropout applies to their shared input.
    """
    course = _make_course(recipe, knobs, seeds, data)
    heads = engine(recipe, data, _first_params(recipe, knobs, seeds, data), knobs)
    progress = _Progress(heads, course, knobs.dropout.shape)
    epoch = 0
    while epoch < course.epochs and progress.training.any():
        epoch += 1
        for count in course.counts(epoch):
            heads.step(course.rows(), course.noise(), course.fraction(count), count)
        if recipe.patience is not None:
            progress.check_patience(recipe.patience, epoch)
    if recipe.patience is None:
        progress.record(progress.training, epoch)
    return [progress.trained[slot] for slot in range(knobs.dropout.size)]


@dataclass(frozen=True)
class _Stream:
    """The mini-batches of one seed."""

    train_rows: Classes  # (N,)
    stop_rows: Classes  # (M,), held out to decide when to stop
    batches: Iterator[Classes]  # positions in train_rows
    dropout_rng: np.random.Generator


@dataclass
class _Course:
    """What the heads see, step by step. `streams` shrinks when all heads of a stream have stopped."""

    streams: list[_Stream]
    schedule: str
    per_epoch: int
    steps: int
    noise_shape: tuple[int, ...] | None  # of each stream; None without dropout

    @property
    def epochs(self) -> int:
        """Return the number of epochs; the last may have fewer steps."""
        return -(-self.steps // self.per_epoch)

    def counts(self, epoch: int) -> range:
        """Return the numbers of the steps of an epoch; steps and epochs count from 1."""
        return range((epoch - 1) * self.per_epoch + 1, min(epoch * self.per_epoch, self.steps) + 1)

    def fraction(self, count: int) -> float:
        """Return the fraction of the learning rate in step `count`: along a cosine from 1 towards 0, or 1."""
        if self.schedule == "constant":
            return 1.0
        return float(1 + np.cos(np.pi * (count - 1) / self.steps)) / 2

    def rows(self) -> Classes:
        """Return the rows (g, B) of the next step."""
        return np.stack([stream.train_rows[next(stream.batches)] for stream in self.streams])

    def noise(self) -> Floats | None:
        """Return the random numbers in [0, 1) of the next step's dropout; None without dropout."""
        if self.noise_shape is None:
            return None
        return np.stack([stream.dropout_rng.random(self.noise_shape, dtype=np.float32) for stream in self.streams])


def _make_course(recipe: DenseRecipe, knobs: Knobs, seeds: Sequence[int], data: Data) -> _Course:
    index = data.targets.argmax(axis=1)
    stop_rows = [index[:0] for _ in seeds]
    if recipe.patience is not None:
        stop_rows = [held_out(seed, index) for seed in seeds]
    num_rows = len(index) - len(stop_rows[0])  # every seed holds out the same number of each class
    batch = min(recipe.batch_size, num_rows)
    per_epoch = recipe.steps_per_epoch or num_rows // batch
    steps = recipe.epochs * per_epoch
    if recipe.steps_per_epoch is None:
        steps = max(MIN_STEPS, steps)

    # Each seed has generators for each purpose, so that what a head draws does not depend on its neighbours.
    streams = []
    for seed, rows in zip(seeds, stop_rows, strict=True):
        order = mini_batches(seed, num_rows, batch, steps)
        train_rows = np.setdiff1d(np.arange(len(index)), rows)
        dropout_rng = np.random.default_rng((seed, DROPOUT))
        streams.append(_Stream(train_rows, rows, order, dropout_rng))

    # Dropout applies to the input of the last layer: the features of a linear head, else the last hidden units.
    noise_shape: tuple[int, ...] | None = None
    if knobs.dropout.any():
        noise_shape = (1, batch, recipe.widths[-1]) if recipe.widths else (batch, data.X.shape[1])
    return _Course(streams, recipe.schedule, per_epoch, steps, noise_shape)


def _first_params(recipe: DenseRecipe, knobs: Knobs, seeds: Sequence[int], data: Data) -> list[Floats]:
    """Return the initial parameters in the shapes of a `HeadTrainingState`; the n heads of a stream start equal."""
    sizes = [data.X.shape[1], *recipe.widths, data.targets.shape[1]]
    num_heads = knobs.dropout.shape[1]
    params: list[Floats] = []
    kernels_by_seed = [initial_kernels(seed, sizes) for seed in seeds]
    for kernels_of_layer in zip(*kernels_by_seed, strict=True):
        by_stream = np.stack(kernels_of_layer)
        is_first_layer = not params
        if is_first_layer:
            kernel = np.tile(by_stream, (1, 1, num_heads))  # (g, D, n U)
        else:
            kernel = np.repeat(by_stream[:, None], num_heads, axis=1)  # (g, n, U, V)
        params += [kernel, np.zeros_like(kernel[..., :1, :])]
    return params


class _Progress:
    """Which heads still train, and the parameters of each at its best. Arrays are (g, n) and shrink with the engine."""

    def __init__(self, heads: NumpyEngine, course: _Course, shape: tuple[int, int]) -> None:
        self.heads = heads
        self.course = course
        self.training = np.ones(shape, dtype=bool)
        self.slots = np.arange(self.training.size).reshape(shape)  # the position of each head in the result
        self.best_loss = np.full(shape, np.inf)
        self.epochs_without_gain = np.zeros(shape, dtype=np.int64)
        self.trained: dict[int, TrainedHead] = {}

    def record(self, mask: Any, epoch: int) -> None:
        """Record the current parameters of the heads in the mask (g, n)."""
        for stream, number in np.argwhere(mask):
            params = self.heads.head(stream, number)
            kernels = tuple(params[::2])
            biases = tuple(bias[0] for bias in params[1::2])
            slot = int(self.slots[stream, number])
            self.trained[slot] = TrainedHead(kernels, biases, epoch)

    def check_patience(self, patience: int, epoch: int) -> None:
        """Record the heads that are better than ever, and stop those that have not improved for `patience` epochs."""
        rows = np.stack([stream.stop_rows for stream in self.course.streams])
        loss = self.heads.log_loss(rows)
        # Every head is recorded once, even if its loss is never a number.
        better = self.training & ((loss < self.best_loss) | (epoch == 1))
        self.record(better, epoch)
        self.best_loss = np.where(better, loss, self.best_loss)
        self.epochs_without_gain = np.where(better, 0, self.epochs_without_gain + 1)
        self.training &= self.epochs_without_gain < patience
        # Fewer heads make a step cheaper, but removing them costs something: Keras compiles its step again.
        some_stopped = 0 < self.training.sum() < self.training.size
        if some_stopped and self.training.mean() <= self.heads.shrink_below:
            self._remove_stopped()

    def _remove_stopped(self) -> None:
        """Remove heads that have stopped. All streams keep as many heads as the one in which most still train."""
        streams = np.flatnonzero(self.training.any(axis=1))
        most = self.training.sum(axis=1).max()
        # A stable sort on "has stopped" puts the heads that train first, in their order.
        numbers = np.argsort(~self.training[streams], axis=1, kind="stable")[:, :most]
        self.heads.keep(streams, numbers)
        self.course.streams = [self.course.streams[at] for at in streams]
        kept = streams[:, None], numbers
        self.training = self.training[kept]
        self.slots = self.slots[kept]
        self.best_loss = self.best_loss[kept]
        self.epochs_without_gain = self.epochs_without_gain[kept]
