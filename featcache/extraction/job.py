"""Plan -> cache: compute what is missing, commit every batch, merge at the end.

A kill at any moment costs the batch in flight: every batch becomes a part before the next one is
computed, and the same command goes on from the parts that are there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from featcache.backbones import weights as weights_of
from featcache.backbones.build import NO_WEIGHTS, Backbone, build
from featcache.backbones.parse import Request, requests
from featcache.cache import parts
from featcache.cache.reader import Cache
from featcache.errors import NoImages, UnreadableImages, UsageError
from featcache.extraction.engines import Engine, KerasEngine, PixelEngine, provenance, weights_source_of
from featcache.extraction.pipeline import Decoded, decoded_batches
from featcache.images.manifest import Images, scan
from featcache.images.splits import unit_of
from featcache.plan import Plan, make_plan
from featcache.spec import (
    DECODE_VERSION,
    Failure,
    ImageRow,
    Progress,
    SplitSpec,
    Tap,
    Tick,
    canonical_json,
    silent,
)


@dataclass(frozen=True)
class TapReport:
    """One tap of an extraction."""

    tap: str
    width: int
    precision: str
    engine: str


@dataclass(frozen=True)
class Extracted:
    """What an extraction did."""

    cache: str
    images: int
    hits: int  # images of which nothing had to be computed
    computed: int  # images that went through a backbone, once for each backbone
    failed: tuple[Failure, ...]
    taps: tuple[TapReport, ...]
    seconds: float

    @property
    def images_per_s(self) -> float:
        """Return how many images were computed per second, from start to merged cache."""
        return self.computed / self.seconds


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
    split: str | None = None,
    group_from: str | None = None,
    seed: int | None = None,
    batch: int = 32,
    strict: bool = False,
    progress: Progress = silent,
) -> Cache:
    """Return the cache at `out` with the features of these images; compute only what is missing.

    backbone: names of `featcache backbones list`, with options: "mobilenet_v2:alpha=0.35". tap: layers, "top"
    for the last. weights: "imagenet", "none" (random) or a file. pool: avg, max or flatten. resize: stretch,
    crop or pad. split, group_from, seed: as in `scan`; a cache keeps the splits it has. `cache.report` tells
    what was done.
    Raises NoImages, UsageError, WeightsMissing, WeightsMismatch, DiskFault; under `strict` UnreadableImages,
    after everything else was cached.
    """
    started = time.perf_counter()
    wanted = requests(backbone, tap=tap, weights=weights, size=size, pool=pool, resize=resize)
    if batch < 1:
        raise UsageError(f"--batch takes a number of images from 1; got {batch}")
    earlier = Cache.open(out) if Path(out).exists() else None
    manifest = _manifest(images, earlier, split, group_from, seed, progress)
    job = _Job(Path(out), manifest, earlier, batch, progress)
    for request in wanted:
        job.run(request)
    cache = replace(job.finish(), report=job.report(time.perf_counter() - started))
    if cache.failures and strict:
        first = cache.failures[0]
        raise UnreadableImages(
            f"{len(cache.failures)} of {len(cache.rows)} images cannot be used, such as {first.path}: {first.reason}. "
            "All others are cached"
        )
    return cache


class _Job:
    """One extraction: the rows at hand, and what was learnt on the way."""

    def __init__(self, out: Path, images: Images, earlier: Cache | None, batch: int, progress: Progress) -> None:
        self.out, self.images, self.earlier, self.batch, self.progress = out, images, earlier, batch, progress
        self.cached = parts.read_rows(out)
        self.digests = {row.path: row.digest for row in images.rows}  # as decoded: a file may change after the scan
        self.bad = _known_bad(earlier)  # {digest: why such bytes give no row}
        self.unread = {failure.path: failure for failure in images.unreadable if not failure.digest}
        self.hits, self.computed = len(images.rows), 0
        self.taps: list[TapReport] = []

    def run(self, request: Request) -> None:
        """Compute and commit the missing rows of one backbone."""
        size = request.preprocess.size
        weights_digest, backbone = self._weights(request)
        taps = request.taps(weights_digest)
        broken = frozenset(digest for digest, failure in self.bad.items() if failure.status != "nonfinite")
        plan = make_plan(self.images.rows, taps, self.cached, broken)
        self.hits = min(self.hits, plan.hits)
        if plan.missing:
            engine = self._engine(request, taps, backbone)
            self._compute(plan, engine, provenance(engine, request.spec, size))
            self.cached = parts.read_rows(self.out)
        self._note(taps)

    def finish(self) -> Cache:
        """Merge rows and parts into the cache, unless it already says all that there is to say."""
        rows, failures = self._rows(), self._failures()
        if not self.cached:
            first = next(iter(failures.values()))
            raise NoImages(
                f"None of the {len(rows)} images in {self.images.root} can be used; {first.path}: {first.reason}"
            )
        facts = self._facts()
        if self.earlier is not None and not parts.part_files(self.out):
            said = (
                self.earlier.rows,
                {failure.path: failure for failure in self.earlier.failures},
                self.earlier.root,
            )
            if said == (rows, failures, Path(os.fsdecode(facts["root"]))):
                return self.earlier
        return parts.merge(self.out, rows, failures, facts)

    def report(self, seconds: float) -> Extracted:
        """Return what was done."""
        failed = tuple(self._failures().values())
        return Extracted(str(self.out), len(self._rows()), self.hits, self.computed, failed, tuple(self.taps), seconds)

    def _weights(self, request: Request) -> tuple[str, Backbone | None]:
        """Return the digest of the weight values, and the built backbone if it took building to know it."""
        spec, size = request.spec, request.preprocess.size
        if spec.name == "pixels":
            return NO_WEIGHTS, None
        source = weights_of.source(spec, size)
        for rows in self.cached.values():
            made_by = rows.tap.backbone
            same = (made_by.name, made_by.options) == (spec.name, spec.options)
            if same and source is not None and weights_source_of(rows.provenance) == source:
                return rows.tap.weights_digest, None
        if source is None and weights_of.file_of(spec, size) is not None:
            self.progress(Tick("weights", 0, 0, f"downloading the ImageNet weights of {spec.name}, once"))
        backbone = build(spec, size, request.pooling)
        return backbone.weights_digest, backbone

    def _engine(self, request: Request, taps: Sequence[Tap], backbone: Backbone | None) -> Engine:
        if request.spec.name == "pixels":
            return PixelEngine()
        return KerasEngine(backbone or build(request.spec, request.preprocess.size, request.pooling), taps, self.batch)

    def _compute(self, plan: Plan, engine: Engine, made_by: str) -> None:
        done = 0
        for decoded in decoded_batches(self.images.root, plan.missing, plan.taps[0].preprocess, self.batch):
            self._commit(plan.taps, [one for one in decoded if self._usable(one)], engine, made_by)
            done += len(decoded)
            note = f"{self.hits} cached, {len(self.bad) + len(self.unread)} failed"
            self.progress(Tick(f"extract {plan.taps[0].name}", done, len(plan.missing), note))

    def _usable(self, one: Decoded) -> bool:
        if not isinstance(one.pixels, Failure):
            self.digests[one.row.path] = one.row.digest
        elif one.pixels.digest:
            self.digests[one.row.path] = one.pixels.digest
            self.bad[one.pixels.digest] = one.pixels
        else:
            self.unread[one.row.path] = one.pixels
        return not isinstance(one.pixels, Failure)

    def _commit(self, taps: Sequence[Tap], decoded: Sequence[Decoded], engine: Engine, made_by: str) -> None:
        if not decoded:
            return
        features = engine.forward(np.stack([one.pixels for one in decoded]))
        self.computed += len(decoded)
        finite = np.logical_and.reduce([np.isfinite(array).all(axis=1) for array in features])
        digests = [one.row.digest for one, good in zip(decoded, finite, strict=True) if good]
        for one in (one for one, good in zip(decoded, finite, strict=True) if not good):
            reason = f"tap {taps[0].name} gives features that are not finite"
            self.bad[one.row.digest] = Failure(one.row.path, one.row.digest, "nonfinite", reason)
        if digests:
            parts.commit(self.out, taps, digests, [array[finite] for array in features], made_by)

    def _note(self, taps: Iterable[Tap]) -> None:
        for tap in taps:
            if tap.fingerprint in self.cached:
                rows = self.cached[tap.fingerprint]
                engine = json.loads(rows.provenance)["engine"]
                self.taps.append(TapReport(rows.tap.name, rows.features.shape[1], tap.precision, engine))

    def _rows(self) -> tuple[ImageRow, ...]:
        rows = [row._replace(digest=self.digests[row.path]) for row in self.images.rows]
        rows += [ImageRow(path, "", "", "", "") for path in self.unread if path not in self.digests]
        return tuple(sorted(rows, key=lambda row: os.fsencode(row.path)))

    def _failures(self) -> dict[str, Failure]:
        found = {
            row.path: self.bad[row.digest]._replace(path=row.path) for row in self._rows() if row.digest in self.bad
        }
        return dict(sorted({**found, **self.unread}.items(), key=lambda item: os.fsencode(item[0])))

    def _facts(self) -> dict[str, str | bytes]:
        return {
            "root": os.fsencode(self.images.root.resolve()),
            "layout": self.images.layout,
            "split_spec": canonical_json(asdict(self.images.split_spec)),
            "decode": DECODE_VERSION,
        }


def _known_bad(earlier: Cache | None) -> dict[str, Failure]:
    """Return what is known not to decode; features that were not finite are tried again."""
    failures = earlier.failures if earlier is not None and earlier.decode == DECODE_VERSION else ()
    return {failure.digest: failure for failure in failures if failure.digest and failure.status != "nonfinite"}


def _manifest(
    images: Images | str | Path,
    earlier: Cache | None,
    split: str | None,
    group_from: str | None,
    seed: int | None,
    progress: Progress,
) -> Images:
    """Return the manifest, with the splits that the cache has stored. Raises UsageError if others are asked for."""
    if not isinstance(images, Images):
        of_cache = SplitSpec() if earlier is None else earlier.split_spec
        spec = of_cache if split is None else SplitSpec.parse(split, of_cache.seed)
        spec = spec if seed is None else replace(spec, seed=seed)
        images = scan(images, split=spec, group_from=group_from, progress=progress)
    if earlier is None:
        return images
    if images.split_spec != earlier.split_spec:
        raise UsageError(
            f"{earlier.path} is split {_spelt(earlier.split_spec)}, and splits never move; asked for "
            f"{_spelt(images.split_spec)}. For another split use another -o"
        )
    _check_groups(images, earlier)
    return replace(images, rows=_with_stored_splits(images, earlier.rows))


def _check_groups(images: Images, earlier: Cache) -> None:
    """Raise UsageError if the groups are made by another rule, which would move images to other splits."""
    stored = {(row.path, row.digest): row.group for row in earlier.rows}
    for row in images.rows:
        group = stored.get((row.path, row.digest), row.group)
        if group != row.group:
            raise UsageError(
                f"{earlier.path} has {row.path} in {_group(group)}, and splits never move; asked for "
                f"{_group(row.group)}. Give the --group-from that it was made with, or use another -o"
            )


def _with_stored_splits(images: Images, earlier: Iterable[ImageRow]) -> tuple[ImageRow, ...]:
    if images.layout != "classes":
        return images.rows
    stored: Mapping[str, str] = {unit_of(row): row.split for row in earlier if row.split}
    return tuple(row._replace(split=stored.get(unit_of(row), row.split)) for row in images.rows)


def _group(name: str) -> str:
    return f"group '{name}'" if name else "no group"


def _spelt(spec: SplitSpec) -> str:
    return f"{spec.train}/{spec.val}/{spec.test} seed {spec.seed}"
