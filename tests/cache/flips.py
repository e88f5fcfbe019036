"""Flip one bit after another of a cache's file and read it: cache.flips part|cache FOLDER FIRST LAST

A process of its own with little memory and time, because a damaged file may crash libhdf5. Prints every flip before
it is tried, so that whoever started it knows which one it died of. `all` as LAST: every bit of the file, in order.
"""

import os
import random
import resource
import shutil
import signal
import sys
from pathlib import Path

from cache.scenes import commit, merge, rows_of

from featcache.cache.check import verify
from featcache.cache.layout import parts_folder
from featcache.cache.reader import Cache, stored_rows
from featcache.errors import FeatcacheError

SEED = 7
SECONDS = 20  # for one flip
MEMORY = 4 * 2**30


def make(kind, folder):
    """Return the file that is to be damaged."""
    cache = folder / "c.h5"
    commit(cache, 0, 4)
    part = commit(cache, 4, 9, maker=1)
    if kind == "part":
        return part
    merge(cache)
    return cache


def content(cache):
    """Return everything that a cache says."""
    opened = Cache.open(cache)
    rows = {name: (tap, opened.features(opened.usable(), name).tobytes()) for name, tap in sorted(opened.taps.items())}
    made = [[one.made_by(sorted(one.digests))[0] for one in stored_rows(cache).values()]]
    return opened.rows, opened.failures, os.fsencode(opened.root), opened.layout, opened.split_spec, rows, made


def try_cache(cache, good):
    """Return what became of it: refused, damaged (one of verify's problems), or unused bits."""
    problems, said = attempt(lambda: verify(cache).problems)
    found, refused = attempt(lambda: content(cache))
    assert "\n" not in said + refused, said + refused
    if refused:
        assert problems != (), f"verify finds nothing wrong, but {refused}"
        return "refused"
    assert found == good or problems, "verify finds nothing wrong with other data"
    return "damaged" if problems else "unused"


def attempt(work):
    """Return what the work gives, or why it refuses."""
    try:
        return work(), ""
    except FeatcacheError as error:
        return None, str(error)


def try_part(cache, part):
    """Return what became of it: set aside, with the rows of the other part read."""
    found = rows_of(cache)
    assert all(len(digests) == 4 for digests in found.values()), found
    assert not part.exists()
    assert list(parts_folder(cache).glob("*.damaged"))
    return "aside"


def main(kind, folder, first, last):
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    file = make(kind, folder)
    data, cache = file.read_bytes(), folder / "c.h5"
    good = content(cache) if kind == "cache" else None
    chosen = random.Random(SEED)
    every = last == "all"
    flips = range(8 * len(data)) if every else [chosen.randrange(8 * len(data)) for _ in range(int(last))]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    counts = {}
    for number in range(first, len(flips)):
        byte, bit = divmod(flips[number], 8)
        print(f"flip {number}: byte {byte} bit {bit} of {len(data)}", flush=True)
        signal.alarm(SECONDS)
        damaged = bytearray(data)
        damaged[byte] ^= 1 << bit
        file.write_bytes(damaged)
        became = try_cache(cache, good) if kind == "cache" else try_part(cache, file)
        counts[became] = counts.get(became, 0) + 1
        if kind == "part":
            shutil.rmtree(parts_folder(cache))
            commit(cache, 0, 4)
    print(f"done {counts}", flush=True)


if __name__ == "__main__":
    os.fsync = lambda handle: None
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
