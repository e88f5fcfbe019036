"""The steps of an extraction: read the cache, scan, plan, compute what is missing, merge.

A kill at any moment costs only the two batches in flight, one being computed and one being written: every batch becomes
a part, and the same command continues from the parts that it finds.

Rows are compared with their digests before they are copied into a new CACHE.h5. Damaged rows of the requested taps are
computed again; damaged taps of other backbones stay as they are (see `cache.parts`). An extraction with nothing to do
copies and compares nothing, unless `rehash` tells it to check everything that is stored.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from featcache.backbones.parse import Request
from featcache.cache import parts
from featcache.cache.changes import UNCHANGED, Changes
from featcache.cache.layout import is_foreign, table_of
from featcache.cache.reader import Cache
from featcache.cache.rows import TapRows
from featcache.errors import NoImages, NotACache
from featcache.extraction import image_table as tables
from featcache.extraction.calibration import Calibrations
from featcache.extraction.compute import FIRST_BATCH, Findings, Pass, Target, Timing
from featcache.extraction.extract_options import Options
from featcache.extraction.layouts import is_in_parts
from featcache.extraction.networks import Network, network_of
from featcache.extraction.outcome import Estimate, Extracted, TapReport
from featcache.extraction.plan import Plan, make_plan
from featcache.extraction.reviewing import Decisions, read_decisions
from featcache.extraction.space import Space, free_bytes
from featcache.extraction.starter import Starter, WarmEngines
from featcache.extraction.stored import apart, as_stored, kept_apart, review_remarks
from featcache.images.kinds import notes
from featcache.images.manifest import Images, scan
from featcache.spec import Failure, ImageRow, Preprocess, Progress, SplitSpec, Tick

TIMED_BATCHES = 2  # of each backbone, for an estimate
MAX_ROUNDS = 3  # of passes, if images change while they are read


@dataclass(frozen=True)
class Stock:
    """What the cache holds at one moment."""

    state: object  # differs after every merge and every commit
    rows: Mapping[str, TapRows]  # {fingerprint: rows}, of the table and of the parts
    table: Cache | None  # the table of images; None before the first merge


@dataclass(frozen=True)
class Order:
    """What was asked for: it stays the same during an extraction."""

    requests: Sequence[Request]
    out: Path
    options: Options
    in_parts: bool  # `out` is, or will be, a folder of parts
    scanned: Images
    decisions: Decisions | None  # a table of reviewed labels
    progress: Progress
    replaces: bool  # `out` is no cache; the finished cache replaces it
    keeps_table: bool  # only features are added; the table of images stays as it is
    warm: WarmEngines | None  # of earlier extractions
    clock: Callable[[], float]

    def note(self, step: str, text: str) -> None:
        """Report something that is no progress."""
        self.progress(Tick(step, 0, 0, text))


def open_extraction(
    images: Images | str | Path,
    out: Path,
    options: Options,
    index: Path | None,
    progress: Progress,
    *,
    replaces: bool = False,
    requests: Sequence[Request] | None = None,
    keeps_table: bool = False,
    warm: WarmEngines | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Extraction:
    """Read the cache, scan the images, and return the extraction, which has computed nothing yet.

    index: a file that remembers what was scanned. replaces: `out` is no cache; the finished cache replaces it.
    requests: instead of those of the options. keeps_table: add features only, and leave the table of images as it is.
    warm: engines of earlier extractions, to use and to add to. clock: returns seconds, for the timings of the
    extraction.
    """
    if requests is None:
        requests = options.requests()
    options.check()
    in_parts = is_in_parts(out, options.layout)
    # Take the state before reading anything, so that `Extraction.refresh` notices every later change.
    state = parts.state(out)
    rows = parts.read_rows(out, all_bytes=options.rehash)
    if damaged_parts := parts.set_aside(out):
        note = f"Damaged parts of {out}, whose rows are computed again: {len(damaged_parts)}"
        progress(Tick("aside", 0, 0, note))
    decisions = None if options.apply is None else read_decisions(options.apply)
    stock = Stock(state, rows, _stored_table(out, replaces))
    scanned = scanned_images(images, stock.table, options, index, progress)
    order = Order(
        requests=requests,
        out=out,
        options=options,
        in_parts=in_parts,
        scanned=scanned,
        decisions=decisions,
        progress=progress,
        replaces=replaces,
        keeps_table=keeps_table,
        warm=warm,
        clock=clock,
    )

    merged, changes = _in_table(order, stock.table)
    _report_changes(order, stock.table, merged)
    findings = Findings(
        digests={row.path: row.digest for row in merged.rows},
        bad={} if options.rehash else tables.known_failures(stock.table),
        unread={failure.path: failure for failure in merged.unreadable if not failure.digest},
    )
    readable = tables.readable_rows(merged, findings)
    calibrations = Calibrations(merged.source, readable, out, options.batch_size, progress)
    return Extraction(order, stock, merged, changes, findings, Space(out, in_parts), calibrations)


def scanned_images(
    images: Images | str | Path, table: Cache | None, options: Options, index: Path | None, progress: Progress
) -> Images:
    """Return the manifest, split by the rule of the cache unless the options give another."""
    if isinstance(images, Images):
        return images
    # The rule of the cache, so that new images are split as the stored ones were.
    spec = SplitSpec() if table is None else table.split_spec
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


@dataclass
class Extraction:
    """One extraction: what the cache holds, and what was learnt about the images on the way."""

    order: Order
    stock: Stock
    images: Images  # as scanned, with the splits, groups and reviewed labels of the cache
    changes: Changes
    findings: Findings
    space: Space
    calibrations: Calibrations
    damaged: frozenset[str] = frozenset()  # fingerprints of damaged taps in CACHE.h5, once it was compared
    first_plan: Plan | None = field(default=None, init=False)  # what was missing when the extraction began
    only: frozenset[str] | None = field(default=None, init=False)  # paths of the images to compute; None: all
    networks: dict[Request, Network] = field(default_factory=dict, init=False)
    starters: dict[Request, Starter] = field(default_factory=dict, init=False)
    timings: dict[Request, Timing] = field(default_factory=dict, init=False)

    def run(self) -> Cache:
        """Compute and commit the missing rows of all backbones, merge, and return the cache."""
        self.refresh()
        plan = self.plan()
        if self.order.options.rehash:
            plan = self.plan_recomputing_damaged(plan)
        table = self.stock.table
        # Without the lock, since nothing is written: a finished cache waits for nobody.
        if table is not None and not plan.work and self.is_merged(table):
            parts.tidy(self.order.out)
            return table
        if self.order.in_parts:
            parts.make_folder(self.order.out)
        with parts.lock(self.order.out, self._report_wait):
            # Another extraction may have computed these rows while this one waited for the lock.
            if self.refresh():
                plan = self.plan()
            plan = self.plan_recomputing_damaged(plan)
            self.compute(plan)
            return self.merge()

    def run_for(self, requests: Sequence[Request], paths: Collection[str]) -> Cache:
        """Do what `run` does, for some backbones and images; the others stay for later.

        The engines of these backbones go on from one call to the next.
        """
        self.order = replace(self.order, requests=requests)
        self.only = frozenset(paths)
        self.first_plan = None
        for finished in self.starters.keys() - set(requests):
            del self.starters[finished], self.networks[finished]  # their networks take memory
        return self.run()

    def refresh(self) -> bool:
        """Read the cache again if another process has changed it; return whether it has."""
        state = parts.state(self.order.out)
        if state == self.stock.state:
            return False
        self.stock = replace(self.stock, state=state, rows=parts.read_rows(self.order.out))
        self.refresh_table()
        return True

    def refresh_table(self) -> None:
        """Give the images the splits, groups and reviewed labels that the cache has now."""
        table = _stored_table(self.order.out, self.order.replaces)
        if table != self.stock.table:
            self.stock = replace(self.stock, table=table)
            self.images, self.changes = _in_table(self.order, table)

    def plan(self) -> Plan:
        """Return what is missing now."""
        networks: list[Network] = []
        for request in self.order.requests:
            networks += self.calibrations.named(self.network(request), self.stock.rows)
        plan = make_plan(self._rows_to_compute(), networks, self.stock.rows, self.findings.bad)
        if self.first_plan is None:
            self.first_plan = plan
        return plan

    def network(self, request: Request) -> Network:
        """Return the network of a request. Raises WeightsMissing, UnknownTap."""

        def report_download(text: str) -> None:
            self.order.note("weights", text)

        if request not in self.networks:
            self.networks[request] = network_of(request, self.stock.rows, report_download)
        return self.networks[request]

    def _rows_to_compute(self) -> list[ImageRow]:
        """Return the images whose bytes could be read and whose features are requested."""
        rows = tables.readable_rows(self.images, self.findings)
        if self.only is None:
            return rows
        return [row for row in rows if row.path in self.only]

    def plan_recomputing_damaged(self, plan: Plan) -> Plan:
        """Return what is missing when the damaged taps of CACHE.h5 are left out, and report those taps.

        Raises NotACache if a requested tap has rows of images that are not at hand: those rows would be lost.
        """
        out = self.order.out
        damaged = {piece.tap.fingerprint: piece for piece in parts.damaged_taps(out)}
        if not damaged:
            return plan

        at_hand = {row.digest for row in tables.readable_rows(self.images, self.findings)}
        for fingerprint, piece in damaged.items():
            if fingerprint in plan.taps:
                gone = set(piece.digests) - at_hand
                if gone:
                    raise NotACache(
                        f"{out} is damaged: {len(piece)} rows of tap '{piece.tap.name}' must be computed again, "
                        f"and {len(gone)} of their images are not in {self.images.root}. Put them back, or move "
                        f"{out} away and extract again"
                    )
                remedy = f"its {len(piece)} rows are computed again"
            else:
                remedy = "it stays as it is until the extraction that made it is repeated with `rehash=True`"
            if fingerprint not in self.damaged:
                self.order.note("aside", f"Tap '{piece.tap.name}' of {out} is damaged: {remedy}")

        self.damaged = frozenset(damaged)
        self.stock = replace(self.stock, rows=parts.read_rows(out, checked=True))
        self.first_plan = None  # rows that are computed again are no hits
        return self.plan()

    def compute(self, plan: Plan) -> None:
        """Compute and commit what is missing. Raises NoImages if no image can be used."""
        # One round is enough unless images change or disappear while they are read. Images that still change in the
        # last round have no row, and the next extraction computes them.
        for _ in range(MAX_ROUNDS):
            for image_pass in self.passes(plan):
                image_pass.run()
            self.stock = replace(self.stock, rows=parts.read_rows(self.order.out, checked=True))
            if not self._lacks_rows(plan):
                break
            plan = self.plan()
        if not self.stock.rows:
            first = next(iter(self.failures().values()))
            num_images = len(tables.all_rows(self.images, self.findings))
            raise NoImages(
                f"None of the {num_images} images in {self.images.root} can be used; {first.path}: {first.reason}"
            )

    def merge(self) -> Cache:
        """Write all rows and the table of images into the cache, and return it."""

        def decide() -> parts.ImageTable:
            self.refresh_table()  # while this extraction computed, another process may have changed groups and labels
            if self.order.keeps_table:
                return tables.kept_table(self.stock.table)
            return tables.image_table(self.images, self.changes, self.findings)

        return parts.merge_decided(self.order.out, decide, self.damaged)

    def passes(self, plan: Plan) -> list[Pass]:
        """Return one pass for each kind of pixels: backbones that take the same pixels share one decoding."""
        targets_by_pixels: dict[tuple[Preprocess, tuple[str, ...]], list[Target]] = {}
        for work in plan.work:
            request = work.network.request
            # One starter for each request: its views may lack different images, but the same engine computes all.
            if request not in self.starters:
                self.starters[request] = Starter(
                    network=work.network,
                    options=self.order.options,
                    out=self.order.out,
                    cached=self.stock.rows.get(work.network.taps[0].fingerprint),
                    num_images=plan.largest(request),
                    calibrations=self.calibrations,
                    report=self._report_engine,
                    warm=self.order.warm,
                )
            timing = self.timings.setdefault(request, Timing())
            target = Target(work.taps, work.missing, self.starters[request], self.space.reserve, timing)
            # The network's own scaling comes after decoding, so it does not matter here.
            pixels = replace(request.preprocess, mode="unit")
            targets_by_pixels.setdefault((pixels, tuple(work.taps)), []).append(target)
        return [self._pass(pixels, targets) for (pixels, _), targets in targets_by_pixels.items()]

    def _pass(self, pixels: Preprocess, targets: Sequence[Target]) -> Pass:
        missing = frozenset[str]().union(*(target.missing for target in targets))
        return Pass(
            out=self.order.out,
            source=self.images.source,
            rows=[row for row in self.images.rows if row.path in missing],
            preprocess=pixels,
            targets=targets,
            findings=self.findings,
            progress=self.order.progress,
            note=self._counts,
            batch=self.order.options.batch_size or FIRST_BATCH,
            clock=self.order.clock,
        )

    def _lacks_rows(self, plan: Plan) -> bool:
        """Return whether a requested tap lacks the row of a usable image."""
        digests = [row.digest for row in self._rows_to_compute() if row.digest not in self.findings.bad]
        for fingerprint in plan.taps:
            cached = self.stock.rows.get(fingerprint)
            num_lacking = len(digests) if cached is None else cached.lack(digests)
            if num_lacking:
                return True
        return False

    def is_merged(self, table: Cache) -> bool:
        """Return whether the stored table is already up to date, and no row waits for a merge."""
        if not parts.is_settled(self.order.out, self.stock.rows):
            return False
        if self.order.keeps_table:
            return True
        return tables.is_up_to_date(table, self.images, self.changes, self.findings)

    def failures(self) -> dict[str, Failure]:
        """Return {path: why that image has no row}, sorted by path."""
        return tables.failures_of(self.images, self.findings)

    def report(self, seconds: float) -> Extracted:
        """Return what was done. seconds: how long it took."""
        assert self.first_plan is not None
        rows = tables.all_rows(self.images, self.findings)
        computed = self.first_plan.lacking - self.findings.bad.keys()
        lacked = [row.digest for row in rows if row.digest in computed]
        tap_reports: list[TapReport] = []
        for fingerprint in self.first_plan.taps:
            if fingerprint in self.stock.rows:
                tap_reports.append(_tap_report(self.stock.rows[fingerprint]))
        out = self.order.out
        remarks = (
            *self.images.remarks,
            *apart(self.images, out),
            *review_remarks(self.images, self.changes, out),
        )
        return Extracted(
            cache=str(out),
            images=len(rows),
            hits=self.first_plan.hits,
            computed=self.findings.computed,
            copies=len(lacked) - len(set(lacked)),
            failed=tuple(self.failures().values()),
            taps=tuple(tap_reports),
            seconds=seconds,
            others=self.images.others,
            stray=self.images.stray,
            groups=self.images.groups,
            remarks=remarks,
            notes=self._notes(),
        )

    def estimate(self) -> Estimate:
        """Return what `run` would do, timed on a few batches."""
        plan = self.plan()
        passes = self.passes(plan)
        seconds = sum(image_pass.time(TIMED_BATCHES) for image_pass in passes)
        # After the passes were timed: only then is it known how large a row is.
        num_bytes = 0
        for image_pass in passes:
            num_bytes += sum(target.row_bytes * len(target.missing) for target in image_pass.targets)
        return Estimate(
            cache=str(self.order.out),
            images=len(self.images.rows),
            hits=plan.hits,
            missing=plan.num_missing,
            bytes=num_bytes,
            free_bytes=free_bytes(self.order.out),
            seconds=seconds,
            taps=tuple(tap.name for tap in plan.taps.values()),
            notes=self._notes(),
        )

    def _notes(self) -> tuple[str, ...]:
        """Return remarks on the kinds of images that were decoded."""
        counts = Counter[str]()
        for kinds in self.findings.kinds.values():
            counts.update(kinds)
        bits = self.order.requests[0].preprocess.bits  # an option of the extraction, so all requests agree
        return tuple(notes(counts, len(self.images.rows), bits))

    def _counts(self) -> str:
        """Return the note beside the progress bar."""
        assert self.first_plan is not None
        num_failed = len(self.findings.bad) + len(self.findings.unread)
        return f"{self.first_plan.hits} cached, {num_failed} failed"

    def _report_engine(self, text: str) -> None:
        self.order.note("engine", text)

    def _report_wait(self) -> None:
        self.order.note("wait", f"Another extraction is at work on {self.order.out}; waiting for it to end")


def _stored_table(out: Path, replaces: bool) -> Cache | None:
    """Return the table of images that the cache has now, or None. replaces: `out` may still be another file."""
    if not table_of(out).exists() or (replaces and is_foreign(out)):
        return None
    return Cache.open(out)


def _in_table(order: Order, table: Cache | None) -> tuple[Images, Changes]:
    """Return the scanned images as they will stand in the table, and what that changes."""
    if order.keeps_table:
        return order.scanned, UNCHANGED
    return as_stored(order.scanned, table, order.decisions)


def _report_changes(order: Order, table: Cache | None, images: Images) -> None:
    """Report if the scan shares no image with the cache, or if images stay in other splits than it gave them."""
    if order.keeps_table:
        return
    if table is not None and table.rows:
        # A folder that shares nothing with the cache was probably given by mistake, but it may be meant.
        stored_digests = {row.digest for row in table.rows}
        if stored_digests.isdisjoint(row.digest for row in images.rows):
            replaced = f"{len(table.rows)} images of {table.root} by {len(images.rows)} others"
            order.note("images", f"{order.out}: replacing the table of {replaced}; the features of both are kept")
    if note := kept_apart(order.scanned, images):
        order.note("images", note)


def _tap_report(rows: TapRows) -> TapReport:
    engines = sorted({str(json.loads(maker)["engine"]) for maker in rows.makers})
    return TapReport(rows.tap.name, int(np.prod(rows.shape)), rows.tap.precision, ", ".join(engines))
