"""What a user asks for -> what is built: `mobilenet_v2:alpha=0.35:size=160` and the flags beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from featcache.backbones import own
from featcache.backbones.build import check_size
from featcache.backbones.registry import Entry, get, is_name
from featcache.errors import UsageError
from featcache.spec import (
    ALL_BITS,
    DECODE_VERSION,
    IDENTITY,
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

OWN_OPTIONS = ("size", "weights", "seed")  # may stand behind the name instead of in flags
DEFAULTS: dict[str, Any] = {"alpha": 1.0, "minimalistic": False, "depth_multiplier": 1}


@dataclass(frozen=True)
class Request:
    """One backbone, how images enter it, and where it is read."""

    spec: BackboneSpec
    preprocess: Preprocess
    layers: tuple[str, ...]
    pooling: Pooling
    precision: Precision = "float32"
    dtype: Dtype = "float32"
    views: tuple[str, ...] = (IDENTITY,)
    own_size: int | None = None  # of a user's own model: pixels that it was made for
    trust: bool = False  # run the code that a user's own file carries

    def taps(self, weights_digest: str, architecture: str = "", layers: Sequence[str] | None = None) -> list[Tap]:
        """Return the taps, all layers of the first view first, once the values of the weights are known.

        layers: those that "auto" stands for.
        """
        label, suffix = self._label(), self._suffix()
        return [
            Tap(
                f"{label}/{layer}{suffix}" + ("" if view == IDENTITY else f"@{view}"),
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
            for view in self.views
            for layer in layers or self.layers
        ]

    def _label(self) -> str:
        parts = [self.spec.name, *(f"{key}={value}" for key, value in self.spec.options)]
        usual_size = self.own_size
        if self.spec.origin == "registry":
            entry = get(self.spec.name)
            usual_size = entry.size
            parts += [] if self.spec.weights == default_weights(entry) else [f"weights={Path(self.spec.weights).stem}"]
        if self.spec.seed:
            parts.append(f"seed={self.spec.seed}")
        if self.preprocess.size != usual_size:
            parts.append(f"size={self.preprocess.size}")
        if self.preprocess.resize != "stretch":
            parts.append(f"resize={self.preprocess.resize}")
        return ":".join(parts)

    def _suffix(self) -> str:
        said = {
            str(self.pooling): self.pooling != default_pooling(self.spec.name),
            str(self.precision): self.precision != "float32",
            f"stored={self.dtype}": self.dtype != "float32",
            "draft": self.preprocess.is_draft,
            f"bits={self.preprocess.bits}": self.preprocess.bits != ALL_BITS,
        }
        return "".join(f":{part}" for part, is_unusual in said.items() if is_unusual)


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
    """Parse what was asked for. Raises UnknownBackbone or UsageError, with near names.

    >>> [request.taps("")[0].name for request in requests("mobilenet_v2:alpha=0.35,pixels:size=8")]
    ['mobilenet_v2:alpha=0.35/top', 'pixels:size=8/top']
    """
    texts = _backbones(backbones)
    layers = tuple(_listed(tap))
    if not texts or not layers:
        raise UsageError("Name at least one backbone and one tap, such as -b mobilenet_v2 --tap top")
    how: dict[str, Any] = {
        "precision": choose("--precision", precision, get_args(Precision)),
        "dtype": choose("--dtype", dtype, get_args(Dtype)),
        "views": tuple(views),
        "trust": trust,
    }
    found = [_request(text, layers, weights, size, pool, resize, trust) for text in texts]
    return [replace(one, preprocess=replace(one.preprocess, decode=decode), **how) for one in found]


def default_weights(entry: Entry) -> str:
    """Return what stands for a backbone's usual weights."""
    return {"glyphnet": "embedded", "pixels": ""}.get(entry.name, "imagenet")


