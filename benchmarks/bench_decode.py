"""Files to pixels, without a network: featcache against Pillow and TensorFlow as people use them, in one process.

    python benchmarks/bench_decode.py --images photos/
    python benchmarks/bench_decode.py --images photos/ --size 96 --repeats 9

plain         `Image.open(path).convert("RGB").resize(..)`, on as many threads as featcache uses
exact, draft  what `featcache extract --decode` does, digest and checks included; `exact` gives the pixels of `plain`
tf            `tf.data` with `tf.io.decode_image` and `tf.image.resize`, as in `image_dataset_from_directory`: without
              antialiasing, so that most pixels of a large photograph do not count
tf antialias  the same with `antialias=True`, as Pillow and featcache resize

Every way runs once in each repeat, in alternating order. Times are medians, ratios are medians of the ratios in one
repeat. Machines are shared and noisy: read the ratios, and of them those of CPU time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image

import featcache as fc
from featcache.arrays import Pixels
from featcache.extraction.pipeline import decoded_batches, num_threads
from featcache.images.manifest import Images
from featcache.spec import DECODE_VERSION, DRAFT_VERSION, Preprocess

BATCH = 32
BASELINE = "plain"
DecodeAll = Callable[[Images, int], int]  # returns the number of images


def main() -> None:
    """Time every way and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of images that all of them can decode")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    images = fc.scan(options.images)
    ways: dict[str, DecodeAll] = {
        BASELINE: with_pillow,
        "exact": partial(with_featcache, decode=DECODE_VERSION),
        "draft": partial(with_featcache, decode=DRAFT_VERSION),
        "tf": partial(with_tensorflow, antialias=False),
        "tf antialias": partial(with_tensorflow, antialias=True),
    }
    with_tensorflow(images, options.size, antialias=False)  # imports TensorFlow before the clock runs

    cpu_ms: dict[str, list[float]] = defaultdict(list)
    wall_ms: dict[str, list[float]] = defaultdict(list)
    for repeat in range(options.repeats):
        order = list(ways) if repeat % 2 == 0 else list(reversed(ways))
        for name in order:
            cpu_start = time.process_time()
            wall_start = time.perf_counter()
            num_images = ways[name](images, options.size)
            cpu_ms[name].append(1000 * (time.process_time() - cpu_start) / num_images)
            wall_ms[name].append(1000 * (time.perf_counter() - wall_start) / num_images)

    print(f"{len(images.rows)} images to {options.size} pixels on {num_threads()} threads")
    print(f"ms an image (in brackets: times faster than {BASELINE})")
    for name in ways:
        print(
            f"{name:13} CPU {statistics.median(cpu_ms[name]):7.2f} ({ratio(cpu_ms, name):.2f})"
            f"   wall {statistics.median(wall_ms[name]):7.2f} ({ratio(wall_ms, name):.2f})"
        )


def ratio(times: dict[str, list[float]], name: str) -> float:
    """Return how many times faster than the baseline a way is."""
    ratios = [baseline / own for baseline, own in zip(times[BASELINE], times[name], strict=True)]
    return statistics.median(ratios)


def paths_of(images: Images) -> list[str]:
    """Return the paths of the image files."""
    folder = images.source.location
    assert folder is not None
    return [str(folder / row.path) for row in images.rows]


def with_pillow(images: Images, size: int) -> int:
    """Decode as most scripts do."""

    def decode(path: str) -> Pixels:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))

    with ThreadPoolExecutor(num_threads()) as threads:
        return sum(1 for _ in threads.map(decode, paths_of(images)))


def with_featcache(images: Images, size: int, decode: str) -> int:
    """Decode as `featcache extract` does."""
    batches = decoded_batches(images.source, images.rows, Preprocess(size, decode=decode), BATCH)
    return sum(map(len, batches))


def with_tensorflow(images: Images, size: int, antialias: bool) -> int:
    """Decode as Keras' `image_dataset_from_directory` does."""
    import tensorflow as tf

    def decode(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        return tf.image.resize(image, (size, size), antialias=antialias)

    paths = tf.data.Dataset.from_tensor_slices(paths_of(images))
    batches = paths.map(decode, num_parallel_calls=num_threads()).batch(BATCH)
    return sum(len(batch) for batch in batches)


if __name__ == "__main__":
    main()
