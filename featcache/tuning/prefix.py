"""The frozen part of a model, computed once: training runs only the rest, which shares its weights with the whole.

A backbone is cut at a bottleneck: a layer that every path from the image to the outputs runs through. The best cut is
the last bottleneck before the first layer that trains. What that layer gives is a tap like any other, extracted into
prefix.h5 of the run under the promises of every cache: identified by content and fingerprint, safe against kills,
verified. Taps that lie before the cut, or that belong to backbones which do not train at all, come from the run's own
cache, unless training augments the images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from featcache.backbones.build import pooled
from featcache.backbones.graph import bottlenecks, operations, outputs_of
from featcache.cache.reader import Cache
from featcache.errors import DiskFault
from featcache.extraction import extract_taps
from featcache.files import reserve
from featcache.models import Probe
from featcache.models.assemble import FEATURES, LOGITS, ModelPart, backbones_of
from featcache.spec import IDENTITY, ImageRow, Progress, Tap
from featcache.sweeps.tap_data import physical_memory
from featcache.tuning.data import ActivationSet
from featcache.tuning.training_recipe import Recipe

MEMORY_SHARE = 1 / 4  # of the machine's memory for activations; larger ones are kept on disk
BLOCK = 256  # images read at once


@dataclass(frozen=True)
class Cut:
    """A model in two: what is computed once, and what trains."""

    taps: tuple[Tap, ...]  # what enters the part that trains, in the order of its inputs
    model: Any  # keras.Model: those arrays -> logits (N, K)

    @property
    def layers(self) -> str:
        """Return the names of the layers it is cut at."""
        return ", ".join(tap.layer for tap in self.taps)


def cut(model: Any, parts: Sequence[ModelPart], order: Sequence[str]) -> Cut | None:
    """Return the assembled model cut before what trains; None where a backbone trains from its first layers on.

    order: the names of the taps in the order in which their features are joined.
    """
    import keras

    taps: list[Tap] = []
    inputs: list[Any] = []
    features: dict[str, Any] = {}  # {tap: its pooled features, as tensors of the part that trains}
    for network, part in zip(backbones_of(model), parts, strict=True):
        boundary, taps_behind = _boundary(network, part)
        if boundary is None and taps_behind:
            return None
        # A tap before the cut does not change in training: its features enter the head directly.
        for tap in part.taps:
            if tap not in taps_behind:
                taps.append(tap)
                inputs.append(keras.Input(_width_of(network, part, tap), name=f"features_{len(inputs)}"))
                features[tap.name] = inputs[-1]
        if boundary is not None and taps_behind:
            # Keras builds the rest from the tensors of the network itself, so both share their layers and weights.
            entry = outputs_of(network)[boundary][0]
            ends = [network.outputs[part.taps.index(tap)] for tap in taps_behind]
            rest = keras.Model(entry, ends, name=f"{network.name}_rest")
            taps.append(_at(part.taps[0], boundary))
            inputs.append(keras.Input(entry.shape[1:], name=f"activations_{len(inputs)}"))
            for tap, activations in zip(taps_behind, rest(inputs[-1]), strict=True):
                features[tap.name] = pooled(activations, tap.pooling)
    ordered = [features[name] for name in order]
    joined = ordered[0] if len(ordered) == 1 else keras.layers.Concatenate()(ordered)
    head = keras.Model(model.get_layer(FEATURES).output, model.get_layer(LOGITS).output, name="head")
    return Cut(tuple(taps), keras.Model(inputs, head(joined), name="rest"))


def activations(
    cut_model: Cut, probe: Probe, recipe: Recipe, progress: Progress
) -> tuple[ActivationSet, ActivationSet]:
    """Return what enters the part that trains, for the training and the validation images; compute what is missing.

    Raises DiskFault if it does not fit on the disk, ImagesChanged if an image is not what was cached.
    """
    run, taps = probe.chosen.run.path, cut_model.taps
    train, val = probe.rows("train"), probe.rows("val")
    is_small = bytes_needed(cut_model, recipe, len(train), len(val)) <= physical_memory() * MEMORY_SHARE

    # Augmented training never sees the images as they are, so only validation needs that view.
    unchanged = val if recipe.is_augmented else train + val
    judging_views = [IDENTITY, recipe.val_view] if recipe.augment_val else [IDENTITY]
    plain_stores = _stores(taps, unchanged, judging_views, probe, run / "prefix.h5", progress)
    views, train_stores = [IDENTITY], plain_stores
    if recipe.is_augmented:
        views = [f"{recipe.augment}-{number}" for number in range(1, (recipe.views or 1) + 1)]
        train_stores = _stores(taps, train, views, probe, run / f"prefix-{recipe.augment}.h5", progress)

    of_train = []
    for view in views:
        of_train.append([_array(store, train, tap, is_small) for store, tap in train_stores[view]])
    of_val = []
    for view in judging_views:
        of_val.append([_array(store, val, tap, is_small) for store, tap in plain_stores[view]])
    return (
        ActivationSet(of_train, probe.labels(train), recipe.seed),
        ActivationSet(of_val[-1:], probe.labels(val), recipe.seed, unchanged=of_val[0]),
    )


def bytes_needed(cut_model: Cut, recipe: Recipe, num_train: int, num_val: int) -> int:
    """Return the bytes of all activations."""
    bytes_per_image = sum(prod(tensor.shape[1:]) * 4 for tensor in cut_model.model.inputs)  # float32
    views_of_val = 2 if recipe.augment_val else 1
    return int(bytes_per_image * (num_train * (recipe.views or 1) + num_val * views_of_val))


def _boundary(network: Any, part: ModelPart) -> tuple[str | None, list[Tap]]:
    """Return the layer to cut a backbone at, and its taps that lie behind the cut.

    The layer is None if there is no bottleneck with weights before what trains: computing it once would save nothing.
    """
    order = operations(network)
    position = {operation: at for at, operation in enumerate(order)}
    trained = [at for at, operation in enumerate(order) if getattr(operation, "trainable_weights", ())]
    first_trained = trained[0] if trained else len(order)

    taps_behind = []
    for tap, output in zip(part.taps, network.outputs, strict=True):
        if position[output._keras_history.operation] >= first_trained:
            taps_behind.append(tap)

    weighted = [at for at, operation in enumerate(order) if getattr(operation, "weights", ())]
    if not weighted:
        return None, taps_behind
    names = set(bottlenecks(network))
    candidates = [operation.name for operation in order[weighted[0] : first_trained] if operation.name in names]
    return (candidates[-1] if candidates else None), taps_behind


def _width_of(network: Any, part: ModelPart, tap: Tap) -> tuple[int, ...]:
    """Return (D,) of a tap's pooled features."""
    return tuple(pooled(network.outputs[part.taps.index(tap)], tap.pooling).shape[1:])


