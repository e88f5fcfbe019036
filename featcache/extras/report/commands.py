"""The commands that repeat a run.

They write new files beside the caller and never touch the originals: an extraction into the same cache would replace
its table of images if the folder has changed since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from shlex import quote
from typing import Any

from featcache.backbones import hub
from featcache.backbones.parse import default_pooling
from featcache.cache.reader import Cache
from featcache.heads.estimators import is_own_class
from featcache.images.sources import IN_MEMORY
from featcache.spec import ALL_BITS, IDENTITY, BackboneSpec, SplitSpec, Tap
from featcache.sweeps import Run
from featcache.trust import allow_flags

DEFAULTS = {"resize": "stretch", "precision": "float32", "dtype": "float32", "decode": "exact"}
DEFAULT_WEIGHTS = ("imagenet", "embedded", "")


def commands(run: Run, cache: Cache, records: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Return the commands: an extraction for each backbone, the fix of leaks, the sweep, and each fine-tuning.

    records: the records of the fine-tunings. A line that begins with # is a note for the reader.
    """
    name = run.path.resolve().name.removesuffix(".run")
    new_cache = quote(f"{name}-again.h5")
    new_run = f"{name}-again.run"
    taps = [cache.taps[tap_name] for tap_name in run.fingerprints]

    lines = _extractions(cache, _by_command(taps), new_cache)
    if cache.changes.reviews:
        lines.insert(0, "# Labels were reviewed: add --apply TABLE.csv, the reviewed table, to featcache extract.")
    if cache.joined:
        lines.append(f"featcache leaks {new_cache} --fix")

    # What runs code from a file is allowed by name, each time.
    heads = allow_flags(head for head in run.settings.heads if is_own_class(head))
    backbones = {tap.backbone.weights for tap in taps if tap.backbone.origin == "import"}
    functions = allow_flags(sorted(backbones))
    config = quote(str(run.path.resolve() / "run.json"))
    lines.append(f"featcache sweep {new_cache} --config {config} -o {quote(new_run)}{heads}")

    for number, record in enumerate(records, 1):
        model = f"{name}-again.keras" if len(records) == 1 else f"{name}-again-{number}.keras"
        trial = quote(f"{new_run}@{record['trial']}")
        flags = list(map(quote, record["flags"]))
        if record["controls"]:
            flags.append(f"--controls {','.join(record['controls'])}")
        lines.append(" ".join([f"featcache finetune {trial} -o {quote(model)}", *flags]) + heads + functions)
    return lines


def _by_command(taps: Sequence[Tap]) -> list[list[Tap]]:
    """Return the taps in lists, each of which one extraction makes: each of its layers in each of its views."""
    taps_of_layer: dict[Tap, list[Tap]] = {}  # views of one layer
    for tap in taps:
        taps_of_layer.setdefault(replace(tap, name="", view=IDENTITY), []).append(tap)

    taps_of_command: dict[tuple[Tap, tuple[str, ...]], list[Tap]] = {}
    for tap, in_views in taps_of_layer.items():
        views = tuple(view.view for view in in_views)
        taps_of_command.setdefault((replace(tap, layer=""), views), []).extend(in_views)
    return list(taps_of_command.values())


def _extractions(cache: Cache, taps_of_commands: Sequence[Sequence[Tap]], out: str) -> list[str]:
    """Return the commands that make the cache again, or a note if there are none."""
    listing = cache.listing
    if cache.root == IN_MEMORY:
        return [f"# The images were arrays in Python: extract their features there, with out={out}."]
    if listing is not None and "merged" in listing:
        sources = " ".join(map(quote, listing["merged"]))
        return [f"featcache cache merge {sources} -o {out}"]
    lines: list[str] = []
    if listing is None:
        lines.append(
            "# How the images were listed is not recorded, since an earlier version made this cache, or a recipe that "
            "took some of them or other splits. If a table named them, give it instead of its folder, and --group-from "
            "and --label-column as they were."
        )
    flags = [f"--{name} {quote(str(value))}" for name, value in _cache_options(cache, listing or {})]
    if listing and listing.get("allow_outside"):
        flags.append("--allow-outside")
    images = quote(str(cache.images_from))
    for taps in taps_of_commands:
        lines.append(" ".join([f"featcache extract {images} -o {out}", flags_of(taps), *flags]))
    return lines


def _cache_options(cache: Cache, listing: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options by which images were listed and split, and how the cache was laid out, with their values."""
    for name in ("path_column", "label_column", "group_from"):
        if name in listing:
            yield name.replace("_", "-"), listing[name]
    split = cache.split_spec
    if replace(split, seed=0) != SplitSpec():
        yield "split", f"{split.train}/{split.val}/{split.test}"
    if split.seed:
        yield "seed", split.seed
    if cache.path.is_dir():
        yield "layout", "parts"


def flags_of(taps: Sequence[Tap]) -> str:
    """Return the options of an extraction that makes these taps: each of their layers in each of their views."""
    layers, views = dict.fromkeys(tap.layer for tap in taps), dict.fromkeys(tap.view for tap in taps)
    values = {**dict(_tap_options(taps[0])), "tap": ",".join(layers)}
    if list(views) != [IDENTITY]:
        values["views"] = ",".join(views)
    options = [f"--{name} {quote(str(value))}" for name, value in values.items()]
    return " ".join(["-b", quote(_backbone(taps[0])), *options])


def _tap_options(tap: Tap) -> Iterator[tuple[str, Any]]:
    """Yield the options that differ from the defaults, and the size, with their values."""
    how, spec = tap.preprocess, tap.backbone
    if spec.origin == "registry" and spec.weights not in DEFAULT_WEIGHTS:
        yield "weights", spec.weights
    yield "size", how.size
    if tap.pooling != default_pooling(spec.name):
        yield "pool", tap.pooling
    decode = "draft" if how.is_draft else "exact"
    values = {"resize": how.resize, "precision": tap.precision, "dtype": tap.dtype, "decode": decode}
    for name, value in values.items():
        if value != DEFAULTS[name]:
            yield name, value
    if how.bits != ALL_BITS:
        yield "bits", how.bits


def _backbone(tap: Tap) -> str:
    """Return a backbone as `extract -b` takes it."""
    spec: BackboneSpec = tap.backbone
    if spec.origin == "hub":
        # A preset has its own way of resizing, which --resize stretch would not change.
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
