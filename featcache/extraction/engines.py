"""Who computes: a function from (N, size, size, 3) uint8 to one (N, D) float32 array per tap."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Protocol

import numpy as np

from featcache.arrays import Features, Pixels
from featcache.backbones import weights
from featcache.backbones.build import Backbone, feature_model
from featcache.spec import BackboneSpec, Tap, canonical_json


class Engine(Protocol):
    """One forward pass. `name` says what really computed."""

    name: str

    def forward(self, batch: Pixels) -> list[Features]:
        """Return one (N, D) float32 array per tap."""
        ...


class PixelEngine:
    """Raw pixels, scaled to 0..1 and laid in a row: the control that every backbone has to beat."""

    name = "numpy"

    def forward(self, batch: Pixels) -> list[Features]:
        """Return [(N, size * size * 3)]."""
        return [(batch.reshape(len(batch), -1) * np.float32(1 / 255)).astype(np.float32)]


class KerasEngine:
    """The backbone in Keras, on whichever backend Keras runs."""

    def __init__(self, backbone: Backbone, taps: Sequence[Tap], batch: int) -> None:
        self.name = f"keras {version('keras')} {weights.keras_backend()}"
        self._model = feature_model(backbone, list(taps))
        self._batch = batch

    def forward(self, batch: Pixels) -> list[Features]:
        """Return one array per tap. Short batches are filled up, so that one compiled shape serves all."""
        count = len(batch)
        filled = np.concatenate([batch, np.zeros((self._batch - count, *batch.shape[1:]), np.uint8)])
        outputs = self._model.predict_on_batch(filled)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return [np.asarray(output, dtype=np.float32)[:count] for output in outputs]


def provenance(engine: Engine, spec: BackboneSpec, size: int) -> str:
    """Return what made the rows, as JSON: engine, versions, and the source of the weights."""
    return canonical_json(
        {
            "engine": engine.name,
            "featcache": version("featcache"),
            "numpy": version("numpy"),
            "pillow": version("pillow"),
            "weights_source": weights.source(spec, size),
        }
    )


def weights_source_of(provenance_json: str) -> str | None:
    """Return the source of the weights that `provenance` wrote."""
    source = json.loads(provenance_json).get("weights_source")
    return None if source is None else str(source)
