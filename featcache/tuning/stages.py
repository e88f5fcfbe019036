"""Which layers of the backbone train: none, the last block, from a named block on, the last N layers, all.

"gradual" has all train, block after block from the last; "gradual:BLOCK" those from a block on.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from featcache.backbones.blocks import block_names, blocks, first_of
from featcache.backbones.noise import all_layers
from featcache.errors import UsageError

GRADUAL = "gradual"
_NUMBER = re.compile(r"(?P<number>-?\d+)(?P<slice>:?)")  # "8": the last 8 layers; "172:": layers[172:]


@dataclass(frozen=True)
class Unfrozen:
    """What of a backbone trains."""

    num_weights: int
    block: str  # of the first layer that trains; "" if none does
    note: str = ""  # where a number of layers lies in no block's beginning


def unfreeze(network: Any, what: str) -> Unfrozen:
    """Set the trainable layers of a backbone.

    what: "none", "last", "all", a number of layers ("8": the last 8; "172:": from layers[172] on), "gradual",
    "gradual:BLOCK", or the name of a block or layer from which on all train. Batch normalisation stays frozen, which
    keeps it in inference. Raises UnknownBlock, UsageError.
    """
    import keras

    names = [layer.name for layer in network.layers]
    first = _first(names, what)
    network.trainable = True
    for at, layer in enumerate(network.layers):
        layer.trainable = at >= first
    for layer in all_layers(network):  # of nested models too
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    num_weights = sum(math.prod(weight.shape) for weight in network.trainable_weights)
    block, note = place(names, what)
    if not num_weights and first < len(names):
        block = ""
        note = (
            f"Nothing of the backbone trains from layer {first} of {len(names)} on: what has weights there stays frozen"
        )
    return Unfrozen(num_weights, block, note)


def place(names: list[str], what: str) -> tuple[str, str]:
    """Return the block of the first layer that would train, "" if none does, and a note if it lies inside that block.

    names: of all layers in order. Raises UnknownBlock, UsageError.
    """
    first, of_layer = _first(names, what), block_names(names)
    return of_layer[first] if first < len(names) else "", _note(of_layer, first, what)


def is_gradual(what: str) -> bool:
    """Return whether blocks begin to train one after the other."""
    return what.partition(":")[0] == GRADUAL


def _first(names: list[str], what: str) -> int:
    if is_gradual(what):
        what = what.partition(":")[2] or "all"
    if what == "none":
        return len(names)
    if what == "all":
        return 0
    if what == "last":
        return first_of(names, blocks(names)[-1])
    if match := _NUMBER.fullmatch(what):
        number = int(match["number"])
        if not 0 <= number <= len(names):
            raise UsageError(f"`unfreeze` takes up to {len(names)} layers of this backbone; got {what}")
        return number if match["slice"] else len(names) - number
    return first_of(names, what)


def _note(of_layer: list[str], first: int, what: str) -> str:
    """Say where the nearest block begins, if a number of layers cuts one in two."""
    if not _NUMBER.fullmatch(what) or not 0 < first < len(of_layer) or of_layer[first] != of_layer[first - 1]:
        return ""
    starts = [at for at in range(len(of_layer)) if at == 0 or of_layer[at] != of_layer[at - 1]]
    nearest = min(starts, key=lambda at: abs(at - first))
    return (
        f"Layer {first} of {len(of_layer)} lies inside block {of_layer[first]}. The nearest block begins at "
        f"layer {nearest}: `unfreeze='{of_layer[nearest]}'`"
    )
