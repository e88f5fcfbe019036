"""Presets of keras-hub: names -> folders, and what the files of a folder say, read without Keras.

A preset is a folder: config.json names the class of the network and its settings, image_converter.json says how images
enter it, model.weights.h5 has the weights. `hub:dinov2_small` and `hub:hf://OWNER/NAME` are folders in KERAS_HOME that
`hub_download` fills; `hub:./folder` is the user's. Nothing in a folder is run: only classes of Keras and keras-hub may
be named in it.
"""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from packaging.version import InvalidVersion, Version

from featcache.backbones.hub_families import HubFamily, all_published, family_of_class, published
from featcache.backend import keras_home
from featcache.errors import EnvironmentFault, NotAModel, UsageError, WeightsMissing
from featcache.files import file_digest, matching, raise_if_of_the_system
from featcache.spec import BackboneSpec, Interpolation, Resize, digest_of

PREFIX = "hub:"
CONFIG, CONVERTER, PREPROCESSOR, METADATA = "config.json", "image_converter.json", "preprocessor.json", "metadata.json"
WEIGHTS, SHARDS, SHARD_INDEX = "model.weights.h5", "model_*.weights.h5", "model.weights.json"
LIBRARIES = ("keras", "keras_hub")  # packages whose classes a preset may name
SCHEMES = ("hf", "kaggle")
_HANDLE = re.compile(r"(?P<scheme>\w+)://(?P<path>[\w.-]+(?:/[\w.-]+)+)")
_OPTION = re.compile(r"(\w+)=(.*)", re.DOTALL)
Factors = float | Sequence[float]


@dataclass(frozen=True)
class HubPreset:
    """What the files of a preset say.

    size: pixels a side. Input of the network: pixels 0..255 times scale, plus offset, each one number or one a channel.
    has_converter: whether the preset says so; if not, the numbers leave pixels as they are.
    """

    name: str
    folder: Path
    class_name: str
    settings: Mapping[str, Any]  # of the network, as config.json has them
    tower: Mapping[str, Any]  # the settings of the vision tower: of CLIP and SigLIP a part of them, else all
    family: HubFamily
    size: int
    resize: Resize = "stretch"
    interpolation: Interpolation = "bilinear"
    scale: Factors = 1.0
    offset: Factors = 0.0
    has_converter: bool = True


def parse(text: str) -> tuple[BackboneSpec, list[str]] | None:
    """Return the preset that a text names and the options behind it; None if it names none.

    Raises UsageError or UnknownBackbone if the text begins with hub: and names nothing.

    >>> parse("hub:dinov2_small:size=224")
    (BackboneSpec(name='dinov2_small', options=(), weights='hub:dinov2_small', seed=0, origin='hub'), ['size=224'])
    >>> parse("hub:hf://google/vit-base")[0].name
    'vit-base'
    >>> parse("mobilenet_v2")
    """
    if not text.startswith(PREFIX):
        return None
    parts = text.removeprefix(PREFIX).split(":")
    options: list[str] = []
    # From the end: a path may have colons in it, too.
    while len(parts) > 1 and _OPTION.fullmatch(parts[-1]):
        options.insert(0, parts.pop())
    name = ":".join(parts)
    if "://" in name:
        match = _HANDLE.fullmatch(name)
        if match is None or match["scheme"] not in SCHEMES:
            raise UsageError(f"Addresses of presets are hub:hf://OWNER/NAME and hub:kaggle://..; got '{text}'")
        return BackboneSpec(_last_name(match["path"]), (), PREFIX + name, origin="hub"), options
    is_published = any(preset.name == name for _, preset in all_published())
    if not is_published and _is_path(name):
        folder = Path(os.path.expanduser(name)).resolve()
        return BackboneSpec(folder.name, (), str(folder), origin="hub"), options
    published(name)
    return BackboneSpec(name, (), PREFIX + name, origin="hub"), options


def spelt(spec: BackboneSpec) -> str:
    """Return a preset as -b takes it."""
    return spec.weights if spec.weights.startswith(PREFIX) else PREFIX + spec.weights


def folder_of(spec: BackboneSpec) -> Path:
    """Return the folder of a preset, which may not exist yet if it can be downloaded."""
    if not spec.weights.startswith(PREFIX):
        return Path(spec.weights)
    # As a path, "hf://owner/name" is hf/owner/name.
    return keras_home() / "models" / "hub" / spec.weights.removeprefix(PREFIX).replace("://", "/")


def is_here(spec: BackboneSpec) -> bool:
    """Return whether the folder of a preset has its configuration and weights."""
    folder = folder_of(spec)
    return (folder / CONFIG).is_file() and bool(weights_of(folder))


