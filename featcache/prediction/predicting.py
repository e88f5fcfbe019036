"""Images -> predictions, one row per image as it is read: memory does not depend on how many there are."""

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
from featcache.prediction.classifiers import Classifier, open_classifier
from featcache.prediction.model_networks import BATCH, KerasNetwork
from featcache.prediction.places import ImageList, Place, ToPredict, gather
from featcache.settings import EngineName
from featcache.spec import IDENTITY, Failure, Preprocess, Progress, Tick, silent
from featcache.sweeps.metrics import Score, wilson

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
        """Return the most probable class, "unknown" for a rejected image, "" for an unreadable one."""
        if self.unknown:
            return UNKNOWN
        return self.top[0][0] if self.top else ""


@dataclass
class Tally:
    """Counts of the predictions so far."""

    rows: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    failures: list[Prediction] = field(default_factory=list)  # at most the first KEPT_FAILURES
    unknown: int = 0
    known_unknown: int = 0  # rejected, though the folder names a class of the model
    answered: int = 0  # readable, not rejected, of a known class
    right: int = 0
    others: Mapping[str, int] = field(default_factory=dict)  # {suffix: files that were not read}
    notes: tuple[str, ...] = ()
    threshold: Threshold | None = None

    def add(self, prediction: Prediction) -> None:
        """Count a prediction."""
        self.rows += 1
        self.by_status[prediction.status] += 1
        self.unknown += prediction.unknown
        if prediction.status != "ok" and len(self.failures) < KEPT_FAILURES:
            self.failures.append(prediction)
        # An image that is called unknown has no answer, so it counts neither as right nor as wrong.
        if prediction.top and prediction.true:
            self.known_unknown += prediction.unknown
            self.answered += not prediction.unknown
            self.right += prediction.predicted == prediction.true

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
    engine: EngineName = "auto",
    progress: Progress = silent,
) -> Iterator[Prediction]:
    """Yield a prediction for every image, in the order of their paths.

    images: a folder, one image, an archive, a manifest, stored arrays, a pattern, a scan of any of them, or a list of
    these; an iterator of paths is a list of files. Also an array (H, W, 3) or (N, H, W, 3), an image of Pillow, or a
    list of these: then a path is the number of its image. Memory depends on the number of files in folders, but not on
    the number of images.
    model: a MODEL.keras of featcache or another Keras model; with imagenet=True a name such as "mobilenet_v2".
    top: the number of classes to report, at most all. reject: call an image unknown if it is stranger than all but this
    share of the known images that set the threshold. views: "flip", or a number of views of each image, whose
    probabilities are averaged. engine: keras, openvino, or "auto" (see `open_classifier`).
    Raises NotAModel, NoImages, UsageError.
    """
    classifier = open_classifier(model, reject=reject is not None, imagenet=imagenet, engine=engine)
    yield from Predictor(classifier, top, reject, views).of(gather(images), progress)


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
    yield from Predictor(Classifier(KerasNetwork(network), classes, preprocess), top).of(gather(images), progress)


class Predictor:
    """A classifier, with the options of a prediction."""

    def __init__(self, classifier: Classifier, top: int = 1, reject: float | None = None, views: str = "1") -> None:
        if top < 1:
            raise UsageError(f"`top` takes a number of classes from 1; got {top}")
        self.classifier = classifier
        self.top = top
        self.views = parse_views(views)
        if self.views[0] != IDENTITY:
            raise UsageError(
                f"`views` takes flip, or a number of views, of which the whole image is one; got '{views}'"
            )
        self.known = set(classifier.classes)
        self.threshold: Threshold | None = None
        if classifier.reference is not None and reject is not None:
            self.threshold = classifier.reference.threshold(reject)
        self.kinds: Counter[str] = Counter()  # of the images so far

    def of(self, images: ImageList, progress: Progress) -> Iterator[Prediction]:
        """Yield a prediction for each of these images."""
        done = 0
        total = -1 if images.total is None else images.total
        progress(Tick("predict", done, total))
        for batch in decoded_batches(images.source, images.rows, self.classifier.preprocess, BATCH, self.views):
            views_of_readable: list[tuple[Pixels, ...]] = []
            for image in batch:
                if not isinstance(image.pixels, Failure):
                    views_of_readable.append((image.pixels, *image.others))
            # The network gets the readable images of a batch at once; the rows come in the order of all images.
            answers = self._answers(views_of_readable)
            for image in batch:
                self.kinds.update(image.kinds)
                true = image.row.label if image.row.label in self.known else ""
                if isinstance(image.pixels, Failure):
                    yield Prediction(image.row.path, (), true, image.pixels.status, image.pixels.reason)
                else:
                    probabilities, strangeness = next(answers)
                    yield self._prediction(image, true, probabilities, strangeness)
            done += len(batch)
            progress(Tick("predict", done, total))

    def _prediction(self, image: Decoded, true: str, probabilities: Floats, strangeness: float | None) -> Prediction:
        path = image.row.path
        if not np.isfinite(probabilities).all():
            return Prediction(path, (), true, "nonfinite", "the model gives probabilities that are no numbers")
        # Stable, so that the first of several equal probabilities wins, as with `argmax`.
        best = np.argsort(-probabilities, kind="stable")[: self.top]
        top: list[tuple[str, float]] = []
        for number in best:
            top.append((self.classifier.classes[number], float(probabilities[number])))
        # An unknown image keeps its classes: the table says which known class it came nearest to.
        unknown = False
        if self.threshold is not None and strangeness is not None:
            unknown = not strangeness <= self.threshold.value  # "not <=": a NaN is strange
        return Prediction(path, tuple(top), true, strangeness=strangeness, unknown=unknown)

    def _answers(self, images: list[tuple[Pixels, ...]]) -> Iterator[tuple[Floats, float | None]]:
        """Yield the probabilities (K,) of each image, the mean over its views, and how strange the whole image is."""
        if not images:
            return
        sums: Floats | None = None  # of the probabilities over the views
        strangeness: list[float | None] = [None] * len(images)
        for view in range(len(self.views)):
            outputs = self.classifier.network.forward(np.stack([views[view] for views in images]))
            if view == 0 and self.threshold is not None and self.classifier.reference is not None:
                # Only of the whole image: the threshold was set on whole images, and a crop is always a little strange.
                features, logits, _ = outputs
                strangeness = self.classifier.reference.strangeness(features, logits).tolist()
            probabilities = outputs[-1]
            sums = probabilities if sums is None else sums + probabilities
        assert sums is not None
        yield from zip(sums / len(self.views), strangeness, strict=True)
