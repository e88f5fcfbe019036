"""Facts that take libraries which may be broken, each on its own line of JSON: `python -m featcache.diagnosis.probe`.

A library can end the whole process (TensorFlow does with SIGILL on a CPU that lacks AVX), so `diagnose` runs this in a
process of its own, and what was printed until then stays.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from featcache.errors import EnvironmentFault

NEEDED = ("numpy", "scipy", "sklearn", "joblib", "PIL", "h5py")  # and Keras, which comes last
BATCH, TIMING_S = 16, 1.0
NETWORK = "mobilenet_v2"  # what the speed is measured with: random weights are as fast as others


def main(names: list[str]) -> None:
    """Print {"section": ..., "facts": ... or "fault": ...} of these sections, or of all, in their order."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like
    for name in names or list(SECTIONS):
        found: dict[str, Any] = {"section": name}
        try:
            found["facts"] = SECTIONS[name]()
        except BaseException as error:  # whatever a broken library raises
            # What featcache says of it repeats the advice that `findings` gives.
            is_ours = isinstance(error, EnvironmentFault)
            found["fault"] = _reason(error.__cause__ if is_ours and error.__cause__ else error)
        out.write(json.dumps(found) + "\n")
        out.flush()


def packages() -> dict[str, str | None]:
    """Return {package: why it cannot be imported}."""
    return {name: _fault(name) for name in NEEDED}


def _fault(name: str) -> str | None:
    try:
        import_module(name)
    except BaseException as error:
        return _reason(error)
    return None


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def hdf5() -> str:
    """Return the version of the HDF5 library."""
    from featcache.cache.layout import hdf5_version

    return hdf5_version()


def threads() -> list[dict[str, Any]]:
    """Return the pools of threads of NumPy, SciPy and scikit-learn: which library, how many threads."""
    from threadpoolctl import threadpool_info

    for name in ("numpy", "scipy.linalg", "sklearn"):
        import_module(name)
    return [{"library": one["internal_api"], "threads": one["num_threads"]} for one in threadpool_info()]


def weights() -> list[dict[str, Any]]:
    """Return the files of ImageNet weights, and first the one that comes with featcache."""
    from featcache.backbones.glyphnet import WEIGHTS
    from featcache.backbones.inventory import StoredWeights, stored_weights

    missing = None if WEIGHTS.is_file() else "is missing"
    size = WEIGHTS.stat().st_size if WEIGHTS.is_file() else 0
    return [
        asdict(one) for one in (StoredWeights(str(WEIGHTS), size, ("glyphnet",), missing, "none"), *stored_weights())
    ]


def backend() -> str:
    """Return the name of the backend that Keras will run on, whether or not it does."""
    from featcache.backend import keras_backend

    return keras_backend()


def keras() -> dict[str, Any]:
    """Return the version of Keras, its backend, and the devices that it sees."""
    from featcache.backbones.devices import listed_devices
    from featcache.backend import keras_backend, start_keras

    start_keras()
    return {
        "version": str(sys.modules["keras"].__version__),
        "backend": keras_backend(),
        "devices": listed_devices(),
        "cpus": listed_devices("cpu"),
    }


def speed() -> dict[str, Any]:
    """Return how many images per second go through a network with random weights."""
    import numpy as np

    from featcache.backbones.build import build
    from featcache.backbones.parse import requests
    from featcache.extraction.engines import KerasEngine

    [asked] = requests(NETWORK, weights="none")
    size = asked.preprocess.size
    engine = KerasEngine(build(asked.spec, size, asked.pooling), asked.taps(""), batch=BATCH)
    sample = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)
    engine.forward(sample)  # compiles
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < TIMING_S:
        engine.forward(sample)
        images += BATCH
    rate = images / (time.perf_counter() - began)
    return {"backbone": f"{NETWORK} at {size} pixels", "engine": engine.name, "images_per_s": round(rate, 1)}


def locking() -> str:
    """Return "works", or why locks in the current folder do not keep others out."""
    from featcache.diagnosis.machine import locking as locking_in

    return locking_in(Path.cwd())


SECTIONS: Mapping[str, Callable[[], Any]] = {
    "packages": packages,
    "hdf5": hdf5,
    "threads": threads,
    "locking": locking,
    "weights": weights,
    "backend": backend,
    "keras": keras,
    "speed": speed,
}

if __name__ == "__main__":
    main(sys.argv[1:])
