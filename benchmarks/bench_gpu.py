"""How much of a GPU an extraction uses: images a second, as shares of what the network alone can do.

    KERAS_BACKEND=jax python benchmarks/bench_gpu.py --images photos/ --copies 20
    KERAS_BACKEND=tensorflow python benchmarks/bench_gpu.py --images photos/ --case resnet50_v2:weights=none,bfloat16

A case is backbone,precision. Everything runs on the device that Keras takes by itself, so it runs on a CPU, too.

limit    the network alone, on pixels that lie on the device already, at the batch that the engine chose for itself
memory   the engine on uint8 arrays in memory: with the way to the device and back
files    `extract` from files to a cache, once everything is compiled: with decoding and commits as well
decoding what the decoder alone does with these files, on all cores
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from bench_extract import median, multiplied

import featcache as fc
from featcache.backbones.build import build, feature_model
from featcache.backbones.devices import listed_devices
from featcache.backbones.parse import Request, requests
from featcache.extraction.engines import choose
from featcache.extraction.pipeline import Decoder
from featcache.spec import Failure, Tick

CASES = ["mobilenet_v2:weights=none,float32", "resnet50_v2:weights=none,float32", "resnet50_v2:weights=none,bfloat16"]
WARM_SHARE = 0.2  # of the images, before the rate of `files` is taken
NUM_IMAGES = 512  # in memory
IN_A_ROW = 8  # calls


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--case", action="append", help=f"[default: {' '.join(CASES)}]")
    parser.add_argument("--copies", type=int, default=1, help="how often each image is there")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = multiplied(asked.images, asked.copies, Path(folder) / "images")
        found = fc.scan(images)
        there = ", ".join(listed_devices())
        print(f"{len(found.rows)} images, {keras.backend.backend()} on {there}, medians of {asked.repeats}")
        for number, case in enumerate(asked.case or CASES):
            measure(found, case, Path(folder) / f"{number}.h5", asked.repeats)


def measure(images: fc.Images, case: str, out: Path, repeats: int) -> None:
    """Print the rates of one case."""
    backbone, _, precision = case.rpartition(",")
    [request] = requests(backbone, precision=precision)
    decode_rate, pixels = decoded(images, request)
    build_at = partial(build, request.spec, request.preprocess.size, request.pooling)
    total = len(images.rows)
    engine = choose(lambda at: build_at(precision=at), request.taps("w"), pixels[:32], engine="keras", num_images=total)
    limit = forward_rate(build_at(precision=request.precision), request, engine.batch, repeats)
    whole = np.resize(pixels, (max(NUM_IMAGES, 2 * engine.batch), *pixels.shape[1:]))
    memory = len(whole) / seconds(lambda: engine.forward(whole), repeats)
    files = median([file_rate(images, backbone, precision, out.with_stem(f"{out.stem}-{at}")) for at in range(repeats)])
    print(
        f"{case:42} batch {engine.batch:4}  limit {limit:7.0f}/s  memory {memory:7.0f}/s = {memory / limit:.2f}"
        f"  files {files:7.0f}/s = {files / limit:.2f}  decoding {decode_rate:.0f}/s",
        flush=True,
    )


def decoded(images: fc.Images, request: Request) -> tuple[float, Any]:
    """Return the images a second of decoding alone, and the pixels of some."""
    decoder = Decoder(images.source, images.rows, request.preprocess)
    started, kept, count = time.perf_counter(), [], 0
    for one in decoder:
        count += 1
        if not isinstance(one.pixels, Failure) and len(kept) < NUM_IMAGES:
            kept.append(one.pixels)
    rate = count / (time.perf_counter() - started)
    decoder.close()
    return rate, np.stack(kept)


def forward_rate(backbone: Any, request: Request, batch: int, repeats: int) -> float:
    """Return the images a second of the network alone: pixels stay on the device, calls do not wait for each other."""
    call, size = compiled(feature_model(backbone, request.taps("w"))), request.preprocess.size
    noise = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    pixels = keras.ops.convert_to_tensor(noise)

    def many() -> None:
        outputs = [call(pixels) for _ in range(IN_A_ROW)]
        keras.ops.convert_to_numpy(outputs[-1])  # the device computes them in order

    return IN_A_ROW * batch / seconds(many, repeats)


def compiled(model: Any) -> Callable[[Any], Any]:
    """Return the network as its backend compiles a function by itself, without what Keras does around a call."""
    if keras.backend.backend() == "jax":
        import jax

        call = jax.jit(lambda weights, others, pixels: model.stateless_call(weights, others, pixels)[0])
        weights = [one.value for one in model.trainable_variables]
        others = [one.value for one in model.non_trainable_variables]
        return lambda pixels: first_of(call(weights, others, pixels))
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        call = tensorflow.function(lambda pixels: model(pixels, training=False))
        return lambda pixels: first_of(call(pixels))
    import torch

    def call_torch(pixels: Any) -> Any:
        with torch.no_grad():
            return first_of(model(pixels, training=False))

    return call_torch


def first_of(outputs: Any) -> Any:
    """Return the first output of a network, which it gives bare if there is one."""
    return outputs[0] if isinstance(outputs, (list, tuple)) else outputs


def file_rate(images: fc.Images, backbone: str, precision: str, out: Path) -> float:
    """Return the images a second of `extract` behind the first of them."""
    ticks: list[tuple[int, float]] = []

    def tick(one: Tick) -> None:
        if one.step.startswith("extract"):
            ticks.append((one.done, time.perf_counter()))

    fc.extract(images, backbone, out=out, precision=precision, engine="keras", progress=tick)
    begin = next(at for at, (done, _) in enumerate(ticks) if done >= WARM_SHARE * ticks[-1][0])
    (first, begun), (last, ended) = ticks[min(begin, len(ticks) - 2)], ticks[-1]
    return (last - first) / (ended - begun)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Return how long a call takes once everything is compiled, the median of some."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times)


if __name__ == "__main__":
    main()
