"""Which layers of the backbone train: none, the last block, from a named block on, the last N layers, all."""

from __future__ import annotations

import math
from typing import Any

from featcache.backbones.blocks import blocks, first_of
from featcache.errors import UsageError


def unfreeze(network: Any, what: str) -> int:
    """Set the trainable layers of a backbone and return how many weights in it train.

    what: "none", "last", "all", a number of layers, or the name of a block or layer from which on all train.
    Batch normalisation stays frozen, which keeps it in inference. Raises UnknownBlock, UsageError.
    """
    import keras

    names = [layer.name for layer in network.layers]
    first = _first(names, what)
    network.trainable = True
    for at, layer in enumerate(network.layers):
        layer.trainable = at >= first and not isinstance(layer, keras.layers.BatchNormalization)
    return sum(math.prod(weight.shape) for weight in network.trainable_weights)


def _first(names: list[str], what: str) -> int:
    if what == "none":
        return len(names)
    if what == "all":
        return 0
    if what == "last":
        return first_of(names, blocks(names)[-1])
    if what.removeprefix("-").isdecimal():
        if not 0 <= int(what) <= len(names):
            raise UsageError(f"--unfreeze takes up to {len(names)} layers of this backbone; got {what}")
        return len(names) - int(what)
    return first_of(names, what)
