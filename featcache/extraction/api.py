"""`extract` and `estimate`: what users call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache.cache.layout import is_cache
from featcache.cache.reader import Cache
from featcache.errors import UnreadableImages
from featcache.extraction.extract_options import Options
from featcache.extraction.layouts import index_of
from featcache.extraction.outcome import Estimate
from featcache.extraction.workflow import Extraction, open_extraction, scanned_images
from featcache.images.manifest import Images
from featcache.outputs import Kind, check_output, check_unread
from featcache.spec import Progress, silent

CACHE = Kind("cache of featcache", is_cache)


def extract(
    images: Images | str | Path,
    backbone: str | Sequence[str] = "mobilenet_v2",
    *,
    out: str | Path,
    tap: str | Sequence[str] = "top",
    weights: str | None = None,
    size: int | None = None,
    pool: str | None = None,
    resize: str = "stretch",
    decode: str = "exact",
    bits: int | None = None,
    views: str = "1",
    precision: str = "float32",
    dtype: str = "float32",
    engine: str = "auto",
    device: str = "auto",
    batch: int | str = "auto",
    layout: str | None = None,
    split: str | None = None,
    group_from: str | None = None,
    seed: int | None = None,
    allow_outside: bool = False,
    label_column: str | None = None,
    path_column: str | None = None,
    rehash: bool = False,
    strict: bool = False,
    trust: bool = False,
    apply: str | Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Cache:
    """Return the cache at `out` with the features of these images; compute only what is missing.

    backbone: names from `featcache backbones list`, with options as in "mobilenet_v2:alpha=0.35"; the folder of a
    preset of keras-hub, "hub:./folder"; a model file, or "package.module:function". trust: run the code that a model
    file contains.
    tap: layers. "top" is the last layer, "auto" takes one per block. A layer of your own model may also be given by its
    position (-2) or by the end of its name. weights: "imagenet", "none" (random) or a file.
    pool: avg, max, flatten or none (spatial maps). resize: stretch, crop or pad.
    decode: exact, or draft (large JPEGs at reduced scale, faster).
    bits: the number of bits in use in 16-bit images: with 12, white is 4095 and everything above; None or 16 for all.
    views: "1", "flip", a number or names: fixed augmentations, each stored as another tap.
    precision: of the forward pass. dtype: of the stored features. engine: auto, keras or openvino.
    device: "auto" (all GPUs), cpu, gpu or names: "gpu:0,gpu:1". batch: images at once on each device, or "auto".
    layout: "file", or "parts" for a folder.
    split, group_from, seed, allow_outside, label_column, path_column: as in `scan`; a cache keeps the splits it has.
    rehash: read every image again, even if its size and time match the index, and compare every stored row with its
    digest. strict: raise UnreadableImages if an image cannot be used, after all others are cached.
    apply: a table that `leaks --labels --csv` wrote and somebody reviewed; its labels stay with the cache.
    force: replace a file at `out` that is no cache. `cache.report` holds what was done.
    Raises NoImages, UsageError, WeightsMissing, WeightsMismatch, DiskFault, NotACache if a cache is damaged and cannot
    be mended.
    """
    started = time.perf_counter()
    options = Options(
        backbone=backbone,
        tap=tap,
        weights=weights,
        size=size,
        pool=pool,
        resize=resize,
        decode=decode,
        bits=bits,
        views=views,
        precision=precision,
        dtype=dtype,
        engine=engine,
        device=device,
        batch=batch,
        layout=layout,
        split=split,
        group_from=group_from,
        seed=seed,
        allow_outside=allow_outside,
        label_column=label_column,
        path_column=path_column,
        rehash=rehash,
        strict=strict,
        trust=trust,
        apply=apply,
    )
    extraction = begin_extraction(images, Path(out), options, force=force, progress=progress)
    cache = extraction.run()
    seconds = time.perf_counter() - started
    cache = replace(cache, report=extraction.report(seconds))
    # Only now, so that a strict extraction keeps what it has computed.
    if cache.failures and strict:
        first = cache.failures[0]
        raise UnreadableImages(
            f"{len(cache.failures)} of {len(cache.rows)} images cannot be used, such as {first.path}: {first.reason}. "
            "All others are cached"
        )
    return cache


def begin_extraction(
    images: Images | str | Path,
    out: Path,
    options: Options,
    *,
    force: bool,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> Extraction:
    """Return the extraction into the cache at `out`, which has computed nothing yet.

    force: replace a file at `out` that is no cache. Raises what `extract` raises before it computes.
    """
    index = index_of(out, options.layout)
    replaces = _replaces_other_file(images, out, options, force)
    if replaces:
        # None of the images may be the file that is replaced, and only a scan knows which images are read.
        images = scanned_images(images, None, options, index, progress)
        for row in images.rows:
            check_unread(out, images.root / row.path)
    return open_extraction(images, out, options, index, progress, replaces=replaces, clock=clock)


def estimate(
    images: Images | str | Path,
    backbone: str | Sequence[str] = "mobilenet_v2",
    *,
    out: str | Path,
    progress: Progress = silent,
    **options: Any,
) -> Estimate:
    """Return what `extract` with the same options would do, and how long it would take; write nothing.

    Two batches of the missing images go through each backbone to measure the time.
    """
    settings = Options(backbone=backbone, **options)
    index = index_of(Path(out), settings.layout)
    index_to_read = index if index.exists() else None  # without one, the scan would create it
    return open_extraction(images, Path(out), settings, index_to_read, progress).estimate()


def _replaces_other_file(images: Images | str | Path, out: Path, options: Options, force: bool) -> bool:
    """Return whether the cache will replace a file at `out` that is no cache. Raises UsageError if that file stays."""
    if not os.path.lexists(out) or out.is_dir():
        return False
    read = [Path(request.spec.weights) for request in options.requests()]
    if not isinstance(images, Images):
        read.append(Path(images))
    if options.apply is not None:
        read.append(Path(options.apply))
    inputs = [path for path in read if path.is_file()]
    if out.is_file() and is_cache(out):
        # Do not ask yet whether a cache can be written: there may be nothing to write.
        for path in inputs:
            check_unread(out, path)
        return False
    check_output(out, CACHE, inputs=inputs, force=force)
    return out.is_file()
