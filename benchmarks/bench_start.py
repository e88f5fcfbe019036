"""What networks that were kept are worth: whole commands, each in a new process, against the same work in Keras.

    python benchmarks/bench_start.py --images photos/ --backbone mobilenet_v2

Four measurements, interleaved with their baselines, medians of --repeats. The first command of each kind, which
converts the network, is not counted; it is shown beside them.
predict   one photo, against `predict --engine keras`
ten       `extract` of ten new images into a cache of all others, against `--engine keras`
verify    `cache verify --recompute 8`, against nothing: its seconds
all       `extract` of all images, against a script of Keras' own transfer-learning guide
Machines are shared and noisy: read the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

FEATCACHE = [sys.executable, "-c", "from featcache_cli.app import main; main()"]
NUM_NEW = 10
# Keras' guide: https://keras.io/guides/transfer_learning, with the constructor's own preprocessing
GUIDE = """
import sys, keras, numpy
images, name, size, module = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
dataset = keras.utils.image_dataset_from_directory(images, image_size=(size, size), shuffle=False)
network = getattr(keras.applications, name)(include_top=False, pooling="avg", input_shape=(size, size, 3))
inputs = keras.Input((size, size, 3))
ready = getattr(keras.applications, module).preprocess_input(inputs)
features = keras.Model(inputs, network(ready)).predict(dataset)
numpy.save(sys.argv[5], features)
"""


def main() -> None:
    """Print one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="class folders")
    parser.add_argument("--backbone", default="mobilenet_v2", help="a name of the registry")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEATCACHE_HOME"] = str(Path(folder) / "home")
        measure(asked.images.resolve(), asked.backbone, Path(folder), asked.repeats)


def measure(images: Path, backbone: str, folder: Path, repeats: int) -> None:
    """Run every measurement `repeats` times, each beside its baseline."""
    photos = folder / "photos"
    shutil.copytree(images, photos)
    old, new = folder / "old.h5", folder / "new.h5"
    later = sorted(path for path in photos.rglob("*") if path.is_file())[:: -(-len(list(photos.rglob("*"))) // NUM_NEW)]
    aside = folder / "aside"
    for path in later:
        target = aside / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)

    first_extraction = featcache("extract", photos, "-b", backbone, "-o", old, "--engine", "openvino")
    featcache("sweep", old, "--heads", "ridge", "-o", folder / "run")
    featcache("handoff", f"{folder / 'run'}@best", "-o", folder / "model.keras")
    shutil.copytree(aside, photos, dirs_exist_ok=True)
    predict = ["predict", folder / "model.keras", photos / later[0].relative_to(photos)]
    first_prediction = featcache(*predict)

    def ten(engine: str) -> float:
        shutil.copy(old, new)
        return featcache("extract", photos, "-b", backbone, "-o", new, "--engine", engine)

    def everything() -> float:
        return featcache("extract", photos, "-b", backbone, "-o", folder / f"{time.time_ns()}.h5")

    pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "predict": (lambda: featcache(*predict, "--engine", "keras"), lambda: featcache(*predict)),
        "ten new": (lambda: ten("keras"), lambda: ten("auto")),
        "all": (lambda: guide(photos, backbone, folder), everything),
    }
    baseline: dict[str, list[float]] = {name: [] for name in pairs}
    ours: dict[str, list[float]] = {name: [] for name in pairs}
    verify: list[float] = []
    for _ in range(repeats):
        for name, (run_baseline, run_ours) in pairs.items():
            baseline[name].append(run_baseline())
            ours[name].append(run_ours())
        verify.append(featcache("cache", "verify", old, "--recompute", "8"))

    print(f"{backbone}, {len(list(photos.rglob('*.*')))} images, medians of {repeats}")
    print(f"the first time, with the conversion: extract {first_extraction:.1f} s, predict {first_prediction:.1f} s")
    names = {"predict": "predict one photo: in Keras / kept", "ten new": "ten new images: in Keras / kept"}
    for name in pairs:
        slow, fast = statistics.median(baseline[name]), statistics.median(ours[name])
        text = names.get(name, "all images, whole command: Keras' guide / kept")
        print(f"{text}: {slow / fast:.1f} times ({slow:.2f} s / {fast:.2f} s)")
    print(f"cache verify --recompute 8: {statistics.median(verify):.2f} s")


def featcache(*arguments: object) -> float:
    """Run a command in a new process, and return how long it took."""
    return seconds([*FEATCACHE, *map(str, arguments)])


def guide(photos: Path, backbone: str, folder: Path) -> float:
    """Run Keras' guide in a new process, and return how long it took."""
    from featcache.backbones.registry import get

    entry = get(backbone)
    words = [str(photos), entry.constructor, str(entry.size), entry.module, str(folder / "features.npy")]
    return seconds([sys.executable, "-c", GUIDE, *words])


def seconds(command: list[str]) -> float:
    """Return how long a command takes. Raises CalledProcessError, with what it said, if it fails."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
