"""The parity certificate: the assembled model gives the logits that the head gave on cached features.

Checked twice, because they are two things: in inference, and in training mode, which is what `fit` sees on
its first step. With batch normalisation left to its own devices the second differs by whole logits while
the first is exact.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from shlex import quote
from typing import Any

import numpy as np

from featcache.arrays import Floats, Pixels
from featcache.errors import ParityFailed
from featcache.images.decode import decode
from featcache.images.manifest import read_image
from featcache.images.sources import Source
from featcache.models.assemble import logits_of
from featcache.models.divergence import first_divergence
from featcache.models.probe import Probe
from featcache.spec import ImageRow, Preprocess, Tap

log = logging.getLogger(__name__)

NUM_IMAGES = 64
LEAST_TAUGHT = 0.9  # of images on which a taught head names its teacher's class, as an 8-bit export must
TOLERANCE = 1e-3
# of the largest logit, where that is more: as far as the precision that features are computed or kept in tells
RELATIVE = {"float32": 1e-5, "float16": 5e-4, "bfloat16": 4e-3}
BATCH = 8  # outside a compiled graph Keras keeps every activation of a batch: 2.4 GB for 32 in MobileNetV2


@dataclass(frozen=True)
class Certificate:
    """Largest absolute logit difference on `images` images, and the share on which both name the same class."""

    inference: float
    training: float
    agreement: float
    images: int
    tolerance: float = TOLERANCE
    distilled: float | None = None  # of a taught head: on how many images it names its teacher's class

    @property
    def passed(self) -> bool:
        """Tell whether both differences are within tolerance; a NaN is not."""
        return bool(self.inference <= self.tolerance and self.training <= self.tolerance)


def tolerance_of(logits: Floats, taps: Sequence[Tap] = ()) -> float:
    """Return how far other logits may be from these (N, K), of a head on features of these taps."""
    coarsest = max([RELATIVE["float32"], *(RELATIVE[kind] for tap in taps for kind in (tap.precision, tap.dtype))])
    return max(TOLERANCE, coarsest * float(np.abs(logits).max()))


def certify(model: Any, pixels: Pixels, cached: Floats, taps: Sequence[Tap] = ()) -> Certificate:
    """Return the certificate of an assembled model, as it stands with its trainable layers.

    pixels: (N, size, size, 3) uint8; cached: (N, K) logits of the head on the cached features of these images.
    """
    import keras

    logits = logits_of(model)
    batches = [pixels[at : at + BATCH] for at in range(0, len(pixels), BATCH)]
    inference = np.concatenate([np.asarray(logits.predict_on_batch(batch)) for batch in batches])
    training = np.concatenate([keras.ops.convert_to_numpy(logits(batch, training=True)) for batch in batches])
    return Certificate(
        inference=float(np.abs(inference - cached).max()),
        training=float(np.abs(training - cached).max()),
        agreement=float((inference.argmax(axis=1) == cached.argmax(axis=1)).mean()),
        images=len(pixels),
        tolerance=tolerance_of(cached, taps),
    )


def certified(model: Any, probe: Probe) -> Certificate:
    """Return the certificate of a model on 64 images that its run trained or chose on.

    Raises ParityFailed, naming the first layer that diverges, or if a taught head does not say what its teacher says.
    """
    rows = sorted([*probe.rows("train"), *probe.rows("val")], key=lambda row: row.digest)[:NUM_IMAGES]
    log.info("Comparing the model with its head on %d images", len(rows))
    pixels = load_pixels(probe.source, rows, probe.preprocess)
    before = model.get_weights()
    found = certify(model, pixels, probe.logits(rows), probe.taps)
    if not found.passed:
        model.set_weights(before)  # normalisation that trains has moved its statistics
        chosen = probe.chosen
        raise ParityFailed(
            f"Parity failed for {chosen.run.path}@{chosen.trial.trial}: its logits differ from the cached head's by "
            f"{found.inference:.2g} in inference and {found.training:.2g} in training, on {found.images} images, over "
            f"{found.tolerance:.2g}. The first that diverges: {first_divergence(model, probe, pixels, rows)}"
        )
    agreement = probe.agreement()
    if agreement is not None and agreement.high < LEAST_TAUGHT:
        raise ParityFailed(
            f"The dense head that {probe.chosen.trial.head} taught names its class on {agreement.value:.1%} of the "
            f"images that chose, clearly fewer than {LEAST_TAUGHT:.0%}, so it is another head. Hand off one that is "
            f"exact: featcache show {quote(str(probe.chosen.run.path))}"
        )
    return Certificate(**{**vars(found), "distilled": None if agreement is None else agreement.value})


def load_pixels(
    source: Source, rows: Sequence[ImageRow], preprocess: Preprocess, threads: Executor | None = None
) -> Pixels:
    """Return (N, size, size, 3) uint8. Raises ImagesChanged if a file is not what was cached."""
    load = partial(_load, source, preprocess)
    return np.stack([*(threads.map(load, rows) if threads else map(load, rows))])


def _load(source: Source, preprocess: Preprocess, row: ImageRow) -> Pixels:
    return decode(read_image(source, row), preprocess)
