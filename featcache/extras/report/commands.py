"""The commands that make a run again.

They write files of their own beside the caller, never those that the run was made from: an extraction into the same
cache would replace its table of images where the folder holds others by now.
"""

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
    """Return what to type: an extraction for each backbone, what was fixed, the sweep, and each fine-tuning.

    records: of the fine-tunings. A line that begins with # is a note for the reader.
    """
    name = run.path.resolve().name.removesuffix(".run")
    new_cache, new_run = quote(f"{name}-again.h5"), f"{name}-again.run"
    alike: dict[Tap, list[Tap]] = {}
    for tap in [cache.taps[name] for name in run.fingerprints]:
        alike.setdefault(replace(tap, name="", layer=""), []).append(tap)

    lines = _extractions(cache, list(alike.values()), new_cache)
    if cache.changes.reviews:
        lines.insert(0, "# Labels were reviewed: add --apply TABLE.csv, the reviewed table, to featcache extract.")
    if cache.joined:
        lines.append(f"featcache leaks {new_cache} --fix")

    heads = [f"--allow {quote(head)}" for head in run.settings.heads if is_own_class(head)]
    backbones = {tap.backbone.weights for tap in alike if tap.backbone.origin == "import"}
    functions = [f"--allow {quote(name)}" for name in sorted(backbones)]
    config = quote(str(run.path.resolve() / "run.json"))
    lines.append(" ".join([f"featcache sweep {new_cache} --config {config} -o {quote(new_run)}", *heads]))

    for number, record in enumerate(records, 1):
        model = f"{name}-again.keras" if len(records) == 1 else f"{name}-again-{number}.keras"
        trial = quote(f"{new_run}@{record['trial']}")
        controls = [f"--controls {','.join(record['controls'])}"] if record["controls"] else []
        flags = [*map(quote, record["flags"]), *controls, *heads, *functions]
        lines.append(" ".join([f"featcache finetune {trial} -o {quote(model)}", *flags]))
    return lines


def _extractions(cache: Cache, alike: Sequence[Sequence[Tap]], out: str) -> list[str]:
    """Return the commands that make the cache again, or a note where there is none. alike: taps of one command each."""
    listing = cache.listing
    if cache.root == IN_MEMORY:
        return [f"# The images were arrays in Python: extract their features there, with out={out}."]
    if listing is not None and "merged" in listing:
        sources = " ".join(map(quote, listing["merged"]))
        return [f"featcache cache merge {sources} -o {out}"]
    notes = []
    if listing is None:
        notes.append(
            "# How the images were listed is not recorded, since an earlier version made this cache, or a recipe that "
            "took some of them or other splits. If a table named them, give it instead of its folder, and --group-from "
            "and --label-column as they were."
        )
    options = [*_of_listing(listing or {}), *_of_split(cache)]
    if cache.path.is_dir():
        options.append(("layout", "parts"))
    flags = [f"--{name} {quote(str(value))}" for name, value in options]
    if listing and listing.get("allow_outside"):
        flags.append("--allow-outside")
    images = quote(str(cache.images_from))
    return [*notes, *(" ".join([f"featcache extract {images} -o {out}", flags_of(taps), *flags]) for taps in alike)]


def _of_listing(listing: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the options that said how the images are listed, and their values."""
    for name in ("path_column", "label_column", "group_from"):
        if name in listing:
            yield name.replace("_", "-"), listing[name]


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
