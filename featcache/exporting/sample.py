"""The images that an export is checked with: the validation images of its run, or a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featcache.arrays import Classes, Floats, Pixels
from featcache.assembly import image_source
from featcache.assembly.certificate import load_pixels
from featcache.errors import DataError, UsageError
from featcache.exporting.origin import Origin
from featcache.images.manifest import scan
from featcache.images.sources import Source
from featcache.spec import ImageRow, Preprocess
from featcache.tuning.data import ImageSet, in_order

NUM_CALIBRATION = 128
BATCH = 32
NO_LABEL = -1
Runner = Callable[[Pixels], Floats]  # (n, height, width, 3) uint8 -> (n, K) probabilities


@dataclass(frozen=True)
class Sample:
    """Images with the classes that are known of them, in the order of their content."""

    name: str  # "the validation images of photos.run"
    source: Source
    rows: Sequence[ImageRow]
    labels: Classes  # (N,), NO_LABEL where none is known
    calibration: Sequence[ImageRow]  # what activations look like, for quantisation
    judges: bool = True  # the model was not fitted on these

    def labelled(self) -> Sample:
        """Return the images whose class is known. Raises UsageError if there are none, or if they cannot judge."""
        known = [at for at, label in enumerate(self.labels) if label != NO_LABEL]
        if not self.judges:
            raise UsageError(f"The head was fitted on {self.name} too, so they cannot judge it. Give others: --images")
        if not known:
            raise UsageError(f"None of {self.name} lies in a folder that is called like a class, so nothing is judged")
        return replace(self, rows=[self.rows[at] for at in known], labels=self.labels[known])

    def first(self, count: int, preprocess: Preprocess) -> Pixels:
        """Return the pixels of the first images, made ready in this way."""
        return load_pixels(self.source, self.rows[:count], preprocess)

    def probabilities(self, runners: Sequence[Runner], preprocess: Preprocess) -> list[Floats]:
        """Return (N, K) of every runner; images are decoded once for all."""
        images = ImageSet(self.source, self.rows, self.labels, preprocess)
        found: list[list[Floats]] = [[] for _ in runners]
        for pixels, _ in images.batches(in_order(images), BATCH):
            for runner, parts in zip(runners, found, strict=True):
                parts.append(runner(pixels))
        return [np.concatenate(parts) for parts in found]


def sample_of(origin: Origin, images: str | Path | None = None) -> Sample:
    """Return the images to check a model with. images: a folder (or archive ...) instead of those of the run.

    Raises UsageError saying what to give if there are none, NoImages, ImagesChanged.
    """
    if images is not None:
        found = scan(images)
        return _sample(origin, f"the images of {images}", found.source, [*found.rows])
    chosen = origin.chosen
    if chosen is None:
        raise UsageError(
            f"Which images to check {origin.name} with? Its run '{origin.facts.get('run')}' is not beside it. "
            "Give --run RUN, or --images FOLDER"
        )
    cache = chosen.run.cache()
    rows = chosen.run.rows(cache, "val")
    if not rows:
        raise DataError(f"{chosen.run.path} has no validation images to check {origin.name} with. Give --images FOLDER")
    of_run = _sample(origin, f"the validation images of {chosen.run.path}", image_source(chosen, None), rows)
    train = _by_content(chosen.run.rows(cache, "train"))[:NUM_CALIBRATION]
    return replace(of_run, calibration=train, judges=not chosen.refit)


def _sample(origin: Origin, name: str, source: Source, rows: Sequence[ImageRow]) -> Sample:
    rows = _by_content(rows)
    index = {label: at for at, label in enumerate(origin.classes)}
    labels = np.array([index.get(row.label, NO_LABEL) for row in rows], np.int64)
    return Sample(name, source, rows, labels, rows[:NUM_CALIBRATION])


def _by_content(rows: Sequence[ImageRow]) -> list[ImageRow]:
    return sorted(rows, key=lambda row: (row.digest, row.path))
