"""Extract known taps of a cache's images into another cache: features that training needs and the run did not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache.backbones.parse import Request
from featcache.cache.reader import Cache
from featcache.errors import ImagesChanged
from featcache.extraction.extract_options import Options
from featcache.extraction.workflow import open_extraction
from featcache.images.manifest import Images
from featcache.images.sources import Source
from featcache.spec import ImageRow, Progress, Tap, silent


def extract_taps(
    cache: Cache,
    source: Source,
    rows: Sequence[ImageRow],
    taps: Sequence[Tap],
    *,
    out: str | Path,
    progress: Progress = silent,
) -> Cache:
    """Return the cache at `out` with these taps of images from another cache; compute only what is missing.

    Taps that share everything but layer and view become one request, which reads each of its layers in each of its
    views. rows: the images, from `cache`. source: reads their bytes.
    Raises what `extract` raises, and ImagesChanged if an image has other bytes now or is gone.
    """
    requests: dict[Request, Request] = {}  # {request without layers and views: the same with all of them}
    for tap in taps:
        shared = Request(tap.backbone, tap.preprocess, (), tap.pooling, tap.precision, tap.dtype, ())
        request = requests.get(shared, shared)
        layers = dict.fromkeys((*request.layers, tap.layer))
        views = dict.fromkeys((*request.views, tap.view))
        requests[shared] = replace(shared, layers=tuple(layers), views=tuple(views))
    # Training continues from what Keras computes. It will read all features, so damage is found and mended here.
    options = Options(engine="keras", rehash=True)
    layout: Any = cache.layout
    images = Images(cache.root, source, layout, tuple(rows), cache.split_spec)
    extraction = open_extraction(images, Path(out), options, None, progress, requests=list(requests.values()))
    extracted = extraction.run()

    unchanged = set(rows).intersection(extracted.usable())
    changed = {row.path for row in set(rows) - unchanged}
    if changed:
        raise ImagesChanged(f"{min(changed)} is not the image that {cache.path} has, or is gone. Extract again")
    return extracted
