"""One of several processes that work on one cache at once, without a lock: cache.racer CACHE SEED"""

import random
import sys
from pathlib import Path

import numpy as np
from cache.scenes import TOP, commit, merge, rows_of, top

from featcache.cache.layout import table_of
from featcache.cache.reader import Cache, stored_rows
from featcache.files import again

ROUNDS = 5


def main(cache, seed):
    chosen, had = random.Random(seed), set()
    for _ in range(ROUNDS):
        low = chosen.randrange(9)
        commit(cache, low, chosen.randint(low + 1, 9), maker=seed % 2)
        if chosen.random() < 0.6:
            merge(cache)
        now = set(again(lambda: rows_of(cache))[TOP.fingerprint])
        assert had <= now, "rows are gone"
        had = now
        if table_of(cache).exists():
            read(Cache.open(cache))


def read(opened):
    """Read what is there; in a file that another has merged, rows of parts may not be there yet."""
    rows = [row for row in opened.rows if row.digest in opened_digests(opened)]
    assert np.array_equal(opened.features(rows, TOP.name), top([row.digest for row in rows]))


def opened_digests(opened):
    stored = stored_rows(opened.path, TOP.fingerprint)
    return set(stored[TOP.fingerprint].digests) if stored else set()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
