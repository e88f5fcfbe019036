"""The frozen part of a model, computed once: training runs only the rest, which shares its weights with the whole.

A backbone is cut at the last layer that everything runs through before the first that trains. What that layer gives is
a tap like any other, extracted into prefix.h5 of the run under the promises of every cache: known by content and
fingerprint, safe against kills, verified. Taps that lie before the cut, or of backbones that do not train at all, come
from the run's own cache.
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
from featcache.images.sources import Source
from featcache.models import Start
from featcache.models.assemble import FEATURES, LOGITS, Part, backbones_of
from featcache.spec import IDENTITY, ImageRow, Progress, Tap
from featcache.sweeps.tap_data import physical_memory
from featcache.tuning.data import ActivationSet
from featcache.tuning.recipe import Recipe

SHARE = 4  # of the memory of the machine that activations may take; more lie on the disk
BLOCK = 256  # images that are read at once


@dataclass(frozen=True)
class Cut:
    """A model in two: what is computed once, and what trains."""

    taps: tuple[Tap, ...]  # what enters the part that trains, in the order of its inputs
    model: Any  # keras.Model: those arrays -> logits (N, K)

    @property
    def layers(self) -> str:
        """Return the names of the layers it is cut at."""
        return ", ".join(tap.layer for tap in self.taps)


def cut(model: Any, parts: Sequence[Part], order: Sequence[str]) -> Cut | None:
    """Return the assembled model cut before what trains; None where a backbone trains from its first layers on.

    order: the names of the taps as their features stand side by side.
    """
    import keras

    taps: list[Tap] = []
    inputs: list[Any] = []
    features: dict[str, Any] = {}
    for network, part in zip(backbones_of(model), parts, strict=True):
        boundary, later = _boundary(network, part)
        if boundary is None and later:
            return None
        for tap in part.taps:
            if tap not in later:
                taps.append(tap)
                inputs.append(keras.Input(_width_of(network, part, tap), name=f"features_{len(inputs)}"))
                features[tap.name] = inputs[-1]
        if boundary is not None and later:
            entry = outputs_of(network)[boundary][0]
            taps.append(_at(part.taps[0], boundary))
            inputs.append(keras.Input(entry.shape[1:], name=f"activations_{len(inputs)}"))
            ends = [network.outputs[part.taps.index(tap)] for tap in later]
            maps = keras.Model(entry, ends, name=f"{network.name}_rest")(inputs[-1])
            features |= {tap.name: pooled(one, tap.pooling) for one, tap in zip(maps, later, strict=True)}
    beside = [features[name] for name in order]
    together = beside[0] if len(beside) == 1 else keras.layers.Concatenate()(beside)
    head = keras.Model(model.get_layer(FEATURES).output, model.get_layer(LOGITS).output, name="head")
    return Cut(tuple(taps), keras.Model(inputs, head(together), name="rest"))


def activations(
    found: Cut, start: Start, source: Source, recipe: Recipe, progress: Progress
) -> tuple[ActivationSet, ActivationSet]:
    """Return what enters the part that trains, of the training and of the validation images; compute what is missing.

    Raises DiskFault if it does not fit on the disk, ImagesChanged if an image is not what was cached.
    """
    cache, folder = start.chosen.run.cache(), start.chosen.run.path
    train, val = start.rows("train"), start.rows("val")
    is_small = bytes_needed(found, recipe, len(train), len(val)) <= physical_memory() / SHARE
    plain = _stores(
        found.taps,
        val if recipe.is_augmented else train + val,
        [IDENTITY],
        cache,
        folder / "prefix.h5",
        source,
        progress,
    )
    views, of_train = [IDENTITY], plain
    if recipe.is_augmented:
        views = [f"{recipe.augment}-{number}" for number in range(1, (recipe.views or 1) + 1)]
        of_train = _stores(found.taps, train, views, cache, folder / f"prefix-{recipe.augment}.h5", source, progress)
    arrays = [[_array(store, train, tap, is_small) for store, tap in of_train[view]] for view in views]
    of_val = [[_array(store, val, tap, is_small) for store, tap in plain[IDENTITY]]]
    return (
        ActivationSet(arrays, cache.labels(train), recipe.seed),
        ActivationSet(of_val, cache.labels(val), recipe.seed),
    )


def bytes_needed(found: Cut, recipe: Recipe, num_train: int, num_val: int) -> int:
    """Return the bytes of all activations."""
    per_image = sum(prod(one.shape[1:]) * 4 for one in found.model.inputs)
    return int(per_image * (num_train * (recipe.views or 1) + num_val))


def _boundary(network: Any, part: Part) -> tuple[str | None, list[Tap]]:
    """Return the layer to cut a backbone at, and the taps of it that lie behind.

    None for the layer if nothing but its input lies before what trains.
    """
    order = operations(network)
    position = {one: at for at, one in enumerate(order)}
    trains = [at for at, one in enumerate(order) if getattr(one, "trainable_weights", ())]
    first = trains[0] if trains else len(order)
    ends = [position[output._keras_history.operation] for output in network.outputs]
    later = [tap for tap, end in zip(part.taps, ends, strict=True) if end >= first]
    through = set(bottlenecks(network))
    weighs = [at for at, one in enumerate(order) if getattr(one, "weights", ())]
    cuts = [at for at, one in enumerate(order) if one.name in through and weighs and weighs[0] <= at < first]
    return (order[cuts[-1]].name if cuts else None), later


def _width_of(network: Any, part: Part, tap: Tap) -> tuple[int, ...]:
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
    cache: Cache,
    out: Path,
    source: Source,
    progress: Progress,
) -> dict[str, list[tuple[Cache, Tap]]]:
    """Return for every view and tap the cache that holds it of these images: that of the run, or the one at `out`."""
    wanted = {view: [replace(tap, view=view) for tap in taps] for view in views}
    known = {tap.fingerprint for tap in cache.taps.values()}
    missing = [tap for of_view in wanted.values() for tap in of_view if tap.fingerprint not in known]
    stored = extract_taps(cache, source, rows, missing, out=out, progress=progress) if missing else cache
    return {view: [(stored if tap in missing else cache, tap) for tap in wanted[view]] for view in views}


def _array(store: Cache, rows: Sequence[ImageRow], tap: Tap, is_small: bool) -> Any:
    """Return (N, ...) float32: in memory if all is small, else in a file without a name beside the cache."""
    name = next(one.name for one in store.taps.values() if one.fingerprint == tap.fingerprint)
    if is_small:
        return store.features(rows, name)
    shape = (len(rows), *store.features(rows[:1], name).shape[1:])
    with tempfile.TemporaryFile(dir=store.path.parent) as file:
        _reserve(file.fileno(), prod(shape) * 4, store.path)
        found = np.memmap(file, np.float32, "r+", shape=shape)
    for at in range(0, len(rows), BLOCK):
        found[at : at + BLOCK] = store.features(rows[at : at + BLOCK], name)
    return found


def _reserve(descriptor: int, nbytes: int, beside: Path) -> None:
    """Have the disk keep room for a file: what is mapped cannot say later that there is none. Raises DiskFault."""
    try:
        reserve(descriptor, nbytes)
    except OSError as error:
        raise DiskFault(
            f"The disk of {beside} has no room for {nbytes / 1e6:.0f} MB of activations ({error.strerror}). "
            "Free some space, or train the whole: --no-prefix"
        ) from error
