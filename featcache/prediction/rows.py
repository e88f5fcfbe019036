"""One row per image, as they come: memory does not depend on how many there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Floats, Pixels
from featcache.errors import UsageError
from featcache.extraction.pipeline import Decoded, decoded_batches
from featcache.images.manifest import Images
from featcache.images.views import parse_views
from featcache.models.reference import Threshold
from featcache.prediction.models import Classifier, open_classifier
from featcache.prediction.places import Gathered, Place, ToPredict, gather
from featcache.spec import IDENTITY, Failure, Preprocess, Progress, Tick, silent
from featcache.sweeps.metrics import Score, wilson

BATCH = 32
UNKNOWN = "unknown"
KEPT_FAILURES = 1000


@dataclass(frozen=True)
class Prediction:
    """One image: its classes from most to least probable, or why there are none."""

    path: str
    top: tuple[tuple[str, float], ...]  # (class name, probability)
    true: str = ""  # the class that its folder names, if the model knows one of that name
    status: str = "ok"
    reason: str = ""
    strangeness: float | None = None  # where images may be rejected: 0 is usual
    unknown: bool = False  # stranger than the threshold

    @property
    def predicted(self) -> str:
        """Return the most probable class, "unknown" of a rejected image, "" of an unreadable one."""
        return UNKNOWN if self.unknown else self.top[0][0] if self.top else ""


@dataclass
class Tally:
    """What was counted while predictions went by."""

    rows: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    failures: list[Prediction] = field(default_factory=list)  # the first of them
    unknown: int = 0
    known_unknown: int = 0  # rejected, though the folder names a class of the model
    answered: int = 0  # readable, not rejected, of a known class
    right: int = 0
    others: Mapping[str, int] = field(default_factory=dict)  # files that were not looked at, by suffix
    notes: tuple[str, ...] = ()
    threshold: Threshold | None = None

    def add(self, one: Prediction) -> None:
        """Count a prediction."""
        self.rows += 1
        self.by_status[one.status] += 1
        self.unknown += one.unknown
        if one.status != "ok" and len(self.failures) < KEPT_FAILURES:
            self.failures.append(one)
        if one.top and one.true:
            self.known_unknown += one.unknown
            self.answered += not one.unknown
            self.right += one.predicted == one.true

    @property
    def failed(self) -> int:
        """Return how many images could not be read."""
        return self.rows - self.by_status["ok"]

    @property
    def accuracy(self) -> Score | None:
        """Return the accuracy on the images whose folders name their class, or None if there are none."""
        return wilson(self.right, self.answered) if self.answered else None


def predict(
    model: str | Path,
    images: ToPredict,
    *,
    top: int = 1,
    reject: float | None = None,
    views: str = "1",
    imagenet: bool = False,
    progress: Progress = silent,
) -> Iterator[Prediction]:
    """Yield a prediction for every image, in the order of their paths.

    images: a folder, one image, an archive, a manifest, stored arrays, a pattern, a scan of any of them, or several of
    these one after the other; an iterator of paths is a list of files. Also an array (H, W, 3) or (N, H, W, 3), an
    image of Pillow, or a list of these: then a path is the number of its image. Memory does not depend on the number of
    images, but for the names of what lies in folders.
    model: a MODEL.keras of featcache or another Keras model; with imagenet=True a name such as "mobilenet_v2".
    top: how many classes, at most all. reject: call those images unknown that are stranger than all but this share
    of the known images that set the threshold. views: "flip", or a number: the mean over so many views of each image.
    Raises NotAModel, NoImages, UsageError.
    """
    classifier = open_classifier(model, reject=reject is not None, imagenet=imagenet)
    yield from Rows(classifier, top, reject, views).of(gather(images), progress)


def predictions(
    network: Any,
    classes: list[str],
    preprocess: Preprocess,
    images: Images | Place | Sequence[Place],
    *,
    top: int = 1,
    progress: Progress = silent,
) -> Iterator[Prediction]:
    """Yield a prediction for every image by a network from (N, size, size, 3) uint8 to (N, K) probabilities."""
    yield from Rows(Classifier(network, classes, preprocess), top).of(gather(images), progress)


class Rows:
    """A classifier, and how it is asked."""

    def __init__(self, classifier: Classifier, top: int = 1, reject: float | None = None, views: str = "1") -> None:
        if top < 1:
            raise UsageError(f"`top` takes a number of classes from 1; got {top}")
        self.classifier, self.top = classifier, top
        self.views = parse_views(views)
        if self.views[0] != IDENTITY:
            raise UsageError(
                f"`views` takes flip, or a number of views, of which the whole image is one; got '{views}'"
            )
        self.known = {*classifier.classes}
        reference = classifier.reference
        self.threshold = None if reference is None or reject is None else reference.threshold(reject)
        self.kinds: Counter[str] = Counter()  # of the images so far

    def of(self, found: Gathered, progress: Progress) -> Iterator[Prediction]:
        """Yield a prediction for each of these images."""
        done, total = 0, -1 if found.total is None else found.total
        progress(Tick("predict", done, total))
        for batch in decoded_batches(found.source, found.rows, self.classifier.preprocess, BATCH, self.views):
            shown = [(one.pixels, *one.others) for one in batch if not isinstance(one.pixels, Failure)]
            judged = iter(self._judged(shown))
            for one in batch:
                self.kinds.update(one.kinds)
                true = one.row.label if one.row.label in self.known else ""
                if isinstance(one.pixels, Failure):
                    yield Prediction(one.row.path, (), true, one.pixels.status, one.pixels.reason)
                else:
                    yield self._prediction(one, true, *next(judged))
            done += len(batch)
            progress(Tick("predict", done, total))

    def _prediction(self, one: Decoded, true: str, shares: Floats, strangeness: float | None) -> Prediction:
        if not np.isfinite(shares).all():
            return Prediction(one.row.path, (), true, "nonfinite", "the model gives probabilities that are no numbers")
        best = np.argsort(-shares, kind="stable")[: self.top]
        top = tuple((self.classifier.classes[at], float(shares[at])) for at in best)
        unknown = self.threshold is not None and strangeness is not None and not strangeness <= self.threshold.value
        return Prediction(one.row.path, top, true, strangeness=strangeness, unknown=unknown)

    def _judged(self, shown: list[tuple[Pixels, ...]]) -> Iterator[tuple[Floats, float | None]]:
        """Yield the probabilities (K,) of each image, the mean over its views, and how strange the whole image is."""
        if not shown:
            return
        total, strangeness = None, None
        for view in range(len(self.views)):
            outputs = self._outputs([views[view] for views in shown])
            if view == 0 and self.threshold is not None and self.classifier.reference is not None:
                strangeness = self.classifier.reference.strangeness(*outputs[:2])
            total = outputs[-1] if total is None else total + outputs[-1]
        assert total is not None
        shares = total / len(self.views) if len(self.views) > 1 else total
        for at, of_image in enumerate(shares):
            yield of_image, None if strangeness is None else float(strangeness[at])

    def _outputs(self, pixels: list[Pixels]) -> list[Floats]:
        """Return what the network gives, (n, ...) each; the batch is filled up so that one shape is compiled."""
        filled = np.stack(pixels + [np.zeros_like(pixels[0])] * (BATCH - len(pixels)))
        outputs = self.classifier.network.predict_on_batch(filled)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return [np.asarray(one)[: len(pixels)] for one in outputs]
