"""Who computes: a function from (N, size, size, 3) uint8 to one (N, D) float32 array per tap."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Protocol

import numpy as np

from featcache.arrays import Features, Pixels
from featcache.backbones import weights
from featcache.backbones.build import Backbone, feature_model
from featcache.spec import BackboneSpec, Tap, canonical_json


class Engine(Protocol):
    """One forward pass. `name` says what really computed, `batch` how many images go through at once."""

    name: str
    batch: int

    def forward(self, batch: Pixels) -> list[Features]:
        """Return one float32 array per layer: (N, D), or (N, h, w, C) without pooling."""
        ...


class PixelEngine:
    """Raw pixels, scaled to 0..1 and laid in a row: the control that every backbone has to beat."""

    name = "numpy"

    def __init__(self, batch: int = 256) -> None:
        self.batch = batch

    def forward(self, batch: Pixels) -> list[Features]:
        """Return [(N, size * size * 3)]."""
        return [(batch.reshape(len(batch), -1) * np.float32(1 / 255)).astype(np.float32)]


class KerasEngine:
    """The backbone in Keras, on whichever backend Keras runs."""

    def __init__(self, backbone: Backbone, taps: Sequence[Tap], batch: int) -> None:
        self.name = f"keras {version('keras')} {weights.keras_backend()}"
        self.batch = batch
        self._model = feature_model(backbone, list(taps))

    def forward(self, batch: Pixels) -> list[Features]:
        """Return one array per layer."""
        return in_batches(self._compute, batch, self.batch)

    def _compute(self, batch: Pixels) -> list[Features]:
        outputs = self._model.predict_on_batch(batch)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        return [np.asarray(output, dtype=np.float32) for output in outputs]


def in_batches(compute: Callable[[Pixels], list[Features]], images: Pixels, batch: int) -> list[Features]:
    """Compute any number of images in batches of one size, the last filled up: one compiled shape serves all."""
    done = []
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        filled = np.concatenate([some, np.zeros((batch - len(some), *some.shape[1:]), np.uint8)])
        done.append([array[: len(some)] for array in compute(filled)])
    return [np.concatenate(arrays) for arrays in zip(*done, strict=True)]


def choose(
    backbone: Backbone,
    taps: Sequence[Tap],
    sample: Pixels,
    *,
    engine: str = "auto",
    device: str = "auto",
    batch: int | None = None,
    precision: str = "float32",
    num_images: int = 0,
    say: Callable[[str], None] = print,
) -> Engine:
    """Return the engine that computes these taps of one view."""
    return KerasEngine(backbone, taps, batch or 32)


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
