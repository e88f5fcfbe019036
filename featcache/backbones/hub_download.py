"""Bring presets of keras-hub onto this machine, whole or not at all.

keras-hub's clients of Kaggle and Hugging Face download each file to their own cache. A preset is complete only when all
of its files are there, so they are linked into a new folder (copied where links are impossible), which then gets its
name. A checkpoint of the transformers or timm library is converted by keras-hub, once, and kept as a preset.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from featcache.backbones import hub
from featcache.backbones.hub_families import FAMILIES, published
from featcache.backend import start_keras_hub
from featcache.errors import FeatcacheError, WeightsMissing
from featcache.files import disk_faults, place_folder, temporary_folder
from featcache.spec import BackboneSpec

log = logging.getLogger(__name__)

# Returns where a file of a preset is now. Raises FileNotFoundError if the preset has no such file.
# It receives the address of the preset, as keras-hub takes it, and the name of the file.
Download = Callable[[str, str], Path]
# Writes a preset, made from a checkpoint of another library. It receives the address and the folder to fill.
Convert = Callable[[str, Path], None]
REFUSED = ("401", "403", "gated", "unauthorized", "forbidden")  # words of an answer that asks for an account
TRANSFORMERS_SETTINGS = "preprocessor_config.json"
PILLOW_FILTERS = {0: "nearest", 1: "lanczos3", 2: "bilinear", 3: "bicubic"}  # by their numbers
NO_ANSWER = (
    "ConnectionError",
    "ConnectError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "gaierror",
    "Timeout",
)


def by_keras_hub(address: str, file: str) -> Path:
    """Download one file with keras-hub."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of each of six tries without network
    start_keras_hub()
    from keras_hub.src.utils.preset_utils import get_file

    return Path(get_file(address, file))


def convert_by_keras_hub(address: str, folder: Path) -> None:
    """Convert a checkpoint of transformers or timm with keras-hub."""
    start_keras_hub()
    import keras_hub

    keras_hub.models.Backbone.from_preset(address, dtype="float32").save_to_preset(str(folder))
    converter = keras_hub.layers.ImageConverter.from_preset(address)
    if converter is not None:
        converter.save_to_preset(str(folder))


def provide(
    spec: BackboneSpec,
    say: Callable[[str], None] = log.warning,
    download: Download = by_keras_hub,
    convert: Convert = convert_by_keras_hub,
) -> bool:
    """Make sure that the preset is on this machine; return whether it was downloaded now.

    say: receives one line before a download begins, with the licence that its weights have for themselves. By default
    the line is a warning in the log, which everybody sees who did not ask for silence.
    Raises WeightsMissing without network, or if the weights are not given to everybody; DiskFault.
    """
    if not spec.weights.startswith(hub.PREFIX) or hub.is_here(spec):
        return False
    folder = hub.folder_of(spec)
    say(_announcement(spec))
    with temporary_folder(folder) as made:
        try:
            _fill(made, spec, download, convert)
        except FeatcacheError:
            raise
        except Exception as error:  # clients of two hubs raise their own kinds
            raise _reason(spec, folder, error) from error
        place_folder(made, folder)
    return True


def terms_of(spec: BackboneSpec) -> str:
    """Return what a user must accept before the weights are given out; "" if nothing, or if it is unknown."""
    name = spec.weights.removeprefix(hub.PREFIX)
    for family in FAMILIES:
        if any(preset.name == name for preset in family.presets):
            return family.terms
    return ""


def _fill(made: Path, spec: BackboneSpec, download: Download, convert: Convert) -> None:
    """Put all files of a preset into a folder."""
    address = _address(spec)
    config_file = download(address, hub.CONFIG)
    config = json.loads(config_file.read_bytes())
    if "class_name" not in config:
        convert(address, made)
        settings = _optional(address, TRANSFORMERS_SETTINGS, download)
        if settings is not None and not (made / hub.CONVERTER).exists():
            converter = image_converter(json.loads(settings.read_bytes()))
            (made / hub.CONVERTER).write_text(json.dumps(converter))
        return
    _place(config_file, made, hub.CONFIG)
    for name in (hub.CONVERTER, hub.PREPROCESSOR, hub.METADATA):
        file = _optional(address, name, download)
        if file is not None:  # presets may lack these
            _place(file, made, name)

    weights = _optional(address, hub.WEIGHTS, download)
    if weights is not None:
        _place(weights, made, hub.WEIGHTS)
        return
    # A large preset has its weights in several files, which an index names.
    index = download(address, hub.SHARD_INDEX)
    _place(index, made, hub.SHARD_INDEX)
    shards: set[str] = set()
    for names in json.loads(index.read_bytes())["weight_map"].values():
        shards.update([names] if isinstance(names, str) else names)
    for name in sorted(shards):
        if Path(name).name != name:
            raise WeightsMissing(f"{hub.spelt(spec)} names a file outside of its folder: {name}")
        _place(download(address, name), made, name)


