"""Compute rows of a cache again and compare them, and explain why a requested tap is missing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from featcache import files
from featcache.arrays import Features, Pixels
from featcache.backbones import weights as weights_of
from featcache.backbones.build import Backbone, build
from featcache.backbones.parse import Request
from featcache.cache.reader import Cache, stored_rows
from featcache.cache.rows import TapRows
from featcache.errors import EnvironmentFault
from featcache.extraction.calibration import SomeLayers, kept_network
from featcache.extraction.engines import Engine, PixelEngine, choose, weights_source_of
from featcache.extraction.pipeline import read_one
from featcache.images.sources import Source, open_source
from featcache.spec import NO_WEIGHTS, Failure, Precision, Tap

TOLERANCE = {
    "float32": 1e-3,
    "bfloat16": 0.5,
    "float16": 0.1,
    "int8": 0.5,
}  # in standard deviations of the tap's features


@dataclass(frozen=True)
class Recomputed:
    """How far rows that were computed again are from the rows in the cache.

    difference: the largest one, in standard deviations of the tap's features. changed: images that are gone or have
    other bytes now.
    """

    tap: str
    rows: int
    difference: float
    changed: tuple[str, ...]

    def agrees(self, precision: str) -> bool:
        """Return whether the rows agree up to the differences between machines and versions."""
        return not self.changed and self.difference <= TOLERANCE[precision]


def recompute(cache: Cache, num_images: int = 32, seed: int = 0) -> list[Recomputed]:
    """Compute some images of every tap again, with the engine of this machine, and compare the rows.

    Raises ImagesChanged if the images have moved, WeightsMissing, WeightsMismatch.
    """
    source = open_source(cache.root)
    return [_recomputed(cache, rows, source, num_images, seed) for rows in stored_rows(cache.path).values()]


def _recomputed(cache: Cache, rows: TapRows, source: Source, num_images: int, seed: int) -> Recomputed:
    tap = rows.tap
    candidates = [row for row in cache.usable() if row.digest in rows.at]
    sample = random.Random(seed).sample(candidates, min(num_images, len(candidates)))
    digests: list[str] = []
    pixels: list[Pixels] = []
    changed: set[str] = set()
    for row in sample:
        decoded = read_one(source, row, tap.preprocess, [tap.view])
        # Images that were edited cannot agree, so they are reported and not compared.
        if isinstance(decoded.pixels, Failure) or decoded.row.digest != row.digest:
            changed.add(row.path)
        else:
            digests.append(row.digest)
            pixels.append(decoded.pixels)

    difference = 0.0
    if pixels:
        computed = forward(tap, np.stack(pixels), partial(build, tap.backbone, tap.preprocess.size, tap.pooling))
        computed = computed.astype(tap.dtype).astype(np.float32)  # rounded as when stored
        stored = files.again(lambda: stored_rows(cache.path, tap.fingerprint)[tap.fingerprint].features(digests))
        spread = max(float(stored.std()), 1e-12)
        difference = float(np.abs(stored - computed).max() / spread)
    return Recomputed(tap.name, len(pixels), difference, tuple(sorted(changed)))


def forward(tap: Tap, pixels: Pixels, build_at: Callable[[Precision], Backbone]) -> Features:
    """Return the features of one tap, from the engine that an extraction would choose here.

    build_at: returns the backbone at a precision; it is called if no network of the tap was kept.
    """
    engine: Engine = PixelEngine()
    if tap.backbone.name != "pixels":
        if tap.precision == "int8":
            return _forward_in_8_bits(tap, pixels)
        engine = choose(build_at, [tap], pixels, num_images=len(pixels))
    [features] = engine.forward(pixels)
    return features


def _forward_in_8_bits(tap: Tap, pixels: Pixels) -> Features:
    """Return the features of one tap from the 8-bit network that it names. Raises EnvironmentFault if that is gone."""
    network = kept_network(tap.calibration, tap.preprocess.size)
    if network is None:
        raise EnvironmentFault(
            f"The 8-bit network of tap '{tap.name}' is not on this machine any more, so no features can be computed "
            "with it. Those in the cache can be used as before"
        )
    [features] = SomeLayers(network, [tap.layer]).forward(pixels)
    return features


def lacking(request: Request, cache: Cache) -> list[str]:
    """Return one sentence for each requested tap that the cache lacks: how it differs from the nearest cached tap.

    Weights are compared by their source, so that no network has to be built, except for --tap auto and for layers of
    your own model that are no names of cached taps.
    """
    source = weights_of.source(request.spec, request.preprocess.size)
    stored = list(stored_rows(cache.path).values())
    with_source: list[Tap] = []  # the cached taps with weights from this source
    for rows in stored:
        if source is not None and source in map(weights_source_of, rows.makers):
            with_source.append(rows.tap)
    digest = NO_WEIGHTS
    architecture = ""
    if with_source:
        digest = with_source[0].weights_digest
        architecture = with_source[0].architecture

    layers = None
    known_layers = {"top", *(tap.layer for tap in with_source)}
    if request.layers == ("auto",):
        layers = build(request.spec, request.preprocess.size, request.pooling).auto_layers()
    elif request.spec.origin != "registry" and not known_layers.issuperset(request.layers):
        layers = build(request.spec, request.preprocess.size, request.pooling).layers(request.layers)

    # Which 8-bit network computes a tap is known once it is calibrated, so it is left out here.
    taps = {replace(rows.tap, calibration="").fingerprint: rows.tap for rows in stored}
    sentences: list[str] = []
    for tap in request.taps(digest, architecture, layers):
        if tap.fingerprint not in taps:
            sentences.append(f"no tap '{tap.name}': {_nearest(tap, list(taps.values()))}")
    return sentences


def _nearest(requested: Tap, taps: Sequence[Tap]) -> str:
    """Return the tap that differs in the fewest facts, and these facts."""
    differences = {tap.name: _differences(requested, tap) for tap in taps}
    name = min(differences, key=lambda name: len(differences[name]))
    return f"'{name}' differs in {'; '.join(differences[name])}"


def _differences(requested: Tap, cached: Tap) -> list[str]:
    cached_facts = _facts(cached)
    sentences: list[str] = []
    for name, value in _facts(requested).items():
        cached_value = cached_facts.get(name)
        if value != cached_value:
            sentences.append(f"{name} ({cached_value}, asked for {value})")
    return sentences


def _facts(tap: Tap) -> dict[str, Any]:
    """Return how the rows of a tap are made, by the names that a user knows."""
    facts = {
        "backbone": tap.backbone.name,
        "options": dict(tap.backbone.options),
        "weights": tap.weights_digest[:12],
        "layer": tap.layer,
        "pooling": tap.pooling,
        "view": tap.view,
        "precision": tap.precision,
        "dtype": tap.dtype,
    }
    return facts | tap.preprocess.to_dict()
