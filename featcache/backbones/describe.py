"""What a backbone is made of, for a user who chooses taps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from featcache.backbones.blocks import STEM, block_names, blocks
from featcache.backbones.build import Backbone, build
from featcache.backbones.graph import operations, outputs_of
from featcache.backbones.parse import Request
from featcache.backbones.registry import get
from featcache.backbones.weights import file_of


@dataclass(frozen=True)
class Layer:
    """One layer that can be a tap."""

    name: str
    shape: tuple[int | None, ...]  # of what it gives for one image
    block: str
    auto: bool  # read by --tap auto
    index: int | None = None  # its place, by which --tap can name it in a user's own model


def facts_of(request: Request) -> dict[str, Any]:
    """Return what is known of a backbone. A user's own model is built, and one of the registry that has options."""
    spec, size = request.spec, request.preprocess.size
    file = file_of(spec, size)
    if spec.origin == "registry":
        known = asdict(get(spec.name))
        if spec.options:  # the registry has the numbers of the network without options
            network = _built(request).network
            known |= {"params": network.count_params(), "width": network.outputs[0].shape[-1]}
    else:
        known = _of_own(request)
    place = None if file is None else str(file)
    return {**known, "size": size, "weights": place, "present": file is not None and file.exists()}


def layers_of(request: Request) -> list[Layer]:
    """Return the layers in order. A network of the registry is built with random weights: nothing is downloaded."""
    backbone = _built(request)
    network, proposed = backbone.network, backbone.auto_layers()
    listed = backbone.whole or network
    names = [one.name for one in operations(listed)]
    tensors = outputs_of(listed)
    found = [
        Layer(name, tuple(tensors[name][0].shape[1:]), block, name in proposed, at if backbone.whole else None)
        for at, (name, block) in enumerate(zip(names, block_names(names), strict=True))
        if len(tensors[name]) == 1
    ]
    return [*found, Layer("top", tuple(network.outputs[0].shape[1:]), found[-1].block, True)]


def _of_own(request: Request) -> dict[str, Any]:
    backbone = _built(request)
    names = [one.name for one in operations(backbone.network)]
    return {
        "name": request.spec.name,
        "mode": request.preprocess.mode,
        "params": backbone.network.count_params(),
        "width": backbone.network.outputs[0].shape[-1],
        "layers": len(names) - 1,  # the input is none
        "blocks": len([block for block in blocks(names) if block != STEM]),
    }


def _built(request: Request) -> Backbone:
    spec = request.spec
    spec = replace(spec, weights="none") if spec.origin == "registry" and spec.weights else spec
    return build(spec, request.preprocess.size, request.pooling, trust=request.trust)
