"""Choose the images that check an export: the validation images of its run, or the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featcache.arrays import Classes, Floats, Pixels
from featcache.errors import DataError, UsageError
from featcache.extras.export.origin import Origin
from featcache.images.manifest import Images
from featcache.images.sources import Source
from featcache.models.certificate import load_pixels
from featcache.spec import ImageRow, Preprocess
from featcache.tuning.data import ImageSet, in_order

NUM_CALIBRATION = 128
BATCH = 32
NO_LABEL = -1
Runner = Callable[[Pixels], Floats]  # (n, height, width, 3) uint8 -> (n, K) probabilities


@dataclass(frozen=True)
class Sample:
    """Images and their classes as far as known, sorted by digest so that the first ones are a fair choice."""

    name: str  # "the validation images of photos.run"
    source: Source
    rows: Sequence[ImageRow]
    labels: Classes  # (N,), NO_LABEL for an unknown class
    calibration: Sequence[ImageRow]  # quantisation takes the ranges of activations from these
    is_unseen: bool = True  # the model was not fitted on these images

    def labelled(self) -> Sample:
        """Return the images whose class is known.

        Raises UsageError if there are none, or if the head was fitted on them.
        """
        if not self.is_unseen:
            raise UsageError(f"The head was fitted on {self.name} too, so they cannot test it. Give others: `images`")
        known = np.flatnonzero(self.labels != NO_LABEL).tolist()
        if not known:
            raise UsageError(f"None of {self.name} is in a folder named after a class, so the file cannot be scored")
        rows = [self.rows[number] for number in known]
        return replace(self, rows=rows, labels=self.labels[known])

    def first(self, count: int, preprocess: Preprocess) -> Pixels:
        """Return (count, size, size, 3) pixels of the first images, or of all if there are fewer."""
        return load_pixels(self.source, self.rows[:count], preprocess)

    def probabilities(self, runners: Sequence[Runner], preprocess: Preprocess) -> list[Floats]:
        """Return (N, K) probabilities from each runner. Every image is decoded once."""
        images = ImageSet(self.source, self.rows, self.labels, preprocess)
        batches_of_runner: list[list[Floats]] = [[] for _ in runners]
        for pixels, _ in images.batches(in_order(images), BATCH):
            for runner, batches in zip(runners, batches_of_runner, strict=True):
                batches.append(runner(pixels))
        return [np.concatenate(batches) for batches in batches_of_runner]


def sample_of(origin: Origin, images: Images | None = None) -> Sample:
    """Return the images to check a model with: the validation images of its run.

    images: other images to take instead.
    Raises UsageError (which says what to give) if there are none, ImagesChanged.
    """
    if images is not None:
        return _sample(origin, f"the images of {images.read_from}", images.source, images.rows)
    probe = origin.probe
    if probe is None:
        raise UsageError(
            f"There are no images to check {origin.name} with. Its run '{origin.facts.get('run')}' is not beside it. "
            "Give `run=RUN`, or `images=FOLDER`"
        )
    run = probe.chosen.run.path
    rows = probe.rows("val")
    if not rows:
        raise DataError(f"{run} has no validation images to check {origin.name} with. Give `images=FOLDER`")
    sample = _sample(origin, f"the validation images of {run}", probe.source, rows)
    # Calibrate on other images than those that test the file. A refit head has seen the validation images too.
    train = _by_digest(probe.rows("train"))[:NUM_CALIBRATION]
    return replace(sample, calibration=train, is_unseen=not probe.chosen.refit)


def _sample(origin: Origin, name: str, source: Source, rows: Sequence[ImageRow]) -> Sample:
    rows = _by_digest(rows)
    class_index = {class_name: index for index, class_name in enumerate(origin.classes)}
    indices = [class_index.get(row.label, NO_LABEL) for row in rows]
    labels = np.array(indices, np.int64)
    return Sample(name, source, rows, labels, rows[:NUM_CALIBRATION])


def _by_digest(rows: Sequence[ImageRow]) -> list[ImageRow]:
    return sorted(rows, key=lambda row: (row.digest, row.path))
