"""Manifest x taps - cache = what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featcache.cache.rows import TapRows
from featcache.spec import ImageRow, Tap


@dataclass(frozen=True)
class Plan:
    """What one backbone has to compute: `missing` images, each content once, for all its taps at once."""

    taps: tuple[Tap, ...]
    missing: tuple[ImageRow, ...]
    hits: int  # images of the manifest whose rows are all there


def make_plan(
    rows: Sequence[ImageRow], taps: Sequence[Tap], cached: Mapping[str, TapRows], known_bad: frozenset[str]
) -> Plan:
    """Return what is missing. known_bad: digests of contents that cannot be decoded."""
    complete = _complete(taps, cached)
    settled = complete | known_bad
    missing = {row.digest: row for row in reversed(rows) if row.digest not in settled}
    ordered = [row for row in rows if missing.get(row.digest) is row]
    return Plan(tuple(taps), tuple(ordered), sum(row.digest in complete for row in rows))


def _complete(taps: Sequence[Tap], cached: Mapping[str, TapRows]) -> frozenset[str]:
    have = [cached[tap.fingerprint].at.keys() if tap.fingerprint in cached else set[str]() for tap in taps]
    return frozenset(have[0]).intersection(*have[1:])
