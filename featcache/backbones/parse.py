"""Parse the backbones that a user names, such as `mobilenet_v2:alpha=0.35:size=160`, and the options beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from featcache.backbones import hub, hub_download, own
from featcache.backbones.build import check_size
from featcache.backbones.registry import Entry, get, is_name
from featcache.errors import UsageError
from featcache.spec import (
    ALL_BITS,
    DECODE_VERSION,
    IDENTITY,
    NO_WEIGHTS,
    BackboneSpec,
    Dtype,
    Mode,
    Pooling,
    Precision,
    Preprocess,
    Resize,
    Tap,
    choose,
    did_you_mean,
)
from featcache.trust import allow

OWN_OPTIONS = ("size", "weights", "seed")  # options of featcache, which may follow the name as the backbone's do
LONGEST_STEM = 20  # characters of a weights file's name that a tap's name takes; Keras' own names have 60
DEFAULTS: dict[str, Any] = {"alpha": 1.0, "minimalistic": False, "depth_multiplier": 1}


@dataclass(frozen=True)
class Request:
    """A backbone, how images enter it, and the layers that are read."""

    spec: BackboneSpec
    preprocess: Preprocess
    layers: tuple[str, ...]
    pooling: Pooling
    precision: Precision = "float32"
    dtype: Dtype = "float32"
    views: tuple[str, ...] = (IDENTITY,)
    own_size: int | None = None  # the only size that a user's own model takes, or the usual one of a preset
    usual_resize: Resize = "stretch"
    trust: bool = False  # run the code that a user's own file carries

    def taps(self, weights_digest: str, architecture: str = "", layers: Sequence[str] | None = None) -> list[Tap]:
        """Return one tap for each view and layer; all layers of the first view come first.

        weights_digest, architecture: of the built backbone. layers: replaces the layers that were requested ("auto").
        """
        label = self._label(weights_digest)
        suffix = self._suffix()
        taps = []
        for view in self.views:
            view_suffix = "" if view == IDENTITY else f"@{view}"
            for layer in layers or self.layers:
                tap = Tap(
                    f"{label}/{layer}{suffix}{view_suffix}",
                    self.spec,
                    weights_digest,
                    layer,
                    self.pooling,
                    self.preprocess,
                    view,
                    self.precision,
                    self.dtype,
                    architecture,
                )
                taps.append(tap)
        return taps

    def _label(self, weights_digest: str) -> str:
        """Return the backbone with every option that is not the default.

        The weights are called as their file or, if its name is long and their digest is known, by its beginning.
        """
        parts = [self.spec.name, *(f"{key}={value}" for key, value in self.spec.options)]
        usual_size = self.own_size
        if self.spec.origin == "registry":
            entry = get(self.spec.name)
            usual_size = entry.size
            if self.spec.weights != default_weights(entry):
                name = Path(self.spec.weights).stem
                is_digest_known = weights_digest not in ("", NO_WEIGHTS)
                if is_digest_known and len(name) > LONGEST_STEM:
                    name = weights_digest[:8]
                parts.append(f"weights={name}")
        if self.spec.seed:
            parts.append(f"seed={self.spec.seed}")
        if self.preprocess.size != usual_size:
            parts.append(f"size={self.preprocess.size}")
        if self.preprocess.resize != self.usual_resize:
            parts.append(f"resize={self.preprocess.resize}")
        return ":".join(parts)

    def _suffix(self) -> str:
        """Return how the features are made, as far as that is not the default: ":max:bfloat16"."""
        parts: list[str] = []
        if self.pooling != default_pooling(self.spec.name):
            parts.append(self.pooling)
        if self.precision != "float32":
            parts.append(self.precision)
        if self.dtype != "float32":
            parts.append(f"stored={self.dtype}")
        if self.preprocess.is_draft:
            parts.append("draft")
        if self.preprocess.bits != ALL_BITS:
            parts.append(f"bits={self.preprocess.bits}")
        return "".join(f":{part}" for part in parts)


def requests(
    backbones: str | Sequence[str],
    *,
    tap: str | Sequence[str] = "top",
    weights: str | None = None,
    size: int | None = None,
    pool: str | None = None,
    resize: str = "stretch",
    precision: str = "float32",
    dtype: str = "float32",
    decode: str = DECODE_VERSION,
    views: Sequence[str] = (IDENTITY,),
    trust: bool = False,
) -> list[Request]:
    """Return one request for each backbone. Raises UnknownBackbone or UsageError, with near names.

    >>> [request.taps("")[0].name for request in requests("mobilenet_v2:alpha=0.35,pixels:size=8")]
    ['mobilenet_v2:alpha=0.35/top', 'pixels:size=8/top']
    """
    texts = backbones_in(backbones)
    layers = tuple(_listed("tap", tap))
    if not texts or not layers:
        raise UsageError("Name at least one backbone and one tap, such as `backbone='mobilenet_v2'` and `tap='top'`")
    precision_choice: Precision = choose("precision", precision, get_args(Precision))
    dtype_choice: Dtype = choose("dtype", dtype, get_args(Dtype))
    parsed = []
    for text in texts:
        request = _request(text, layers, weights, size, pool, resize, trust)
        parsed.append(
            replace(
                request,
                preprocess=replace(request.preprocess, decode=decode),
                precision=precision_choice,
                dtype=dtype_choice,
                views=tuple(views),
                trust=trust,
            )
        )
    return parsed


def default_weights(entry: Entry) -> str:
    """Return the weights that a backbone has unless the user names others."""
    return {"glyphnet": "embedded", "pixels": ""}.get(entry.name, "imagenet")


def default_pooling(name: str) -> Pooling:
    """Return how a backbone's feature maps become one vector unless the user chooses another way."""
    return "flatten" if name == "pixels" else "avg"


