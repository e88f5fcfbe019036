"""Run the network of a classifier: as OpenVINO kept it, which starts without Keras, or in Keras."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from featcache import home
from featcache.arrays import Features, Pixels
from featcache.backbones.devices import USUAL, is_surely_cpu
from featcache.backend import keras_backend
from featcache.errors import EnvironmentFault
from featcache.extraction import kept_networks
from featcache.extraction.batches import Batched
from featcache.extraction.engines import OPENVINO_BATCH
from featcache.extraction.openvino_engine import OpenVINOEngine, convert, is_installed
from featcache.settings import EngineName

log = logging.getLogger(__name__)

BATCH = 32


class KerasNetwork(Batched):
    """A Keras model for (n, size, size, 3) uint8, in batches of one size: Keras compiles once for each shape."""

    def __init__(self, model: Any) -> None:
        super().__init__(f"keras {version('keras')} {keras_backend()}", BATCH)
        self._model = model

    def compute(self, batch: Pixels) -> list[Features]:
        """Return one array per output for exactly `self.batch` images."""
        outputs = self._model.predict_on_batch(batch)
        # Keras gives a list only for several outputs.
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return [np.asarray(output) for output in outputs]


class Built(NamedTuple):
    """A Keras model for (n, size, size, 3) uint8, and what is known once it is built."""

    model: Any
    facts: Mapping[str, Any]  # JSON
    can_be_kept: bool = True  # False if code of the user decides what it computes


class Opened(NamedTuple):
    """A network at work, and the facts about it."""

    network: Batched
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()  # why it could not be kept


def open_network(
    identity: Mapping[str, Any] | None, size: int, build: Callable[[], Built], engine: EngineName = "auto"
) -> Opened:
    """Return the network that an earlier process kept, or build it and keep it.

    identity: what decides every output; None for a network that cannot be kept. size: of the images, in pixels.
    engine: "auto" takes OpenVINO on a CPU if it is installed, where the network can be kept. Raises EnvironmentFault if
    OpenVINO is named and is not installed or cannot compute the network.
    """
    if engine == "keras" or (engine == "auto" and not _is_openvino_usual()):
        return _in_keras(build())
    if identity is not None:
        kept = kept_networks.load(identity, size, "float32", OPENVINO_BATCH)
        if kept is not None:
            return Opened(kept.engine, kept.facts)
        if engine == "auto" and kept_networks.is_refused(identity, "float32"):
            return _in_keras(build())
    built = build()
    notes: list[str] = []
    is_in_float32 = not _has_16_bit_layers(built.model)  # to which OpenVINO, at float32, would not agree
    is_kept = identity is not None and built.can_be_kept and is_in_float32 and home.can_keep(notes.append)
    in_keras = _in_keras(built)._replace(notes=tuple(notes))
    if engine == "auto" and not is_kept:
        return in_keras  # to convert a network takes longer than to run it on a few images
    log.info("Converting the network for OpenVINO, once: later predictions start without Keras")
    try:
        converted = OpenVINOEngine(convert(built.model), OPENVINO_BATCH, "float32")
        proof = kept_networks.prove(converted, size, in_keras.network.forward)
    except EnvironmentFault as error:
        if engine == "openvino":
            raise
        log.info("%s. Computing with Keras", error)
        if identity is not None and is_kept:
            kept_networks.refuse(identity, "float32", str(error))
        return in_keras
    if identity is not None and is_kept:
        kept_networks.keep(identity, converted, proof, built.facts, notes.append)
    return Opened(converted, built.facts, tuple(notes))


def _is_openvino_usual() -> bool:
    return is_installed() and is_surely_cpu(USUAL)


def _has_16_bit_layers(model: Any) -> bool:
    return any("float16" in str(layer.compute_dtype) for layer in model._flatten_layers())  # bfloat16, too


def _in_keras(built: Built) -> Opened:
    return Opened(KerasNetwork(built.model), built.facts)
