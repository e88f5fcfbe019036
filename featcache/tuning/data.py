"""What a model trains on, batch by batch: images, or what the frozen part of the model makes of them.

Images are decoded once and kept if they fit in memory, else decoded again for every epoch. The view of an image that
an epoch sees depends on seed and epoch alone, so that a resumed training sees what an undisturbed one would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
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
from featcache.tuning.training_recipe import AUGMENTED_VIEW, NO_AUGMENTATION, Recipe

KEEP_BYTES = 512 * 2**20
LARGEST_VIEW = 10**9 - 1


class LabelledSet(Protocol):
    """Labelled images of one split, in some form that a model takes."""

    labels: Classes  # (N,)

    def __len__(self) -> int: ...

    def batches(self, order: Classes, size: int, epoch: int = 0) -> Iterator[tuple[Any, Classes]]:
        """Yield what the model takes, and (n,) labels, in this order. epoch: 0 for the views that judge."""
        ...

    def as_they_are(self) -> LabelledSet:
        """Return the same images, without the augmentation by which they judge, if any."""
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
    judging_view: int = 0  # the number of the view that epoch 0 sees; 0 is the unchanged image
    _kept: Pixels | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, order: Classes, size: int, epoch: int = 0) -> Iterator[tuple[Pixels, Classes]]:
        """Yield pixels and labels; threads decode and augment one batch ahead."""
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        view_of_image = np.full(len(self), self.judging_view)
        if epoch:
            view_of_image = view_numbers(len(self), self.views, self.seed, epoch)
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(num_threads()) as threads:
            self._keep(threads)
            next_pixels = ahead.submit(self._pixels, batches[0], view_of_image, threads)
            for number, batch in enumerate(batches):
                pixels = next_pixels.result()
                # Submitted before the yield: it is decoded while the model trains on this batch.
                if number + 1 < len(batches):
                    next_pixels = ahead.submit(self._pixels, batches[number + 1], view_of_image, threads)
                yield pixels, self.labels[batch]

    def as_they_are(self) -> ImageSet:
        """Return the same images, without the augmentation by which they judge, if any."""
        return replace(self, judging_view=0)

    def first(self, count: int, view: int) -> Pixels:
        """Return a view of the first images; view 0 is the unchanged image."""
        first = np.arange(min(count, len(self)))
        with ThreadPoolExecutor(num_threads()) as threads:
            return self._pixels(first, np.full(len(self), view), threads)

    def _keep(self, threads: Executor) -> None:
        needed = len(self.rows) * self.preprocess.size**2 * 3
        if self._kept is None and needed <= KEEP_BYTES:
            self._kept = load_pixels(self.source, self.rows, self.preprocess, threads)

    def _pixels(self, batch: Classes, view_of_image: Classes, threads: Executor) -> Pixels:
        rows = [self.rows[number] for number in batch]
        if self._kept is not None:
            pixels = self._kept[batch]
        else:
            pixels = load_pixels(self.source, rows, self.preprocess, threads)
        if self.augment == NO_AUGMENTATION or not view_of_image.any():
            return pixels
        views = [f"{self.augment}-{view_of_image[number]}" for number in batch]
        digests = [row.digest for row in rows]
        return np.stack([*threads.map(augmented, pixels, views, digests)])


@dataclass
class ActivationSet:
    """What enters the part of a model that trains: for each view the arrays (N, ...) of its inputs."""

    views: Sequence[Sequence[Any]]  # without augmentation one, of the unchanged images
    labels: Classes
    seed: int = 0
    unchanged: Sequence[Any] | None = None  # validation images as they are, whatever view of them judges

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Classes, size: int, epoch: int = 0) -> Iterator[tuple[list[Any], Classes]]:
        """Yield the arrays of a batch and its labels."""
        view_of_image = view_numbers(len(self), len(self.views), self.seed, epoch if len(self.views) > 1 else 0)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            arrays = [self._rows(number, batch, view_of_image[batch]) for number in range(len(self.views[0]))]
            yield arrays, self.labels[batch]

    def as_they_are(self) -> ActivationSet:
        """Return the same images, without the augmentation by which they judge, if any."""
        return self if self.unchanged is None else replace(self, views=[self.unchanged])

    def _rows(self, number: int, batch: Classes, view_of_row: Classes) -> Any:
        """Return the rows of one input of the model, each from the array of its view."""
        rows = np.array(self.views[0][number][batch])  # views 0 and 1 are both the first array
        for view in np.unique(view_of_row[view_of_row > 1]):
            mask = view_of_row == view
            rows[mask] = self.views[view - 1][number][batch[mask]]
        return rows


def view_numbers(count: int, views: int | None, seed: int, epoch: int) -> Classes:
    """Return which view of each image (N,) an epoch sees, from 1; in epoch 0 it is 0, the unchanged image.

    views: how many there are; None: every epoch sees a new one.
    """
    if epoch == 0:
        return np.zeros(count, dtype=np.int64)
    if views is None:
        # A hash of both: with their sum, seed 1 would see the views of seed 0 one epoch earlier.
        digest = hashlib.sha256(f"{seed}:{epoch}".encode()).digest()
        return np.full(count, 1 + int.from_bytes(digest[:8], "big") % (LARGEST_VIEW - 1))
    return np.random.default_rng((seed, epoch)).integers(1, views + 1, count)


def in_order(images: LabelledSet) -> Classes:
    """Return 0..N-1."""
    return np.arange(len(images))


def image_sets(probe: Probe, recipe: Recipe) -> tuple[ImageSet, ImageSet]:
    """Return the training images and the validation images, each augmented as the recipe says.

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
    val_set = ImageSet(probe.source, val, probe.labels(val), probe.preprocess)
    if recipe.augment_val:
        val_set = replace(val_set, augment=recipe.augment, judging_view=AUGMENTED_VIEW)
    return train_set, val_set