def image_converter(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the image converter, as a preset has it, of the settings of an image processor of transformers.

    keras-hub converts the network of most checkpoints, but not these settings. Raises WeightsMissing if they say of an
    image what a preset cannot say.
    """
    # Processors scale to 0..1 and then normalise, each unless it is turned off.
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    means, deviations = [0.0] * 3, [1.0] * 3
    if settings.get("do_normalize", True):
        means, deviations = settings["image_mean"], settings["image_std"]
    resample = int(settings.get("resample", 2))
    if resample not in PILLOW_FILTERS:
        raise WeightsMissing(f"{TRANSFORMERS_SETTINGS} resizes by Pillow's filter {resample}; presets have no such one")
    crops = bool(settings.get("do_center_crop"))
    size = settings.get("crop_size" if crops else "size")
    if isinstance(size, Mapping) and "shortest_edge" in size:
        size = size["shortest_edge"]
        crops = True
    shape = [size["height"], size["width"]] if isinstance(size, Mapping) else [size, size]
    config = {
        "name": "image_converter",
        "image_size": None if size is None else shape,
        "scale": [factor / deviation for deviation in deviations],
        "offset": [-mean / deviation for mean, deviation in zip(means, deviations, strict=True)],
        "crop_to_aspect_ratio": crops,
        "interpolation": PILLOW_FILTERS[resample],
    }
    return {
        "module": "keras_hub.src.layers.preprocessing.image_converter",
        "class_name": "ImageConverter",
        "config": config,
        "registered_name": "keras_hub>ImageConverter",
    }


def _optional(address: str, name: str, download: Download) -> Path | None:
    """Return a file of a preset; None if it has no such file."""
    try:
        return download(address, name)
    except FileNotFoundError as error:
        # Hugging Face's client raises it without network, too.
        if _is_offline(error):
            raise
        return None


def _place(file: Path, folder: Path, name: str) -> None:
    """Put a downloaded file into a folder, without a second copy where the file system can."""
    path = folder / name
    file = file.resolve()  # Hugging Face's cache holds links
    with disk_faults(path):
        try:
            os.link(file, path)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(file, path)


def _address(spec: BackboneSpec) -> str:
    """Return what keras-hub takes for a preset."""
    name = spec.weights.removeprefix(hub.PREFIX)
    if "://" in name:
        return name
    family, preset = published(name)
    return f"kaggle://keras/{family.handle}/keras/{name}/{preset.version}"


def _announcement(spec: BackboneSpec) -> str:
    line = f"Downloading {hub.spelt(spec)}, once"
    if terms := terms_of(spec):
        line += f". Its weights are under {terms}"
    return line


def _reason(spec: BackboneSpec, folder: Path, error: BaseException) -> WeightsMissing:
    """Return in one line why a preset could not be downloaded, and what to do."""
    causes = list(_causes(error))
    text = " ".join(f"{type(cause).__name__} {cause}" for cause in causes)
    short = " ".join(str(causes[-1]).split())[:120]
    name = hub.spelt(spec)
    by_hand = f"Or put the folder of the preset, with {hub.CONFIG} and {hub.WEIGHTS}, at {folder}"
    if _is_offline(error):
        return WeightsMissing(
            f"No network, and the preset {name} is not on this machine ({short}). On one with network run featcache "
            f"backbones fetch {name}, then put its folder at {folder}"
        )
    if any(word in text.lower() for word in REFUSED):
        terms = terms_of(spec) or "terms"
        return WeightsMissing(
            f"The weights of {name} are not given to everybody ({short}). Accept {terms}, and log in with your token: "
            f"kaggle.com/settings, or hf auth login. {by_hand}"
        )
    return WeightsMissing(f"The preset {name} cannot be downloaded: {short}. {by_hand}")


def _is_offline(error: BaseException) -> bool:
    """Return whether no server answered."""
    names = " ".join(type(cause).__name__ for cause in _causes(error))
    return any(name in names for name in NO_ANSWER)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
