"""What the tests of crashes, failures and races play: rows that are known, and the operations on a cache of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from featcache.cache import parts
from featcache.cache.reader import Cache
from featcache.spec import BackboneSpec, ImageRow, Preprocess, Tap, canonical_json

TOP = Tap("toy/top", BackboneSpec("toy"), "w", "top", "avg", Preprocess(32))
MAPS = replace(TOP, name="toy/maps", layer="deep", pooling="none", dtype="float16")
FACTS = {"root": b"/photos", "layout": "classes", "decode": "pillow/1"} | {
    "split_spec": canonical_json({"train": 70, "val": 15, "test": 15, "seed": 0})
}
DIGESTS = [f"{number:064x}" for number in range(9)]
IMAGES = [ImageRow(f"a/{digest[-3:]}.png", "a", "", "train", digest) for digest in reversed(DIGESTS)]
MAKERS = ['{"engine":"one"}', '{"engine":"two"}']


def top(digests):
    return np.array([[int(digest, 16) + at / 10 for at in range(3)] for digest in digests], np.float32)


def maps(digests):
    return np.array([np.full((2, 1, 2), -int(digest, 16)) for digest in digests], np.float16)


MAKE = {TOP.fingerprint: top, MAPS.fingerprint: maps}


def commit(cache, low, high, maker=0):
    digests = DIGESTS[low:high]
    return parts.commit(cache, [TOP, MAPS], digests, [top(digests), maps(digests)], MAKERS[maker])


def merge(cache):
    return parts.merge(cache, IMAGES, {}, FACTS)


def rows_of(cache):
    """Return {fingerprint: digests} of the rows that can be read; every one of them is what was committed."""
    found = {}
    for fingerprint, rows in parts.read_rows(cache).items():
        digests = sorted(rows.digests)
        assert np.array_equal(rows.features(digests), MAKE[fingerprint](digests)), "wrong rows"
        found[fingerprint] = digests
    return found


def all_of(numbers):
    return {tap: sorted(DIGESTS[number] for number in numbers) for tap in MAKE} if numbers else {}


@dataclass(frozen=True)
class Scene:
    """An operation on a cache: the numbers of the rows that are committed before and after it."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    folder: bool = False

    def prepare(self, root: Path) -> Path:
        """Make the cache as it is before the operation."""
        cache = root / "c.h5"
        if self.folder:
            cache.mkdir(parents=True)
        root.mkdir(exist_ok=True)
        if self.name.endswith("again"):
            commit(cache, 0, 2)
            merge(cache)
            commit(cache, 2, 4)
            commit(cache, 4, 6, maker=1)
        elif self.before:
            commit(cache, 0, 2)
            commit(cache, 2, 6, maker=1)
        return cache

    def run(self, cache: Path) -> Cache | Path:
        """Do it."""
        return commit(cache, 6, 9) if "commit" in self.name else merge(cache)


SIX, NINE = tuple(range(6)), tuple(range(9))
SCENES = [
    Scene("first commit", (), (6, 7, 8)),
    Scene("commit", SIX, NINE),
    Scene("merge", SIX, SIX),
    Scene("merge again", SIX, SIX),
    Scene("commit to a folder", SIX, NINE, folder=True),
    Scene("finish a folder", SIX, SIX, folder=True),
    Scene("finish a folder again", SIX, SIX, folder=True),
]
