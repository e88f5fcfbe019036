"""What a model trains on, batch by batch: images, or what the frozen part of the model makes of them.

Images are decoded once and kept while they fit, decoded again for every epoch if not. Which view of an image an epoch
sees is drawn from seed and epoch alone, so that training goes on after a stop as if there had been none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from featcache.arrays import Classes, Pixels
from featcache.errors import DataError
from featcache.extraction.pipeline import num_threads
from featcache.images.augment import augmented
from featcache.images.sources import Source
from featcache.models import Probe
from featcache.models.certificate import load_pixels
from featcache.spec import ImageRow, Preprocess
from featcache.tuning.recipe import NO_AUGMENTATION, Recipe

KEEP_BYTES = 512 * 2**20
LARGEST_VIEW = 10**9 - 1


class Labelled(Protocol):
    """Labelled images of one split, in some form that a model takes."""

    labels: Classes  # (N,)

    def __len__(self) -> int: ...

    def batches(self, order: Classes, size: int, epoch: int = 0) -> Iterator[tuple[Any, Classes]]:
        """Yield what the model takes, and (n,) labels, in this order. epoch: 0 for images as they are."""
        ...


@dataclass
class ImageSet:
    """Images as pixels: (n, size, size, 3) uint8."""

    source: Source
    rows: Sequence[ImageRow]
    labels: Classes
    preprocess: Preprocess
    augment: str = NO_AUGMENTATION
    views: int | None = None
    seed: int = 0
    _kept: Pixels | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, order: Classes, size: int, epoch: int = 0) -> Iterator[tuple[Pixels, Classes]]:
        """Yield pixels and labels; threads decode and augment one batch ahead."""
        chunks = [order[at : at + size] for at in range(0, len(order), size)]
        numbers = view_numbers(len(self), self.views, self.seed, epoch)
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(num_threads()) as threads:
            self._keep(threads)
            coming = ahead.submit(self._pixels, chunks[0], numbers, threads)
            for number, chunk in enumerate(chunks):
                pixels = coming.result()
                if number + 1 < len(chunks):
                    coming = ahead.submit(self._pixels, chunks[number + 1], numbers, threads)
                yield pixels, self.labels[chunk]

    def first(self, count: int, view: int) -> Pixels:
        """Return a view of the first images, 0 for these as they are."""
        at = np.arange(min(count, len(self)))
        with ThreadPoolExecutor(num_threads()) as threads:
            return self._pixels(at, np.full(len(self), view), threads)

    def _keep(self, threads: Executor) -> None:
        needed = len(self.rows) * self.preprocess.size**2 * 3
        if self._kept is None and needed <= KEEP_BYTES:
            self._kept = load_pixels(self.source, self.rows, self.preprocess, threads)

    def _pixels(self, at: Classes, numbers: Classes, threads: Executor) -> Pixels:
        if self._kept is not None:
            pixels = self._kept[at]
        else:
            pixels = load_pixels(self.source, [self.rows[number] for number in at], self.preprocess, threads)
        if self.augment == NO_AUGMENTATION or not numbers.any():
            return pixels
        views = [f"{self.augment}-{numbers[number]}" for number in at]
        return np.stack([*threads.map(augmented, pixels, views, [self.rows[number].digest for number in at])])


@dataclass
class ActivationSet:
    """What enters the part of a model that trains: for each view the arrays (N, ...) of its inputs."""

    views: Sequence[Sequence[Any]]  # the first is of the images as they are, if the set is not augmented
    labels: Classes
    seed: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Classes, size: int, epoch: int = 0) -> Iterator[tuple[list[Any], Classes]]:
        """Yield the arrays of a batch and its labels."""
        numbers = view_numbers(len(self), len(self.views), self.seed, epoch if len(self.views) > 1 else 0)
        for at in range(0, len(order), size):
            chunk = order[at : at + size]
            yield (
                [self._rows(number, chunk, numbers[chunk]) for number in range(len(self.views[0]))],
                self.labels[chunk],
            )

    def _rows(self, number: int, chunk: Classes, view_of: Classes) -> Any:
        found = np.array(self.views[0][number][chunk])
        for view in np.unique(view_of[view_of > 1]):
            of_view = view_of == view
            found[of_view] = self.views[view - 1][number][chunk[of_view]]
        return found


def view_numbers(count: int, views: int | None, seed: int, epoch: int) -> Classes:
    """Return which view of each image (N,) an epoch sees, from 1; 0 stands for the image as it is, in epoch 0.

    views: how many there are; None: a new one in every epoch.
    """
    if epoch == 0:
        return np.zeros(count, dtype=np.int64)
    if views is None:
        drawn = hashlib.sha256(f"{seed}:{epoch}".encode()).digest()
        return np.full(count, 1 + int.from_bytes(drawn[:8], "big") % (LARGEST_VIEW - 1))
    return np.random.default_rng((seed, epoch)).integers(1, views + 1, count)


def in_order(images: Labelled) -> Classes:
    """Return 0..N-1."""
    return np.arange(len(images))


def image_sets(probe: Probe, recipe: Recipe) -> tuple[ImageSet, ImageSet]:
    """Return the training images, augmented as the recipe says, and the validation images.

    Raises DataError if there are no validation images.
    """
    train, val = probe.rows("train"), probe.rows("val")
    if not val:
        raise DataError(
            f"{probe.cache.path} has no validation images, so nothing can tell whether fine-tuning helps. Split again"
        )
    train_set = ImageSet(
        probe.source,
        train,
        probe.labels(train),
        probe.preprocess,
        augment=recipe.augment,
        views=recipe.views,
        seed=recipe.seed,
    )
    return train_set, ImageSet(probe.source, val, probe.labels(val), probe.preprocess)
