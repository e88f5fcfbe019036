"""Images x taps - cache = what is missing. Pure: nothing is read, built or computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featcache.backbones.parse import Request
from featcache.cache.rows import TapRows
from featcache.extraction.compute import tap_of
from featcache.extraction.networks import Network
from featcache.spec import Failure, ImageRow, Tap


@dataclass(frozen=True)
class Work:
    """Images that one backbone has to compute, for all these taps at once."""

    network: Network
    taps: Mapping[str, Sequence[Tap]]  # {view: taps}
    missing: frozenset[str]  # paths, one for each content


@dataclass(frozen=True)
class Plan:
    """What an extraction has to compute."""

    taps: Mapping[str, Tap]  # {fingerprint: tap} of all requested taps, in their order
    work: tuple[Work, ...]  # nothing in it if the cache has all rows
    lacking: frozenset[str]  # digests of the images that lack the row of a requested tap
    hits: int  # images that have all their rows

    @property
    def num_missing(self) -> int:
        """Images to compute, counted once for each backbone."""
        return sum(len(work.missing) for work in self.work)

    def largest(self, request: Request) -> int:
        """Return the largest number of images that the engine of one request has to compute in one piece of work."""
        return max(len(work.missing) for work in self.work if work.network.request == request)


def make_plan(
    rows: Sequence[ImageRow],
    networks: Sequence[Network],
    cached: Mapping[str, TapRows],
    bad: Mapping[str, Failure],
) -> Plan:
    """Return what is missing.

    rows: the images whose bytes could be read. cached: {fingerprint: rows}. bad: {digest: why these bytes give no row}.
    """
    requested: dict[str, Tap] = {}
    works: list[Work] = []
    lacking: set[str] = set()
    for network in networks:
        requested |= {tap.fingerprint: tap for tap in network.taps}
        unusable = _unusable(network.taps, bad)
        # Views that lack the same images are computed together: each image is then decoded once.
        views_by_missing: dict[frozenset[str], dict[str, Sequence[Tap]]] = {}
        for view, taps in network.taps_by_view.items():
            missing = missing_rows(rows, taps, cached, unusable)
            lacking.update(row.digest for row in missing)
            paths = frozenset(row.path for row in missing)
            views_by_missing.setdefault(paths, {})[view] = taps
        for paths, taps_by_view in views_by_missing.items():
            if paths:
                works.append(Work(network, taps_by_view, paths))
    num_hits = sum(row.digest not in lacking and row.digest not in bad for row in rows)
    return Plan(requested, tuple(works), frozenset(lacking), num_hits)


def missing_rows(
    rows: Sequence[ImageRow], taps: Sequence[Tap], cached: Mapping[str, TapRows], unusable: frozenset[str]
) -> list[ImageRow]:
    """Return the images that lack the row of one of these taps, in their order, and of copies the first.

    unusable: digests of images that give no row in these taps.
    """
    # An image is complete if it has a row in each of these taps.
    complete: frozenset[str] = frozenset()
    if all(tap.fingerprint in cached for tap in taps):
        first, *others = [cached[tap.fingerprint].at.keys() for tap in taps]
        complete = frozenset(first).intersection(*others)

    settled = complete | unusable
    missing: dict[str, ImageRow] = {}
    for row in rows:
        if row.digest not in settled:
            missing.setdefault(row.digest, row)
    return list(missing.values())


def _unusable(taps: Sequence[Tap], bad: Mapping[str, Failure]) -> frozenset[str]:
    """Return the digests of images that give no row in these taps: undecodable, or not finite in one of them."""
    names = {tap.name for tap in taps}
    unusable: set[str] = set()
    for digest, failure in bad.items():
        if failure.status != "nonfinite" or tap_of(failure.reason) in names:
            unusable.add(digest)
    return frozenset(unusable)
