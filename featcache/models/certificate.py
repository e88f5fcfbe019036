"""The parity certificate: the assembled model gives the logits that the head gave on cached features.

It is checked twice: in inference, and in training mode, which is what `fit` sees on its first step. If batch
normalisation used the statistics of its batch, training mode would differ by whole logits while inference is exact.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from shlex import quote
from typing import Any

import numpy as np

from featcache.arrays import Floats, Pixels
from featcache.errors import ParityFailed
from featcache.heads.logits import softmax
from featcache.images.decode import decode
from featcache.images.manifest import read_image
from featcache.images.sources import Source
from featcache.models.assemble import logits_of
from featcache.models.divergence import first_divergence
from featcache.models.probe import Probe, by_digest
from featcache.notebook import html, never_raising
from featcache.spec import ImageRow, Preprocess, Tap
from featcache.sweeps.metrics import wilson

log = logging.getLogger(__name__)

NUM_IMAGES = 64
# Share of images on which a taught head names its teacher's class, and a model that of its head on 8-bit features, as
# an 8-bit export must.
LEAST_TAUGHT = 0.9
TOLERANCE = 1e-3
# Relative to the largest logit, where that allows more: the precision in which features are computed or stored.
RELATIVE = {"float32": 1e-5, "float16": 5e-4, "bfloat16": 4e-3}
BATCH = 8  # outside a compiled graph Keras keeps every activation of a batch: 2.4 GB for 32 in MobileNetV2


@dataclass(frozen=True)
class Certificate:
    """Largest absolute logit difference on `images` images, and the share on which both name the same class.

    That class is the one that the head names on the features it was fitted on.
    """

    inference: float
    training: float
    agreement: float
    images: int
    tolerance: float = TOLERANCE
    distilled: float | None = None  # of a taught head: share of images on which it names its teacher's class
    precision: str = "float32"  # of the features that the head was fitted on
    # Of a head that was fitted on 8-bit features, which Keras cannot compute: the model computes in float32, parity is
    # with the head on float32 features, and this is the largest difference of a probability from the 8-bit features.
    probabilities: float | None = None

    @never_raising
    def _repr_html_(self) -> str:
        facts: dict[str, object] = {
            "largest logit difference in inference": f"{self.inference:.1e}",
            "largest logit difference in training": f"{self.training:.1e}",
            "allowed": f"{self.tolerance:.1e}",
            "same class": f"{self.agreement:.1%}",
            "images": self.images,
        }
        if self.probabilities is not None:
            facts[f"largest difference of a probability from {self.precision} features"] = f"{self.probabilities:.1e}"
        if self.distilled is not None:
            facts["the dense head names its teacher's class"] = f"{self.distilled:.1%}"
        outcome = "the model computes what its head computed" if self.passed else "failed"
        return html(f"Certificate: {outcome}", facts)

    @property
    def passed(self) -> bool:
        """Return whether both differences are within tolerance; a NaN is not."""
        return bool(self.inference <= self.tolerance and self.training <= self.tolerance)


def tolerance_of(logits: Floats, taps: Sequence[Tap] = ()) -> float:
    """Return how far other logits may be from these (N, K), which a head gives on features of these taps."""
    relative = RELATIVE["float32"]
    for tap in taps:
        # The coarser of the two counts: float32 features stored in float16 are float16 features.
        relative = max(relative, RELATIVE[tap.in_keras.precision], RELATIVE[tap.dtype])
    largest_logit = float(np.abs(logits).max())
    return max(TOLERANCE, relative * largest_logit)


def certify(
    model: Any, pixels: Pixels, cached: Floats, taps: Sequence[Tap] = (), in_float32: Floats | None = None
) -> Certificate:
    """Return the certificate of an assembled model, with its layers frozen or trainable as they are now.

    pixels: (N, size, size, 3) uint8; cached: (N, K) logits of the head on the cached features of these images.
    in_float32: its logits on features at float32, if the cached ones are 8-bit.
    """
    import keras

    logits = logits_of(model)
    batches = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    # Inference first: in training mode, batch normalisation that trains moves the statistics that inference uses.
    inference = np.concatenate([np.asarray(logits.predict_on_batch(batch)) for batch in batches])
    # A direct call, because `predict` always runs in inference mode.
    training = np.concatenate([keras.ops.convert_to_numpy(logits(batch, training=True)) for batch in batches])
    expected = cached if in_float32 is None else in_float32
    is_same_class = inference.argmax(axis=1) == cached.argmax(axis=1)
    return Certificate(
        inference=float(np.abs(inference - expected).max()),
        training=float(np.abs(training - expected).max()),
        agreement=float(is_same_class.mean()),
        images=len(pixels),
        tolerance=tolerance_of(expected, taps),
        probabilities=None if in_float32 is None else float(np.abs(softmax(inference) - softmax(cached)).max()),
    )


def certified(model: Any, probe: Probe) -> Certificate:
    """Return the certificate of a model on 64 training and validation images of its run.

    Raises ParityFailed, naming the first layer that diverges, or if a taught head often names another class than its
    teacher.
    """
    rows = by_digest([*probe.rows("train"), *probe.rows("val")])[:NUM_IMAGES]
    log.info("Comparing the model with its head on %d images", len(rows))
    pixels = load_pixels(probe.source, rows, probe.preprocess)
    weights = model.get_weights()
    features = probe.model_features(rows, pixels)
    in_float32 = probe.logits_of(features) if probe.is_8_bit else None
    certificate = certify(model, pixels, probe.logits(rows), probe.taps, in_float32)
    certificate = replace(certificate, precision=probe.precision)
    if not certificate.passed:
        model.set_weights(weights)  # batch normalisation that trains has moved its statistics
        chosen = probe.chosen
        raise ParityFailed(
            f"Parity failed for {chosen.run.path}@{chosen.trial.trial}: its logits differ from the cached head's by "
            f"{certificate.inference:.2g} in inference and {certificate.training:.2g} in training, on "
            f"{certificate.images} images, over {certificate.tolerance:.2g}. "
            f"The first that diverges: {first_divergence(model, probe, pixels, features)}"
        )
    same_class = wilson(round(certificate.agreement * len(rows)), len(rows))
    if in_float32 is not None and same_class.high < LEAST_TAUGHT:
        raise ParityFailed(
            f"The model computes in float32, and names the class that its head names on 8-bit features on "
            f"{same_class.value:.1%} of {len(rows)} images, clearly fewer than {LEAST_TAUGHT:.0%}. Extract with "
            "`precision='float32'` and sweep again"
        )
    # Parity compares a taught head with itself. That it says what its teacher says is another question.
    agreement = probe.agreement()
    if agreement is not None and agreement.high < LEAST_TAUGHT:
        raise ParityFailed(
            f"The dense head that {probe.chosen.trial.head} taught names its class on {agreement.value:.1%} of the "
            f"images that chose, clearly fewer than {LEAST_TAUGHT:.0%}, so it is another head. Hand off one that is "
            f"exact: featcache show {quote(str(probe.chosen.run.path))}"
        )
    return certificate if agreement is None else replace(certificate, distilled=agreement.value)


def load_pixels(
    source: Source, rows: Sequence[ImageRow], preprocess: Preprocess, threads: Executor | None = None
) -> Pixels:
    """Return (N, size, size, 3) uint8. Raises ImagesChanged if a file is not what was cached."""

    def load(row: ImageRow) -> Pixels:
        return decode(read_image(source, row), preprocess)

    images = map(load, rows) if threads is None else threads.map(load, rows)
    return np.stack(list(images))
