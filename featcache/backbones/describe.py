"""Describe a backbone and its layers to a user who chooses taps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from featcache.backbones import efficientnet_lite, hub
from featcache.backbones.blocks import STEM, block_names, blocks
from featcache.backbones.build import Backbone, build
from featcache.backbones.graph import operations, outputs_of
from featcache.backbones.hub_families import all_published
from featcache.backbones.parse import Request
from featcache.backbones.registry import get
from featcache.backbones.weights import file_of
from featcache.spec import BackboneSpec


@dataclass(frozen=True)
class Layer:
    """A layer that can be a tap."""

    name: str
    shape: tuple[int | None, ...]  # of its output for one image
    block: str
    auto: bool  # whether --tap auto reads it
    index: int | None = None  # its position, by which --tap can name it in a user's own model


def facts_of(request: Request) -> dict[str, Any]:
    """Return the facts about a backbone. Only a user's own model is built for them, and a registry's with options."""
    spec = request.spec
    size = request.preprocess.size
    if spec.origin == "hub":
        return _facts_of_preset(request)
    facts = asdict(get(spec.name)) if spec.origin == "registry" else _facts_of_own(request)
    file = file_of(spec, size)
    if facts.get("package"):
        facts["install"] = efficientnet_lite.INSTALL
    if spec.origin == "registry" and spec.options:
        # The registry has the numbers of the network without options.
        network = _build(request).network
        facts |= {"params": network.count_params(), "width": network.outputs[0].shape[-1]}
    return {
        **facts,
        "size": size,
        "weights": None if file is None else str(file),
        "present": file is not None and file.exists(),
    }


def layers_of(request: Request) -> list[Layer]:
    """Return the layers in order. A backbone of the registry gets random weights, so nothing is downloaded."""
    backbone = _build(request)
    auto_layers = backbone.auto_layers()
    model = backbone.full_model or backbone.network
    names = [operation.name for operation in operations(model)]
    outputs = outputs_of(model)

    layers = []
    for index, (name, block) in enumerate(zip(names, block_names(names), strict=True)):
        if len(outputs[name]) != 1:
            continue  # a shared layer, which cannot be a tap
        layers.append(
            Layer(
                name=name,
                shape=tuple(outputs[name][0].shape[1:]),
                block=block,
                auto=name in auto_layers,
                index=index if backbone.full_model else None,
            )
        )
    top = tuple(backbone.network.outputs[0].shape[1:])
    return [*layers, Layer("top", top, layers[-1].block, auto=True)]


def published_presets() -> list[dict[str, Any]]:
    """Return the facts about every published preset of keras-hub, by family. Nothing is built or downloaded."""
    facts = []
    for family, preset in all_published():
        spec = BackboneSpec(preset.name, (), hub.PREFIX + preset.name, origin="hub")
        facts.append(
            {
                "name": hub.spelt(spec),
                "family": family.title,
                "params": preset.params,
                "size": preset.size,
                "width": preset.width,
                "licence": family.licence,
                "terms": family.terms,
                "weights": str(hub.folder_of(spec)),
                "present": hub.is_here(spec),
            }
        )
    return facts


def _facts_of_preset(request: Request) -> dict[str, Any]:
    """Return what the files of a preset say. Its network is built only to count its parameters."""
    preset = hub.read(request.spec)
    facts = _facts_of_own(request)
    return {
        **facts,
        "name": hub.spelt(request.spec),
        "family": preset.family.title,
        "size": request.preprocess.size,
        "resize": request.preprocess.resize,
        "interpolation": request.preprocess.interpolation,
        "scale": preset.scale,
        "offset": preset.offset,
        "licence": preset.family.licence,
        "weights": str(preset.folder),
        "present": True,
    }


def _facts_of_own(request: Request) -> dict[str, Any]:
    backbone = _build(request)
    names = [operation.name for operation in operations(backbone.network)]
    return {
        "name": request.spec.name,
        "mode": request.preprocess.mode,
        "params": backbone.network.count_params(),
        "width": backbone.network.outputs[0].shape[-1],
        "layers": len(names) - 1,  # without the input
        "blocks": len([block for block in blocks(names) if block != STEM]),
    }


def _build(request: Request) -> Backbone:
    spec = request.spec
    # Layers and shapes do not depend on the weights, so random ones are enough.
    if spec.origin == "registry" and spec.weights:  # raw pixels have none
        spec = replace(spec, weights="none")
    return build(spec, request.preprocess.size, request.pooling, trust=request.trust)
