"""Dense softmax heads of one shape, trained together: what each gives alone, in one pass over the features.

Each head has its own learning rate, weight decay, dropout, label smoothing and seed, and may stop early by itself.
Initial weights, the order of the mini-batches, dropout and the images held out come from the seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from featcache.arrays import Classes, Features, Floats
from featcache.heads.solvers.dense_steps import Data, Knobs, NumpyEngine, Recipe

MIN_STEPS = 300  # a handful of images makes one step an epoch, and 40 of those train nothing
START, DROPOUT, HELD = 1, 2, 3  # which random numbers of a seed; those of the seed itself order the mini-batches


@dataclass(frozen=True)
class Trained:
    """One head: kernels (D, U), (U, K) and biases (U,), (K,)."""

    kernels: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    epochs: int


def mini_batches(seed: int, num_rows: int, batch: int, steps: int) -> Iterator[Classes]:
    """Yield the rows of each mini-batch; every epoch is a new permutation, its incomplete batch left out."""
    rng = np.random.default_rng(seed)
    per_epoch = max(1, num_rows // batch)
    for step in range(steps):
        if step % per_epoch == 0:
            order = rng.permutation(num_rows)
        at = step % per_epoch * batch
        yield order[at : at + batch]


def initial_kernels(seed: int, sizes: Sequence[int]) -> list[Features]:
    """Return Glorot's uniform kernels for layers of these sizes, the features first and the classes last."""
    rng = np.random.default_rng((seed, START))
    limits = [((6 / sum(shape)) ** 0.5, shape) for shape in pairwise(sizes)]
    return [rng.uniform(-limit, limit, shape).astype(np.float32) for limit, shape in limits]


def held_out(seed: int, index: Classes) -> Classes:
    """Return the rows of a tenth of each class (N,), one at least where there are two, never all."""
    rng = np.random.default_rng((seed, HELD))
    found = []
    for members in (np.flatnonzero(index == number) for number in range(index.max() + 1)):
        count = max(1, round(len(members) / 10)) if len(members) > 1 else 0
        found.append(rng.permutation(members)[:count])
    return np.sort(np.concatenate(found))


def train(engine: type[NumpyEngine], recipe: Recipe, knobs: Knobs, seeds: Sequence[int], data: Data) -> list[Trained]:
    """Train heads in g streams of n each, and return them stream after stream.

    knobs: (g, n) each. seeds: of each stream. Linear heads of one stream have one dropout, since they share the input.
    """
    course = _course(recipe, knobs, seeds, data)
    heads = engine(recipe, data, _first_params(recipe, knobs, seeds, data), knobs)
    running = _Running(heads, course, knobs.dropout.shape)
    epoch = 0
    while epoch < course.epochs and running.training.any():
        epoch += 1
        for count in course.counts(epoch):
            heads.step(course.rows(), course.noise(), course.fraction(count), count)
        if recipe.patience is not None:
            running.judge(recipe.patience, epoch)
    if recipe.patience is None:
        running.note(running.training, epoch)
    return [running.found[slot] for slot in range(knobs.dropout.size)]


@dataclass(frozen=True)
class _Stream:
    """The mini-batches of one seed."""

    fitted: Classes  # (N,), the rows to train on
    held: Classes  # (M,), those that tell when to stop
    batches: Iterator[Classes]  # which of the fitted
    random: np.random.Generator  # of the dropout


