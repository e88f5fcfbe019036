"""Where Keras computes: on which of the devices that its backend sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from featcache.backbones.weights import keras_backend
from featcache.backend import start_keras
from featcache.errors import EnvironmentFault
from featcache.spec import choose


@contextmanager
def on_device(device: str) -> Iterator[None]:
    """Compute on this device: "auto", "cpu", "gpu" or "gpu:1". Raises EnvironmentFault if it is not there."""
    if device == "auto":
        yield
        return
    choose("--device", device.partition(":")[0], ("auto", "cpu", "gpu", "tpu"))
    start_keras()
    import keras

    there = keras.distribution.list_devices()
    name = device if ":" in device else f"{device}:0"
    if name not in there:
        raise EnvironmentFault(f"--device {device} is not there; Keras on {keras_backend()} sees {', '.join(there)}")
    with keras.device(name):
        yield


def on_cpu(device: str) -> bool:
    """Tell whether Keras would compute on the CPU."""
    if device != "auto":
        return device.startswith("cpu")
    start_keras()
    import keras

    return all(name.startswith("cpu") for name in keras.distribution.list_devices())