def _request(
    text: str,
    layers: tuple[str, ...],
    weights: str | None,
    size: int | None,
    pool: str | None,
    resize: str,
    trust: bool,
) -> Request:
    if preset := hub.parse(text):
        return _hub_request(*preset, layers, weights, size, pool, resize)
    if own_model := own.parse(text):
        return _own_request(*own_model, layers, weights, size, pool, resize, trust)
    name, *parts = text.split(":")
    entry = get(name)
    # An option behind the name wins over the same option beside it: it is meant for this backbone.
    options = dict(_option(entry, part) for part in parts)
    usual_size = entry.size if size is None else size
    size = _count("size", options.pop("size", usual_size))
    check_size(entry, size)
    seed = _count("seed", options.pop("seed", 0))
    weights = str(options.pop("weights", None) or weights or default_weights(entry))
    if weights not in ("imagenet", "none", "embedded", ""):
        weights = str(Path(weights).resolve())
    if entry.name == "pixels":
        weights = ""
    if weights == "imagenet" and entry.name == "glyphnet":
        raise UsageError("'glyphnet' was never trained on ImageNet; its `weights` are embedded, none or a file")

    # The options are part of the fingerprint: leave out defaults, so that naming one changes nothing.
    changed = {key: value for key, value in options.items() if DEFAULTS.get(key) != value}
    seed = seed if weights == "none" else 0  # only random weights depend on it
    spec = BackboneSpec(entry.name, tuple(sorted(changed.items())), weights, seed)
    pooling: Pooling = choose("pool", pool or default_pooling(entry.name), get_args(Pooling))
    preprocess = Preprocess(size, choose("resize", resize, get_args(Resize)), entry.mode)
    return Request(spec, preprocess, layers, pooling)


def _own_request(
    spec: BackboneSpec,
    parts: list[str],
    layers: tuple[str, ...],
    weights: str | None,
    size: int | None,
    pool: str | None,
    resize: str,
    trust: bool,
) -> Request:
    options = dict(part.split("=", 1) for part in parts if "=" in part)
    if len(options) < len(parts) or not options.keys() <= {"mode", "size"}:
        raise UsageError(f"'{spec.name}' takes the options mode=.., size=..; got '{':'.join(parts)}'")
    if weights is not None:
        raise UsageError(f"`weights` is for backbones by name; '{spec.name}' has its own weights")
    if spec.origin == "import":
        allow(spec.weights)  # the user named this function

    # Before the facts are read: a function may need the size to make its model.
    if "size" in options:
        size = _count("size", _value("size", options["size"]))
    facts = own.facts_of(spec, size, trust)
    if size is not None and facts.size not in (None, size):
        raise UsageError(f"'{spec.name}' takes images of {facts.size} pixels; got size {size}")
    size = facts.size or size
    if not size:
        raise UsageError(f"'{spec.name}' takes images of any size; choose one: {spec.name}:size=224, or `size`")

    mode = options.get("mode") or facts.mode
    if facts.mode and mode in get_args(Mode) and mode != facts.mode:
        raise UsageError(
            f"'{spec.name}' takes pixels of 0 to 255, since it begins with a layer that scales them or takes whole "
            f"numbers; got mode={mode}, which would scale them twice. Leave it out, or use mode={facts.mode}"
        )
    if mode is None:
        raise UsageError(
            f"How do pixels enter '{spec.name}'? Add it to the name: mode=tf (-1..1), mode=unit (0..1), mode=torch "
            "(0..1, ImageNet mean and deviation), mode=caffe (BGR minus ImageNet mean) or mode=inside (0..255)"
        )

    # "stretch" is the default, so a model that featcache wrote keeps the way in which its images were resized.
    resize = facts.resize if facts.resize and resize == "stretch" else choose("resize", resize, get_args(Resize))
    pooling: Pooling = choose("pool", pool or "avg", get_args(Pooling))
    preprocess = Preprocess(size, resize, own.mode_of(mode), interpolation=facts.interpolation)
    return Request(spec, preprocess, layers, pooling, own_size=facts.size)


