"""The commands that make a run again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from shlex import quote
from typing import Any

from featcache.backbones.parse import default_pooling
from featcache.cache.reader import Cache
from featcache.heads.estimators import is_own_class
from featcache.images.sources import IN_MEMORY
from featcache.spec import ALL_BITS, IDENTITY, BackboneSpec, SplitSpec, Tap
from featcache.sweeps import Run

USUAL = {"resize": "stretch", "precision": "float32", "dtype": "float32", "decode": "exact", "views": IDENTITY}
WEIGHTS = ("imagenet", "embedded", "")  # that a backbone has if nothing is said


def commands(run: Run, cache: Cache, records: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Return what to type: an extraction for each backbone, what was fixed, the sweep, and each fine-tuning."""
    alike: dict[Tap, list[Tap]] = {}
    for tap in [cache.taps[name] for name in run.fingerprints]:
        alike.setdefault(replace(tap, name="", layer=""), []).append(tap)
    notes = ["# The images are in groups: give --group-from again if it was given."] if _has_own_groups(cache) else []
    found = [_extraction(cache, some) for some in alike.values()]
    if cache.changes.reviews:
        notes.append("# Labels were reviewed, which this cache keeps. For another one add: --apply TABLE.csv")
    if cache.root == IN_MEMORY:
        notes, found = ["# The images were arrays in Python: extract their features there."], []
    if cache.joined:
        found.append(f"featcache leaks {quote(str(cache.path))} --fix")
    heads = [f"--allow {quote(head)}" for head in run.settings.heads if is_own_class(head)]
    backbones = {tap.backbone.weights for tap in alike if tap.backbone.origin == "import"}
    functions = [f"--allow {quote(name)}" for name in sorted(backbones)]
    found.append(" ".join([f"featcache sweep --config {quote(str(run.path / 'run.json'))} -o AGAIN", *heads]))
    return [*notes, *found, *(_tuning(record, [*heads, *functions]) for record in records)]


def _tuning(record: Mapping[str, Any], allowed: Sequence[str]) -> str:
    flags = [*map(quote, record["flags"]), *allowed]
    return " ".join(["featcache finetune", f"AGAIN@{record['trial']}", "-o again.keras", *flags])


def _extraction(cache: Cache, taps: list[Tap]) -> str:
    """Return the command for taps that differ in the layer alone."""
    of_split = [f"--{name} {quote(str(value))}" for name, value in _of_split(cache)]
    images = ["featcache extract", quote(str(cache.root)), "-o", quote(str(cache.path))]
    return " ".join([*images, flags_of(taps), *of_split])


def flags_of(taps: Sequence[Tap]) -> str:
    """Return the options of an extraction that makes these taps, which differ in the layer alone."""
    how = {**dict(_of_tap(taps[0])), "tap": ",".join(tap.layer for tap in taps)}
    options = [f"--{name} {quote(str(value))}" for name, value in how.items()]
    return " ".join(["-b", quote(_backbone(taps[0])), *options])


def _of_tap(tap: Tap) -> Iterator[tuple[str, Any]]:
    """Yield options and their values, of those that are not the usual ones."""
    how, spec = tap.preprocess, tap.backbone
    if spec.origin == "registry" and spec.weights not in WEIGHTS:
        yield "weights", spec.weights
    yield "size", how.size
    if tap.pooling != default_pooling(spec.name):
        yield "pool", tap.pooling
    decode = "draft" if how.is_draft else "exact"
    asked = {"resize": how.resize, "precision": tap.precision, "dtype": tap.dtype, "decode": decode, "views": tap.view}
    yield from ((name, value) for name, value in asked.items() if value != USUAL[name])
    if how.bits != ALL_BITS:
        yield "bits", how.bits


def _of_split(cache: Cache) -> Iterator[tuple[str, Any]]:
    spec = cache.split_spec
    if replace(spec, seed=0) != SplitSpec():
        yield "split", f"{spec.train}/{spec.val}/{spec.test}"
    if spec.seed:
        yield "seed", spec.seed


def _backbone(tap: Tap) -> str:
    """Return a backbone as `extract -b` takes it."""
    spec: BackboneSpec = tap.backbone
    if spec.origin != "registry":
        return f"{spec.weights}:mode={tap.preprocess.mode}"
    options = [f"{name}={value}" for name, value in spec.options]
    return ":".join([spec.name, *options, *([f"seed={spec.seed}"] if spec.seed else [])])


def _has_own_groups(cache: Cache) -> bool:
    """Return whether images are in groups that neither their folders nor `leaks --fix` have put them into."""
    return any(row.group and row.path not in cache.joined for row in cache.rows)