def default_pooling(name: str) -> Pooling:
    """Return how a backbone's feature maps become one vector where nothing is said."""
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
    if found := own.parse(text):
        return _own_request(*found, layers, weights, size, pool, resize, trust)
    name, *parts = text.split(":")
    entry = get(name)
    options = dict(_option(entry, part) for part in parts)
    size = _whole("size", options.pop("size", entry.size if size is None else size))
    check_size(entry, size)
    seed = _whole("seed", options.pop("seed", 0))
    weights = str(options.pop("weights", None) or weights or default_weights(entry))
    if weights not in ("imagenet", "none", "embedded", ""):
        weights = str(Path(weights).resolve())
    if entry.name == "pixels":
        weights = ""
    if weights == "imagenet" and entry.name == "glyphnet":
        raise UsageError("'glyphnet' was never trained on ImageNet; it takes --weights embedded, none or a file")
    changed = tuple(sorted((key, value) for key, value in options.items() if DEFAULTS.get(key) != value))
    mode: Mode = entry.mode
    spec = BackboneSpec(entry.name, changed, weights, seed if weights == "none" else 0)
    pooling: Pooling = choose("--pool", pool or default_pooling(entry.name), get_args(Pooling))
    return Request(spec, Preprocess(size, choose("--resize", resize, get_args(Resize)), mode), layers, pooling)


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
        raise UsageError(f"--weights is for backbones by name; '{spec.name}' brings its own")
    if spec.origin == "import":
        allow(spec.weights)
    asked = _whole("size", _value("size", options["size"])) if "size" in options else size
    said = own.facts_of(spec, asked, trust)
    if said.size not in (None, asked) and asked is not None:
        raise UsageError(f"'{spec.name}' takes images of {said.size} pixels; got size {asked}")
    size = said.size or asked
    if not size:
        raise UsageError(f"'{spec.name}' takes images of any size; say which: {spec.name}:size=224, or --size")
    mode = options.get("mode") or said.mode
    if said.mode and mode in get_args(Mode) and mode != said.mode:
        raise UsageError(
            f"'{spec.name}' takes pixels of 0 to 255, since it begins with a layer that scales them or takes whole "
            f"numbers; got mode={mode}, which would scale them twice. Leave it out, or say mode={said.mode}"
        )
    if mode is None:
        raise UsageError(
            f"How do pixels enter '{spec.name}'? Say it behind the name: mode=tf (-1..1), mode=unit (0..1), mode=torch "
            "(0..1, ImageNet mean and deviation), mode=caffe (BGR minus ImageNet mean) or mode=inside (0..255)"
        )
    resize = said.resize if said.resize and resize == "stretch" else choose("--resize", resize, get_args(Resize))
    pooling: Pooling = choose("--pool", pool or "avg", get_args(Pooling))
    preprocess = Preprocess(size, resize, own.mode_of(mode))
    return Request(spec, preprocess, layers, pooling, own_size=said.size)


def _option(entry: Entry, part: str) -> tuple[str, Any]:
    key, equals, text = part.partition("=")
    allowed = (*entry.options, *OWN_OPTIONS)
    if not equals or key not in allowed:
        raise UsageError(
            f"'{entry.name}' takes the options {', '.join(f'{one}=..' for one in allowed)}; got '{part}'"
            + did_you_mean(key, allowed)
        )
    value = _value(key, text)
    if key in DEFAULTS and type(value) is not type(DEFAULTS[key]):
        raise UsageError(f"'{entry.name}' takes {key} as in {key}={DEFAULTS[key]}; got '{text}'")
    return key, value


def _whole(key: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise UsageError(f"{key} takes a whole number from 0; got '{value}'")
    return value


def _value(key: str, text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        number = float(text)
    except ValueError:
        return text
    default = DEFAULTS.get(key)
    return number if isinstance(default, float) or not number.is_integer() else int(number)


def _backbones(names: str | Sequence[str]) -> list[str]:
    """Return the backbones of a list: a comma stands between two, unless it is part of the path of a file."""
    parts, found = _listed(names), list[str]()
    if not isinstance(names, str):
        return parts
    while parts:
        length = 1
        if not is_name(parts[0].partition(":")[0]):
            ends = range(1, len(parts) + 1)
            length = next((end for end in ends if _is_file(",".join(parts[:end]))), 1)
        found.append(",".join(parts[:length]))
        del parts[:length]
    return found


def _is_file(text: str) -> bool:
    own_model = own.parse(text)
    return own_model is not None and own_model[0].origin == "file" and Path(own_model[0].weights).exists()


def _listed(names: str | Sequence[str]) -> list[str]:
    parts = names.split(",") if isinstance(names, str) else list(names)
    return [part.strip() for part in parts if part.strip()]