def _hub_request(
    spec: BackboneSpec,
    parts: list[str],
    layers: tuple[str, ...],
    weights: str | None,
    size: int | None,
    pool: str | None,
    resize: str,
) -> Request:
    options = dict(part.split("=", 1) for part in parts)
    if not options.keys() <= {"mode", "size", "resize"}:
        raise UsageError(f"'{spec.name}' takes the options size=.., resize=.., mode=..; got '{':'.join(parts)}'")
    if weights is not None:
        raise UsageError(f"`weights` is for backbones of Keras; the preset '{spec.name}' has its own weights")
    hub_download.provide(spec)
    preset = hub.read(spec)
    size = _count("size", _value("size", options["size"])) if "size" in options else size or preset.size
    if not size:
        raise UsageError(f"'{spec.name}' takes images of any size; choose one: {hub.spelt(spec)}:size=224, or `size`")
    hub.check_size(preset, size)

    mode = options.get("mode")
    if preset.has_converter and mode not in (None, "inside"):
        raise UsageError(f"The preset '{spec.name}' says how pixels enter it; leave mode={mode} out")
    if not preset.has_converter and mode is None:
        raise UsageError(
            f"How do pixels enter '{spec.name}'? Its folder has no {hub.CONVERTER}. Add it to the name: mode=tf "
            "(-1..1), mode=unit (0..1), mode=torch (0..1, ImageNet mean and deviation) or mode=inside (0..255)"
        )
    # "stretch" is the default of the argument, so the preset's own way stays unless another is asked for.
    resize = options.get("resize") or (preset.resize if resize == "stretch" else resize)
    preprocess = Preprocess(
        size,
        choose("resize", resize, get_args(Resize)),
        own.mode_of(mode or "inside"),
        interpolation=preset.interpolation,
    )
    # A plus joins taps in a sweep, so it cannot be in the name of one.
    names = tuple("cls_patches" if layer == "cls+patches" else layer for layer in layers)
    pooling: Pooling = choose("pool", pool or "avg", get_args(Pooling))
    return Request(spec, preprocess, names, pooling, own_size=preset.size, usual_resize=preset.resize)


def _option(entry: Entry, part: str) -> tuple[str, Any]:
    key, equals, text = part.partition("=")
    allowed = (*entry.options, *OWN_OPTIONS)
    if not equals or key not in allowed:
        forms = ", ".join(f"{option}=.." for option in allowed)
        near = did_you_mean(key, allowed)
        raise UsageError(f"'{entry.name}' takes the options {forms}; got '{part}'{near}")
    value = _value(key, text)
    # The exact type: for `isinstance`, True is a whole number.
    if key in DEFAULTS and type(value) is not type(DEFAULTS[key]):
        raise UsageError(f"'{entry.name}' takes {key} as in {key}={DEFAULTS[key]}; got '{text}'")
    return key, value


def _count(key: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise UsageError(f"{key} takes a whole number from 0; got '{value}'")
    return value


def _value(key: str, text: str) -> Any:
    """Return an option's value as a bool, number or text. A whole number is an int, unless the default is a float."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        number = float(text)
    except ValueError:
        return text
    is_whole = number.is_integer() and not isinstance(DEFAULTS.get(key), float)
    return int(number) if is_whole else number


def backbones_in(names: str | Sequence[str]) -> list[str]:
    """Return the backbones in a list. A comma separates two of them, unless it is part of the path of a file."""
    parts = _listed("backbone", names)
    if not isinstance(names, str):
        return parts
    backbones = []
    while parts:
        length = 1
        if not is_name(parts[0].partition(":")[0]):
            length = _parts_of_file(parts)
        backbones.append(",".join(parts[:length]))
        del parts[:length]
    return backbones


def _parts_of_file(parts: Sequence[str]) -> int:
    """Return how many of the first parts, with commas between, name a file that exists; 1 if none do."""
    for length in range(1, len(parts) + 1):
        own_model = own.parse(",".join(parts[:length]))
        if own_model is None:
            continue
        spec, _ = own_model
        if spec.origin == "file" and Path(spec.weights).exists():
            return length
    return 1


def _listed(option: str, names: str | Sequence[str]) -> list[str]:
    parts = names.split(",") if isinstance(names, str) else names
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise UsageError(f"`{option}` takes names, as a text or a list of texts; got {names!r}")
    return [part.strip() for part in parts if part.strip()]
