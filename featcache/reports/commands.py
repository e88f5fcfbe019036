"""The commands that make a run again."""

from __future__ import annotations

from itertools import groupby
from shlex import quote
from typing import Any

from featcache.cache.reader import Cache
from featcache.spec import Preprocess, Tap
from featcache.sweeps import Run

PLAIN = {"resize": "stretch", "precision": "float32", "dtype": "float32"}


def commands(run: Run, cache: Cache) -> list[str]:
    """Return what to type: an extraction for each backbone, and the sweep."""
    taps = sorted((cache.taps[name] for name in run.fingerprints), key=_key)
    found = [_extraction(cache, list(some)) for _, some in groupby(taps, key=_key)]
    return [*found, f"featcache sweep --config {quote(str(run.path / 'run.json'))} -o AGAIN"]


def _extraction(cache: Cache, taps: list[Tap]) -> str:
    tap = taps[0]
    spec = tap.backbone
    name = tap.name.removesuffix(f"/{tap.layer}") if spec.origin == "registry" else spec.weights
    options = {"-b": name, "--tap": ",".join(one.layer for one in taps), "--size": tap.preprocess.size}
    if spec.origin == "registry" and spec.weights not in ("imagenet", "none", "embedded"):
        options["--weights"] = spec.weights
    if tap.pooling != "avg":
        options["--pool"] = tap.pooling
    asked = {"resize": tap.preprocess.resize, "precision": tap.precision, "dtype": tap.dtype}
    options |= {f"--{option}": value for option, value in asked.items() if value != PLAIN[option]}
    said = " ".join(f"{option} {quote(str(value))}" for option, value in options.items())
    return f"featcache extract {quote(str(cache.root))} -o {quote(str(cache.path))} {said}"


def _key(tap: Tap) -> tuple[Any, ...]:
    preprocess: Preprocess = tap.preprocess
    name = tap.name.removesuffix(f"/{tap.layer}")
    return name, tap.pooling, preprocess.size, preprocess.resize, tap.precision, tap.dtype
