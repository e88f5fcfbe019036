"""Which ImageNet weights lie on this machine, told without Keras: what runs without network.

The digests are those that Keras 3.15 gives `get_file`, MD5 but for ConvNeXt's SHA-256. Of the MobileNets of versions 1
and 2 it gives none: of those only the length is known. tests/backbones/test_inventory.py finds each in Keras' source.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from featcache.backbones.registry import ALPHAS, REGISTRY, SIZES, Entry, weights_file
from featcache.backbones.weights import damage, keras_home, spelt
from featcache.spec import BackboneSpec

_DIGESTS = {
    "weights_mobilenet_v3_large_224_0.75_float_no_top_v2.h5": "40af19a13ebea4e2ee0c676887f69a2e",
    "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5": "07fb09a5933dd0c8eaafa16978110389",
    "weights_mobilenet_v3_large_minimalistic_224_1.0_float_no_top_v2.h5": "ec5221f64a2f6d1ef965a614bdae7973",
    "weights_mobilenet_v3_small_224_0.75_float_no_top_v2.h5": "ebdb5cc8e0b497cd13a7c275d475c819",
    "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5": "d3e8ec802a04aa4fc771ee12a9a9b836",
    "weights_mobilenet_v3_small_minimalistic_224_1.0_float_no_top_v2.h5": "cde8136e733e811080d9fcd8a252f7e4",
    "efficientnetb0_notop.h5": "50bc09e76180e00e4465e1a485ddc09d",
    "efficientnetb1_notop.h5": "74c4e6b3e1f6a1eea24c589628592432",
    "efficientnetb2_notop.h5": "111f8e2ac8aa800a7a99e3239f7bfb39",
    "efficientnetb3_notop.h5": "af6d107764bb5b1abb91932881670226",
    "efficientnetb4_notop.h5": "ebc24e6d6c33eaebbd558eafbeedf1ba",
    "efficientnetb5_notop.h5": "38879255a25d3c92d5e44e04ae6cec6f",
    "efficientnetb6_notop.h5": "9ecce42647a20130c1f39a5d4cb75743",
    "efficientnetb7_notop.h5": "cbcfe4450ddf6f3ad90b1b398090fe4a",
    "efficientnetv2-b0_notop.h5": "893217f2bb855e2983157299931e43ff",
    "efficientnetv2-b1_notop.h5": "0e80663031ca32d657f9caa404b6ec37",
    "efficientnetv2-b2_notop.h5": "1dfe2e7a5d45b6632553a8961ea609eb",
    "efficientnetv2-b3_notop.h5": "f6abf7b5849ac99a89b50dd3fd532856",
    "efficientnetv2-s_notop.h5": "af0682fb74e8c54910f2d4393339c070",
    "efficientnetv2-m_notop.h5": "1b8dc055df72dde80d614482840fe342",
    "efficientnetv2-l_notop.h5": "b0b66b5c863aef5b46e8608fe1711615",
    "convnext_tiny_notop.h5": "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
    "convnext_small_notop.h5": "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab",
    "convnext_base_notop.h5": "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45",
    "convnext_large_notop.h5": "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd",
    "convnext_xlarge_notop.h5": "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05",
    "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5": "4d473c1dd8becc155b73f8504c6f6626",
    "resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5": "88cf7a10940856eca736dc7b7e228a21",
    "resnet152_weights_tf_dim_ordering_tf_kernels_notop.h5": "ee4c566cf9a93f14d82f913c2dc6dd0c",
    "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5": "fac2f116257151a9d068a22e544a4917",
    "resnet101v2_weights_tf_dim_ordering_tf_kernels_notop.h5": "c0ed64b8031c3730f411d2eb4eea35b5",
    "resnet152v2_weights_tf_dim_ordering_tf_kernels_notop.h5": "ed17cf2e0169df9d443503ef94b23b33",
    "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5": "30ee3e1110167f948a6b9946edeeb738",
    "densenet169_weights_tf_dim_ordering_tf_kernels_notop.h5": "b8c4d4c20dd625c148057b9ff1c1176b",
    "densenet201_weights_tf_dim_ordering_tf_kernels_notop.h5": "c13680b51ded0fb44dff2d8f86ac8bb1",
    "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5": "bcbd6486424b2319ff4ef7d526e38f63",
    "inception_resnet_v2_weights_tf_dim_ordering_tf_kernels_notop.h5": "d19885ff4a710c122648d3b5c3b684e4",
    "xception_weights_tf_dim_ordering_tf_kernels_notop.h5": "b0042744bf5b25fce3cb969f33bebb97",
    "nasnet_mobile_no_top.h5": "1ed92395b5b598bdda52abe5c0dbfd63",
    "nasnet_large_no_top.h5": "d81d89dc07e6e56530c4e77faddd61b5",
    "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5": "6d6bbae143d832006294945121d1f1fc",
    "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5": "253f8cb515780f3b799900260a226db6",
}


@dataclass(frozen=True)
class StoredWeights:
    """One file of ImageNet weights that is on this machine."""

    file: str
    bytes: int
    backbones: tuple[str, ...]  # those that it serves, as `-b` takes them
    fault: str | None  # what is wrong with it
    checked: str  # "digest", or "length" where Keras knows no digest


def stored_weights() -> list[StoredWeights]:
    """Return the files of ImageNet weights in KERAS_HOME/models, by name; reads all of each that has a digest."""
    served = weights_files()
    folder = keras_home() / "models"
    return [
        _checked(folder / name, tuple(backbones))
        for name, backbones in sorted(served.items())
        if (folder / name).is_file()
    ]


def weights_files() -> dict[str, list[str]]:
    """Return {file: the backbones that it serves}, of all files of ImageNet weights that there can be."""
    served: dict[str, list[str]] = {}
    for entry in REGISTRY.values():
        for options, size in _variants(entry):
            file = weights_file(entry, options, size)
            if file is not None:
                served.setdefault(file, []).append(spelt(BackboneSpec(entry.name, tuple(options.items())), size))
    return served


def _variants(entry: Entry) -> list[tuple[dict[str, object], int]]:
    """Return the options and sizes by which files differ."""
    options: list[dict[str, object]] = [{}]
    options += [{"alpha": alpha} for alpha in ALPHAS.get(entry.module, ()) if alpha != 1.0]
    options += [{"minimalistic": True}] if "minimalistic" in entry.options else []
    return [(some, size) for some in options for size in SIZES.get(entry.module, (entry.size,))]


def _checked(file: Path, backbones: tuple[str, ...]) -> StoredWeights:
    fault, known = damage(file), _DIGESTS.get(file.name)
    if fault is None and known is not None and known != _digest(file, known):
        fault = "has other bytes than Keras' weights"
    return StoredWeights(str(file), file.stat().st_size, backbones, fault, "length" if known is None else "digest")


def _digest(file: Path, known: str) -> str:
    with file.open("rb") as stream:
        if len(known) == 64:  # as Keras tells them apart
            return hashlib.file_digest(stream, "sha256").hexdigest()
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