def weights_of(folder: Path) -> list[Path]:
    """Return the files with the weights of a preset: one, or the parts of a large one behind their index."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    return [file for file in (folder / SHARD_INDEX, *matching(folder, SHARDS)) if file.is_file()]


def source(spec: BackboneSpec) -> str | None:
    """Return a text that determines weights, network and preprocessing; None if the preset is not on this machine."""
    folder = folder_of(spec)
    if not is_here(spec):
        return None
    names = (CONFIG, CONVERTER, PREPROCESSOR)
    files = [folder / name for name in names if (folder / name).is_file()]
    digests = {file.name: file_digest(file) for file in (*files, *weights_of(folder))}
    return f"preset {digest_of(digests)}"


def read(spec: BackboneSpec) -> HubPreset:
    """Return what the files of a preset say.

    Raises NotAModel if it is no image backbone or names foreign code; WeightsMissing if the folder has no weights.
    """
    folder = folder_of(spec)
    network = _json_of(folder / CONFIG)
    if network is None:
        if spec.weights.startswith(PREFIX):
            raise WeightsMissing(
                f"The preset {spelt(spec)} is not on this machine. Download it: featcache backbones fetch {spelt(spec)}"
            )
        if not folder.is_dir():
            raise NotAModel(f"There is no folder {folder} with a preset of keras-hub. Put it there, or name another")
        raise NotAModel(f"{folder} has no {CONFIG}, so it is no preset of keras-hub. Write one: save_to_preset(FOLDER)")
    with _described_in(folder):
        return _preset_of(spec.name, folder, network)


def _preset_of(name: str, folder: Path, network: Mapping[str, Any]) -> HubPreset:
    """Return what a folder says. network: the content of its config.json. Raises anything if that is damaged."""
    check_modules(network, str(folder / CONFIG))
    class_name = str(network.get("class_name"))
    family = family_of_class(class_name)
    if family is None:
        raise _no_image_backbone(folder, network, class_name)
    if not weights_of(folder):
        raise WeightsMissing(f"{folder} has a {CONFIG} but no {WEIGHTS}. Put it there, or download the preset again")
    settings = network["config"]
    tower = settings["vision_encoder"]["config"] if "vision_encoder" in settings else settings
    side = _side(tower.get("image_shape"), folder)

    converter = _converter(folder)
    if converter is None:
        return HubPreset(name, folder, class_name, settings, tower, family, side, has_converter=False)
    scale, offset = _factors(converter)
    size = _side(_image_size(converter), folder) or side
    # A network for one size keeps it, whatever the converter says.
    size = side if family.sizes == "one" else size
    return HubPreset(
        name,
        folder,
        class_name,
        settings,
        tower,
        family,
        size,
        _resize(converter),
        _interpolation(converter, folder),
        scale,
        offset,
    )


def check_size(preset: HubPreset, size: int) -> None:
    """Raise UsageError if the positions of a preset's network do not allow images of this size."""
    family = preset.family
    with _described_in(preset.folder):
        trained = _side(preset.tower.get("image_shape"), preset.folder)
        step, smallest = _steps(preset)
    if family.sizes == "one" and size != trained:
        raise UsageError(
            f"'{preset.name}' takes images of {trained} pixels only, because its position embedding has a row for "
            f"each patch; got `size={size}`. DINOv2 and DINOv3 take other sizes"
        )
    if family.sizes == "windows" and size < smallest:
        raise UsageError(
            f"'{preset.name}' takes images of at least {smallest} pixels, for its windows; got `size={size}`"
        )
    if size < smallest or size % step:
        raise UsageError(
            f"'{preset.name}' takes images whose size is a multiple of {step} pixels; got `size={size}`. The nearest "
            f"is {max(step, round(size / step) * step)}"
        )


def _steps(preset: HubPreset) -> tuple[int, int]:
    """Return the pixels a side that sizes of images are multiples of, and those of the smallest image."""
    tower = preset.tower
    if preset.family.sizes == "patches":
        step = smallest = int(tower["patch_size"])
    elif preset.family.sizes == "windows":
        # The last of several stages, each with half the side, must still fill a window.
        step = int(tower["patch_size"]) * 2 ** (len(tower["depths"]) - 1)
        smallest = step * int(tower["window_size"])
    else:
        step = smallest = 1
    if min(step, smallest) < 1:
        raise ValueError(f"multiples of {step} pixels")
    return step, smallest


