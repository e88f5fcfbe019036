"""Which trials are planned, and which of them are fitted together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from featcache.heads.estimators import Setting
from featcache.heads.grids import Params
from featcache.heads.solvers.paths import together
from featcache.sweeps.run import Settings


@dataclass(frozen=True)
class Planned:
    """One trial to come."""

    number: int
    tap: str
    chain: str
    few: tuple[int, int] | None  # (images per class, seed) of the small training set, where it is one
    setting: Setting


@dataclass(frozen=True)
class Group:
    """Settings of one head on one tap that are fitted together."""

    tap: str
    chain: str
    few: tuple[int, int] | None
    head: str
    planned: tuple[Planned, ...]

    @property
    def grid(self) -> list[Params]:
        """Return their parameters."""
        return [one.setting.params for one in self.planned]


def planned(asked: Settings, todo: Sequence[Setting]) -> list[Planned]:
    """Return every setting on every tap after every chain of steps, numbered from 1."""
    every = product(asked.taps, asked.prepare, asked.few or (None,), todo)
    return [Planned(number, *one) for number, one in enumerate(every, 1)]


def grouped(plan: Sequence[Planned]) -> list[Group]:
    """Return the trials that are fitted together, in the order of the plan."""
    groups: list[Group] = []
    for key in dict.fromkeys(map(_key, plan)):
        some = [one for one in plan if _key(one) == key]
        for numbers in together(key[-1], [one.setting.params for one in some]):
            groups.append(Group(*key, tuple(some[at] for at in numbers)))
    return groups


def _key(one: Planned) -> tuple[str, str, tuple[int, int] | None, str]:
    return one.tap, one.chain, one.few, one.setting.head