def _at(tap: Tap, layer: str) -> Tap:
    """Return the tap that reads a layer as it is."""
    label = tap.name.rpartition("/")[0]
    return replace(tap, name=f"{label}/{layer}:none", layer=layer, pooling="none", dtype="float32")


def _stores(
    taps: Sequence[Tap],
    rows: Sequence[ImageRow],
    views: Sequence[str],
    probe: Probe,
    out: Path,
    progress: Progress,
) -> dict[str, list[tuple[Cache, Tap]]]:
    """Return {view: [(cache that holds the tap, tap)]} for images: the run's cache, or the one at `out`."""
    cached = {tap.fingerprint for tap in probe.cache.taps.values()}
    wanted = {view: [replace(tap, view=view) for tap in taps] for view in views}
    missing = []
    for taps_of_view in wanted.values():
        missing += [tap for tap in taps_of_view if tap.fingerprint not in cached]
    extracted = probe.cache
    if missing:
        # All views in one call: each image is read once.
        extracted = extract_taps(probe.cache, probe.source, rows, missing, out=out, progress=progress)
    stores: dict[str, list[tuple[Cache, Tap]]] = {}
    for view, taps_of_view in wanted.items():
        stores[view] = [(extracted if tap in missing else probe.cache, tap) for tap in taps_of_view]
    return stores


def _array(store: Cache, rows: Sequence[ImageRow], tap: Tap, is_small: bool) -> Any:
    """Return (N, ...) float32: in memory if all is small, else in a file without a name beside the cache."""
    name = next(stored.name for stored in store.taps.values() if stored.fingerprint == tap.fingerprint)
    if is_small:
        return store.features(rows, name)
    shape = (len(rows), *store.features(rows[:1], name).shape[1:])
    # The map keeps the file open after the block, and the disk space is free again when the array is.
    with tempfile.TemporaryFile(dir=store.path.parent) as file:
        _reserve(file.fileno(), prod(shape) * 4, store.path)
        array = np.memmap(file, np.float32, "r+", shape=shape)
    for start in range(0, len(rows), BLOCK):
        array[start : start + BLOCK] = store.features(rows[start : start + BLOCK], name)
    return array


def _reserve(descriptor: int, nbytes: int, beside: Path) -> None:
    """Reserve disk space for a mapped file. Raises DiskFault.

    Without it, writing to the map on a full disk would end the process (SIGBUS) instead of raising an error.
    """
    try:
        reserve(descriptor, nbytes)
    except OSError as error:
        raise DiskFault(
            f"The disk of {beside} has no room for {nbytes / 1e6:.0f} MB of activations ({error.strerror}). "
            "Free some space, or train the whole network: `prefix=False`"
        ) from error
