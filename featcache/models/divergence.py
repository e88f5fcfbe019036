"""Where an assembled model first computes something else than the head on cached features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featcache.arrays import Floats, Pixels
from featcache.backbones.build import entering
from featcache.backbones.graph import outputs_of
from featcache.models.assemble import backbones_of, logits_of
from featcache.models.probe import Probe
from featcache.spec import ImageRow

LARGEST = 1e-4  # difference, of the largest value that the layer gives
IMAGES = 4  # every activation of every layer is kept


def first_divergence(model: Any, probe: Probe, pixels: Pixels, rows: Sequence[ImageRow]) -> str:
    """Say which layer is the first whose values differ, of the backbones and then of the head, or which tap's features.

    The backbones are compared, in inference and in training, with themselves built anew in inference.
    """
    for network, part in zip(backbones_of(model), probe.parts(), strict=True):
        anew = part.backbone.tapped([tap.layer for tap in part.taps], "anew")
        entry = entering(anew, np.asarray(pixels[:IMAGES], np.float32), part.taps[0].preprocess)
        expected = _values(anew, entry, training=False)
        for training in (False, True):
            name = _first(_values(network, entry, training=training), expected)
            if name is not None:
                return f"layer '{name}' of {network.name}, in {'training' if training else 'inference'}"
    return _of_head(model, probe, pixels, rows)


def _of_head(model: Any, probe: Probe, pixels: Pixels, rows: Sequence[ImageRow]) -> str:
    import keras

    logits = logits_of(model)
    number = len(probe.head.layers) - 1
    names = [f"head_{at}" for at in range(number)] + ["logits"]
    first = logits.get_layer(names[0]).input
    given = keras.Model(logits.input, first if not isinstance(first, list) else first[0])
    features = probe.features(rows[:IMAGES])
    now = np.asarray(given.predict_on_batch(pixels[:IMAGES]))[:, : features.shape[1]]
    if _apart(now, features):
        return f"the features of tap '{probe.chosen.trial.tap}', which the cache has otherwise. Extract them anew"
    values, expected = {}, {}
    for name, layer in zip(names, probe.head.layers, strict=True):
        features = layer(features)
        expected[name] = features
        values[name] = np.asarray(
            keras.Model(logits.input, logits.get_layer(name).output).predict_on_batch(pixels[:IMAGES])
        )
    differs = _first(values, expected)
    return f"layer '{differs}' of the head" if differs else "no single layer; their small differences add up"


def _values(network: Any, entry: Any, *, training: bool) -> dict[str, Floats]:
    """Return what every operation of a network gives, in order."""
    import keras

    found = {name: tensors[0] for name, tensors in outputs_of(network).items() if tensors}
    watched = keras.Model(network.inputs[0], list(found.values()))
    given = watched(entry, training=training)
    return {name: keras.ops.convert_to_numpy(one) for name, one in zip(found, given, strict=True)}


def _first(found: Mapping[str, Floats], expected: Mapping[str, Floats]) -> str | None:
    """Return the first of the names that both have whose values differ."""
    return next((name for name in found if name in expected and _apart(found[name], expected[name])), None)


def _apart(found: Floats, expected: Floats) -> bool:
    if found.shape != expected.shape:  # such as those of a random crop
        return True
    difference = np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64)).max()
    return not difference <= LARGEST * max(float(np.abs(expected).max()), 1e-6)
