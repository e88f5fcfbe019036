"""Plan -> cache: compute what is missing, commit every batch, merge at the end.

A kill at any moment costs only the two batches in flight, one being computed and one being written: every batch becomes
a part, and the same command continues from the parts that it finds.

Rows are compared with their digests before they are copied into a new CACHE.h5. Damaged rows of the requested taps are
computed again; damaged taps of other backbones stay as they are (see `cache.parts`). An extraction with nothing to do
copies and compares nothing, unless `rehash` tells it to check everything that is stored.
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
from operator import attrgetter
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
from featcache.extraction.reviewing import read_decisions
from featcache.extraction.stored import apart, as_stored, kept_apart, review_remarks
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
TIMED_BATCHES = 2  # of each backbone, for an estimate
MAX_ROUNDS = 3  # of passes, if images change while they are read
PIXEL_BATCH = 256
VIEW = attrgetter("view")


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
        return list(dict.fromkeys(_plain_pixels(request) for request in parsed))

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


@dataclass(frozen=True)
class TapReport:
    """One tap that was extracted."""

    tap: str
    width: int  # numbers per image
    precision: str
    engine: str


@dataclass(frozen=True)
class Extracted:
    """What an extraction did."""

    cache: str
    images: int
    hits: int  # images with all their rows in the cache before
    computed: int  # images that went through a backbone, counted once for each backbone
    copies: int  # images that are copies of a computed one
    failed: tuple[Failure, ...]
    taps: tuple[TapReport, ...]
    seconds: float
    others: Mapping[str, int]  # {suffix: number of files} that are not images
    stray: tuple[str, ...]  # images beside the class folders: no label, left out
    groups: Groups
    remarks: tuple[str, ...]  # on unexpected groups, tables and splits
    notes: tuple[str, ...] = ()  # on kinds of images whose pixels may not look as intended

    @property
    def images_per_s(self) -> float:
        """Images computed per second, from the start to the merged cache."""
        return self.computed / self.seconds


CACHE = Kind("cache of featcache", is_cache)


@dataclass(frozen=True)
class Estimate:
    """What an extraction would do."""

    cache: str
    images: int
    hits: int
    missing: int  # images to compute, counted once for each backbone
    bytes: int  # added to the cache
    free_bytes: int  # on the disk of the cache
    seconds: float  # of computing, estimated from two batches of the missing images
    taps: tuple[str, ...]
    notes: tuple[str, ...] = ()  # as in Extracted, on the images that were timed


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

    backbone: names from `featcache backbones list`, with options as in "mobilenet_v2:alpha=0.35"; a model file, or
    "package.module:function". trust: run the code that a model file contains.
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
    out = Path(out)
    index = _index_of(out, layout)
    replaces = _replaces_other_file(images, out, options, force)
    if replaces:
        # None of the images may be the file that is replaced, and only a scan knows which images are read.
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

    Two batches of the missing images go through each backbone to measure the time.
    """
    settings = Options(backbone=backbone, **options)
    index = _index_of(Path(out), settings.layout)
    index_to_read = index if index.exists() else None  # without one, the scan would create it
    return Job(images, Path(out), settings, index_to_read, progress).estimate()


