"""8-bit networks: made from float32 ones with some of the images, judged, kept, and found again.

A tap at precision int8 names the digest of the 8-bit network that computes it, so features of two networks never mix.
A cache goes on with the network that its rows name. `kept_networks` keeps it in the user's folder. If it is gone, the
same images give the same network; other images give another one, which is refused.

The images are training images, or all where none is labelled: those with the smallest digests, so that neither names
nor order matter, and images that are added later seldom do. Those with the largest digests judge what 8 bits lose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featcache import home
from featcache.arrays import Features, Pixels
from featcache.backbones.build import Backbone
from featcache.cache.rows import TapRows
from featcache.errors import TooFewImages, UsageError
from featcache.extraction import kept_networks
from featcache.extraction.agreement import made_images
from featcache.extraction.engines import OPENVINO_BATCH, choose, identity_of, seconds_per_image
from featcache.extraction.loss import loss_of
from featcache.extraction.networks import Network, built_unchanged
from featcache.extraction.openvino_engine import OpenVINOEngine
from featcache.extraction.pipeline import Decoded, decoded_batches
from featcache.extraction.quantizing import check_installed, digest_of_network, quantized
from featcache.images.sources import Source
from featcache.spec import IDENTITY, Failure, ImageRow, Precision, Preprocess, Progress, Tap, Tick, digest_of

FORMAT = 1  # raise it when the same images would give another network
NUM_IMAGES = 300  # as NNCF recommends
MIN_IMAGES = 16
NUM_JUDGING = 500
MAX_BYTES = 512 * 2**20  # of pixels: very large images calibrate in smaller number
BATCH = 32


class EightBitNetwork(NamedTuple):
    """An 8-bit network at work, and the layers that it gives."""

    engine: OpenVINOEngine
    layers: tuple[str, ...]


class SomeLayers:
    """An engine that gives some of the layers of an 8-bit network."""

    def __init__(self, network: EightBitNetwork, layers: Sequence[str]) -> None:
        self.name = f"{network.engine.name} int8"
        self._engine = network.engine
        self._outputs = [network.layers.index(layer) for layer in layers]

    @property
    def batch(self) -> int:
        """Images per forward pass."""
        return self._engine.batch

    def forward(self, batch: Pixels) -> list[Features]:
        """Return one float32 array per layer."""
        arrays = self._engine.forward(batch)
        return [arrays[output] for output in self._outputs]


@dataclass
class Calibrations:
    """The 8-bit networks that one extraction needs, each made or found once. out: the cache, for messages."""

    source: Source
    rows: Sequence[ImageRow]  # images whose bytes can be read
    out: Path
    batch: int | None
    progress: Progress
    _networks: dict[str, EightBitNetwork] = field(default_factory=dict)  # by digest
    _made: dict[str, str] = field(default_factory=dict)  # {what a network was made from: its digest}

    def named(self, network: Network, cached: Mapping[str, TapRows]) -> list[Network]:
        """Return a network with the digests of the 8-bit networks in its taps, in parts if there are several.

        Layers that the cache has in 8 bits stay with the network that made them; a new one is made for the others.
        Raises EnvironmentFault, TooFewImages, CalibrationFailed.
        """
        if network.taps[0].precision != "int8":
            return [network]
        cached_digests = _digests_in(cached)
        layers_by_digest: dict[str, list[str]] = {}
        new_layers: list[str] = []
        for tap in _of_one_view(network):
            digest = cached_digests.get(_undecided(tap).fingerprint)
            if digest is None:
                new_layers.append(tap.layer)
            else:
                layers_by_digest.setdefault(digest, []).append(tap.layer)
        if new_layers:
            digest = self._digest_for(_part(network, new_layers, ""))
            layers_by_digest.setdefault(digest, []).extend(new_layers)
        return [_part(network, layers, digest) for digest, layers in layers_by_digest.items()]

    def engine(self, network: Network) -> SomeLayers:
        """Return the engine of a part that `named` gave. Raises UsageError if its 8-bit network is gone."""
        taps = _of_one_view(network)
        layers = [tap.layer for tap in taps]
        digest = taps[0].calibration
        if digest not in self._networks:
            kept = kept_network(digest, taps[0].preprocess.size, self.batch)
            if kept is not None:
                self._networks[digest] = kept
            elif self._digest_for(_part(network, layers, "")) != digest:
                raise UsageError(
                    f"The 8-bit network of tap '{taps[0].name}' in {self.out} is not on this machine any more, and "
                    "these images and layers give another one, whose features would not fit. Use another `out`"
                )
        return SomeLayers(self._networks[digest], layers)

    def _digest_for(self, network: Network) -> str:
        """Return the digest of the 8-bit network for these layers that the images which are here give."""
        check_installed()
        taps = [tap.in_keras for tap in _of_one_view(network)]
        rows = _distinct(self.rows)
        made_from = {
            **identity_of(taps),
            "images": [row.digest for row in _sample(rows, taps[0].preprocess.size)],
            "format": FORMAT,
            **{name: version(name) for name in ("openvino", "nncf")},
        }
        key = digest_of(made_from)
        if key not in self._made:
            self._made[key] = self._found(key, taps[0].preprocess.size) or self._calibrated(key, network, taps, rows)
        return self._made[key]

    def _found(self, key: str, size: int) -> str | None:
        """Return the digest of a network that an earlier process made from the same; None if it kept none."""
        facts = home.find_facts(_record(key))
        if facts is None:
            return None
        digest = str(facts["network"])
        kept = kept_network(digest, size, self.batch)
        if kept is None:
            return None
        self._networks[digest] = kept
        return digest

    def _calibrated(self, key: str, network: Network, taps: Sequence[Tap], rows: Sequence[ImageRow]) -> str:
        """Return the digest of a new 8-bit network for float32 taps, which is judged, and kept for later processes."""
        began = time.perf_counter()
        preprocess = taps[0].preprocess
        sample = _sample(rows, preprocess.size)
        judging = rows[-NUM_JUDGING:]
        total = 2 * len(sample) + len(judging)  # the sample is decoded, and then goes through the network

        def tick(num_done: int) -> None:
            self.progress(Tick(f"calibrate {taps[0].name}", num_done, total))

        tick(0)
        pixels = self._pixels(sample, preprocess)
        tick(len(sample))

        def build(precision: Precision) -> Backbone:
            return built_unchanged(network, self.out, precision)

        exact = choose(build, taps, pixels[:BATCH], engine="openvino", device="cpu", batch=self.batch, say=self._note)
        assert isinstance(exact, OpenVINOEngine)
        converted = quantized(exact.network, pixels, lambda index: tick(len(sample) + index))
        rounded = OpenVINOEngine(converted, self.batch or OPENVINO_BATCH, "int8")
        layers = tuple(tap.layer for tap in taps)
        batches = self._batches(judging, preprocess, lambda index: tick(2 * len(sample) + index))
        loss = loss_of(exact, rounded, batches, layers)
        gain = seconds_per_image(exact, pixels[:BATCH]) / seconds_per_image(rounded, pixels[:BATCH])
        self._note(
            f"Calibrated an 8-bit network on {len(pixels)} images in {time.perf_counter() - began:.0f} s, "
            f"{gain:.1f} times as fast as OpenVINO at float32: {loss}"
        )
        digest = digest_of_network(converted)
        self._networks[digest] = EightBitNetwork(rounded, layers)
        self._keep(key, digest, loss, preprocess.size)
        return digest

    def _batches(
        self, rows: Sequence[ImageRow], preprocess: Preprocess, tick: Callable[[int], None]
    ) -> Iterator[tuple[list[ImageRow], Pixels]]:
        """Yield images with their pixels. tick: receives the number of images so far."""
        num_done = 0
        for images in decoded_batches(self.source, rows, preprocess, BATCH):
            usable = _usable(images)
            if usable:
                yield [image.row for image in usable], np.stack([image.pixels for image in usable])
            num_done += len(images)
            tick(num_done)

    def _pixels(self, sample: Sequence[ImageRow], preprocess: Preprocess) -> Pixels:
        """Return the pixels of the images that calibrate. Raises TooFewImages."""
        images: list[Decoded] = []
        for batch in decoded_batches(self.source, sample, preprocess, BATCH):
            images += _usable(batch)
        if len(images) < MIN_IMAGES:
            raise TooFewImages(
                f"`precision='int8'` needs {MIN_IMAGES} training images to calibrate on, and {len(images)} can be "
                "used. Use `precision='float32'`"
            )
        return np.stack([image.pixels for image in images])

    def _keep(self, key: str, digest: str, loss: str, size: int) -> None:
        """Keep a network for later processes, and from what it was made."""
        network = self._networks[digest]
        # What the network itself gives on the made images: `load` compares them on every machine.
        proof = kept_networks.Proof(network.engine.forward(made_images(kept_networks.NUM_IMAGES, size)), loss)
        kept_networks.keep(_identity(digest), network.engine, proof, {"layers": network.layers}, self._note)
        home.keep_facts(_record(key), {"network": digest})

    def _note(self, text: str) -> None:
        self.progress(Tick("engine", 0, 0, text))


def kept_network(digest: str, size: int, batch: int | None = None) -> EightBitNetwork | None:
    """Return the 8-bit network with this digest that an earlier process kept; None if there is none."""
    kept = kept_networks.load(_identity(digest), size, "int8", batch or OPENVINO_BATCH)
    if kept is None or digest_of_network(kept.engine.network) != digest:
        return None
    return EightBitNetwork(kept.engine, tuple(kept.facts["layers"]))


def _identity(digest: str) -> dict[str, str]:
    return {"calibration": digest}


def _record(key: str) -> str:
    return f"calibrations/{key}.json"


def _distinct(rows: Sequence[ImageRow]) -> list[ImageRow]:
    """Return the training images, or all if there are none, each content once, in the order of their digests."""
    usable = [row for row in rows if row.split == "train"] or rows
    by_digest = {row.digest: row for row in usable}
    return [by_digest[digest] for digest in sorted(by_digest)]


def _sample(rows: Sequence[ImageRow], size: int) -> Sequence[ImageRow]:
    """Return the images that calibrate."""
    return rows[: min(NUM_IMAGES, MAX_BYTES // (3 * size**2))]


def _usable(images: Sequence[Decoded]) -> list[Decoded]:
    return [image for image in images if not isinstance(image.pixels, Failure)]


def _of_one_view(network: Network) -> Sequence[Tap]:
    return next(iter(network.taps_by_view.values()))


def _part(network: Network, layers: Sequence[str], digest: str) -> Network:
    """Return a network that reads only these layers, as the 8-bit network with this digest computes them."""
    taps = tuple(replace(tap, calibration=digest) for tap in network.taps if tap.layer in layers)
    return replace(network, request=replace(network.request, layers=tuple(layers)), taps=taps)


def _digests_in(cached: Mapping[str, TapRows]) -> dict[str, str]:
    """Return {fingerprint of an 8-bit tap without its network: digest of its network}; with most rows, of several."""
    digests: dict[str, str] = {}
    for rows in sorted(cached.values(), key=lambda rows: len(rows.at)):
        if rows.tap.precision == "int8":
            digests[_undecided(rows.tap).fingerprint] = rows.tap.calibration
    return digests


def _undecided(tap: Tap) -> Tap:
    """Return an 8-bit tap before it is known which network computes it. All views and types share their network."""
    return replace(tap, view=IDENTITY, dtype="float32", calibration="")
