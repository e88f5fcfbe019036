"""The parity certificate: the assembled model gives the logits that the head gave on cached features.

Checked twice, because they are two things: in inference, and in training mode, which is what `fit` sees on
its first step. With batch normalisation left to its own devices the second differs by whole logits while
the first is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from featcache.arrays import Floats, Pixels
from featcache.assembly.assemble import logits_of
from featcache.errors import ParityFailed
from featcache.images.decode import decode
from featcache.images.manifest import read_image
from featcache.images.sources import Source
from featcache.spec import ImageRow, Preprocess
from featcache.sweeps import Chosen

NUM_IMAGES = 64
TOLERANCE = 1e-3
BATCH = 8  # outside a compiled graph Keras keeps every activation of a batch: 2.4 GB for 32 in MobileNetV2


@dataclass(frozen=True)
class Certificate:
    """Largest absolute logit difference on `images` images, and the share on which both name the same class."""

    inference: float
    training: float
    agreement: float
    images: int

    @property
    def passed(self) -> bool:
        """Tell whether both differences are within tolerance; a NaN is not."""
        return bool(self.inference <= TOLERANCE and self.training <= TOLERANCE)


def certify(model: Any, pixels: Pixels, cached: Floats) -> Certificate:
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
    )


def require(certificate: Certificate, what: str) -> Certificate:
    """Return the certificate if it passed; raise ParityFailed if not."""
    if not certificate.passed:
        raise ParityFailed(
            f"Parity failed for {what}: its logits differ from the cached head's by {certificate.inference:.2g} in "
            f"inference and {certificate.training:.2g} in training, on {certificate.images} images, over {TOLERANCE}. "
            "Are the weights those the features were made with? featcache extract makes them anew"
        )
    return certificate


def evidence(chosen: Chosen, source: Source) -> tuple[Pixels, Floats]:
    """Return 64 images that the run trained or chose on, and the head's logits on their cached features."""
    rows = sorted(_used(chosen), key=lambda row: row.digest)[:NUM_IMAGES]
    return load_pixels(source, rows, chosen.tap.preprocess), chosen.logits(rows)


def load_pixels(
    source: Source, rows: Sequence[ImageRow], preprocess: Preprocess, threads: Executor | None = None
) -> Pixels:
    """Return (N, size, size, 3) uint8. Raises ImagesChanged if a file is not what was cached."""
    load = partial(_load, source, preprocess)
    return np.stack([*(threads.map(load, rows) if threads else map(load, rows))])


def _load(source: Source, preprocess: Preprocess, row: ImageRow) -> Pixels:
    return decode(read_image(source, row), preprocess)


def _used(chosen: Chosen) -> list[ImageRow]:
    cache = chosen.run.cache()
    return [row for split in ("train", "val") for row in chosen.run.rows(cache, split)]
