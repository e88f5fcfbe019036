"""List the ImageNet weights on this machine, and check them, without Keras. These backbones run without network.

The digests are those that Keras 3.15 passes to `get_file`: SHA-256 for ConvNeXt, MD5 for the others. It has none for
MobileNet and MobileNetV2, so only the length of those files can be checked. tests/backbones/test_inventory.py looks
each digest up in Keras' source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from featcache.backbones import efficientnet_lite
from featcache.backbones.registry import ALPHAS, REGISTRY, SIZES, Entry, weights_file
from featcache.backbones.weights import damage, imagenet_file, spelt
from featcache.backend import keras_home
from featcache.errors import WeightsMismatch
from featcache.spec import BackboneSpec

SHA256_DIGITS = 64
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
# of the files with the classifier, for `predict --imagenet`
_TOP_DIGESTS = {
    "weights_mobilenet_v3_small_224_1.0_float.h5": "8768d4c2e7dee89b9d02b2d03d65d862",
    "weights_mobilenet_v3_small_224_0.75_float.h5": "cb65d4e5be93758266aa0a7f2c6708b7",
    "weights_mobilenet_v3_small_minimalistic_224_1.0_float.h5": "99cd97fb2fcdad2bf028eb838de69e37",
    "weights_mobilenet_v3_large_224_1.0_float.h5": "59e551e166be033d707958cf9e29a6a7",
    "weights_mobilenet_v3_large_224_0.75_float.h5": "765b44a33ad4005b3ac83185abf1d0eb",
    "weights_mobilenet_v3_large_minimalistic_224_1.0_float.h5": "675e7b876c45c57e9e63e6d90a36599c",
    "efficientnetb0.h5": "902e53a9f72be733fc0bcb005b3ebbac",
    "efficientnetb1.h5": "1d254153d4ab51201f1646940f018540",
    "efficientnetb2.h5": "b15cce36ff4dcbd00b6dd88e7857a6ad",
    "efficientnetb3.h5": "ffd1fdc53d0ce67064dc6a9c7960ede0",
    "efficientnetb4.h5": "18c95ad55216b8f92d7e70b3a046e2fc",
    "efficientnetb5.h5": "ace28f2a6363774853a83a0b21b9421a",
    "efficientnetb6.h5": "165f6e37dce68623721b423839de8be5",
    "efficientnetb7.h5": "8c03f828fec3ef71311cd463b6759d99",
    "efficientnetv2-b0.h5": "21ecbf6da12460d5c40bb2f29ceb2188",
    "efficientnetv2-b1.h5": "069f0534ff22adf035c89e2d9547a9dc",
    "efficientnetv2-b2.h5": "424e49f28180edbde1e94797771950a7",
    "efficientnetv2-b3.h5": "1f1fc43bd98a6e4fd8fdfd551e02c7a0",
    "efficientnetv2-s.h5": "e1d88a8495beba45748fedd0cecbe016",
    "efficientnetv2-m.h5": "a3bf6aa3276309f4fc6a34aa114c95cd",
    "efficientnetv2-l.h5": "27e6d408b53c7ebc868fefa357689935",
    "convnext_tiny.h5": "8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff",
    "convnext_small.h5": "ce1277d8f1ee5a0ef0e171469089c18f5233860ceaf9b168049cb9263fd7483c",
    "convnext_base.h5": "52cbb006d3dadd03f6e095a8ca1aca47aecdd75acb4bc74bce1f5c695d0086e6",
    "convnext_large.h5": "070c5ed9ed289581e477741d3b34beffa920db8cf590899d6d2c67fba2a198a6",
    "convnext_xlarge.h5": "c1f5ccab661354fc3a79a10fa99af82f0fbf10ec65cb894a3ae0815f17a889ee",
    "resnet50_weights_tf_dim_ordering_tf_kernels.h5": "2cb95161c43110f7111970584f804107",
    "resnet101_weights_tf_dim_ordering_tf_kernels.h5": "f1aeb4b969a6efcfb50fad2f0c20cfc5",
    "resnet152_weights_tf_dim_ordering_tf_kernels.h5": "100835be76be38e30d865e96f2aaae62",
    "resnet50v2_weights_tf_dim_ordering_tf_kernels.h5": "3ef43a0b657b3be2300d5770ece849e0",
    "resnet101v2_weights_tf_dim_ordering_tf_kernels.h5": "6343647c601c52e1368623803854d971",
    "resnet152v2_weights_tf_dim_ordering_tf_kernels.h5": "a49b44d1979771252814e80f8ec446f9",
    "densenet121_weights_tf_dim_ordering_tf_kernels.h5": "9d60b8095a5708f2dcce2bca79d332c7",
    "densenet169_weights_tf_dim_ordering_tf_kernels.h5": "d699b8f76981ab1b30698df4c175e90b",
    "densenet201_weights_tf_dim_ordering_tf_kernels.h5": "1ceb130c1ea1b78c3bf6114dbdfd8807",
    "inception_v3_weights_tf_dim_ordering_tf_kernels.h5": "9a0d58056eeedaa3f26cb7ebd46da564",
    "inception_resnet_v2_weights_tf_dim_ordering_tf_kernels.h5": "e693bd0210a403b3192acc6073ad2e96",
    "xception_weights_tf_dim_ordering_tf_kernels.h5": "0a58e3b7378bc2990ea3b43d5981f1f6",
    "nasnet_mobile.h5": "020fb642bf7360b370c678b08e0adf61",
    "nasnet_large.h5": "11577c9a518f0070763c2b964a382f17",
    "vgg16_weights_tf_dim_ordering_tf_kernels.h5": "64373286793e3c8b2b4e3219cbf3544b",
    "vgg19_weights_tf_dim_ordering_tf_kernels.h5": "cbe5617147190e668d6c5d5026f83318",
}


@dataclass(frozen=True)
class StoredWeights:
    """A file of ImageNet weights on this machine."""

    file: str
    bytes: int
    backbones: tuple[str, ...]  # the backbones that load it, as `-b` takes them
    fault: str | None  # what is wrong with it, None if nothing is
    checked: str  # "digest", or "length" if Keras has no digest


def stored_weights() -> list[StoredWeights]:
    """Return the checked files of ImageNet weights, first those of Keras. Reads them all for their digests."""
    folder = keras_home() / "models"
    stored = []
    for name, backbones in sorted(weights_files().items()):
        file = folder / name
        if not file.is_file():
            continue
        # The length first: it costs nothing, and tells a broken download from another file.
        fault = damage(file)
        expected = keras_digest(name)
        if fault is None and expected is not None and _digest(file, expected) != expected:
            fault = "has other bytes than Keras' weights"
        checked = "length" if expected is None else "digest"
        stored.append(StoredWeights(str(file), file.stat().st_size, tuple(backbones), fault, checked))

    for name in efficientnet_lite.SIZES:
        file = efficientnet_lite.weights_path(name)
        if file.is_file():
            fault = efficientnet_lite.fault(name)
            stored.append(StoredWeights(str(file), file.stat().st_size, (name,), fault, "digest"))
    return stored


def stored_backbones() -> list[str]:
    """Return the backbones whose default ImageNet weights are on this machine. No file is read."""
    names: list[str] = []
    for entry in REGISTRY.values():
        file = imagenet_file(entry, {}, entry.size)
        if file is not None and file.is_file():
            names.append(entry.name)
    return names


def keras_digest(name: str) -> str | None:
    """Return the MD5 or SHA-256 with which Keras checks a file of ImageNet weights; None if it does not check it."""
    return _DIGESTS.get(name) or _TOP_DIGESTS.get(name)


def check(file: Path, *, if_damaged: str, if_other: str) -> None:
    """Raise WeightsMismatch unless a file holds Keras' ImageNet weights. The file stays as it is.

    if_damaged, if_other: a sentence that says what the user can do then.
    """
    if broken := damage(file):
        raise WeightsMismatch(f"The weights {file} are damaged (a broken download?): the file {broken}. {if_damaged}")
    if expected := keras_digest(file.name):
        check_digest(file, expected, if_other)


def check_digest(file: Path, expected: str, if_other: str) -> None:
    """Raise WeightsMismatch unless a file has the digest that Keras expects. The file stays as it is."""
    actual = _digest(file, expected)
    if actual != expected:
        kind = "SHA-256" if len(expected) == SHA256_DIGITS else "MD5"
        raise WeightsMismatch(
            f"{file} has other bytes than Keras' own file: its {kind} is {actual}, Keras expects {expected}. It was "
            f"left as it is. {if_other}"
        )


def weights_files() -> dict[str, list[str]]:
    """Return {file name: the backbones that load it} for all files of ImageNet weights that Keras offers."""
    backbones: dict[str, list[str]] = {}
    for entry in REGISTRY.values():
        for options, size in _variants(entry):
            file = weights_file(entry, options, size)
            if file is not None:
                spec = BackboneSpec(entry.name, tuple(options.items()))
                backbones.setdefault(file, []).append(spelt(spec, size))
    return backbones


def _variants(entry: Entry) -> Iterator[tuple[dict[str, object], int]]:
    """Yield the combinations of options and size that may have a file for themselves."""
    variants: list[dict[str, object]] = [{}]
    for alpha in ALPHAS.get(entry.module, ()):
        if alpha != 1.0:
            variants.append({"alpha": alpha})
    if "minimalistic" in entry.options:
        variants.append({"minimalistic": True})
    sizes = SIZES.get(entry.module, (entry.size,))
    yield from product(variants, sizes)


def _digest(file: Path, expected: str) -> str:
    """Return the digest of a file, by the algorithm of the expected digest."""
    with file.open("rb") as stream:
        if len(expected) == SHA256_DIGITS:  # Keras distinguishes the two by their length, too
            return hashlib.file_digest(stream, "sha256").hexdigest()
        # Systems under FIPS refuse MD5 unless it is said that no security hangs on it.
        md5 = partial(hashlib.md5, usedforsecurity=False)
        return hashlib.file_digest(stream, md5).hexdigest()
