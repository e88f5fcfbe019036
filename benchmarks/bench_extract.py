"""Images to features, end to end, against what Keras' guide to feature extraction does: ratios, in one process.

    python benchmarks/bench_extract.py --images photos/
    python benchmarks/bench_extract.py --images photos/ --case resnet50_v2:weights=none,auto,float32,exact

A case is backbone,engine,precision,decode. The baseline is `image_dataset_from_directory`, the constructor's
`preprocess_input` and `model.predict`, with the same weights. Everything is interleaved, medians of --repeats.

whole    from the call to the features on the disk (ours) or in memory (theirs), building the network included; ours
         starts from a network that an earlier extraction kept
running  images a second once everything is compiled: what large folders get
         (an 8-bit network is calibrated once, in the first repeat, if FEATCACHE_HOME names a folder that keeps it)
share    of the limit: decoding alone and the network alone, measured in the same run, on the cores that they share
torch    with --torch PYTHON: images a second of `torch_features.py` in the environment of that Python
Machines are shared and noisy: read the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import featcache as fc
from featcache.backbones.build import build, preprocessed
from featcache.backbones.parse import requests
from featcache.extraction.calibration import kept_network
from featcache.extraction.engines import Engine, choose
from featcache.extraction.pipeline import AHEAD_BATCHES, Decoder
from featcache.spec import Failure, Tick

BATCH = 32
TIMM_NAMES = {"mobilenet_v2": "mobilenetv2_100", "resnet50_v2": "resnetv2_50", "resnet50": "resnet50"}
WARM = AHEAD_BATCHES + 1  # batches before the rate is taken: so many were decoded while the network was compiled
CASES = [
    "mobilenet_v2,keras,float32,exact",
    "mobilenet_v2,openvino,float32,exact",
    "mobilenet_v2,openvino,float32,draft",
    "mobilenet_v2,openvino,bfloat16,exact",
    "mobilenet_v2,openvino,bfloat16,draft",
    "mobilenet_v2,openvino,int8,exact",
    "mobilenet_v2,openvino,int8,draft",
    "mobilenet_v2,auto,float32,exact",
]


@dataclass(frozen=True)
class Case:
    """One way to extract."""

    backbone: str
    engine: str
    precision: str
    decode: str


@dataclass
class Times:
    """What was measured of one way: seconds, and images a second."""

    whole: list[float]
    running: list[float]
    share: list[float]


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--case", action="append", help=f"[default: {' '.join(CASES)}]")
    parser.add_argument(
        "--copies", type=int, default=1, help="how often each image is there, with other bytes at its end"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--torch", type=Path, metavar="PYTHON", help="of an environment with torch and timm")
    parser.add_argument("--accuracy", action="store_true", help="of the best head, each precision against float32")
    asked = parser.parse_args()
    cases = [Case(*text.split(",")) for text in asked.case or CASES]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEATCACHE_HOME"] = str(Path(folder) / "home")
        images = multiplied(asked.images, asked.copies, Path(folder) / "images")
        measure(images, cases, Path(folder), asked.repeats, asked.torch)
        if asked.accuracy:
            compare_accuracy(asked.images, cases, Path(folder))


def multiplied(images: Path, copies: int, folder: Path) -> Path:
    """Return the folder with every image `copies` times, no two with the same bytes: decoders ignore what is behind."""
    if copies == 1:
        return images
    for path in sorted(image for image in images.rglob("*") if image.is_file()):
        for number in range(copies):
            copy = folder / path.relative_to(images).with_name(f"{path.stem}-{number}{path.suffix}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
            with copy.open("ab") as file:
                file.write(bytes([number]))
    return folder


def measure(images: Path, cases: list[Case], folder: Path, repeats: int, torch: Path | None) -> None:
    """Run every case and the baseline of its backbone `repeats` times."""
    ours: dict[Case, Times] = defaultdict(lambda: Times([], [], []))
    theirs: dict[str, Times] = defaultdict(lambda: Times([], [], []))
    in_torch: dict[str, list[float]] = defaultdict(list)
    for at, case in enumerate(cases):  # the first extraction keeps the network
        fc.extract(images, case.backbone, out=folder / f"first-{at}.h5", **options_of(case))
    for number in range(repeats):
        for backbone in dict.fromkeys(case.backbone for case in cases):
            whole, running = guide(images, backbone)
            theirs[backbone].whole.append(whole)
            theirs[backbone].running.append(running)
            if torch is not None:
                in_torch[backbone].append(torch_rate(torch, images, backbone))
            for at, case in enumerate(case for case in cases if case.backbone == backbone):
                note(ours[case], images, case, folder / f"{number}-{at}-{len(theirs)}.h5")
    print(f"{len(fc.scan(images).rows)} images, medians of {repeats}, ratios to Keras' guide")
    for case in cases:
        base, own = theirs[case.backbone], ours[case]
        print(
            f"{case.backbone:24} {case.engine:9} {case.precision:9} {case.decode:6}"
            f" whole {median(base.whole) / median(own.whole):5.2f}"
            f"  running {median(own.running) / median(base.running):5.2f}"
            f" ({median(own.running):.0f} / {median(base.running):.0f} images/s)"
            f"  share of the limit {median(own.share):.2f}",
            flush=True,
        )
    for backbone, rates in in_torch.items():
        print(f"{backbone:24} torch: {median(rates):.0f} images/s running", flush=True)


def options_of(case: Case) -> dict[str, Any]:
    """Return the options of `extract` that make a case."""
    return {"engine": case.engine, "precision": case.precision, "decode": case.decode}


def torch_rate(python: Path, images: Path, backbone: str) -> float:
    """Return the images a second of PyTorch, once running, in the environment of another Python."""
    script = Path(__file__).with_name("torch_features.py")
    name = TIMM_NAMES[backbone.partition(":")[0]]
    done = subprocess.run([python, script, images, name], check=True, capture_output=True, text=True)
    return float(done.stdout)


def note(times: Times, images: Path, case: Case, out: Path) -> None:
    """Extract once, and measure the limits right after."""
    ticks: list[tuple[int, float]] = []

    def tick(progress: Tick) -> None:
        if progress.step.startswith("extract"):
            ticks.append((progress.done, time.perf_counter()))

    started = time.perf_counter()
    cache = fc.extract(images, case.backbone, out=out, progress=tick, **options_of(case))
    times.whole.append(time.perf_counter() - started)
    (first, begun), (last, ended) = ticks[WARM - 1], ticks[-1]
    running = (last - first) / (ended - begun)
    times.running.append(running)
    decode_rate, forward_rate = limits(images, case, cache)
    times.share.append(running * (1 / decode_rate + 1 / forward_rate))
    print(f"  {case}: {running:.0f} images/s; decoding {decode_rate:.0f}, network {forward_rate:.0f} alone", flush=True)


def limits(images: Path, case: Case, cache: fc.Cache) -> tuple[float, float]:
    """Return the images a second of decoding alone and of the network alone, each with all cores.

    cache: what was extracted; it names the 8-bit network.
    """
    [request] = requests(
        case.backbone,
        precision=case.precision,
        decode={"exact": "pillow/1", "draft": "pillow/1 draft"}[case.decode],
    )
    found = fc.scan(images)
    decoder = Decoder(found.source, found.rows, request.preprocess)
    started = time.perf_counter()
    decoded = [image.pixels for image in decoder if not isinstance(image.pixels, Failure)]
    decode_rate = len(decoded) / (time.perf_counter() - started)
    decoder.close()
    pixels = np.stack(decoded[:512])

    def build_at(precision: Any) -> Any:
        return build(request.spec, request.preprocess.size, request.pooling, precision)

    engine: Engine
    if kept := kept_network(cache.tap().calibration, request.preprocess.size):
        engine = kept.engine
    else:
        engine = choose(build_at, request.taps("w"), pixels[:BATCH], engine=case.engine, num_images=len(found.rows))
    engine.forward(pixels[:BATCH])
    started = time.perf_counter()
    for start in range(0, len(pixels), BATCH):
        engine.forward(pixels[start : start + BATCH])
    return decode_rate, len(pixels) / (time.perf_counter() - started)


def guide(images: Path, backbone: str) -> tuple[float, float]:
    """Return the seconds of the guide's feature extraction, and its images a second once running."""
    [request] = requests(backbone)
    size = request.preprocess.size
    started = time.perf_counter()
    dataset = keras.utils.image_dataset_from_directory(
        images, image_size=(size, size), batch_size=BATCH, shuffle=False, verbose=False
    )
    inputs = keras.Input((size, size, 3))
    network = build(request.spec, size, request.pooling).network
    model = keras.Model(inputs, network(preprocessed(inputs, request.preprocess), training=False))
    model.predict(dataset, verbose=0)
    whole = time.perf_counter() - started
    started = time.perf_counter()
    done = len(model.predict(dataset, verbose=0))  # everything is compiled now
    return whole, done / (time.perf_counter() - started)


def compare_accuracy(images: Path, cases: list[Case], folder: Path) -> None:
    """Print the cross-validated accuracy of the best head on the features of every case."""
    for number, case in enumerate(cases):
        cache = fc.extract(images, case.backbone, out=folder / f"accuracy{number}.h5", **options_of(case))
        best = fc.sweep(cache, ["logreg", "ridge", "knn"], cv=5, out=folder / f"run{number}").best
        print(f"{case}: accuracy {best.trial.score:.4f} {best.trial.interval}, {best.trial.head}", flush=True)


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


if __name__ == "__main__":
    main()
