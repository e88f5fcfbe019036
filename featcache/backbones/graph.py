"""List the places where a built network can be read: the operations of its graph, in order, and their outputs.

Not every operation is a layer: the sum that ends a block of ConvNeXt is the bare operation "add_3". A model that is
nested in another model has an output in its inner graph and one in the outer graph. Here it is the one in the outer
graph.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from shlex import quote
from typing import Any

from featcache.backbones.blocks import block_ends
from featcache.errors import UnknownBlock, UsageError
from featcache.spec import did_you_mean

_POSITION = re.compile(r"-?\d+")


def operations(network: Any) -> list[Any]:
    """Return the layers and bare operations of a functional or sequential network, each after its inputs."""
    return list(_functional(network).operations)


def output_of(network: Any, name: str, owner: str) -> Any:
    """Return the output tensor of a layer in this network. owner: the backbone's name, for messages.

    Raises UnknownBlock with near names; UsageError if the layer has several outputs.
    """
    outputs = outputs_of(network)
    if name not in outputs:
        near = did_you_mean(name, outputs)
        show = f"featcache backbones show {quote(owner)} --layers"
        raise UnknownBlock(f"Backbone '{owner}' has no layer '{name}'{near}. Show all: {show}")
    tensors = outputs[name]
    if len(tensors) != 1:
        raise UsageError(f"Layer '{name}' of backbone '{owner}' has {len(tensors)} outputs; a tap reads one")
    return tensors[0]


def resolved(network: Any, text: str, owner: str) -> str:
    """Return the name of the layer that a user means by its name, its position (-1: the last) or the end of its name.

    Keras numbers automatic names by what a session has built before, so `flatten` may mean `flatten_1`, too. A text
    that fits no layer is returned unchanged. Raises UsageError if it fits several, UnknownBlock for a position that
    does not exist.
    """
    names = [str(operation.name) for operation in operations(network)]
    # Exact names first, so that `flatten` means `flatten` where that exists.
    if text in names or text == "top":
        return text
    if _POSITION.fullmatch(text):
        position = int(text)
        if not -len(names) <= position < len(names):
            raise UnknownBlock(
                f"Backbone '{owner}' has {len(names)} layers, so `tap` takes 0 to {len(names) - 1}, or -1 for the "
                f"last; got {text}. Show all: featcache backbones show {quote(owner)} --layers"
            )
        return names[position]
    matches = [name for name in names if _means(text, name)]
    if len(matches) > 1:
        raise UsageError(f"`tap={text}` may mean {', '.join(matches)} of '{owner}'; name one of them")
    return matches[0] if matches else text


def _means(text: str, name: str) -> bool:
    """Return whether a text may mean a layer: the end of its name, its name without number, or as Keras 2 wrote it."""
    is_numbered = name.startswith(f"{text}_") and name[len(text) + 1 :].isdecimal()
    is_end = name.endswith((f"_{text}", f"/{text}"))
    return is_numbered or is_end or name == text.replace("/", "_")


def outputs_of(network: Any) -> dict[str, list[Any]]:
    """Return {name: output tensors in this network} of every operation. A shared layer has one for each call."""
    nodes = _nodes(network)
    outputs: dict[str, list[Any]] = {}
    for operation in operations(network):
        outputs[operation.name] = []
        for node in nodes[operation]:
            outputs[operation.name] += node.output_tensors
    return outputs


def auto_layers(network: Any) -> list[str]:
    """Return the last layer of every block but the last block, and "top".

    If the layer names tell no blocks, a block is all that has feature maps of one size.
    """
    ends = block_ends([operation.name for operation in operations(network)])
    return [*(ends or _ends_of_sizes(network)), "top"]


def _ends_of_sizes(network: Any) -> list[str]:
    """Return, for every height x width of feature maps, the last layer that all paths run through.

    The sizes of the images and of "top" are left out.
    """
    outputs = outputs_of(network)
    ends: dict[Any, str] = {}
    for name in bottlenecks(network):
        # The last one of each size stays.
        if size := _size(outputs[name]):
            ends[size] = name
    ends.pop(_size(network.inputs), None)
    ends.pop(_size(network.outputs), None)
    return list(ends.values())


def _size(tensors: Sequence[Any]) -> Any:
    """Return (height, width) of feature maps; None for other tensors."""
    shape = tensors[0].shape
    return shape[1:3] if len(shape) == 4 else None


def bottlenecks(network: Any) -> list[str]:
    """Return the names of the operations that every path from input to output runs through."""
    order = operations(network)
    all_readers = _readers(network, order)
    names = []
    # The furthest operation that reads the output of an earlier one. If it lies behind an operation, then a path goes
    # around that operation.
    furthest_reader = 0
    for position, (operation, readers) in enumerate(zip(order, all_readers, strict=True)):
        if furthest_reader <= position:
            names.append(operation.name)
        furthest_reader = max(furthest_reader, position, *readers)
    return names


def _readers(network: Any, order: Sequence[Any]) -> list[list[int]]:
    """Return for every operation the positions of the operations that read its output."""
    nodes = _nodes(network)
    positions = {operation: position for position, operation in enumerate(order)}
    readers: list[list[int]] = [[] for _ in order]
    for position, operation in enumerate(order):
        for node in nodes[operation]:
            for parent in node.parent_nodes:
                readers[positions[parent.operation]].append(position)
    return readers


def _nodes(network: Any) -> dict[Any, list[Any]]:
    """Return {operation: its calls within this network}. A shared layer has several calls."""
    nodes: dict[Any, list[Any]] = {}
    for nodes_of_depth in _functional(network)._nodes_by_depth.values():
        for node in nodes_of_depth:
            nodes.setdefault(node.operation, []).append(node)
    return nodes


def _functional(network: Any) -> Any:
    """Return the graph of a network. A sequential model keeps a functional one inside."""
    return getattr(network, "_functional", None) or network
