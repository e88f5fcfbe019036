"""What the cache costs, in ratios against named baselines: reading, doing nothing, and memory.

    python benchmarks/bench_cache.py                       # all, a few minutes
    python benchmarks/bench_cache.py --only read --rows 60000 --width 1280

read     all features of a tap with their labels (`Cache.arrays`), against `np.load` of the same array; interleaved,
         medians of --repeats, files in the page cache, results in memory in both
again    a second `extract` of --images small files, and one with one file more, against the first; and what went
         through the backbone
memory   the largest resident size of `extract` of 1,000 and of --images small files, a process each, both by Keras:
         trying another engine, which is worth it for many images only, takes memory of its own
Machines are shared and noisy: read the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image

from featcache.cache import parts
from featcache.cache.reader import Cache
from featcache.spec import BackboneSpec, ImageRow, Preprocess, Tap, canonical_json

BACKBONE = "glyphnet:weights=none"
BATCH = 256
FEW = 1000
TAP = Tap("bench/top", BackboneSpec("bench"), "w", "top", "avg", Preprocess(32))
FACTS = {
    "root": "/bench",
    "layout": "classes",
    "decode": "pillow/1",
    "split_spec": canonical_json({"train": 70, "val": 15, "test": 15, "seed": 0}),
}


def main() -> None:
    """Print one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["read", "extract"])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--extract", nargs=2, metavar=("IMAGES", "CACHE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.extract:
        extract_once(*map(Path, asked.extract))
        return
    with tempfile.TemporaryDirectory() as folder:
        if asked.only != "extract":
            read(Path(folder), asked.rows, asked.width, asked.repeats)
        if asked.only != "read":
            extractions(Path(folder), asked.images)


def read(folder: Path, num_rows: int, width: int, repeats: int) -> None:
    """Measure `Cache.arrays` against `np.load`."""
    X = np.random.default_rng(0).random((num_rows, width), np.float32)
    np.save(folder / "X.npy", X)
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(num_rows)]
    rows = [ImageRow(f"{at % 10}/{at:08d}", str(at % 10), "", "train", one) for at, one in enumerate(digests)]
    for start in range(0, num_rows, 4096):
        some = slice(start, start + 4096)
        parts.commit(folder / "c.h5", [TAP], digests[some], [X[some]], "{}")
    cache = parts.merge(folder / "c.h5", rows, {}, FACTS)
    assert np.array_equal(cache.arrays()[0], X)
    del X
    for file in (folder / "X.npy", folder / "c.h5"):
        warm(file)
    loaded, whole, first, one_of_ten = [], [], [], []
    for _ in range(repeats):
        loaded.append(seconds(lambda: np.load(folder / "X.npy")))
        whole.append(seconds(cache.arrays))
        opened = Cache.open(folder / "c.h5")
        first.append(seconds(opened.arrays))
        few = [row for row in cache.rows if row.label == "3"]
        one_of_ten.append(seconds(lambda few=few: cache.features(few)))
    print(f"read {num_rows} x {width} float32, medians of {repeats}, speed of np.load = 1")
    show("arrays, of an open cache", loaded, whole)
    show("arrays, the first time", loaded, first)
    show("features of every tenth image", loaded, one_of_ten)


def extractions(folder: Path, num_images: int) -> None:
    """Measure the second extraction, one with a file more, and the memory of few and many images."""
    images, few = write_images(folder / "many", num_images), write_images(folder / "few", FEW)
    took, computed, small = in_a_process(few, folder / "few.h5")
    print(f"extract {FEW} images with {BACKBONE}: {took:.1f} s, {computed} computed, {small:.0f} MB")
    first, computed, large = in_a_process(images, folder / "many.h5")
    print(f"extract {num_images} images: {first:.1f} s, {computed} computed, {large:.0f} MB")
    print(f"memory: {large / small:.2f} times that of {FEW} images")
    for what in ("the same again", "again, with one file more"):
        took, computed, size = in_a_process(images, folder / "many.h5")
        print(f"{what}: {took:.1f} s, {took / first:.3f} of the first; {computed} computed, {size:.0f} MB")
        write_images(images, 1, first=num_images)


def write_images(folder: Path, number: int, first: int = 0) -> Path:
    """Write small PNG images, no two alike, a thousand to a class."""
    for at in range(first, first + number):
        path = folder / f"class {at // 1000:03d}" / f"{at:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.frombuffer(hashlib.sha512(str(at).encode()).digest() * 3, np.uint8).reshape(8, 8, 3)
        Image.fromarray(pixels).save(path, compress_level=0)
    return folder


def in_a_process(images: Path, cache: Path) -> tuple[float, int, float]:
    """Return seconds, images computed and megabytes of one extraction."""
    command = [sys.executable, __file__, "--extract", str(images), str(cache)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(printed[-3]), int(printed[-2]), float(printed[-1])


def extract_once(images: Path, cache: Path) -> None:
    """Extract, and print seconds, images computed and megabytes."""
    from featcache.extraction import extract

    started = time.perf_counter()
    report = extract(images, BACKBONE, out=cache, batch=BATCH, engine="keras").report
    took = time.perf_counter() - started
    print(took, report.computed, largest_size())


def largest_size() -> float:
    """Return the largest resident size of this process in megabytes, on Linux."""
    status = Path("/proc/self/status").read_text()  # `ru_maxrss` would be that of the process that started it, if more
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def warm(file: Path) -> None:
    """Bring a file into the page cache by reading it: what writing leaves there is read at another speed."""
    with file.open("rb") as opened:
        if hasattr(os, "posix_fadvise"):
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while opened.read(2**24):
            pass


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes; its result is given back outside of that time."""
    started = time.perf_counter()
    result = call()
    took = time.perf_counter() - started
    del result
    return took


def show(name: str, baseline: list[float], ours: list[float]) -> None:
    """Print the ratio of the medians, and the medians."""
    slow, fast = statistics.median(baseline), statistics.median(ours)
    print(f"{name}: {slow / fast:.2f} ({fast * 1000:.0f} ms; np.load {slow * 1000:.0f} ms)")


if __name__ == "__main__":
    main()
