"""One pass over the images for all backbones that take the same pixels: decode once, forward, commit.

Three things overlap: threads decode a few batches ahead, this thread runs the backbones, and one thread commits
the previous part. Only the list of image names grows with the number of images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
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
GIVES = "gives features that are"  # stands between a tap and the reason in a failure; `tap_of` looks for it
FIRST_BATCH = 32  # images on which an engine is chosen


class Started(NamedTuple):
    """An engine at work, and the provenance (JSON) of its rows."""

    engine: Engine
    provenance: str
    lineages: Mapping[str, Lineage | None]  # {layer: the images behind it}; None where nothing is known

    def parts(self, taps: Sequence[Tap], digests: Sequence[str]) -> Iterator[tuple[list[int], list[int], str]]:
        """Yield the content of each part: indices of taps, indices of images, and the provenance of these rows.

        All rows of a part have the same provenance, so images with different roles go into different parts.
        """
        # {the role of each image: the taps whose layers have seen the images in these roles}
        taps_by_roles: dict[tuple[Role | None, ...], list[int]] = {}
        for index, tap in enumerate(taps):
            taps_by_roles.setdefault(self._roles(tap, digests), []).append(index)

        for roles, tap_indices in taps_by_roles.items():
            images_by_role: dict[Role | None, list[int]] = {}
            for index, role in enumerate(roles):
                images_by_role.setdefault(role, []).append(index)
            for role, image_indices in images_by_role.items():
                made_by = self.provenance if role is None else with_role(self.provenance, role)
                yield tap_indices, image_indices, made_by

    def _roles(self, tap: Tap, digests: Sequence[str]) -> tuple[Role | None, ...]:
        """Return the role of each image in training the layer that a tap reads; None where it is unknown."""
        lineage = self.lineages[tap.layer]
        if lineage is None:
            return (None,) * len(digests)
        return tuple(lineage.role(digest) for digest in digests)


@dataclass
class Timing:
    """What one backbone has taken so far, by the clock of the extraction."""

    start_s: float = 0.0  # choosing an engine, and bringing the network into it
    forward_s: float = 0.0
    waiting_s: float = 0.0  # for decoded images, which backbones that take the same pixels share
    images: int = 0
    first_s: float = 0.0  # of `forward_s`: the first batch, during which Keras compiles
    first_images: int = 0
    engine: str = ""

    def add(self, forward_s: float, num_images: int) -> None:
        """Count a batch that went through the network."""
        if not self.images:
            self.first_s = forward_s
            self.first_images = num_images
        self.forward_s += forward_s
        self.images += num_images

    @property
    def forward_s_each(self) -> float:
        """Seconds of an image in the network, from all batches but the first if there are others; 0 if unknown."""
        if self.images > self.first_images:
            return (self.forward_s - self.first_s) / (self.images - self.first_images)
        return self.first_s / max(1, self.first_images)

    @property
    def waiting_s_each(self) -> float:
        """Seconds of waiting for an image; 0 if unknown."""
        return self.waiting_s / max(1, self.images)


@dataclass
class Target:
    """One backbone: its taps for each view, and the paths of the images that it lacks.

    start: makes the engine, which it chooses on the first pixels (n, size, size, 3).
    check_space: receives the bytes of all missing rows once they are known. Raises DiskFault.
    """

    taps: Mapping[str, Sequence[Tap]]
    missing: Collection[str]
    start: Callable[[Pixels], Started]
    check_space: Callable[[int], None]
    timing: Timing = field(default_factory=Timing)
    started: Started | None = None
    row_bytes: int = 0

    @property
    def all_taps(self) -> list[Tap]:
        """The taps of all views, in the order of their features."""
        return list(chain.from_iterable(self.taps.values()))


@dataclass
class Findings:
    """What all passes learnt about the images."""

    digests: dict[str, str]  # {path: digest of the bytes that were decoded}; a file may change after the scan
    bad: dict[str, Failure]  # {digest: why such bytes give no row}
    unread: dict[str, Failure]  # {path: why its bytes cannot be read}
    kinds: dict[str, frozenset[str]] = field(default_factory=dict)  # {path: kinds}, see `images.kinds`
    computed: int = 0  # images that went through a backbone, counted once for each backbone

    def usable(self, decoded: Decoded) -> bool:
        """Record what became of an image, and return whether it has pixels."""
        path = decoded.row.path
        digest = decoded.row.digest
        pixels = decoded.pixels
        if decoded.kinds:
            self.kinds[path] = decoded.kinds
        if not isinstance(pixels, Failure):
            if self.digests[path] != digest:  # equal texts are not replaced: a second copy of each takes memory
                self.digests[path] = digest
            return True
        if pixels.digest:
            self.digests[path] = pixels.digest
            self.bad[pixels.digest] = pixels
        else:
            self.unread[path] = pixels
        return False

    def judge(self, rows: Sequence[ImageRow], taps: Sequence[tuple[Tap, Features]]) -> Any:
        """Return (N,) bool: which rows can be stored in all taps. Records why the others cannot."""
        is_good = np.ones(len(rows), bool)
        for tap, features in taps:
            flat = features.reshape(len(features), -1)
            is_finite: Any = np.isfinite(flat).all(axis=1)
            fits = is_finite
            if tap.dtype == "float16":
                fits = is_finite & (np.abs(flat) <= MAX_FLOAT16).all(axis=1)
            # The first tap that cannot take a row gives its reason.
            for index in np.flatnonzero(is_good & ~fits).tolist():
                row = rows[index]
                problem = "too large for float16; use `dtype='float32'`" if is_finite[index] else "not finite"
                self.bad[row.digest] = Failure(row.path, row.digest, "nonfinite", f"tap {tap.name} {GIVES} {problem}")
            is_good &= fits
        return is_good


def tap_of(reason: str) -> str:
    """Return the tap that gave no usable features, from the reason that `Findings.judge` recorded."""
    return reason.partition(f" {GIVES} ")[0].removeprefix("tap ")


@dataclass
class Pass:
    """One pass over the images that at least one target lacks."""

    out: Path
    source: Source
    rows: Sequence[ImageRow]
    preprocess: Preprocess
    targets: Sequence[Target]
    findings: Findings
    progress: Progress
    note: Callable[[], str]  # returns the text beside the progress bar
    batch: int = FIRST_BATCH  # until the engines have chosen their batch
    clock: Callable[[], float] = time.perf_counter
    _writing: Future[Path] | None = field(default=None, init=False)

    def run(self) -> None:
        """Compute and commit everything. Raises DiskFault, EnvironmentFault."""
        step = f"extract {self.targets[0].all_taps[0].name}"
        num_done = 0
        writer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        decoder = self._decoder()
        self.progress(Tick(step, num_done, len(self.rows), self.note()))
        try:
            while True:
                began = self.clock()
                batch = decoder.take()
                waited_s = self.clock() - began
                if not batch:
                    break
                usable = self._usable(decoder, batch)
                for target in self.targets:
                    # Targets share the decoding, but each may have some of these images in the cache already.
                    images = [image for image in usable if image.row.path in target.missing]
                    if images:
                        target.timing.waiting_s += waited_s
                        features = self._forward(target, images)
                        self._commit(target, images, features, writer)
                num_done += len(batch)
                self.progress(Tick(step, num_done, len(self.rows), self.note()))
            self._wait_for_commit()
        finally:
            # Also after an error: the part that is being written then still gets its name.
            decoder.close()
            writer.shutdown(wait=True)

    def time(self, num_batches: int) -> float:
        """Return an estimate of the seconds of `run`, from the first batch and the rate of `num_batches` more."""
        began = time.perf_counter()
        decoder = self._decoder()
        num_done = 0
        ends: list[tuple[float, int]] = []  # after each batch: (seconds, images done)
        try:
            while len(ends) <= num_batches and (batch := decoder.take()):
                usable = self._usable(decoder, batch)
                if usable:
                    for target in self.targets:
                        self._forward(target, usable)
                num_done += len(batch)
                ends.append((time.perf_counter() - began, num_done))
        finally:
            decoder.close()
        # The first batch includes the start: building networks and choosing engines.
        first_s, num_first = ends[0]
        last_s, num_last = ends[-1]
        if num_last == num_first:
            return first_s
        s_per_image = (last_s - first_s) / (num_last - num_first)
        return first_s + s_per_image * (len(self.rows) - num_first)

    def _decoder(self) -> Decoder:
        return Decoder(self.source, self.rows, self.preprocess, tuple(self.targets[0].taps), self.batch)

    def _usable(self, decoder: Decoder, batch: Sequence[Decoded]) -> list[Decoded]:
        """Return the images that have pixels. Starts the engines on the first of them."""
        usable = [image for image in batch if self.findings.usable(image)]
        batch_sizes = [self.batch]
        for target in self.targets:
            if target.started is None and usable:
                began = self.clock()
                target.started = target.start(np.stack([image.pixels for image in usable]))
                target.timing.start_s += self.clock() - began
                target.timing.engine = target.started.engine.name
            if target.started is not None:
                batch_sizes.append(target.started.engine.batch)
        # An engine chooses its batch when it starts, and halves it when memory runs out.
        decoder.batch = max(batch_sizes)
        return usable

    def _forward(self, target: Target, images: Sequence[Decoded]) -> list[Features]:
        """Return the features of all taps of all views."""
        assert target.started is not None
        features: list[Features] = []
        views_of_images = [(image.pixels, *image.others) for image in images]
        began = self.clock()
        for pixels_of_view in zip(*views_of_images, strict=True):
            features += target.started.engine.forward(np.stack(pixels_of_view))
        target.timing.add(self.clock() - began, len(images))
        # Only now is it known how large a row is. Nothing is written yet, so a full disk costs one batch at most.
        if not target.row_bytes:
            for tap, array in zip(target.all_taps, features, strict=True):
                target.row_bytes += array[0].size * np.dtype(tap.dtype).itemsize
            target.check_space(target.row_bytes * len(target.missing))
        return features

    def _commit(
        self, target: Target, images: Sequence[Decoded], features: Sequence[Features], writer: ThreadPoolExecutor
    ) -> None:
        """Have the writer commit the rows that can be stored."""
        assert target.started is not None
        taps = target.all_taps
        rows = [image.row for image in images]
        features_of_taps = list(zip(taps, features, strict=True))
        self.findings.computed += len(images)
        is_good = self.findings.judge(rows, features_of_taps)
        digests = [row.digest for row, is_stored in zip(rows, is_good, strict=True) if is_stored]
        stored = [array[is_good].astype(tap.dtype, copy=False) for tap, array in features_of_taps]
        for tap_indices, image_indices, made_by in target.started.parts(taps, digests):
            # One part is written while the next is computed; waiting here bounds the memory, and what a kill costs.
            self._wait_for_commit()
            self._writing = writer.submit(
                parts.commit,
                self.out,
                [taps[index] for index in tap_indices],
                [digests[index] for index in image_indices],
                [stored[index][image_indices] for index in tap_indices],
                made_by,
            )

    def _wait_for_commit(self) -> None:
        """Wait until the previous part is on the disk. Raises what went wrong with it."""
        if self._writing is not None:
            self._writing.result()