@contextmanager
def _described_in(folder: Path) -> Iterator[None]:
    """Raise NotAModel if the block does not find in a preset's files what keras-hub writes there."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise NotAModel(f"{folder} has no settings of a preset as keras-hub writes them ({reason})") from error


def check_modules(config: Any, where: str) -> None:
    """Raise NotAModel if a configuration names code outside Keras and keras-hub. where: its file, for the message."""
    for module in _modules(config):
        if module.partition(".")[0] not in LIBRARIES:
            raise NotAModel(f"{where} names code of the module '{module}', which featcache does not run")


def check_installed(model_file: Path) -> None:
    """Raise EnvironmentFault if a .keras file has layers of keras-hub and keras-hub is not installed."""
    if find_spec("keras_hub") is not None:
        return
    try:
        with zipfile.ZipFile(model_file) as archive:
            config = archive.read(CONFIG)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise_if_of_the_system(model_file, error)
        return  # whoever loads it says what is wrong
    if b'"keras_hub' in config:
        raise EnvironmentFault(f"{model_file} has layers of keras-hub: pip install 'featcache[hub]'")


def newer_version(folder: Path) -> str | None:
    """Return the version of keras-hub that wrote a preset if it is newer than the installed one."""
    metadata = _json_of(folder / METADATA) or {}
    try:
        written_by = str(metadata["keras_hub_version"])
        return written_by if Version(written_by) > Version(version("keras-hub")) else None
    except (KeyError, InvalidVersion, PackageNotFoundError):
        return None


def too_new(folder: Path, version: str) -> NotAModel:
    """Return the error for a preset that was written by this newer version of keras-hub and cannot be read."""
    return NotAModel(
        f"{folder} was written by keras-hub {version}, which is newer than the one installed, and this one cannot read "
        "it: pip install -U keras-hub"
    )


def _no_image_backbone(folder: Path, network: Mapping[str, Any], class_name: str) -> NotAModel:
    if newer := newer_version(folder):
        return too_new(folder, newer)
    if "model_type" in network or "architecture" in network:
        return NotAModel(
            f"{folder} is a checkpoint of transformers or timm. Name such a checkpoint by its address, and featcache "
            "converts it once: hub:hf://OWNER/NAME"
        )
    if "class_name" not in network:
        return NotAModel(f"{folder}/{CONFIG} names no class of keras-hub, so it is no preset")
    return NotAModel(
        f"{folder} is a {class_name}, which is no image backbone that featcache takes from keras-hub. Those are listed "
        "by: featcache backbones list"
    )


def _last_name(path: str) -> str:
    """Return the name at the end of an address, without the version that Kaggle puts behind it.

    >>> _last_name("keras/dinov2/keras/dinov2_small/1")
    'dinov2_small'
    """
    parts = path.split("/")
    return parts[-2] if parts[-1].isdecimal() and len(parts) > 1 else parts[-1]


def _is_path(name: str) -> bool:
    if not name:  # which `Path` takes for the current folder
        return False
    return name.startswith((".", "~")) or os.sep in name or "/" in name or Path(name).is_dir()


def _json_of(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file; None if there is none. Raises NotAModel if it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise NotAModel(f"{path.parent} is a file; a preset of keras-hub is a folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise_if_of_the_system(path, error)
        raise NotAModel(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise NotAModel(f"{path} is no description of a class of keras-hub")
    return content


def _converter(folder: Path) -> Mapping[str, Any] | None:
    """Return the settings of a preset's image converter; None if it has none."""
    converter = _json_of(folder / CONVERTER)
    if converter is None:
        # Older presets have it only as a part of the preprocessor of a task.
        preprocessor = _json_of(folder / PREPROCESSOR) or {}
        converter = preprocessor.get("config", {}).get("image_converter")
    if converter is None:
        return None
    check_modules(converter, str(folder / CONVERTER))
    settings: Mapping[str, Any] = converter["config"]
    return settings


def _image_size(converter: Mapping[str, Any]) -> Any:
    if "height" in converter and "width" in converter:  # as earlier versions wrote it
        return converter["height"], converter["width"]
    return converter.get("image_size")


def _side(shape: Any, folder: Path) -> int:
    """Return the pixels a side of an image's shape; 0 if it is open. Raises NotAModel if the image is no square."""
    if not shape or shape[0] is None:
        return 0
    if shape[0] != shape[1]:
        raise NotAModel(f"{folder} takes images of {shape[0]} x {shape[1]}; featcache makes them square")
    return int(shape[0])


def _factors(converter: Mapping[str, Any]) -> tuple[Factors, Factors]:
    """Return the scale and offset of an image converter, as keras-hub computes them."""
    scale, offset = converter.get("scale"), converter.get("offset")
    if "mean" in converter and "variance" in converter:  # as earlier versions wrote it
        deviations = [math.sqrt(variance) for variance in converter["variance"]]
        scale = [converter["scale"] / deviation for deviation in deviations]
        offset = [-mean / deviation for mean, deviation in zip(converter["mean"], deviations, strict=True)]
    return _checked(1.0 if scale is None else scale), _checked(0.0 if offset is None else offset)


def _checked(factors: Any) -> Factors:
    """Return one number, or one for each channel. Raises ValueError or TypeError if they are none."""
    numbers = factors if isinstance(factors, list) else [factors]
    if len(numbers) not in (1, 3) or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"pixels cannot be scaled by {factors}")
    values: Factors = factors
    return values


def _resize(converter: Mapping[str, Any]) -> Resize:
    if converter.get("pad_to_aspect_ratio", False):
        return "pad"
    return "crop" if converter.get("crop_to_aspect_ratio", True) else "stretch"


def _interpolation(converter: Mapping[str, Any], folder: Path) -> Interpolation:
    interpolation: Interpolation = converter.get("interpolation", "bilinear")
    if interpolation not in get_args(Interpolation):
        raise NotAModel(
            f"{folder}/{CONVERTER} resizes by {interpolation}; featcache has {', '.join(get_args(Interpolation))}"
        )
    return interpolation


def _modules(config: Any) -> Iterator[str]:
    """Yield every module that a configuration names."""
    if isinstance(config, list):
        for item in config:
            yield from _modules(item)
    elif isinstance(config, dict):
        module = config.get("module")
        if module is not None:
            yield str(module)
        for value in config.values():
            yield from _modules(value)