class Job:
    """One extraction: which rows are cached, and what was learnt about the images on the way."""

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
        """Read the cache and scan the images. replaces: `out` is another file, which the finished cache replaces."""
        self.out = out
        self.options = options
        self.progress = progress
        self.replaces = replaces
        self.requests = options.requests()
        self.batch = options.batch_size
        one_of("engine", options.engine, ENGINES)
        check_kinds(options.device)
        self.in_parts = _in_parts(out, options.layout)

        # Take the state before reading anything, so that `_look_again` notices every later change.
        self.seen = parts.state(out)
        self.cached: dict[str, TapRows] = parts.read_rows(out, whole=options.rehash)
        if damaged_parts := parts.set_aside(out):
            note = f"Damaged parts of {out}, whose rows are computed again: {len(damaged_parts)}"
            progress(Tick("aside", 0, 0, note))
        self.damaged: frozenset[str] = frozenset()  # fingerprints of damaged taps in CACHE.h5, once it was compared
        self.decisions = None if options.apply is None else read_decisions(options.apply)
        self.earlier = self._cache_so_far()
        self.scanned = _scanned(images, self.earlier, options, index, progress)
        self.images, self.changes = as_stored(self.scanned, self.earlier, self.decisions)
        self._report_changes()

        self.findings = Findings(
            digests={row.path: row.digest for row in self.images.rows},
            bad={} if options.rehash else _known_bad(self.earlier),
            unread={failure.path: failure for failure in self.images.unreadable if not failure.digest},
        )
        self.hits: int | None = None  # images that had all their rows when the job began
        self.lacking: set[str] = set()  # digests of the other images
        self.needed = 0  # bytes of the rows to compute, as far as known
        self.taps: dict[str, Tap] = {}  # {fingerprint: tap} of all requested taps, in order

    def _report_changes(self) -> None:
        """Report if the scan shares no image with the cache, or if images stay in other splits than it gave them."""
        if self.earlier is not None:
            earlier_digests = {row.digest for row in self.earlier.rows}
            if earlier_digests.isdisjoint(row.digest for row in self.images.rows):
                replaced = f"{len(self.earlier.rows)} images of {self.earlier.root} by {len(self.images.rows)} others"
                note = f"{self.out}: replacing the table of {replaced}; the features of both are kept"
                self.progress(Tick("images", 0, 0, note))
        if note := kept_apart(self.scanned, self.images):
            self.progress(Tick("images", 0, 0, note))

    def run(self) -> Cache:
        """Compute and commit the missing rows of all backbones, merge, and return the cache."""
        self._look_again()
        todo = self._targets()
        if self.options.rehash:
            todo = self._without_damaged(todo)
        has_all_rows = not any(target.missing for _, target in todo)
        if self.earlier is not None and has_all_rows and self._is_up_to_date(self.earlier):
            parts.tidy(self.out)
            return self.earlier
        if self.in_parts:
            parts.make_folder(self.out)
        with parts.lock(self.out, self._report_wait):
            # Another extraction may have computed these rows while this one waited for the lock.
            if self._look_again():
                todo = self._targets()
            todo = self._without_damaged(todo)
            # One round is enough unless images change or disappear while they are read.
            for _ in range(MAX_ROUNDS):
                for image_pass in self._passes(todo):
                    image_pass.run()
                self.cached = parts.read_rows(self.out, checked=True)
                if not self._lacks_rows():
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
        """Read the cache again if another process has changed it; return whether it has."""
        state = parts.state(self.out)
        if state == self.seen:
            return False
        self.seen = state
        self.cached = parts.read_rows(self.out)
        self._read_table()
        return True

    def _cache_so_far(self) -> Cache | None:
        """Return the cache as it is now, or None."""
        if not table_of(self.out).exists() or (self.replaces and is_foreign(self.out)):
            return None
        return Cache.open(self.out)

    def _read_table(self) -> None:
        """Give the images the splits, groups and reviewed labels that the cache has now."""
        earlier = self._cache_so_far()
        if earlier != self.earlier:
            self.earlier = earlier
            self.images, self.changes = as_stored(self.scanned, earlier, self.decisions)

    def _table(self) -> parts.ImageTable:
        """Return the table of images to write in place of the stored one."""
        self._read_table()  # while this job computed, another process may have changed groups, splits and labels
        return parts.ImageTable(self._rows(), self._failures(), self._facts(), self.changes)

    def _without_damaged(self, todo: list[tuple[Request, Target]]) -> list[tuple[Request, Target]]:
        """Return what the backbones lack when the damaged taps of CACHE.h5 are left out, and report those taps.

        Raises NotACache if a requested tap has rows of images that are not at hand: those rows would be lost.
        """
        damaged = {piece.tap.fingerprint: piece for piece in parts.damaged_taps(self.out)}
        at_hand = {row.digest for row in self._readable_rows()}
        for fingerprint, piece in damaged.items():
            if fingerprint in self.taps:
                gone = set(piece.digests) - at_hand
                if gone:
                    raise NotACache(
                        f"{self.out} is damaged: {len(piece)} rows of tap '{piece.tap.name}' must be computed again, "
                        f"and {len(gone)} of their images are not in {self.images.root}. Put them back, or move "
                        f"{self.out} away and extract again"
                    )
                note = f"its {len(piece)} rows are computed again"
            else:
                note = "it stays as it is until the extraction that made it is repeated with `rehash=True`"
            if fingerprint not in self.damaged:
                self.progress(Tick("aside", 0, 0, f"Tap '{piece.tap.name}' of {self.out} is damaged: {note}"))
        if not damaged:
            return todo
        self.damaged = frozenset(damaged)
        self.cached = parts.read_rows(self.out, checked=True)
        self.hits = None
        return self._targets()

    def _is_up_to_date(self, earlier: Cache) -> bool:
        """Return whether the stored table is already up to date, and all rows are in the one file."""
        if part_files(self.out) and not self.in_parts:
            return False
        failures = {failure.path: failure for failure in earlier.failures}
        stored = earlier.rows, earlier.changes, failures, os.fsencode(earlier.root)
        if stored != (self._rows(), self.changes, self._failures(), self._facts()["root"]):
            return False
        # A plain folder needs no listing: a cache of an earlier version, which has none, is not written again for it.
        return (earlier.listing or {}) == (self.images.listing or {})

    def report(self, seconds: float) -> Extracted:
        """Return what was done."""
        failed = tuple(self._failures().values())
        taps = tuple(_report(self.cached[fingerprint]) for fingerprint in self.taps if fingerprint in self.cached)
        computed = self.lacking - self.findings.bad.keys()
        lacked = [row.digest for row in self._rows() if row.digest in computed]
        return Extracted(
            cache=str(self.out),
            images=len(self._rows()),
            hits=self.hits or 0,
            computed=self.findings.computed,
            copies=len(lacked) - len(set(lacked)),
            failed=failed,
            taps=taps,
            seconds=seconds,
            others=self.images.others,
            stray=self.images.stray,
            groups=self.images.groups,
            remarks=(*self.images.remarks, *apart(self.images), *review_remarks(self.images, self.changes)),
            notes=self._notes(),
        )

    def estimate(self) -> Estimate:
        """Return what `run` would do, timed on a few batches."""
        todo = self._targets()
        seconds = sum(image_pass.time(TIMED_BATCHES) for image_pass in self._passes(todo))
        missing = sum(len(target.missing) for _, target in todo)
        return Estimate(
            cache=str(self.out),
            images=len(self.images.rows),
            hits=self.hits or 0,
            missing=missing,
            bytes=sum(target.row_bytes * len(target.missing) for _, target in todo),
            free_bytes=_free_bytes(self.out),
            seconds=seconds,
            taps=tuple(tap.name for tap in self.taps.values()),
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        """Return remarks on the kinds of images that were decoded."""
        counts = Counter[str]()
        for kinds in self.findings.kinds.values():
            counts.update(kinds)
        return tuple(notes(counts, len(self.images.rows), self.requests[0].preprocess.bits))

    def _report_wait(self) -> None:
        self.progress(Tick("wait", 0, 0, f"Another extraction is at work on {self.out}; waiting for it to end"))

    def _lacks_rows(self) -> bool:
        """Return whether a requested tap lacks the row of a usable image."""
        digests = [row.digest for row in self._readable_rows() if row.digest not in self.findings.bad]
        for fingerprint in self.taps:
            rows = self.cached.get(fingerprint)
            num_lacking = len(digests) if rows is None else rows.lack(digests)
            if num_lacking:
                return True
        return False

    def _readable_rows(self) -> list[ImageRow]:
        """Return the images whose bytes could be read, with the digests of those bytes."""
        digests, unread = self.findings.digests, self.findings.unread
        return [row._replace(digest=digests[row.path]) for row in self.images.rows if row.path not in unread]

    def _targets(self) -> list[tuple[Request, Target]]:
        """Return what every backbone lacks. Views that lack different images of one backbone become several targets."""
        todo: list[tuple[Request, Target]] = []
        rows = self._readable_rows()
        lacking: set[str] = set()
        for request in self.requests:
            taps, source, backbone = self._taps(request)
            self.taps |= {tap.fingerprint: tap for tap in taps}
            broken = self._broken(taps)
            plans: list[Plan] = []
            for _, taps_of_view in groupby(taps, VIEW):
                plan = make_plan(rows, list(taps_of_view), self.cached, broken)
                lacking.update(row.digest for row in plan.missing)
                plans.append(plan)
            for target in self._grouped(request, plans, backbone, source):
                todo.append((request, target))
        if self.hits is None:
            settled = [row for row in rows if row.digest not in lacking]
            self.hits = sum(row.digest not in self.findings.bad for row in settled)
            self.lacking = lacking
        return todo

    def _taps(self, request: Request) -> tuple[list[Tap], str | None, Backbone | None]:
        """Return the taps of a request, the source of their weights, and the backbone if it had to be built."""
        weights_digest, architecture, source, backbone = self._weights(request)
        layers = None
        if request.layers == ("auto",):
            backbone = backbone or _built(request)
            layers = backbone.auto_layers()
        elif not self._knows_layers(request, weights_digest, architecture):
            backbone = backbone or _built(request)
            layers = backbone.layers(request.layers)
        return request.taps(weights_digest, architecture, layers), source, backbone

    def _knows_layers(self, request: Request, weights_digest: str, architecture: str) -> bool:
        """Return whether all requested layers are exact names, so that the backbone need not be built to find them.

        The registry takes only names. For your own model, names of cached taps are known.
        """
        if request.spec.origin == "registry":
            return True
        names = {"top"}
        for rows in self.cached.values():
            if (rows.tap.architecture, rows.tap.weights_digest) == (architecture, weights_digest):
                names.add(rows.tap.layer)
        return names.issuperset(request.layers)

    def _broken(self, taps: Sequence[Tap]) -> frozenset[str]:
        """Return the digests of images that give no row in these taps: undecodable, or not finite in one of them."""
        names = {tap.name for tap in taps}
        broken: set[str] = set()
        for failure in self.findings.bad.values():
            if failure.status != "nonfinite" or tap_of(failure.reason) in names:
                broken.add(failure.digest)
        return frozenset(broken)

    def _grouped(
        self, request: Request, plans: Sequence[Plan], backbone: Backbone | None, source: str | None
    ) -> list[Target]:
        """Return one target for each set of missing images, with all views that lack it; they share one engine.

        source: of the weights of the taps.
        """
        started: list[Started] = []  # the shared engine, once it runs
        taps_by_missing: dict[frozenset[str], list[Tap]] = {}
        for plan in plans:
            missing = frozenset(row.path for row in plan.missing)
            taps_by_missing.setdefault(missing, []).extend(plan.taps)
        num_images = max(map(len, taps_by_missing))

        def start(sample: Pixels) -> Started:
            if not started:
                engine = self._engine(request, plans[0].taps, backbone, sample, num_images)
                layers = {tap.layer for plan in plans for tap in plan.taps}
                lineages = {layer: lineage_of(request.spec, layer) for layer in layers}
                started.append(Started(engine, provenance(engine, source), lineages))
            return started[0]

        targets: list[Target] = []
        for missing, taps in taps_by_missing.items():
            taps_by_view = {view: list(taps_of_view) for view, taps_of_view in groupby(taps, VIEW)}
            targets.append(Target(taps_by_view, missing, start, self._check_space))
        return targets

    def _passes(self, todo: Iterable[tuple[Request, Target]]) -> list[Pass]:
        """Return one pass for each kind of pixels: backbones that take the same pixels share one decoding."""
        targets_by_pixels: dict[tuple[Preprocess, tuple[str, ...]], list[Target]] = {}
        for request, target in todo:
            if target.missing:
                # The network's own scaling comes after decoding, so it does not matter here.
                pixels = replace(request.preprocess, mode="unit")
                views = tuple(target.taps)
                targets_by_pixels.setdefault((pixels, views), []).append(target)
        return [self._pass(pixels, targets) for (pixels, _), targets in targets_by_pixels.items()]

    def _pass(self, preprocess: Preprocess, targets: Sequence[Target]) -> Pass:
        lacking = frozenset[str]().union(*(target.missing for target in targets))
        rows = [row for row in self.images.rows if row.path in lacking]
        batch = self.batch or FIRST_BATCH
        source = self.images.source
        return Pass(self.out, source, rows, preprocess, targets, self.findings, self.progress, self._counts, batch)

    def _counts(self) -> str:
        """Return the note beside the progress bar."""
        return f"{self.hits or 0} cached, {len(self.findings.bad) + len(self.findings.unread)} failed"

    def _weights(self, request: Request) -> tuple[str, str, str | None, Backbone | None]:
        """Return the digests of weights and architecture, the source of the weights, and the backbone if it was built.

        It is built only if no cached tap has weights from the same source. The source is then the one that was loaded.
        """
        spec, size = request.spec, request.preprocess.size
        source = weights_of.source(spec, size)
        if spec.name == "pixels":
            return NO_WEIGHTS, "", source, None
        for rows in self.cached.values():
            cached = rows.tap.backbone
            is_same = (cached.origin, cached.name, cached.options) == (spec.origin, spec.name, spec.options)
            if is_same and source is not None and source in map(weights_source_of, rows.makers):
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
        """Return the engine to use.

        A tap keeps the engine that made its rows if an extraction of it was interrupted, or if it is not float32: in
        low precision, engines differ too much to be mixed.
        """
        rows = self.cached.get(tap.fingerprint)
        if self.options.engine != "auto" or rows is None:
            return self.options.engine
        makers: list[str] = []
        for piece in rows.pieces:
            if is_part(piece.source):
                makers += piece.makers
        if not makers and tap.precision != "float32":
            makers += rows.makers
        if not makers:
            return "auto"
        return str(json.loads(makers[0])["engine"]).split()[0]

    def _check_space(self, nbytes: int) -> None:
        """Raise DiskFault if the disk cannot hold the rows to come, as parts and then in the merged file beside them.

        nbytes: of the rows of another target.
        """
        self.needed += nbytes
        needed = self.needed
        if not self.in_parts:
            # Until the merged file replaces the old one, the disk holds both, and the parts.
            table = table_of(self.out)
            old_bytes = table.stat().st_size if table.exists() else 0
            needed += self.needed + old_bytes
        free = _free_bytes(self.out)
        if needed > free:
            raise DiskFault(
                f"{self.out} would need {needed / 1e6:.0f} MB until it is merged, and its disk has "
                f"{free / 1e6:.0f} MB free. Free some space or choose another place"
            )

    def _rows(self) -> tuple[ImageRow, ...]:
        """Return all images, sorted by path, with the digests of the bytes that were read."""
        digests = self.findings.digests
        rows = [row._replace(digest=digests[row.path]) for row in self.images.rows]
        rows += [ImageRow(path, "", "", "", "") for path in self.findings.unread if path not in digests]
        return tuple(sorted(rows, key=lambda row: os.fsencode(row.path)))

    def _failures(self) -> dict[str, Failure]:
        """Return {path: why that image has no row}, sorted by path."""
        failures: dict[str, Failure] = {}
        for row in self._rows():
            failure = self.findings.bad.get(row.digest)
            if failure is not None:
                failures[row.path] = failure._replace(path=row.path)
        failures |= self.findings.unread
        return {path: failures[path] for path in sorted(failures, key=os.fsencode)}

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
    """Return the backbone at a precision: `at_hand`, which is float32, or a new one."""
    if at_hand is not None and precision == "float32":
        return at_hand
    return build(request.spec, request.preprocess.size, request.pooling, precision, request.trust)


def _plain_pixels(request: Request) -> Request:
    """Return the request with each layer once; raw pixels get the only tap that they can have. Raises UsageError."""
    layers = tuple(dict.fromkeys(request.layers))
    if request.spec.name != "pixels":
        return replace(request, layers=layers)
    if not set(layers) <= {"top", "auto"}:
        raise UsageError(f"'pixels' has no layers, so `tap` takes top; got {', '.join(layers)}")
    return replace(request, layers=("top",), pooling="flatten", precision="float32")


def _report(rows: TapRows) -> TapReport:
    engines = sorted({str(json.loads(maker)["engine"]) for maker in rows.makers})
    return TapReport(rows.tap.name, int(np.prod(rows.shape)), rows.tap.precision, ", ".join(engines))


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


def _in_parts(out: Path, layout: str | None) -> bool:
    """Return whether the cache is, or will be, a folder of parts. Raises UsageError if `layout` contradicts it."""
    if layout is not None:
        one_of("layout", layout, LAYOUTS)
    if not out.exists():
        return layout == "parts"
    has_no_rows = out.is_dir() and not table_of(out).exists() and not part_files(out)
    if has_no_rows and not (is_begun(out) and is_index(_index_of(out, layout))):
        raise UsageError(f"{out} is a folder, not a cache. Give -o the name of a file, such as {out.name}.h5")
    if layout is not None and (layout == "parts") != out.is_dir():
        kind = "folder of parts" if out.is_dir() else "file"
        raise UsageError(f"{out} is a {kind}; for `layout={layout}` use another `out`")
    return out.is_dir()


def _index_of(out: Path, layout: str | None) -> Path:
    """Return the path of the index of image files: beside the cache, or in its folder."""
    in_parts = out.is_dir() or layout == "parts"
    return out / INDEX_NAME if in_parts else out.with_name(f"{out.name}.index")


def _free_bytes(out: Path) -> int:
    """Return the free bytes on the disk of a cache that need not exist yet."""
    folder = next(folder for folder in Path(os.path.abspath(out)).parents if folder.is_dir())
    return shutil.disk_usage(folder).free


def _known_bad(earlier: Cache | None) -> dict[str, Failure]:
    """Return {digest: failure} of images that the same decoder could not use before.

    A lack of memory is not the image's fault, so such an image is tried again.
    """
    if earlier is None or earlier.decode != _decoder():
        return {}
    return {failure.digest: failure for failure in earlier.failures if failure.digest and failure.status != "no_memory"}


def _decoder() -> str:
    """Return the versions that decide which images can be decoded."""
    heif = " heif" if find_spec("pillow_heif") else ""
    return f"{DECODE_VERSION} pillow {version('pillow')}{heif}"


def _scanned(
    images: Images | str | Path, earlier: Cache | None, options: Options, index: Path | None, progress: Progress
) -> Images:
    """Return the manifest, split by the rule of the cache unless the options give another."""
    if isinstance(images, Images):
        return images
    spec = SplitSpec() if earlier is None else earlier.split_spec
    if options.split is not None:
        spec = SplitSpec.parse(options.split, spec.seed)
    if options.seed is not None:
        spec = replace(spec, seed=options.seed)
    return scan(
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
