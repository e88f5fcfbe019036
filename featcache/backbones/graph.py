"""Where a built network can be read: the operations of its graph, in order, and what they give.

Not every step is a layer: the sum that ends a block of ConvNeXt is the bare operation "add_3". And a model that is
nested in another has two outputs, one of its own graph and one of the graph it stands in, which is meant here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from shlex import quote
from typing import Any

from featcache.backbones.blocks import block_ends
from featcache.errors import UnknownBlock, UsageError
from featcache.spec import did_you_mean

_PLACE = re.compile(r"-?\d+")


def operations(network: Any) -> list[Any]:
    """Return the layers and bare operations of a functional or sequential network, each after what it takes."""
    return list(_functional(network).operations)


def output_of(network: Any, name: str, owner: str) -> Any:
    """Return the tensor that a layer gives in this network. owner: whose layers they are, for messages.

    Raises UnknownBlock with near names; UsageError if the layer gives several.
    """
    found = outputs_of(network)
    if name not in found:
        near = did_you_mean(name, found)
        show = f"featcache backbones show {quote(owner)} --layers"
        raise UnknownBlock(f"Backbone '{owner}' has no layer '{name}'{near}. Show all: {show}")
    if len(found[name]) != 1:
        raise UsageError(f"Layer '{name}' of backbone '{owner}' gives {len(found[name])} outputs; a tap reads one")
    return found[name][0]


def resolved(network: Any, asked: str, owner: str) -> str:
    """Return the name of the layer that a user means: its name, its place (-1: the last), or the end of its name.

    Keras numbers automatic names by what a session has built before, so `flatten` may mean `flatten_1`, too. What fits
    no layer is returned as it is. Raises UsageError if it fits several, UnknownBlock if there is no such place.
    """
    names = [str(one.name) for one in operations(network)]
    if asked in names or asked == "top":
        return asked
    if _PLACE.fullmatch(asked):
        if not -len(names) <= int(asked) < len(names):
            raise UnknownBlock(
                f"Backbone '{owner}' has {len(names)} layers, so --tap takes 0 to {len(names) - 1}, or -1 for the "
                f"last; got {asked}. Show all: featcache backbones show {quote(owner)} --layers"
            )
        return names[int(asked)]
    found = [name for name in names if _means(asked, name)]
    if len(found) > 1:
        raise UsageError(f"--tap {asked} may mean {', '.join(found)} of '{owner}'; name one of them")
    return found[0] if found else asked


def _means(asked: str, name: str) -> bool:
    """Tell whether a text may mean a layer: by the end of its name, without its number, or as Keras 2 spelt it."""
    numbered = name.startswith(f"{asked}_") and name[len(asked) + 1 :].isdecimal()
    return numbered or name.endswith((f"_{asked}", f"/{asked}")) or name == asked.replace("/", "_")


def outputs_of(network: Any) -> dict[str, list[Any]]:
    """Return {name: the tensors it gives in this network} of every operation: one, unless it is shared."""
    nodes = _nodes(network)
    return {one.name: [tensor for node in nodes[one] for tensor in node.output_tensors] for one in operations(network)}


def auto_layers(network: Any) -> list[str]:
    """Return the end of every block but the last, and "top"; where no block has a name, the end of every map size."""
    ends = block_ends([one.name for one in operations(network)])
    return [*(ends or _ends_of_sizes(network)), "top"]


def _ends_of_sizes(network: Any) -> list[str]:
    """Return for every height x width of feature maps the last layer that everything runs through.

    But not for that of the images, nor for that of "top".
    """
    ends: dict[Any, str] = {}
    outputs = outputs_of(network)
    for name in bottlenecks(network):
        if size := _size(outputs[name]):
            ends[size] = name
    return [name for size, name in ends.items() if size not in (_size(network.inputs), _size(network.outputs))]


def _size(tensors: Sequence[Any]) -> Any:
    """Return the height and width of feature maps, None of anything else."""
    return tensors[0].shape[1:3] if len(tensors[0].shape) == 4 else None


def bottlenecks(network: Any) -> list[str]:
    """Return the names of the operations that no path from input to output goes around."""
    order = operations(network)
    found, reach = [], 0  # reach: the last that takes what one before this gives
    for at, (one, takers) in enumerate(zip(order, _takers(network, order), strict=True)):
        if reach <= at:
            found.append(one.name)
        reach = max(reach, *takers, at)
    return found


def _takers(network: Any, order: Sequence[Any]) -> list[list[int]]:
    """Return for every operation the positions of those that take what it gives."""
    nodes, position = _nodes(network), {one: at for at, one in enumerate(order)}
    takers: list[list[int]] = [[] for _ in order]
    for one in order:
        for parent in (parent for node in nodes[one] for parent in node.parent_nodes):
            takers[position[parent.operation]].append(position[one])
    return takers


def _nodes(network: Any) -> dict[Any, list[Any]]:
    """Return the calls of every operation within this network: one, unless it is shared."""
    nodes: dict[Any, list[Any]] = {}
    for node in chain.from_iterable(_functional(network)._nodes_by_depth.values()):
        nodes.setdefault(node.operation, []).append(node)
    return nodes


def _functional(network: Any) -> Any:
    """Return the graph of a network; a sequential one keeps it inside."""
    return getattr(network, "_functional", None) or network
