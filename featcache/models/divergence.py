"""Where an assembled model first computes something else than the head on cached features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from featcache.arrays import Features, Floats, Pixels
from featcache.backbones.build import entering
from featcache.backbones.graph import outputs_of
from featcache.models.assemble import LOGITS, backbones_of, logits_of
from featcache.models.probe import Probe

LARGEST = 1e-4  # difference, relative to the largest value of the layer
IMAGES = 4  # few, because every activation of every layer is kept


def first_divergence(model: Any, probe: Probe, pixels: Pixels, features: Features) -> str:
    """Return which layer is the first whose values differ, or which tap's features: backbones first, then the head.

    Each backbone is compared, in inference and in training, with a newly built one in inference. features: (N, D) that
    enter the head for these pixels.
    """
    # Backbones first: a layer of the head differs, too, if the features that enter it do.
    for network, part in zip(backbones_of(model), probe.parts(), strict=True):
        rebuilt = part.backbone.tapped([tap.layer for tap in part.taps], "rebuilt")
        images = np.asarray(pixels[:IMAGES], np.float32)
        entry = entering(rebuilt, images, part.taps[0].preprocess)
        expected = _values(rebuilt, entry, training=False)
        for training in (False, True):
            values = _values(network, entry, training=training)
            name = _first(values, expected)
            if name is not None:
                mode = "training" if training else "inference"
                return f"layer '{name}' of {network.name}, in {mode}"
    return _of_head(model, probe, pixels[:IMAGES], features[:IMAGES])


def _of_head(model: Any, probe: Probe, pixels: Pixels, features: Features) -> str:
    import keras

    logits = logits_of(model)
    names = [f"head_{number}" for number in range(len(probe.head.layers) - 1)] + [LOGITS]
    entry = logits.get_layer(names[0]).input
    if isinstance(entry, list):  # a layer of squares joins them to the features, which come first
        entry = entry[0]
    entering_head = keras.Model(logits.input, entry)
    computed = np.asarray(entering_head.predict_on_batch(pixels))
    # A nearness layer gets the squared length as one more value, after the features.
    if _differ(computed[:, : features.shape[1]], features):
        return f"the features of tap '{probe.chosen.trial.tap}', which the cache has otherwise. Extract them again"

    # The features agree, so from here on the head computes from cached ones what the model computes from pixels.
    values: dict[str, Floats] = {}
    expected: dict[str, Floats] = {}
    for name, layer in zip(names, probe.head.layers, strict=True):
        features = layer(features)
        expected[name] = features
        up_to_layer = keras.Model(logits.input, logits.get_layer(name).output)
        values[name] = np.asarray(up_to_layer.predict_on_batch(pixels))
    differing = _first(values, expected)
    return f"layer '{differing}' of the head" if differing else "no single layer; their small differences add up"


def _values(network: Any, entry: Any, *, training: bool) -> dict[str, Floats]:
    """Return the output of every operation of a network, in order."""
    import keras

    tensors = {name: outputs[0] for name, outputs in outputs_of(network).items() if outputs}
    watched = keras.Model(network.inputs[0], list(tensors.values()))
    values: dict[str, Floats] = {}
    for name, output in zip(tensors, watched(entry, training=training), strict=True):
        values[name] = keras.ops.convert_to_numpy(output)
    return values


def _first(values: Mapping[str, Floats], expected: Mapping[str, Floats]) -> str | None:
    """Return the first name in both whose values differ."""
    for name, computed in values.items():
        if name in expected and _differ(computed, expected[name]):
            return name
    return None


def _differ(computed: Floats, expected: Floats) -> bool:
    if computed.shape != expected.shape:  # for example, a random crop
        return True
    # In float64: the values may be float16 or bfloat16, whose differences are rounded.
    difference = np.abs(np.asarray(computed, np.float64) - np.asarray(expected, np.float64)).max()
    largest_value = max(float(np.abs(expected).max()), 1e-6)
    return not difference <= LARGEST * largest_value  # "not <=": a NaN differs
