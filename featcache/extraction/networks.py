"""Requests -> networks: the weights that a backbone has, and the layers that are read.

Building a network takes seconds, and its weights may have to be downloaded first. So the cache is asked: a tap with
weights from the same source says what these weights are. The user's cache folder is asked, too: it remembers the
weights of every source that was ever built here. A network is built only for what neither says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from featcache.backbones import weights as weights_of
from featcache.backbones.build import Backbone, build
from featcache.backbones.parse import Request
from featcache.cache.rows import TapRows
from featcache.errors import NotAModel, WeightsMismatch
from featcache.extraction.engines import weights_source_of
from featcache.spec import NO_WEIGHTS, Precision, Tap


@dataclass(frozen=True)
class Network:
    """A requested backbone with known weights, and its taps: all taps of one view, then all of the next."""

    request: Request
    taps: tuple[Tap, ...]
    weights_source: str | None
    backbone: Backbone | None = None  # at float32, if it had to be built

    @property
    def taps_by_view(self) -> dict[str, list[Tap]]:
        """{view: its taps}, in their order."""
        return {view: list(taps) for view, taps in groupby(self.taps, attrgetter("view"))}

    def built(self, precision: Precision = "float32") -> Backbone:
        """Return the backbone at a precision: the one that was built, or a new one."""
        if self.backbone is not None and precision == "float32":
            return self.backbone
        return built(self.request, precision)


def built(request: Request, precision: Precision = "float32") -> Backbone:
    """Return a new backbone."""
    return build(request.spec, request.preprocess.size, request.pooling, precision, request.trust)


def built_unchanged(network: Network, out: Path, precision: Precision) -> Backbone:
    """Return the backbone of a network. Raises an error if its weights are not those that its taps name.

    out: the cache with these taps, for the error.
    """
    backbone = network.built(precision)
    tap = network.taps[0]
    spec = network.request.spec
    if backbone.weights_digest == tap.weights_digest:
        return backbone
    if spec.origin == "registry":
        raise WeightsMismatch(
            f"Tap '{tap.name}' in {out} was made with other weights than the file that it names holds (by an older "
            "featcache, where KERAS_HOME was read-only?). Extract to another cache"
        )
    raise NotAModel(f"'{spec.name}' has other weights each time it is built. Save the model and name its file")


def network_of(request: Request, cached: Mapping[str, TapRows], report: Callable[[str], None]) -> Network:
    """Return the network of a request. Builds it only if the cached taps do not say its weights and layers.

    report: receives a note before weights are downloaded. Raises WeightsMissing, UnknownTap.
    """
    spec = request.spec
    source = weights_of.source(spec, request.preprocess.size)
    if spec.name == "pixels":
        return Network(request, tuple(request.taps(NO_WEIGHTS, "")), source)

    backbone: Backbone | None = None
    # An earlier extraction knows the values that this source gave, so the network need not be built to hash them.
    same_weights = _tap_with_same_weights(request, source, cached)
    known = weights_of.known_digests(spec, request.preprocess.size, source)
    if same_weights is not None:
        weights_digest = same_weights.weights_digest
        architecture = same_weights.architecture
    elif known is not None:
        weights_digest, architecture = known
    else:
        if source is None and spec.origin == "registry":
            report(f"downloading the ImageNet weights of {spec.name}, once")
        backbone = built(request)
        weights_digest = backbone.weights_digest
        architecture = backbone.architecture
        # The download has only now put the weights into a file, so the source is known only now.
        source = backbone.source
        if not backbone.has_code:
            weights_of.remember_digests(spec, request.preprocess.size, source, (weights_digest, architecture))

    layers: Sequence[str] | None = None
    if request.layers == ("auto",):
        backbone = backbone or built(request)
        layers = backbone.auto_layers()
    elif not _are_layer_names(request, weights_digest, architecture, cached):
        backbone = backbone or built(request)
        layers = backbone.layers(request.layers)
    taps = request.taps(weights_digest, architecture, layers)
    return Network(request, tuple(taps), source, backbone)


def _tap_with_same_weights(request: Request, source: str | None, cached: Mapping[str, TapRows]) -> Tap | None:
    """Return a cached tap of the same backbone with weights from this source."""
    if source is None:
        return None
    spec = request.spec
    for rows in cached.values():
        backbone = rows.tap.backbone
        is_same = (backbone.origin, backbone.name, backbone.options) == (spec.origin, spec.name, spec.options)
        if is_same and source in map(weights_source_of, rows.makers):
            return rows.tap
    return None


def _are_layer_names(request: Request, weights_digest: str, architecture: str, cached: Mapping[str, TapRows]) -> bool:
    """Return whether all requested layers are exact names, so that the backbone need not be built to find them.

    The registry takes only names. For your own model, names of cached taps are known.
    """
    if request.spec.origin == "registry":
        return True
    names = {"top"}
    for rows in cached.values():
        if (rows.tap.architecture, rows.tap.weights_digest) == (architecture, weights_digest):
            names.add(rows.tap.layer)
    return names.issuperset(request.layers)
