"""Starts the engine of a network when its first pixels are decoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from featcache.arrays import Pixels
from featcache.backbones.lineage import lineage_of
from featcache.cache.rows import TapRows, is_part
from featcache.extraction.calibration import Calibrations
from featcache.extraction.compute import Started
from featcache.extraction.engines import WORTH_TIMING, Engine, PixelEngine, choose, provenance
from featcache.extraction.extract_options import Options
from featcache.extraction.networks import Network, built_unchanged
from featcache.spec import Tap

PIXEL_BATCH = 256


class WarmEngines:
    """Engines that stay ready from one extraction to the next, for a caller who has a few images at a time.

    They take the memory of their networks until this object goes. An engine that was chosen for a few images does not
    compute many: it may be worth the time then to look for a faster one.
    """

    def __init__(self) -> None:
        self._engines: dict[tuple[Any, ...], tuple[Started, bool]] = {}

    def get(self, key: tuple[Any, ...], num_images: int) -> Started | None:
        """Return the engine of a key, if it was chosen for as many images."""
        started, is_for_many = self._engines.get(key, (None, False))
        return started if is_for_many or num_images < WORTH_TIMING else None

    def put(self, key: tuple[Any, ...], num_images: int, started: Started) -> None:
        """Keep an engine. num_images: for how many images it was chosen."""
        self._engines[key] = (started, num_images >= WORTH_TIMING)


@dataclass
class Starter:
    """Starts one engine for all work of one network. Call it with the first pixels, (n, size, size, 3)."""

    network: Network
    options: Options
    out: Path
    cached: TapRows | None  # rows of the network's first tap
    num_images: int
    calibrations: Calibrations
    report: Callable[[str], None]
    warm: WarmEngines | None  # that outlive the extraction
    started: Started | None = None

    def __call__(self, sample: Pixels) -> Started:
        """Return the engine at work; the first call chooses it on these pixels, unless one is ready."""
        if self.started is not None:
            return self.started
        if self.warm is None:
            self.started = self._start(sample)
            return self.started
        options = self.options
        fingerprints = [tap.fingerprint for tap in self.network.taps]
        key = (self.out, options.engine, options.device, options.batch, self.network.weights_source, *fingerprints)
        self.started = self.warm.get(key, self.num_images) or self._start(sample)
        self.warm.put(key, self.num_images, self.started)
        return self.started

    def _start(self, sample: Pixels) -> Started:
        spec = self.network.request.spec
        layers = {tap.layer for tap in self.network.taps}
        lineages = {layer: lineage_of(spec, layer) for layer in layers}
        engine = self._engine(sample)
        made_by = provenance(engine, self.network.weights_source)
        return Started(engine, made_by, lineages)

    def _engine(self, sample: Pixels) -> Engine:
        batch = self.options.batch_size
        if self.network.request.spec.name == "pixels":
            return PixelEngine(batch or PIXEL_BATCH)
        if self.network.request.precision == "int8":
            return self.calibrations.engine(self.network)
        # The taps of the first view: the same engine computes the others, since views differ in pixels only.
        taps = next(iter(self.network.taps_by_view.values()))
        name = self.options.engine
        if name == "auto":
            name = engine_to_continue(taps[0], self.cached)
        return choose(
            partial(built_unchanged, self.network, self.out),
            taps,
            sample,
            engine=name,
            device=self.options.device,
            batch=batch,
            num_images=self.num_images,
            say=self.report,
        )


def engine_to_continue(tap: Tap, cached: TapRows | None) -> str:
    """Return the engine that made the rows of a tap if it must make the others too, else "auto".

    That is so if an extraction of the tap was interrupted, or if the tap is not float32: in low precision, engines
    differ too much to be mixed.
    """
    if cached is None:
        return "auto"
    # Rows that are still in parts come from an extraction that was interrupted.
    makers: list[str] = []
    for piece in cached.pieces:
        if is_part(piece.source):
            makers += piece.makers
    if not makers and tap.precision != "float32":
        makers += cached.makers
    if not makers:
        return "auto"
    return str(json.loads(makers[0])["engine"]).split()[0]
