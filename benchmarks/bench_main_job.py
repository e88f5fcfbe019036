"""What caching is worth, in ratios against what Keras' own transfer-learning guide does, in one process.

    python benchmarks/bench_main_job.py                                        # embedded digits, glyphnet
    python benchmarks/bench_main_job.py --images photos/ --backbone mobilenet_v2

Three measurements, interleaved with their baselines, medians of --repeats:
extract   images -> features (ours in a committed file), against image_dataset_from_directory and model.predict
again     the same extraction when everything is cached, against the first
head      one epoch of a softmax head on cached features, against one epoch of `fit` through the frozen backbone
Machines are shared and noisy: read the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import featcache as fc
from featcache.backbones.build import build, pooled, preprocessed
from featcache.images.embedded import write_digits
from featcache.spec import Tap

BATCH = 32


def main() -> None:
    """Print one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--backbone", default="glyphnet")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = asked.images or write_digits(Path(folder) / "digits")
        measure(images, asked.backbone, Path(folder), asked.repeats)


def measure(images: Path, backbone: str, folder: Path, repeats: int) -> None:
    """Run every measurement `repeats` times, each beside its baseline."""
    cache = fc.extract(images, backbone, out=folder / "warm.h5")  # weights in memory, files in the page cache
    tap = cache.tap()
    ours, theirs, again, on_cache, through = [], [], [], [], []
    for number in range(repeats):
        out = folder / f"{number}.h5"
        theirs.append(seconds(lambda: guide_features(images, tap)))
        ours.append(seconds(lambda out=out: fc.extract(images, backbone, out=out)))
        again.append(seconds(lambda out=out: fc.extract(images, backbone, out=out)))
        through.append(epoch_through_backbone(images, tap, len(cache.classes)))
        on_cache.append(epoch_on_cache(cache))
    print(f"{len(cache.rows)} images, {tap.name}, medians of {repeats}")
    show("extract: Keras' guide / featcache", theirs, ours)
    show("again: first run / second run", ours, again)
    show("head epoch: through the backbone / on the cache", through, on_cache)


def guide_model(tap: Tap) -> Any:
    """Return the frozen backbone as Keras' guide builds it, preprocessing inside."""
    size = tap.preprocess.size
    inputs = keras.Input((size, size, 3))
    network = build(tap.backbone, size, tap.pooling).network
    return keras.Model(inputs, pooled(network(preprocessed(inputs, tap.preprocess), training=False), tap.pooling))


def guide_features(images: Path, tap: Tap) -> None:
    """Build the model and compute all features as the guide does."""
    size = (tap.preprocess.size, tap.preprocess.size)
    dataset = keras.utils.image_dataset_from_directory(
        images, image_size=size, batch_size=BATCH, shuffle=False, verbose=False
    )
    guide_model(tap).predict(dataset, verbose=0)


def epoch_through_backbone(images: Path, tap: Tap, num_classes: int) -> float:
    """Return the seconds of the second epoch of `fit` on a head over the frozen backbone."""
    size = (tap.preprocess.size, tap.preprocess.size)
    base = guide_model(tap)
    base.trainable = False
    model = keras.Sequential([base, keras.layers.Dense(num_classes, activation="softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    dataset = keras.utils.image_dataset_from_directory(images, image_size=size, batch_size=BATCH, verbose=False)
    return second_epoch(lambda: model.fit(dataset, epochs=1, shuffle=False, verbose=0))


def epoch_on_cache(cache: fc.Cache) -> float:
    """Return the seconds of the second epoch of the same `fit` on cached features of the same images."""
    X, y = cache.arrays()
    head = keras.Sequential([keras.layers.Dense(len(cache.classes), activation="softmax")])
    head.compile("adam", "sparse_categorical_crossentropy")
    return second_epoch(lambda: head.fit(X, y, batch_size=BATCH, epochs=1, verbose=0))


def second_epoch(fit: Callable[[], object]) -> float:
    """Return how long `fit` takes once everything is compiled."""
    fit()
    return seconds(fit)


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def show(name: str, baseline: list[float], ours: list[float]) -> None:
    """Print the ratio of the medians, and the medians."""
    slow, fast = statistics.median(baseline), statistics.median(ours)
    print(f"{name}: {slow / fast:.1f} times ({slow:.2f} s / {fast:.2f} s)")


if __name__ == "__main__":
    main()
