"""Compute rows of a cache again, and say why a tap that is asked for is not there."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from featcache import files
from featcache.arrays import Features
from featcache.backbones import weights as weights_of
from featcache.backbones.build import NO_WEIGHTS, build
from featcache.backbones.parse import Request
from featcache.cache.reader import Cache, stored_rows
from featcache.cache.rows import TapRows
from featcache.extraction.engines import PixelEngine, choose, weights_source_of
from featcache.extraction.pipeline import read_one
from featcache.images.sources import Source, open_source
from featcache.spec import Failure, Tap

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}  # in standard deviations of the tap's features


@dataclass(frozen=True)
class Recomputed:
    """How far rows that were computed again are from those in the cache.

    difference: the largest, in standard deviations of the tap's features. changed: images that are gone or others.
    """

    tap: str
    rows: int
    difference: float
    changed: tuple[str, ...]

    def agrees(self, precision: str) -> bool:
        """Tell whether the rows are the same up to what machines and versions differ by."""
        return not self.changed and self.difference <= TOLERANCE[precision]


def recompute(cache: Cache, num_images: int = 32, seed: int = 0) -> list[Recomputed]:
    """Compute some images of every tap again, with the engine at hand, and compare.

    Raises ImagesChanged if the images lie elsewhere, WeightsMissing, WeightsMismatch.
    """
    source = open_source(cache.root)
    return [_recomputed(cache, rows, source, num_images, seed) for rows in stored_rows(cache.path).values()]


def _recomputed(cache: Cache, rows: TapRows, source: Source, num_images: int, seed: int) -> Recomputed:
    tap = rows.tap
    there = [row for row in cache.usable() if row.digest in rows.at]
    some = random.Random(seed).sample(there, min(num_images, len(there)))
    decoded = [read_one(source, row, tap.preprocess, [tap.view]) for row in some]
    same = [
        (row, one.pixels)
        for row, one in zip(some, decoded, strict=True)
        if not isinstance(one.pixels, Failure) and one.row.digest == row.digest
    ]
    changed = tuple(sorted({row.path for row in some} - {row.path for row, _ in same}))
    if not same:
        return Recomputed(tap.name, 0, 0.0, changed)
    again = _forward(tap, np.stack([pixels for _, pixels in same]))
    digests = [row.digest for row, _ in same]
    stored = files.again(lambda: stored_rows(cache.path, tap.fingerprint)[tap.fingerprint].features(digests))
    return Recomputed(tap.name, len(same), _difference(stored, again.astype(tap.dtype).astype(np.float32)), changed)


def _forward(tap: Tap, pixels: Any) -> Features:
    if tap.backbone.name == "pixels":
        return PixelEngine().forward(pixels)[0]
    build_at = partial(build, tap.backbone, tap.preprocess.size, tap.pooling)
    return choose(build_at, [tap], pixels, num_images=len(pixels)).forward(pixels)[0]


def _difference(stored: Features, again: Features) -> float:
    return float(np.abs(stored - again).max() / max(float(stored.std()), 1e-12))


def lacking(request: Request, cache: Cache) -> list[str]:
    """Return one sentence for each tap of a request that the cache lacks: in what the nearest one differs.

    Weights are told apart by their source, so that no network is built, but for --tap auto.
    """
    source = weights_of.source(request.spec, request.preprocess.size)
    stored = list(stored_rows(cache.path).values())
    known = [one.tap for one in stored if source is not None and source in map(weights_source_of, one.makers)]
    digest, architecture = (known[0].weights_digest, known[0].architecture) if known else (NO_WEIGHTS, "")
    layers = None
    if request.layers == ("auto",):
        layers = build(request.spec, request.preprocess.size, request.pooling).auto_layers()
    elif request.spec.origin != "registry" and not {"top", *(tap.layer for tap in known)}.issuperset(request.layers):
        layers = build(request.spec, request.preprocess.size, request.pooling).layers(request.layers)
    found = {one.tap.fingerprint for one in stored}
    wanted = [tap for tap in request.taps(digest, architecture, layers) if tap.fingerprint not in found]
    return [f"no tap '{tap.name}': {_nearest(tap, [one.tap for one in stored])}" for tap in wanted]


def _nearest(wanted: Tap, taps: Sequence[Tap]) -> str:
    differences = {tap.name: _differing(wanted, tap) for tap in taps}
    name = min(differences, key=lambda one: len(differences[one]))
    return f"'{name}' differs in {'; '.join(differences[name])}"


def _differing(wanted: Tap, tap: Tap) -> list[str]:
    asked, there = _flat(asdict(wanted)), _flat(asdict(tap))
    return [
        f"{name} ({there.get(name)}, asked for {asked.get(name)})" for name in asked if asked[name] != there.get(name)
    ]


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    backbone, preprocess = fields["backbone"], fields["preprocess"]
    said = {
        "backbone": backbone["name"],
        "options": dict(backbone["options"]),
        "weights": fields["weights_digest"][:12],
    }
    rest = ("layer", "pooling", "view", "precision", "dtype")
    return said | {name: fields[name] for name in rest} | dict(preprocess)
