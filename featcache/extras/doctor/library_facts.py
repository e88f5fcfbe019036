"""Print facts that need libraries which may be broken, a line of JSON each.

Runs as `python -m featcache.extras.doctor.library_facts`. A library can end the whole process (TensorFlow does with
SIGILL on a CPU without AVX), so `diagnose` runs this module in a separate process and keeps the lines printed so far.
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

NEEDED = ("numpy", "scipy", "sklearn", "joblib", "PIL", "h5py")  # Keras has a section, which comes later
BATCH, TIMING_S = 16, 1.0
NETWORK = "mobilenet_v2"  # the speed is measured with it; random weights are as fast as trained ones


def main(names: list[str]) -> None:
    """Print {"section": ..., "facts": ... or "fault": ...} for these sections, or for all, in their order."""
    # Libraries print to standard output too, even from C. From here on that goes to standard error.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in names or list(SECTIONS):
        section: dict[str, Any] = {"section": name}
        try:
            section["facts"] = SECTIONS[name]()
        except BaseException as error:  # whatever a broken library raises
            cause: BaseException = error
            # featcache's own message would repeat the advice that `findings` gives.
            if isinstance(error, EnvironmentFault) and error.__cause__ is not None:
                cause = error.__cause__
            section["fault"] = _reason(cause)
        out.write(json.dumps(section) + "\n")
        out.flush()


def packages() -> dict[str, str | None]:
    """Return {package: why it cannot be imported, None if it can}."""
    faults: dict[str, str | None] = {}
    for name in NEEDED:
        faults[name] = None
        try:
            import_module(name)
        except BaseException as error:
            faults[name] = _reason(error)
    return faults


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def hdf5() -> str:
    """Return the version of the HDF5 library."""
    from featcache.cache.layout import hdf5_version

    return hdf5_version()


def threads() -> list[dict[str, Any]]:
    """Return library and number of threads of each thread pool of NumPy, SciPy and scikit-learn."""
    from threadpoolctl import threadpool_info

    for name in ("numpy", "scipy.linalg", "sklearn"):
        import_module(name)  # threadpoolctl sees only libraries that are loaded
    return [{"library": pool["internal_api"], "threads": pool["num_threads"]} for pool in threadpool_info()]


def weights() -> list[dict[str, Any]]:
    """Return the weights that come with featcache, then the files of ImageNet weights."""
    from featcache.backbones.glyphnet import WEIGHTS
    from featcache.backbones.inventory import StoredWeights, stored_weights

    if WEIGHTS.is_file():
        embedded = StoredWeights(str(WEIGHTS), WEIGHTS.stat().st_size, ("glyphnet",), None, "none")
    else:
        embedded = StoredWeights(str(WEIGHTS), 0, ("glyphnet",), "is missing", "none")
    return [asdict(file) for file in (embedded, *stored_weights())]


def backend() -> str:
    """Return the name of the backend that Keras is set to run on, even if it does not start."""
    from featcache.backend import keras_backend

    return keras_backend()


def keras() -> dict[str, Any]:
    """Return the version of Keras, the name of its backend, and the devices that it sees."""
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

    [request] = requests(NETWORK, weights="none")
    size = request.preprocess.size
    engine = KerasEngine(build(request.spec, size, request.pooling), request.taps(""), batch=BATCH)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)

    engine.forward(images)  # compiles, which is not timed
    num_images = 0
    start = time.perf_counter()
    while time.perf_counter() - start < TIMING_S:
        engine.forward(images)
        num_images += BATCH
    rate = num_images / (time.perf_counter() - start)
    return {"backbone": f"{NETWORK} at {size} pixels", "engine": engine.name, "images_per_s": round(rate, 1)}


def locking() -> str:
    """Return "works", or why a lock in the current folder does not keep other processes out."""
    from featcache.extras.doctor.machine import locking as locking_in

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
