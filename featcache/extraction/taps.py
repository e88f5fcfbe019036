"""Known taps of images that a cache has -> another cache: what training needs beside the features of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featcache.backbones.parse import Request
from featcache.cache.reader import Cache
from featcache.errors import ImagesChanged
from featcache.extraction.job import Job, Options
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
    """Return the cache at `out` with these taps of images that another cache has; compute only what is missing.

    Of one backbone and pooling every layer is read of every view that one of the taps reads.
    rows: the images, of `cache`; source: where they lie. Computed by Keras, since training goes on from what it gives.
    All features will be read, so that what is damaged is found, and computed again, here.
    Raises as `extract` does, and ImagesChanged if an image is not what `cache` has.
    """
    wanted: dict[Request, Request] = {}
    for tap in taps:
        how = Request(tap.backbone, tap.preprocess, (), tap.pooling, tap.precision, tap.dtype, ())
        so_far = wanted.get(how, how)
        layers, views = dict.fromkeys((*so_far.layers, tap.layer)), dict.fromkeys((*so_far.views, tap.view))
        wanted[how] = replace(how, layers=tuple(layers), views=tuple(views))
    options = _Taps(engine="keras", rehash=True, of_taps=tuple(wanted.values()))
    layout: Any = cache.layout
    there = Images(cache.root, source, layout, tuple(rows), cache.split_spec)
    found = Job(there, Path(out), options, None, progress).run()
    changed = {row.path for row in rows} - {row.path for row in found.usable() if row in set(rows)}
    if changed:
        raise ImagesChanged(f"{min(changed)} is not the image that {cache.path} has, or is gone. Extract again")
    return found


@dataclass(frozen=True)
class _Taps(Options):
    """Options of taps that are known already."""

    of_taps: tuple[Request, ...] = ()

    def requests(self) -> list[Request]:
        return list(self.of_taps)
