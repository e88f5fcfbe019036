"""Which layers of the backbone train: none, the last block, a named block and all after it, the last N layers, all.

With "gradual", all blocks begin to train one after the other, from the last to the first; "gradual:BLOCK" stops at a
block.
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
class TrainablePart:
    """The part of a backbone that trains."""

    num_weights: int
    block: str  # the block of the first layer that trains; "" if none does
    note: str = ""  # if a number of layers cuts a block in two, or if nothing trains after all


def unfreeze(network: Any, selection: str) -> TrainablePart:
    """Set the trainable layers of a backbone.

    selection: "none", "last", "all", a number of layers ("8": the last 8; "172:": from layers[172] on), "gradual",
    "gradual:BLOCK", or the name of a block or layer from which on all train. Batch normalisation stays frozen, which
    keeps it in inference. Raises UnknownBlock, UsageError.
    """
    import keras

    names = [layer.name for layer in network.layers]
    first = _first(names, selection)
    network.trainable = True
    for position, layer in enumerate(network.layers):
        layer.trainable = position >= first
    # Last, because making a nested model trainable makes all its layers trainable.
    for layer in all_layers(network):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    num_weights = sum(math.prod(weight.shape) for weight in network.trainable_weights)
    block, note = place(names, selection)
    if not num_weights and first < len(names):
        block = ""
        note = (
            f"Nothing of the backbone trains from layer {first} of {len(names)} on: what has weights there stays frozen"
        )
    return TrainablePart(num_weights, block, note)


def place(names: list[str], selection: str) -> tuple[str, str]:
    """Return the block of the first layer that would train, "" if none does, and a note if it lies inside that block.

    names: of all layers in order. Raises UnknownBlock, UsageError.
    """
    first, block_of_layer = _first(names, selection), block_names(names)
    block = block_of_layer[first] if first < len(names) else ""
    return block, _note(block_of_layer, first, selection)


def is_gradual(selection: str) -> bool:
    """Return whether blocks begin to train one after the other."""
    return selection.partition(":")[0] == GRADUAL


def _first(names: list[str], selection: str) -> int:
    if is_gradual(selection):
        selection = selection.partition(":")[2] or "all"
    if selection == "none":
        return len(names)
    if selection == "all":
        return 0
    if selection == "last":
        return first_of(names, blocks(names)[-1])
    if match := _NUMBER.fullmatch(selection):
        number = int(match["number"])
        if not 0 <= number <= len(names):
            raise UsageError(f"`unfreeze` takes up to {len(names)} layers of this backbone; got {selection}")
        return number if match["slice"] else len(names) - number
    return first_of(names, selection)


def _note(blocks_in_order: list[str], first: int, selection: str) -> str:
    """Return where the nearest block begins, if a number of layers cuts one in two.

    blocks_in_order: the block of each layer.
    """
    starts = [0]
    for position in range(1, len(blocks_in_order)):
        if blocks_in_order[position] != blocks_in_order[position - 1]:
            starts.append(position)
    if not _NUMBER.fullmatch(selection) or first in (*starts, len(blocks_in_order)):
        return ""
    nearest = min(starts, key=lambda start: abs(start - first))
    return (
        f"Layer {first} of {len(blocks_in_order)} lies inside block {blocks_in_order[first]}. The nearest block begins "
        f"at layer {nearest}: {blocks_in_order[nearest]}"
    )
