"""What a MODEL.keras gives for labelled images, by the network that `predict` uses.

An earlier command may have kept that network. Then neither Keras nor TensorFlow starts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featcache.arrays import Floats
from featcache.prediction import open_classifier
from featcache.prediction.model_networks import BATCH
from featcache.spec import Progress, Tick
from featcache.tuning.data import ImageSet, in_order


def logits_of_file(path: Path, images: ImageSet, progress: Progress, step: str) -> Floats:
    """Return the (N, K) logits that a model of featcache gives. step: how progress, which counts images, calls it.

    Raises NotAModel.
    """
    classifier = open_classifier(path)
    for note in classifier.notes:
        progress(Tick(step, 0, 0, note))
    logits: list[Floats] = []
    done, total = 0, len(images)
    progress(Tick(step, done, total))
    for pixels, _ in images.batches(in_order(images), BATCH):
        _, batch_logits, _ = classifier.network.forward(pixels)  # features, logits, probabilities
        logits.append(batch_logits)
        done += len(pixels)
        progress(Tick(step, done, total))
    return np.concatenate(logits)
