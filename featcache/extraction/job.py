"""Plan -> cache: compute what is missing, commit every batch, merge at the end.

A kill at any moment costs the batches in flight (one that is computed, one that is written): every batch becomes a
part, and the same command goes on from the parts that are there.

Before rows are copied into a new CACHE.h5 they are compared with their digests. What is damaged of the taps that are
asked for is computed again; damaged taps of other backbones stay as they are (see `cache.parts`). An extraction that
has nothing to do copies nothing and compares nothing, unless `rehash` asks it to trust nothing that is stored.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from featcache.arrays import Pixels
from featcache.backbones import weights as weights_of
from featcache.backbones.build import NO_WEIGHTS, Backbone, build
from featcache.backbones.devices import check_kinds
from featcache.backbones.lineage import lineage_of
from featcache.backbones.parse import Request, requests
from featcache.cache import parts
from featcache.cache.layout import INDEX_NAME, LISTING, is_begun, is_cache, is_foreign, part_files, table_of
from featcache.cache.reader import Cache
from featcache.cache.rows import TapRows, is_part
from featcache.errors import (
    DiskFault,
    NoImages,
    NotACache,
    NotAModel,
    UnreadableImages,
    UsageError,
    WeightsMismatch,
)
from featcache.extraction.compute import FIRST_BATCH, Findings, Pass, Started, Target, tap_of
from featcache.extraction.engines import Engine, PixelEngine, provenance, weights_source_of
from featcache.extraction.engines import choose as choose_engine
from featcache.extraction.stored import apart, as_stored, kept_apart
from featcache.images.decode import parse_views
from featcache.images.groups import Groups
from featcache.images.index import is_index
from featcache.images.kinds import notes
from featcache.images.manifest import Images, scan
from featcache.outputs import Kind, check_output, check_unread
from featcache.plan import Plan, make_plan
from featcache.spec import (
    ALL_BITS,
    DECODE_VERSION,
    DRAFT_VERSION,
    Failure,
    ImageRow,
    Precision,
    Preprocess,
    Progress,
    SplitSpec,
    Tap,
    Tick,
    canonical_json,
    silent,
    with_bits,
)
from featcache.spec import choose as one_of

ENGINES = ("auto", "keras", "openvino")
DECODERS = {"exact": DECODE_VERSION, "draft": DRAFT_VERSION}
LEAST_BITS = 8
LAYOUTS = ("file", "parts")
TIMED_BATCHES = 2
MAX_ROUNDS = 3
PIXEL_BATCH = 256


@dataclass(frozen=True)
class Options:
    """How to extract: everything but the images and the place, with the meanings of `extract`."""

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

    def requests(self) -> list[Request]:
        """Return the backbones that are asked for, each once. Raises UsageError, UnknownBackbone."""
        found = requests(
            self.backbone,
            tap=self.tap,
            weights=self.weights,
            size=self.size,
            pool=self.pool,
            resize=self.resize,
            precision=self.precision,
            dtype=self.dtype,
            decode=with_bits(DECODERS[one_of("--decode", self.decode, DECODERS)], self._num_bits),
            views=parse_views(self.views),
            trust=self.trust,
        )
        return list(dict.fromkeys(_plain_pixels(one) for one in found))

    @property
    def _num_bits(self) -> int:
        """Return how many bits of 16-bit images are in use. Raises UsageError."""
        bits = ALL_BITS if self.bits is None else self.bits
        if bits not in range(LEAST_BITS, ALL_BITS + 1):
            raise UsageError(f"--bits takes a whole number from {LEAST_BITS} to {ALL_BITS}; got {bits!r}")
        return int(bits)

    @property
    def batch_size(self) -> int | None:
        """Images through the backbone at once; None to find out. Raises UsageError."""
        text = str(self.batch)
        if text != "auto" and (not text.isdecimal() or int(text) < 1):
            raise UsageError(f"--batch takes auto or a number of images from 1; got {text}")
        return None if text == "auto" else int(text)


@dataclass(frozen=True)
class TapReport:
    """One tap of an extraction."""

    tap: str
    width: int  # numbers per image
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
    others: Mapping[str, int]  # files that are no images by their suffix: how many of each
    stray: tuple[str, ...]  # images beside the class folders: no label, left out
    groups: Groups
    remarks: tuple[str, ...]  # on groups, tables and splits that are not what one may expect
    notes: tuple[str, ...] = ()  # on kinds of images that were decoded and may not look as they are meant to

    @property
    def images_per_s(self) -> float:
        """Return how many images were computed per second, from start to merged cache."""
        return self.computed / self.seconds


CACHE = Kind("cache of featcache", is_cache)


@dataclass(frozen=True)
class Estimate:
    """What an extraction would do."""

    cache: str
    images: int
    hits: int
    missing: int  # images to compute, once for each backbone
    bytes: int  # that the cache would grow by
    free_bytes: int  # on the disk of the cache
    seconds: float  # of computing, from two batches of the missing images
    taps: tuple[str, ...]
    notes: tuple[str, ...] = ()  # as of Extracted, on the images that were timed


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
    force: bool = False,
    progress: Progress = silent,
) -> Cache:
    """Return the cache at `out` with the features of these images; compute only what is missing.

    backbone: names of `featcache backbones list`, with options: "mobilenet_v2:alpha=0.35"; a model file, or
    "package.module:function"; trust: run the code that such a file carries. tap: layers, "top" for the last, "auto" for
    one per block, of your own model also by place (-2) or by the end of a name. weights: "imagenet",
    "none" (random) or a file. pool: avg, max, flatten or none (spatial maps). resize: stretch, crop or pad.
    decode: exact, or draft (large JPEGs at reduced scale, faster). bits: how many bits of 16-bit images are in use
    (12: white is 4095, and all above it); None or 16 for all. views: "1", "flip", a number or names: fixed
    augmentations, each a tap of its own. precision: of the forward pass; dtype: of what is stored. engine: auto,
    keras or openvino. device: "auto" (all GPUs there are), cpu, gpu or names: "gpu:0,gpu:1". batch: "auto" or images at
    once on each. layout: "file", or "parts" for a folder.
    split, group_from, seed, allow_outside, label_column, path_column: as in `scan`; a cache keeps the splits it has.
    rehash: read every image again, even if its size and time are those of the index, and compare every stored row with
    its digest. force: replace a file at `out` that is no cache. `cache.report` tells what was done.
    Raises NoImages, UsageError, WeightsMissing, WeightsMismatch, DiskFault, NotACache if a cache is damaged and cannot
    be mended; under `strict` UnreadableImages, after everything else was cached.
    """
    started = time.perf_counter()
    given = dict(locals())
    options = Options(**{name: given[name] for name in Options.__dataclass_fields__})
    out, index = Path(out), _index_of(Path(out), options.layout)
    replaces = False
    if os.path.lexists(out) and not out.is_dir():
        read = [Path(request.spec.weights) for request in options.requests()]
        read += [] if isinstance(images, Images) else [Path(images)]
        inputs = [path for path in read if path.is_file()]
        replaces = out.is_file() and not is_cache(out)
        if out.is_file() and not replaces:
            for path in inputs:  # not whether it can be written: there may be nothing to write
                check_unread(out, path)
        else:
            check_output(out, CACHE, inputs=inputs, force=force)
    if replaces:
        images = _scanned(images, None, options, index, progress)
        for row in images.rows:
            check_unread(out, images.root / row.path)
    job = Job(images, out, options, index, progress, replaces=replaces)
    cache = job.run()
    cache = replace(cache, report=job.report(time.perf_counter() - started))
    if cache.failures and strict:
        first = cache.failures[0]
        raise UnreadableImages(
            f"{len(cache.failures)} of {len(cache.rows)} images cannot be used, such as {first.path}: {first.reason}. "
            "All others are cached"
        )
    return cache


def estimate(
    images: Images | str | Path,
    backbone: str | Sequence[str] = "mobilenet_v2",
    *,
    out: str | Path,
    progress: Progress = silent,
    **options: Any,
) -> Estimate:
    """Return what `extract` with the same options would do, and how long it would take; write nothing.

    Two batches of the images that are missing go through each backbone to tell the time.
    """
    asked = Options(backbone=backbone, **options)
    index = _index_of(Path(out), asked.layout)
    return Job(images, Path(out), asked, index if index.exists() else None, progress).estimate()


class Job:
    """One extraction: the rows at hand, and what was learnt on the way."""

    def __init__(
        self,
        images: Images | str | Path,
        out: Path,
        options: Options,
        index: Path | None,
        progress: Progress,
        *,
        replaces: bool = False,
    ) -> None:
        """Look at what there is. replaces: the cache takes the place of a file that is none, once it is whole."""
        self.out, self.options, self.progress, self.replaces = out, options, progress, replaces
        self.wanted = options.requests()
        self.batch = options.batch_size
        one_of("--engine", options.engine, ENGINES)
        check_kinds(options.device)
        self.in_parts = _in_parts(out, options.layout)
        self.seen = parts.state(out)  # before anything of it is read
        self.cached: dict[str, TapRows] = parts.read_rows(out, whole=options.rehash)  # sets damaged parts aside
        if aside := parts.set_aside(out):
            progress(Tick("aside", 0, 0, f"Damaged parts of {out}, whose rows are computed anew: {len(aside)}"))
        self.damaged: frozenset[str] = frozenset()  # fingerprints of taps in CACHE.h5, as far as it was compared
        self.earlier = self._cache_so_far()
        self.scanned = _scanned(images, self.earlier, options, index, progress)
        self.images, self.joined = as_stored(self.scanned, self.earlier)
        if self.earlier is not None and not _shared(self.earlier.rows, self.images.rows):
            replaced = f"{len(self.earlier.rows)} images of {self.earlier.root} by {len(self.images.rows)} others"
            progress(Tick("images", 0, 0, f"{out}: replacing the table of {replaced}; the features of both are kept"))
        if note := kept_apart(self.scanned, self.images):
            progress(Tick("images", 0, 0, note))
        self.found = Findings(
            digests={row.path: row.digest for row in self.images.rows},
            bad={} if options.rehash else _known_bad(self.earlier),
            unread={failure.path: failure for failure in self.images.unreadable if not failure.digest},
        )
        self.hits: int | None = None  # images of which nothing had to be computed
        self.needed = 0  # bytes of what is to be computed, as far as that is known
        self.taps: dict[str, Tap] = {}  # {fingerprint: tap} of everything that is asked for, in order

    def run(self) -> Cache:
        """Compute and commit the missing rows of all backbones, merge, and return the cache."""
        self._look_again()
        todo = self._targets()
        if self.options.rehash:
            todo = self._without_damaged(todo)
        if self.earlier is not None and not any(target.missing for _, target in todo) and self._is_said(self.earlier):
            parts.tidy(self.out)
            return self.earlier
        if self.in_parts:
            parts.make_folder(self.out)
        with parts.lock(self.out, self._wait):
            if self._look_again():  # another one may have computed what is missing here
                todo = self._targets()
            todo = self._without_damaged(todo)
            for _ in range(MAX_ROUNDS):  # more than one only where images changed or went meanwhile
                for of_pass in self._passes(todo):
                    of_pass.run()
                self.cached = parts.read_rows(self.out, checked=True)
                if not self._lacking():
                    break
                todo = self._targets()
            if not self.cached:
                first = next(iter(self._failures().values()))
                raise NoImages(
                    f"None of the {len(self._rows())} images in {self.images.root} can be used; "
                    f"{first.path}: {first.reason}"
                )
            return parts.merge_decided(self.out, self._table, self.damaged)

    def _look_again(self) -> bool:
        """Read the cache once more if another process has changed it since; return whether it has."""
        state = parts.state(self.out)
        if state == self.seen:
            return False
        self.seen = state
        self.cached = parts.read_rows(self.out)
        self._read_table()
        return True

    def _cache_so_far(self) -> Cache | None:
        """Return the cache as it is now, if there is one."""
        if not table_of(self.out).exists() or (self.replaces and is_foreign(self.out)):
            return None
        return Cache.open(self.out)

    def _read_table(self) -> None:
        """Take over the splits and groups that the cache has now."""
        earlier = self._cache_so_far()
        if earlier != self.earlier:
            self.earlier = earlier
            self.images, self.joined = as_stored(self.scanned, earlier)

    def _table(self) -> parts.ImageTable:
        """Return the table of images to write in place of the one that is there."""
        self._read_table()  # while images were computed, others may have put some into other groups and splits
        return parts.ImageTable(self._rows(), self._failures(), self._facts(), self.joined)

    def _without_damaged(self, todo: list[tuple[Request, Target]]) -> list[tuple[Request, Target]]:
        """Return what the backbones lack when the damaged taps of CACHE.h5 are left out, and say which they are.

        Raises NotACache if one that is asked for has rows of images that are not at hand: they would be lost.
        """
        damaged = {piece.tap.fingerprint: piece for piece in parts.damaged_taps(self.out)}
        at_hand = {row.digest for row in self._wanted_rows()}
        for fingerprint, piece in damaged.items():
            is_asked_for = fingerprint in self.taps
            gone = set(piece.digests) - at_hand if is_asked_for else set[str]()
            if gone:
                raise NotACache(
                    f"{self.out} is damaged: {len(piece)} rows of tap '{piece.tap.name}' must be computed again, and "
                    f"{len(gone)} of their images are not in {self.images.root}. Put them back, or move {self.out} "
                    "away and extract again"
                )
            if is_asked_for:
                note = f"its {len(piece)} rows are computed again"
            else:
                note = "it stays as it is until the extraction that made it is repeated with --rehash"
            if fingerprint not in self.damaged:
                self.progress(Tick("aside", 0, 0, f"Tap '{piece.tap.name}' of {self.out} is damaged: {note}"))
        if not damaged:
            return todo
        self.damaged = frozenset(damaged)
        self.cached = parts.read_rows(self.out, checked=True)
        self.hits = None
        return self._targets()

    def _is_said(self, earlier: Cache) -> bool:
        """Tell whether the cache says all that there is to say."""
        if part_files(self.out) and not self.in_parts:
            return False
        said = earlier.rows, {one.path: one for one in earlier.failures}, os.fsencode(earlier.root)
        if said != (self._rows(), self._failures(), self._facts()["root"]):
            return False
        # A plain folder needs no listing: a cache of an earlier version, which has none, is not written again for it.
        return (earlier.listing or {}) == (self.images.listing or {})

    def report(self, seconds: float) -> Extracted:
        """Return what was done."""
        failed = tuple(self._failures().values())
        taps = tuple(_report(self.cached[one]) for one in self.taps if one in self.cached)
        return Extracted(
            cache=str(self.out),
            images=len(self._rows()),
            hits=self.hits or 0,
            computed=self.found.computed,
            failed=failed,
            taps=taps,
            seconds=seconds,
            others=self.images.others,
            stray=self.images.stray,
            groups=self.images.groups,
            remarks=(*self.images.remarks, *apart(self.images)),
            notes=self._notes(),
        )

    def estimate(self) -> Estimate:
        """Return what `run` would do, timed on a few batches."""
        todo = self._targets()
        timings = [of_pass.time(TIMED_BATCHES) for of_pass in self._passes(todo)]
        missing = sum(len(target.missing) for _, target in todo)
        return Estimate(
            cache=str(self.out),
            images=len(self.images.rows),
            hits=self.hits or 0,
            missing=missing,
            bytes=sum(target.row_bytes * len(target.missing) for _, target in todo),
            free_bytes=_free_bytes(self.out),
            seconds=sum(timings),
            taps=tuple(tap.name for tap in self.taps.values()),
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        """Return what to say of the images that were decoded."""
        counts = Counter(kind for kinds in self.found.kinds.values() for kind in kinds)
        return tuple(notes(counts, len(self.images.rows), self.wanted[0].preprocess.bits))

    def _wait(self) -> None:
        self.progress(Tick("wait", 0, 0, f"Another extraction is at work on {self.out}; waiting for it to end"))

    def _lacking(self) -> bool:
        """Tell whether an image that can be used has no row in a tap that is asked for."""
        rows = [row.digest for row in self._wanted_rows() if row.digest not in self.found.bad]
        have = [self.cached[one].at.keys() if one in self.cached else set[str]() for one in self.taps]
        return any(digest not in digests for digest in rows for digests in have)

    def _wanted_rows(self) -> list[ImageRow]:
        """Return the images whose bytes can be had, as they were last read."""
        digests, unread = self.found.digests, self.found.unread
        return [row._replace(digest=digests[row.path]) for row in self.images.rows if row.path not in unread]

    def _targets(self) -> list[tuple[Request, Target]]:
        """Return what every backbone lacks; views that lack other images than the first are targets of their own."""
        todo: list[tuple[Request, Target]] = []
        rows, lacking = self._wanted_rows(), set[str]()
        for request in self.wanted:
            weights_digest, architecture, source, backbone = self._weights(request)
            layers = None
            if request.layers == ("auto",):
                backbone = backbone or _built(request)
                layers = backbone.auto_layers()
            elif not self._knows(request, weights_digest, architecture):
                backbone = backbone or _built(request)
                layers = backbone.layers(request.layers)
            taps = request.taps(weights_digest, architecture, layers)
            self.taps |= {tap.fingerprint: tap for tap in taps}
            broken = self._broken(taps)
            plans = [make_plan(rows, list(of_view), self.cached, broken) for _, of_view in groupby(taps, _view)]
            lacking.update(row.digest for plan in plans for row in plan.missing)
            todo += [(request, target) for target in self._grouped(request, plans, backbone, source)]
        if self.hits is None:
            settled = [row for row in rows if row.digest not in lacking]
            self.hits = sum(row.digest not in self.found.bad for row in settled)
        return todo

    def _knows(self, request: Request, weights_digest: str, architecture: str) -> bool:
        """Tell whether the layers asked for are surely names: those of the registry, and of taps that are there."""
        of_model = [rows.tap for rows in self.cached.values() if rows.tap.architecture == architecture]
        names = {"top", *(tap.layer for tap in of_model if tap.weights_digest == weights_digest)}
        return request.spec.origin == "registry" or names.issuperset(request.layers)

    def _broken(self, taps: Sequence[Tap]) -> frozenset[str]:
        """Return the digests that give no row in these taps: undecodable, or not fit for one of them."""
        names = {tap.name for tap in taps}
        bad = self.found.bad.values()
        return frozenset(one.digest for one in bad if one.status != "nonfinite" or tap_of(one.reason) in names)

    def _grouped(
        self, request: Request, plans: Sequence[Plan], backbone: Backbone | None, source: str | None
    ) -> list[Target]:
        """Return one target for all views that lack the same images; they share one engine.

        source: where the weights of the taps came from, known together with their digest.
        """
        started: list[Started] = []
        groups: dict[frozenset[str], list[Tap]] = {}
        for plan in plans:
            groups.setdefault(frozenset(row.path for row in plan.missing), []).extend(plan.taps)
        most = max(map(len, groups))

        def start(sample: Pixels) -> Started:
            if not started:
                engine = self._engine(request, plans[0].taps, backbone, sample, most)
                layers = dict.fromkeys(tap.layer for plan in plans for tap in plan.taps)
                lineages = {layer: lineage_of(request.spec, layer) for layer in layers}
                started.append(Started(engine, provenance(engine, source), lineages))
            return started[0]

        return [
            Target({view: list(of_view) for view, of_view in groupby(taps, _view)}, missing, start, self._check_space)
            for missing, taps in groups.items()
        ]

    def _passes(self, todo: Iterable[tuple[Request, Target]]) -> list[Pass]:
        """Return one pass for each kind of pixels: backbones that take the same are fed from one decoding."""
        kinds: dict[tuple[Preprocess, tuple[str, ...]], list[Target]] = {}
        for request, target in todo:
            if target.missing:
                kinds.setdefault((replace(request.preprocess, mode="unit"), tuple(target.taps)), []).append(target)
        return [self._pass(preprocess, targets) for (preprocess, _), targets in kinds.items()]

    def _pass(self, preprocess: Preprocess, targets: Sequence[Target]) -> Pass:
        lacking = frozenset[str]().union(*(target.missing for target in targets))
        rows = [row for row in self.images.rows if row.path in lacking]
        batch = self.batch or FIRST_BATCH
        source = self.images.source
        return Pass(self.out, source, rows, preprocess, targets, self.found, self.progress, self._said, batch)

    def _said(self) -> str:
        return f"{self.hits or 0} cached, {len(self.found.bad) + len(self.found.unread)} failed"

    def _weights(self, request: Request) -> tuple[str, str, str | None, Backbone | None]:
        """Return the digests of weight values and architecture, and the source of the values.

        Last comes the backbone, if it took building to know them: then the source is the one that was loaded.
        """
        spec, size = request.spec, request.preprocess.size
        source = weights_of.source(spec, size)
        if spec.name == "pixels":
            return NO_WEIGHTS, "", source, None
        for rows in self.cached.values():
            made_by = rows.tap.backbone
            same = (made_by.origin, made_by.name, made_by.options) == (spec.origin, spec.name, spec.options)
            if same and source is not None and source in map(weights_source_of, rows.makers):
                return rows.tap.weights_digest, rows.tap.architecture, source, None
        if source is None and spec.origin == "registry":
            self.progress(Tick("weights", 0, 0, f"downloading the ImageNet weights of {spec.name}, once"))
        backbone = _built(request)
        return backbone.weights_digest, backbone.architecture, backbone.source, backbone

    def _engine(
        self, request: Request, taps: Sequence[Tap], backbone: Backbone | None, sample: Pixels, num_images: int
    ) -> Engine:
        if request.spec.name == "pixels":
            return PixelEngine(self.batch or PIXEL_BATCH)

        def build_at(precision: Precision) -> Backbone:
            built = _built(request, backbone, precision)
            if built.weights_digest != taps[0].weights_digest:
                if request.spec.origin == "registry":
                    raise WeightsMismatch(
                        f"Tap '{taps[0].name}' in {self.out} was made with other weights than the file that it names "
                        "holds (by an older featcache, where KERAS_HOME was read-only?). Extract to another cache"
                    )
                raise NotAModel(
                    f"'{request.spec.name}' has other weights each time it is built. Save the model and name its file"
                )
            return built

        return choose_engine(
            build_at,
            taps,
            sample,
            engine=self._engine_name(taps[0]),
            device=self.options.device,
            batch=self.batch,
            num_images=num_images,
            say=lambda text: self.progress(Tick("engine", 0, 0, text)),
        )

    def _engine_name(self, tap: Tap) -> str:
        """Return the engine to use: what was begun, and what is not float32, goes on with the engine it has."""
        rows = self.cached.get(tap.fingerprint)
        if self.options.engine != "auto" or rows is None:
            return self.options.engine
        begun = [maker for piece in rows.pieces if is_part(piece.source) for maker in piece.makers]
        makers = begun or (rows.makers if tap.precision != "float32" else ())
        return str(json.loads(makers[0])["engine"]).split()[0] if makers else "auto"

    def _check_space(self, nbytes: int) -> None:
        """Raise DiskFault if the disk cannot hold what is to come: the parts, and the merged file beside them."""
        self.needed += nbytes
        nbytes, table = self.needed, table_of(self.out)
        there = table.stat().st_size if table.exists() and not self.in_parts else 0
        needed = nbytes + (0 if self.in_parts else nbytes + there)
        free = _free_bytes(self.out)
        if needed > free:
            raise DiskFault(
                f"{self.out} would need {needed / 1e6:.0f} MB until it is merged, and its disk has "
                f"{free / 1e6:.0f} MB free. Free some space or choose another place"
            )

    def _rows(self) -> tuple[ImageRow, ...]:
        digests = self.found.digests
        rows = [row._replace(digest=digests[row.path]) for row in self.images.rows]
        rows += [ImageRow(path, "", "", "", "") for path in self.found.unread if path not in digests]
        return tuple(sorted(rows, key=lambda row: os.fsencode(row.path)))

    def _failures(self) -> dict[str, Failure]:
        bad = self.found.bad
        found = {row.path: bad[row.digest]._replace(path=row.path) for row in self._rows() if row.digest in bad}
        return dict(sorted({**found, **self.found.unread}.items(), key=lambda item: os.fsencode(item[0])))

    def _facts(self) -> dict[str, str | bytes]:
        facts: dict[str, str | bytes] = {
            "root": os.fsencode(self.images.root.resolve() if self.images.source.location else self.images.root),
            "layout": self.images.layout,
            "split_spec": canonical_json(asdict(self.images.split_spec)),
            "decode": _decoder(),
        }
        if self.images.listing is not None:
            facts[LISTING] = canonical_json(self.images.listing)
        return facts


def _built(request: Request, at_hand: Backbone | None = None, precision: Precision = "float32") -> Backbone:
    """Return the backbone at a precision: the one at hand, which is float32, or a new one."""
    if at_hand is not None and precision == "float32":
        return at_hand
    return build(request.spec, request.preprocess.size, request.pooling, precision, request.trust)


def _plain_pixels(request: Request) -> Request:
    """Return the request with each layer once, and for raw pixels as what they are: no layers, no network."""
    layers = tuple(dict.fromkeys(request.layers))
    if request.spec.name != "pixels":
        return replace(request, layers=layers)
    if not set(layers) <= {"top", "auto"}:
        raise UsageError(f"'pixels' has no layers, so --tap takes top; got {', '.join(layers)}")
    return replace(request, layers=("top",), pooling="flatten", precision="float32")


def _report(rows: TapRows) -> TapReport:
    engines = sorted({str(json.loads(maker)["engine"]) for maker in rows.makers})
    return TapReport(rows.tap.name, int(np.prod(rows.shape)), rows.tap.precision, ", ".join(engines))


def _shared(before: Iterable[ImageRow], now: Iterable[ImageRow]) -> bool:
    """Tell whether an image is in both."""
    return not {row.digest for row in before}.isdisjoint(row.digest for row in now)


def _view(tap: Tap) -> str:
    return tap.view


def _in_parts(out: Path, layout: str | None) -> bool:
    """Tell whether the cache is, or is to be, a folder of parts. Raises UsageError if it is the other kind."""
    if layout is not None:
        one_of("--layout", layout, LAYOUTS)
    if not out.exists():
        return layout == "parts"
    has_no_rows = out.is_dir() and not table_of(out).exists() and not part_files(out)
    if has_no_rows and not (is_begun(out) and is_index(_index_of(out, layout))):
        raise UsageError(f"{out} is a folder, and no cache. Give -o the name of a file, such as {out.name}.h5")
    if layout is not None and (layout == "parts") != out.is_dir():
        raise UsageError(
            f"{out} is a {'folder of parts' if out.is_dir() else 'file'}; for --layout {layout} use another -o"
        )
    return out.is_dir()


def _index_of(out: Path, layout: str | None) -> Path:
    """Return where the index of file times lies: beside the cache, or in its folder."""
    in_parts = out.is_dir() or layout == "parts"
    return out / INDEX_NAME if in_parts else out.with_name(f"{out.name}.index")


def _free_bytes(out: Path) -> int:
    folder = next(folder for folder in Path(os.path.abspath(out)).parents if folder.is_dir())
    return shutil.disk_usage(folder).free


def _known_bad(earlier: Cache | None) -> dict[str, Failure]:
    """Return what is known to give no row, if this decoder found it; a lack of memory is no fault of an image."""
    failures = earlier.failures if earlier is not None and earlier.decode == _decoder() else ()
    return {failure.digest: failure for failure in failures if failure.digest and failure.status != "no_memory"}


def _decoder() -> str:
    """Return what decides which images can be decoded."""
    return f"{DECODE_VERSION} pillow {version('pillow')}{' heif' if find_spec('pillow_heif') else ''}"


def _scanned(
    images: Images | str | Path, earlier: Cache | None, options: Options, index: Path | None, progress: Progress
) -> Images:
    """Return the manifest, split by the rule of the cache unless told otherwise."""
    if not isinstance(images, Images):
        of_cache = SplitSpec() if earlier is None else earlier.split_spec
        spec = of_cache if options.split is None else SplitSpec.parse(options.split, of_cache.seed)
        spec = spec if options.seed is None else replace(spec, seed=options.seed)
        images = scan(
            images,
            split=spec,
            group_from=options.group_from,
            allow_outside=options.allow_outside,
            label_column=options.label_column,
            path_column=options.path_column,
            index=index,
            rehash=options.rehash,
            progress=progress,
        )
    return images
