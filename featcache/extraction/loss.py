"""What an 8-bit network loses: its features compared with the features of the float32 network that it was made from.

With labels, a ridge classifier is scored on both by leaving one image out. Let b be the images that only float32 gets
right and c those that only 8 bits get right. Without a real loss an image of either kind is as likely of the one as of
the other, so the exact interval of b / (b + c) holds one half (McNemar 1947). Where it lies above, the loss is real.
Without labels, the cosine between both features of an image decides. It also decides where labels could not tell: where
the most common class for every image would be no real loss either, because float32 hardly gets more images right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from featcache.arrays import Classes, Features, Pixels
from featcache.errors import CalibrationFailed
from featcache.extraction.batches import Batched
from featcache.heads.estimators import FAMILIES
from featcache.heads.solvers.ridge import leave_one_out
from featcache.spec import ImageRow

MIN_COSINE = 0.95  # of every image, where no labels can tell what a difference means
MAX_BYTES = 256 * 2**20  # of features; large ones are judged on fewer images
MIN_PER_CLASS = 2  # images, so that one is left when one is left out


@dataclass(frozen=True)
class PrecisionLoss:
    """What 8 bits lose on images of one tap. accuracies and difference are None where labels cannot tell."""

    images: int
    cosine: float  # the smallest between both features of an image
    accuracies: tuple[float, float] | None = None  # of float32, of 8 bits
    difference: tuple[float, float] | None = None  # 95 % interval: accuracy at 8 bits minus at float32

    @property
    def is_real(self) -> bool:
        """Return whether the loss is more than chance explains."""
        if self.difference is None:
            return not self.cosine >= MIN_COSINE  # "not >=": a NaN is a loss
        return self.difference[1] < 0 or np.isnan(self.cosine)

    def __str__(self) -> str:
        if self.accuracies is None or self.difference is None:
            return f"cosine to float32 at least {self._cosine} on {self.images} images"
        float32, int8 = self.accuracies
        low, high = self.difference
        return (
            f"leave-one-out accuracy {int8:.1%}, in float32 {float32:.1%} (difference {100 * low:+.1f} to "
            f"{100 * high:+.1f} points) on {self.images} images; cosine to float32 at least {self._cosine}"
        )

    @property
    def _cosine(self) -> str:
        """The cosine, rounded down: "at least" must be true."""
        return f"{np.floor(self.cosine * 1000) / 1000:.3f}"


def loss_of(
    exact: Batched, rounded: Batched, batches: Iterable[tuple[Sequence[ImageRow], Pixels]], layers: Sequence[str]
) -> str:
    """Return what 8 bits lose on images, of the layer that loses most. Raises CalibrationFailed if a loss is real.

    exact, rounded: the networks, which give one array per layer. batches: rows and pixels of the images.
    """
    rows: list[ImageRow] = []
    of_exact: list[list[Features]] = []
    of_rounded: list[list[Features]] = []
    num_bytes = 0
    for batch_rows, pixels in batches:
        rows += batch_rows
        of_exact.append(exact.forward(pixels))
        of_rounded.append(rounded.forward(pixels))
        num_bytes += sum(array.nbytes for array in of_exact[-1])
        if num_bytes > MAX_BYTES:
            break
    losses: list[PrecisionLoss] = []
    for index, layer in enumerate(layers):
        loss = compared(
            np.concatenate([arrays[index] for arrays in of_exact]),
            np.concatenate([arrays[index] for arrays in of_rounded]),
            [row.label for row in rows],
        )
        if loss.is_real:
            raise CalibrationFailed(
                f"The 8-bit network loses too much at '{layer}': {loss}. Use `precision='float32'` or 'bfloat16'"
            )
        losses.append(loss)
    return str(min(losses, key=lambda loss: loss.cosine))


def compared(exact: Features, rounded: Features, labels: Sequence[str]) -> PrecisionLoss:
    """Return what rounded features lose against exact ones, both (N, D) or (N, h, w, C), N at least 1."""
    exact = exact.reshape(len(exact), -1)
    rounded = rounded.reshape(len(rounded), -1)
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1)
    products = np.einsum("nd,nd->n", exact, rounded)
    tiny = np.finfo(np.float32).tiny  # rows of zeros agree with rows of zeros
    cosine = float(((products + tiny) / (norms + tiny)).min())

    names, classes, counts = np.unique(np.array(labels), return_inverse=True, return_counts=True)
    is_usable = (names != "") & (counts >= MIN_PER_CLASS)
    is_judged = is_usable[classes]
    if is_usable.sum() < 2 or np.isnan(cosine):
        return PrecisionLoss(len(exact), cosine)
    judged_classes = classes[is_judged].astype(np.int64)
    is_right, is_right_rounded = _answers(exact[is_judged], rounded[is_judged], judged_classes)
    is_most_common = judged_classes == np.bincount(judged_classes).argmax()
    if paired_interval(is_right, is_most_common)[1] >= 0:
        return PrecisionLoss(len(exact), cosine)
    accuracies = (float(is_right.mean()), float(is_right_rounded.mean()))
    return PrecisionLoss(len(is_right), cosine, accuracies, paired_interval(is_right, is_right_rounded))


def _answers(exact: Features, rounded: Features, classes: Classes) -> tuple[Classes, Classes]:
    """Return (N,) bool each: which images ridge gets right on exact and on rounded features, each left out in turn.

    The strength of ridge is the one that is best on exact features.
    """
    scale = exact.std() or np.float32(1.0)
    best_params = FAMILIES["ridge"].grid[0]
    best = np.zeros(len(classes), bool)
    for params, result in zip(
        FAMILIES["ridge"].grid, leave_one_out(FAMILIES["ridge"].grid, exact / scale, classes, None), strict=True
    ):
        if not result.reason and (result.predicted == classes).sum() > best.sum():
            best = result.predicted == classes
            best_params = params
    [result] = leave_one_out([best_params], rounded / scale, classes, None)
    is_right_rounded = np.zeros(len(classes), bool) if result.reason else result.predicted == classes
    return best, is_right_rounded


def paired_interval(is_right: Classes, is_right_other: Classes, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of the second accuracy minus the first, from which images are right, (N,) bool."""
    from scipy.stats import binomtest

    num_images = len(is_right)
    only_first = int((is_right & ~is_right_other).sum())
    num_different = int((is_right != is_right_other).sum())
    if num_different == 0:
        return 0.0, 0.0
    share = binomtest(only_first, num_different).proportion_ci(confidence)
    # With a share s of b + c only right in the first, the difference is (c - b) / N = (1 - 2 s) (b + c) / N.
    return (
        float((1 - 2 * share.high) * num_different / num_images),
        float((1 - 2 * share.low) * num_different / num_images),
    )