@dataclass
class _Course:
    """What the heads see, step by step. `streams` shrinks where all heads of one have stopped."""

    streams: list[_Stream]
    schedule: str
    per_epoch: int
    steps: int
    noise_shape: tuple[int, ...] | None  # of each stream; None without dropout

    @property
    def epochs(self) -> int:
        """Return how many there are; the last may have fewer steps."""
        return -(-self.steps // self.per_epoch)

    def counts(self, epoch: int) -> range:
        """Return the steps of an epoch, both from 1."""
        return range((epoch - 1) * self.per_epoch + 1, min(epoch * self.per_epoch, self.steps) + 1)

    def fraction(self, count: int) -> float:
        """Return what part of the learning rate step `count` has."""
        return 1.0 if self.schedule == "constant" else float(1 + np.cos(np.pi * (count - 1) / self.steps)) / 2

    def rows(self) -> Classes:
        """Return the rows (g, B) of the next step."""
        return np.stack([stream.fitted[next(stream.batches)] for stream in self.streams])

    def noise(self) -> Floats | None:
        """Return the random numbers of its dropout, in [0, 1)."""
        if self.noise_shape is None:
            return None
        return np.stack([stream.random.random(self.noise_shape, dtype=np.float32) for stream in self.streams])


def _course(recipe: Recipe, knobs: Knobs, seeds: Sequence[int], data: Data) -> _Course:
    index = data.targets.argmax(axis=1)
    held = [held_out(seed, index) if recipe.patience is not None else index[:0] for seed in seeds]
    num_rows = len(index) - len(held[0])  # as many are held out of each class by any seed
    batch = min(recipe.batch_size, num_rows)
    per_epoch = recipe.steps_per_epoch or num_rows // batch
    steps = recipe.epochs * per_epoch
    if recipe.steps_per_epoch is None:
        steps = max(MIN_STEPS, steps)
    streams = []
    for seed, rows in zip(seeds, held, strict=True):
        order = mini_batches(seed, num_rows, batch, steps)
        fitted = np.setdiff1d(np.arange(len(index)), rows)
        streams.append(_Stream(fitted, rows, order, np.random.default_rng((seed, DROPOUT))))
    shape = (1, batch, recipe.widths[-1]) if recipe.widths else (batch, data.X.shape[1])
    return _Course(streams, recipe.schedule, per_epoch, steps, shape if knobs.dropout.any() else None)


def _first_params(recipe: Recipe, knobs: Knobs, seeds: Sequence[int], data: Data) -> list[Floats]:
    """Return the parameters to start from, n times those of each seed, in the shapes of a `State`."""
    sizes = [data.X.shape[1], *recipe.widths, data.targets.shape[1]]
    num_heads = knobs.dropout.shape[1]
    found: list[Floats] = []
    for kernels in zip(*(initial_kernels(seed, sizes) for seed in seeds), strict=True):
        one = np.stack(kernels)
        kernel = np.repeat(one[:, None], num_heads, axis=1) if found else np.tile(one, (1, 1, num_heads))
        found += [kernel, np.zeros_like(kernel[..., :1, :])]
    return found


class _Running:
    """What becomes of heads in training: which still train, and what each was at its best. (g, n) each."""

    def __init__(self, heads: NumpyEngine, course: _Course, shape: tuple[int, int]) -> None:
        self.heads, self.course = heads, course
        self.training = np.ones(shape, dtype=bool)
        self.slots = np.arange(self.training.size).reshape(shape)  # the place of each in the result
        self.best = np.full(shape, np.inf)  # log loss
        self.since = np.zeros(shape, dtype=np.int64)  # epochs without a better one
        self.found: dict[int, Trained] = {}

    def note(self, which: Any, epoch: int) -> None:
        """Keep the parameters that some heads (g, n) have after an epoch."""
        for stream, number in np.argwhere(which):
            params = self.heads.head(stream, number)
            biases = tuple(one[0] for one in params[1::2])
            self.found[int(self.slots[stream, number])] = Trained(tuple(params[::2]), biases, epoch)

    def judge(self, patience: int, epoch: int) -> None:
        """Keep the heads that are better than ever after an epoch, and let go of those that are not for too long."""
        rows = np.stack([stream.held for stream in self.course.streams])
        loss = self.heads.log_loss(rows)
        better = self.training & ((loss < self.best) | (epoch == 1))  # even if it is not a number
        self.note(better, epoch)
        self.best = np.where(better, loss, self.best)
        self.since = np.where(better, 0, self.since + 1)
        self.training &= self.since < patience
        if self.training.mean() <= self.heads.worth and 0 < self.training.sum() < self.training.size:
            self._leave()

    def _leave(self) -> None:
        """Take out the heads that have stopped, but for some where other streams have more that train."""
        streams = np.flatnonzero(self.training.any(axis=1))
        most = self.training.sum(axis=1).max()
        numbers = np.argsort(~self.training[streams], axis=1, kind="stable")[:, :most]
        self.heads.keep(streams, numbers)
        self.course.streams = [self.course.streams[at] for at in streams]
        at = streams[:, None], numbers
        self.training, self.slots, self.best, self.since = (
            one[at] for one in (self.training, self.slots, self.best, self.since)
        )
