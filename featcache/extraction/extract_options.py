"""How to extract: the options of `extract`, checked and parsed into requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featcache.backbones import hub
from featcache.backbones.devices import check_kinds
from featcache.backbones.parse import Request, default_pooling, requests
from featcache.errors import UsageError
from featcache.extraction.engines import RIVALS
from featcache.images.decode import parse_views
from featcache.spec import ALL_BITS, DECODE_VERSION, DRAFT_VERSION, IDENTITY, Tap, with_bits
from featcache.spec import choose as one_of

ENGINES = ("auto", "keras", *RIVALS)
DECODERS = {"exact": DECODE_VERSION, "draft": DRAFT_VERSION}
LEAST_BITS = 8


@dataclass(frozen=True)
class Options:
    """How to extract: every option of `extract` except the images and the output, with the same meaning."""

    backbone: str | Sequence[str] = "mobilenet_v2"
    tap: str | Sequence[str] = "top"
    weights: str | None = None
    size: int | None = None
    pool: str | None = None
    resize: str = "stretch"
    decode: str = "exact"
    bits: int | None = None
    views: str = "1"
    precision: str = "float32"
    dtype: str = "float32"
    engine: str = "auto"
    device: str = "auto"
    batch: int | str = "auto"
    layout: str | None = None
    split: str | None = None
    group_from: str | None = None
    seed: int | None = None
    allow_outside: bool = False
    label_column: str | None = None
    path_column: str | None = None
    rehash: bool = False
    strict: bool = False
    trust: bool = False
    apply: str | Path | None = None

    def requests(self) -> list[Request]:
        """Return the requested backbones, each once. Raises UsageError, UnknownBackbone."""
        decoder = DECODERS[one_of("decode", self.decode, DECODERS)]
        parsed = requests(
            self.backbone,
            tap=self.tap,
            weights=self.weights,
            size=self.size,
            pool=self.pool,
            resize=self.resize,
            precision=self.precision,
            dtype=self.dtype,
            decode=with_bits(decoder, self._num_bits),
            views=parse_views(self.views),
            trust=self.trust,
        )
        # Several texts may name one backbone, which is computed once.
        return list(dict.fromkeys(_plain_pixels(request) for request in parsed))

    def check(self) -> None:
        """Raise UsageError if the batch, the engine or the device cannot be meant."""
        _ = self.batch_size
        one_of("engine", self.engine, ENGINES)
        check_kinds(self.device)
        if self.precision == "int8":
            if self.engine == "keras":
                raise UsageError(
                    "`precision='int8'` is computed by OpenVINO; got `engine='keras'`. Use `engine='auto'`"
                )
            if self.device not in ("auto", "cpu", "cpu:0"):
                raise UsageError(f"`precision='int8'` is computed on the CPU; got `device='{self.device}'`")

    @property
    def _num_bits(self) -> int:
        """The number of bits in use in 16-bit images. Raises UsageError."""
        bits = ALL_BITS if self.bits is None else self.bits
        if bits not in range(LEAST_BITS, ALL_BITS + 1):
            raise UsageError(f"`bits` takes a whole number from {LEAST_BITS} to {ALL_BITS}; got {bits!r}")
        return int(bits)

    @property
    def batch_size(self) -> int | None:
        """Images through the backbone at once; None to find out. Raises UsageError."""
        text = str(self.batch)
        if text != "auto" and (not text.isdecimal() or int(text) < 1):
            raise UsageError(f"`batch` takes auto or a number of images from 1; got {text}")
        return None if text == "auto" else int(text)


def options_of(taps: Sequence[Tap]) -> dict[str, Any]:
    """Return the options of an extraction that makes these taps: each of their layers in each of their views.

    The taps differ in nothing else. Options that have their default are left out, except for the size.
    """
    tap = taps[0]
    spec = tap.backbone
    preprocess = tap.preprocess
    options: dict[str, Any] = {"backbone": _name_with_options(tap)}
    if spec.origin == "registry" and spec.weights not in ("imagenet", "embedded", ""):
        options["weights"] = spec.weights
    options["size"] = preprocess.size
    if tap.pooling != default_pooling(spec.name):
        options["pool"] = tap.pooling
    values = {
        "resize": preprocess.resize,
        "precision": tap.precision,
        "dtype": tap.dtype,
        "decode": "draft" if preprocess.is_draft else "exact",
    }
    options |= {name: value for name, value in values.items() if value != getattr(Options, name)}
    if preprocess.bits != ALL_BITS:
        options["bits"] = preprocess.bits
    options["tap"] = list(dict.fromkeys(tap.layer for tap in taps))
    views = list(dict.fromkeys(tap.view for tap in taps))
    if views != [IDENTITY]:
        options["views"] = ",".join(views)
    return options


def _name_with_options(tap: Tap) -> str:
    """Return a backbone as `backbone` takes it."""
    spec = tap.backbone
    if spec.origin == "hub":
        # A preset has its own way of resizing, which `resize='stretch'` would not change.
        parts = [hub.spelt(spec), f"resize={tap.preprocess.resize}"]
        if tap.preprocess.mode != "inside":
            parts.append(f"mode={tap.preprocess.mode}")
        return ":".join(parts)
    if spec.origin != "registry":
        return f"{spec.weights}:mode={tap.preprocess.mode}"
    parts = [spec.name, *(f"{name}={value}" for name, value in spec.options)]
    if spec.seed:
        parts.append(f"seed={spec.seed}")
    return ":".join(parts)


def _plain_pixels(request: Request) -> Request:
    """Return the request with each layer once; raw pixels get the only tap that they can have. Raises UsageError."""
    layers = tuple(dict.fromkeys(request.layers))
    if request.spec.name != "pixels":
        return replace(request, layers=layers)
    if not set(layers) <= {"top", "auto"}:
        raise UsageError(f"'pixels' has no layers, so `tap` takes top; got {', '.join(layers)}")
    return replace(request, layers=("top",), pooling="flatten", precision="float32")
