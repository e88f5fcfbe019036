"""Where Keras computes: on which of the devices that its backend sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from featcache.backend import keras_backend, start_keras
from featcache.errors import EnvironmentFault
from featcache.spec import choose

USUAL = "auto"  # where Keras computes by itself
KINDS = (USUAL, "cpu", "gpu", "tpu")


def check_kinds(asked: str) -> None:
    """Raise UsageError if devices of no known kind are asked for; knows no Keras."""
    for one in asked.split(","):
        choose("--device", one.partition(":")[0], KINDS)


def devices(asked: str) -> list[str]:
    """Return the devices that are asked for: "auto" all accelerators, "gpu" all GPUs, or names: "gpu:0,gpu:1".

    ["auto"] stands for the one device that Keras takes by itself. Raises EnvironmentFault if one is not there.
    """
    check_kinds(asked)
    start_keras()
    listed, found = listed_devices(), list[str]()
    for one in asked.split(","):
        kind = one.partition(":")[0]
        if kind == USUAL:
            accelerators = [name for name in listed if not name.startswith("cpu")]
            return accelerators if len(accelerators) > 1 else [USUAL]
        there = listed_devices(kind)
        named = [one] if ":" in one else there
        if not named or not set(named) <= set(there):
            raise EnvironmentFault(f"--device {one} is not there; Keras on {keras_backend()} sees {', '.join(listed)}")
        found += named
    return list(dict.fromkeys(found))


@contextmanager
def on_device(name: str) -> Iterator[None]:
    """Compute on one of `devices`."""
    if name == USUAL:
        yield
        return
    import keras

    with keras.device(name):
        yield


def on_cpu(names: Sequence[str]) -> bool:
    """Tell whether Keras computes on the CPU, on these devices."""
    return all(name.startswith("cpu") for name in (listed_devices() if USUAL in names else names))


def listed_devices(kind: str | None = None) -> list[str]:
    """Return the devices of a kind, or the accelerators, the CPU if there is none. Keras 3.15 cannot list PyTorch's."""
    import keras

    if keras_backend() == "torch":
        import torch

        gpus = [f"gpu:{number}" for number in range(torch.cuda.device_count())]
        return {"cpu": ["cpu:0"], "gpu": gpus, None: gpus or ["cpu:0"]}.get(kind, [])
    with suppress(RuntimeError):  # of JAX, where there is none of the kind
        return list(keras.distribution.list_devices(kind))
    return []
