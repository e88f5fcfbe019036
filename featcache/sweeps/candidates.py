"""The candidates of a sweep, and the bundles in which they are fitted together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from featcache.heads.estimators import Setting
from featcache.heads.grids import Params
from featcache.heads.solvers.paths import together
from featcache.sweeps.run import Settings


@dataclass(frozen=True)
class Candidate:
    """One head setting to try on one tap; its number is that of the trial to come."""

    number: int
    tap: str
    chain: str
    few: tuple[int, int] | None  # (images per class, seed) of its small training set, if it has one
    setting: Setting


@dataclass(frozen=True)
class Bundle:
    """Candidates with one head on one tap that are fitted together, such as the strengths along a path."""

    tap: str
    chain: str
    few: tuple[int, int] | None
    head: str
    candidates: tuple[Candidate, ...]

    @property
    def grid(self) -> list[Params]:
        """Return their parameters."""
        return [candidate.setting.params for candidate in self.candidates]


def list_candidates(settings: Settings, head_settings: Sequence[Setting]) -> list[Candidate]:
    """Return every setting on every tap after every chain of steps, numbered from 1."""
    combinations = product(settings.taps, settings.prepare, settings.few or (None,), head_settings)
    return [Candidate(number, *combination) for number, combination in enumerate(combinations, 1)]


def make_bundles(candidates: Sequence[Candidate]) -> list[Bundle]:
    """Return the candidates in bundles, in their order."""
    alike: dict[tuple[str, str, tuple[int, int] | None, str], list[Candidate]] = {}
    for candidate in candidates:
        key = (candidate.tap, candidate.chain, candidate.few, candidate.setting.head)
        alike.setdefault(key, []).append(candidate)

    bundles = []
    for (tap, chain, few, head), members in alike.items():
        for numbers in together(head, [member.setting.params for member in members]):
            bundles.append(Bundle(tap, chain, few, head, tuple(members[number] for number in numbers)))
    return bundles
