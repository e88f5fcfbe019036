"""Choose the devices on which Keras computes, among those that its backend sees."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from featcache.backend import keras_backend, start_keras
from featcache.errors import EnvironmentFault
from featcache.spec import choose

USUAL = "auto"  # the device that Keras takes by default
KINDS = (USUAL, "cpu", "gpu", "tpu")
DEVICE_FILES = ("nvidia[0-9]*", "kfd", "accel*")  # in /dev: GPUs of NVIDIA and AMD, TPUs
PLUGINS = ("jax_plugins", "libtpu", "tensorflow-plugins")  # packages that show other devices to Keras' backends


def check_kinds(text: str) -> None:
    """Raise UsageError if a text names a device of an unknown kind. Does not start Keras."""
    for name in text.split(","):
        choose("device", name.partition(":")[0], KINDS)


def devices(text: str) -> list[str]:
    """Return the devices that a text names: "auto" means all accelerators, "gpu" all GPUs, "gpu:0,gpu:1" these two.

    Returns ["auto"] if Keras' default device is the only choice. Raises EnvironmentFault for a missing device.
    """
    check_kinds(text)
    start_keras()
    all_devices = listed_devices()
    chosen: list[str] = []
    for name in text.split(","):
        kind = name.partition(":")[0]
        if kind == USUAL:
            accelerators = [device for device in all_devices if not device.startswith("cpu")]
            # Keras takes a single accelerator by itself.
            return accelerators if len(accelerators) > 1 else [USUAL]
        available = listed_devices(kind)
        requested = [name] if ":" in name else available
        if not requested or not set(requested) <= set(available):
            raise EnvironmentFault(
                f"`device={name}` is not there; Keras on {keras_backend()} sees {', '.join(all_devices)}"
            )
        chosen += requested
    return list(dict.fromkeys(chosen))


def is_surely_cpu(text: str) -> bool:
    """Return whether `devices` would give CPUs only; False where only Keras could tell. Does not start Keras."""
    check_kinds(text)
    if text in ("cpu", "cpu:0"):
        return True
    return text == USUAL and not _may_have_accelerators()


def _may_have_accelerators() -> bool:
    has_tools = shutil.which("nvidia-smi") is not None
    has_files = any(any(Path("/dev").glob(pattern)) for pattern in DEVICE_FILES)
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    has_plugins = any(find_spec(name) is not None for name in PLUGINS)
    return has_plugins or ((has_tools or has_files) and not is_hidden)


@contextmanager
def on_device(name: str) -> Iterator[None]:
    """Compute on one of `devices` within this context."""
    if name == USUAL:
        yield
        return
    import keras

    with keras.device(name):
        yield


def on_cpu(names: Sequence[str]) -> bool:
    """Return whether all these devices are CPUs. "auto" stands for every device that Keras sees."""
    if USUAL in names:
        names = listed_devices()
    return all(name.startswith("cpu") for name in names)


def listed_devices(kind: str | None = None) -> list[str]:
    """Return the devices of a kind; for None the accelerators, or the CPU if there are none."""
    import keras

    if keras_backend() == "torch":  # whose devices Keras 3.15 cannot list
        import torch

        cpu = ["cpu:0"]
        gpus = [f"gpu:{number}" for number in range(torch.cuda.device_count())]
        by_kind = {"cpu": cpu, "gpu": gpus, None: gpus or cpu}
        return by_kind.get(kind, [])
    with suppress(RuntimeError):  # JAX raises it if there is no device of this kind
        return list(keras.distribution.list_devices(kind))
    return []
