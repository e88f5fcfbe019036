"""How far an engine's features may be from Keras' at float32, and the images that show it on any machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featcache.arrays import Features, Pixels
from featcache.errors import EnvironmentFault
from featcache.spec import Precision

TINY = 1e-30  # so that rows of zeros agree with rows of zeros
# Against Keras at float32: the smallest cosine of a row, and the largest difference in standard deviations.
# An 8-bit network that was kept is compared with what it gave itself: `extraction.calibration` judges its loss.
LIMITS: dict[Precision, tuple[float, float]] = {
    "float32": (0.99999, 1e-3),
    "bfloat16": (0.95, float("inf")),
    "float16": (0.95, float("inf")),
    "int8": (0.99, float("inf")),
}
NUM_PATCHES = 8  # along each side of a made image
NOISE = 24.0  # brightness of 0 to 255


def agree(exact: Sequence[Features], other: Sequence[Features], precision: Precision, title: str = "OpenVINO") -> str:
    """Return how far features are from Keras' features at float32. Raises EnvironmentFault if they are too far."""
    cosines = []
    differences = []
    for ours, theirs in zip(exact, other, strict=True):
        a = np.reshape(ours, (len(ours), -1)).astype(np.float64)
        b = np.reshape(theirs, (len(theirs), -1)).astype(np.float64)
        products = (a * b).sum(axis=1)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines.append((products + TINY) / (norms + TINY))
        differences.append(np.abs(a - b).max() / (a.std() + TINY))
    cosine = np.min(cosines)
    difference = np.max(differences)
    min_cosine, max_difference = LIMITS[precision]
    numbers = f"cosine {cosine:.6f}, at most {difference:.1e} standard deviations apart"
    # Both numbers are NaN if any feature is, and a comparison with NaN is False.
    is_close = cosine >= min_cosine and difference <= max_difference
    if not is_close:
        raise EnvironmentFault(f"{title} does not agree with Keras: {numbers}")
    return f"agrees with it at float32: {numbers}"


def made_images(num_images: int, size: int) -> Pixels:
    """Return the same (num_images, size, size, 3) images on every machine: patches of colour under some noise.

    A network that was kept is compared on these: photographs of the user do not belong into a cache folder.
    """
    generator = np.random.default_rng(0)
    patches = generator.integers(0, 256, (num_images, NUM_PATCHES, NUM_PATCHES, 3))
    places = np.arange(size) * NUM_PATCHES // size
    colours = patches[:, places][:, :, places]
    noise = generator.normal(0.0, NOISE, colours.shape)
    return np.clip(colours + noise, 0, 255).astype(np.uint8)
