"""One pass over the images for all backbones that take the same pixels: decode once, forward, commit.

Three things overlap: threads decode a few batches ahead, this thread runs the backbones, and one thread commits
the part before. Nothing depends on the number of images but the list of their names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featcache.arrays import Features, Pixels
from featcache.backbones.lineage import Lineage, Role
from featcache.cache import parts
from featcache.extraction.engines import Engine, with_role
from featcache.extraction.pipeline import Decoded, Decoder
from featcache.images.sources import Source
from featcache.spec import Failure, ImageRow, Preprocess, Progress, Tap, Tick

MAX_FLOAT16 = float(np.finfo(np.float16).max)
GIVES = "gives features that are"  # between a tap and what is wrong with its features
FIRST_BATCH = 32  # images that an engine is chosen on


class Started(NamedTuple):
    """An engine at work, and what it writes beside its rows (JSON)."""

    engine: Engine
    provenance: str
    lineages: Mapping[str, Lineage | None]  # {layer: the images behind it}; None where nothing is known

    def parts(self, taps: Sequence[Tap], digests: Sequence[str]) -> Iterator[tuple[list[int], list[int], str]]:
        """Yield what goes into one part: numbers of taps, numbers of images, and what made these rows.

        Rows of one part have one provenance, so images with other roles come into another.
        """
        roles = [self._roles(tap, digests) for tap in taps]
        for of_images in dict.fromkeys(roles):
            numbers = [number for number, of_tap in enumerate(roles) if of_tap == of_images]
            for role in dict.fromkeys(of_images):
                places = [place for place, of_image in enumerate(of_images) if of_image == role]
                yield numbers, places, self.provenance if role is None else with_role(self.provenance, role)

    def _roles(self, tap: Tap, digests: Sequence[str]) -> tuple[Role | None, ...]:
        """Return what each image did for the layer that a tap reads; None where that cannot be known."""
        lineage = self.lineages[tap.layer]
        return tuple(None if lineage is None else lineage.role(digest) for digest in digests)


@dataclass
class Target:
    """One backbone: its taps for each view, and the paths of the images that it lacks.

    start: makes the engine once there are pixels (n, size, size, 3) to choose it on.
    check_space: is told how many bytes all the rows will take, once that is known.
    """

    taps: dict[str, list[Tap]]
    missing: Collection[str]
    start: Callable[[Pixels], Started]
    check_space: Callable[[int], None]
    started: Started | None = None
    row_bytes: int = 0

    @property
    def all_taps(self) -> list[Tap]:
        """The taps of all views, in the order in which their features come."""
        return [tap for of_view in self.taps.values() for tap in of_view]


@dataclass
class Findings:
    """What was learnt about images on the way, from all passes."""

    digests: dict[str, str]  # {path: digest as decoded}; a file may change after the scan
    bad: dict[str, Failure]  # {digest: why such bytes give no row}
    unread: dict[str, Failure]  # {path: why its bytes cannot be had}
    kinds: dict[str, frozenset[str]] = field(default_factory=dict)  # {path: kinds} of images that are of any
    computed: int = 0  # images that went through a backbone, once for each backbone

    def usable(self, one: Decoded) -> bool:
        """Note what became of an image; tell whether it has pixels."""
        if one.kinds:
            self.kinds[one.row.path] = one.kinds
        if not isinstance(one.pixels, Failure):
            if self.digests[one.row.path] != one.row.digest:  # else the text that is there stays: memory
                self.digests[one.row.path] = one.row.digest
        elif one.pixels.digest:
            self.digests[one.row.path] = one.pixels.digest
            self.bad[one.pixels.digest] = one.pixels
        else:
            self.unread[one.row.path] = one.pixels
        return not isinstance(one.pixels, Failure)

    def judge(self, rows: Sequence[ImageRow], taps: Sequence[tuple[Tap, Features]]) -> Any:
        """Return (N,) which rows can be stored in all taps; note why the others cannot."""
        good = np.ones(len(rows), bool)
        for tap, features in taps:
            flat = features.reshape(len(features), -1)
            finite: Any = np.isfinite(flat).all(axis=1)
            fits = finite if tap.dtype == "float32" else finite & (np.abs(flat) <= MAX_FLOAT16).all(axis=1)
            for at in np.flatnonzero(good & ~fits).tolist():
                why = "too large for float16; use --dtype float32" if finite[at] else "not finite"
                reason = f"tap {tap.name} {GIVES} {why}"
                self.bad[rows[at].digest] = Failure(rows[at].path, rows[at].digest, "nonfinite", reason)
            good &= fits
        return good


def tap_of(reason: str) -> str:
    """Return the tap that gave no usable features, by the reason that `Findings.judge` noted."""
    return reason.partition(f" {GIVES} ")[0].removeprefix("tap ")


@dataclass
class Pass:
    """One pass: `rows` are the images that any of the targets lacks."""

    out: Path
    source: Source
    rows: Sequence[ImageRow]
    preprocess: Preprocess
    targets: Sequence[Target]
    found: Findings
    progress: Progress
    note: Callable[[], str]
    batch: int = FIRST_BATCH  # until the engines have chosen theirs
    _writing: Future[Path] | None = field(default=None, init=False)

    def run(self) -> None:
        """Compute and commit everything. Raises DiskFault, EnvironmentFault."""
        step, done = f"extract {self.targets[0].all_taps[0].name}", 0
        writer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        decoder = self._decoder()
        self.progress(Tick(step, done, len(self.rows), self.note()))
        try:
            while decoded := decoder.take():
                good = self._usable(decoder, decoded)
                for target in self.targets:
                    some = [one for one in good if one.row.path in target.missing]
                    if some:
                        self._commit(target, some, self._forward(target, some), writer)
                done += len(decoded)
                self.progress(Tick(step, done, len(self.rows), self.note()))
            self._written()
        finally:
            decoder.close()
            writer.shutdown(wait=True)

    def time(self, num_batches: int) -> float:
        """Return the seconds that `run` would take: to start, and by the rate of the batches after the first."""
        began, decoder = time.perf_counter(), self._decoder()
        ends: list[tuple[float, int]] = []  # (seconds since the beginning, images done by then)
        try:
            while len(ends) <= num_batches and (decoded := decoder.take()):
                good = self._usable(decoder, decoded)
                for target in self.targets if good else []:
                    self._forward(target, good)
                ends.append((time.perf_counter() - began, (ends[-1][1] if ends else 0) + len(decoded)))
        finally:
            decoder.close()
        (start_s, first), (end_s, last) = ends[0], ends[-1]
        per_image = (end_s - start_s) / (last - first) if last > first else 0.0
        return start_s + per_image * (len(self.rows) - first)

    def _decoder(self) -> Decoder:
        return Decoder(self.source, self.rows, self.preprocess, tuple(self.targets[0].taps), self.batch)

    def _usable(self, decoder: Decoder, decoded: Sequence[Decoded]) -> list[Decoded]:
        """Return the images that have pixels; on the first of them the engines are started."""
        good = [one for one in decoded if self.found.usable(one)]
        for target in self.targets if good else []:
            target.started = target.started or target.start(np.stack([one.pixels for one in good]))
        engines = [target.started.engine for target in self.targets if target.started is not None]
        decoder.batch = max([self.batch, *(engine.batch for engine in engines)])
        return good

    def _forward(self, target: Target, some: Sequence[Decoded]) -> list[Features]:
        """Return the features of all taps of all views."""
        assert target.started is not None
        pixels = zip(*((one.pixels, *one.others) for one in some), strict=True)
        features = [array for view in pixels for array in target.started.engine.forward(np.stack(view))]
        if not target.row_bytes:
            sizes = [array[0].size * np.dtype(tap.dtype).itemsize for tap, array in self._named(target, features)]
            target.row_bytes = sum(sizes)
            target.check_space(target.row_bytes * len(target.missing))
        return features

    def _commit(
        self, target: Target, some: Sequence[Decoded], features: Sequence[Features], writer: ThreadPoolExecutor
    ) -> None:
        assert target.started is not None
        self.found.computed += len(some)
        good = self.found.judge([one.row for one in some], list(self._named(target, features)))
        digests = [one.row.digest for one, stays in zip(some, good, strict=True) if stays]
        kept = [array[good].astype(tap.dtype, copy=False) for tap, array in self._named(target, features)]
        for numbers, places, made_by in target.started.parts(target.all_taps, digests):
            self._written()
            self._writing = writer.submit(
                parts.commit,
                self.out,
                [target.all_taps[number] for number in numbers],
                [digests[place] for place in places],
                [kept[number][places] for number in numbers],
                made_by,
            )

    @staticmethod
    def _named(target: Target, features: Sequence[Features]) -> Iterable[tuple[Tap, Features]]:
        return zip(target.all_taps, features, strict=True)

    def _written(self) -> None:
        """Wait until the part before is on the disk; raise what went wrong with it."""
        if self._writing is not None:
            self._writing.result()
