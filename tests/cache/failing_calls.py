"""Let the n-th system call of a scene fail, for every n; see what is left: cache.failing_calls SCENE FOLDER MANY

A process of its own, because a failure that HDF5 notices can kill it. Prints what it is about to try.
"""

import errno
import os
import shutil
import sys
from pathlib import Path

from cache.disk import Disk, FailAt, grow, tree
from cache.scenes import SCENES, all_of, rows_of

from featcache.errors import DiskFault

HARDSHIPS = [(errno.ENOSPC, True), (errno.ENOSPC, False), (errno.EIO, False), (errno.EDQUOT, True), (errno.EROFS, True)]


def main(name, root, hardships):
    scene = next(one for one in SCENES if one.name == name)
    os.fsync = lambda handle: None
    cache = scene.prepare(root / "whole")
    start = tree(root / "whole")
    disk = Disk(root / "whole")
    with disk.watching():
        scene.run(cache)
    whole, tried, failed = tree(root / "whole"), 0, set()
    for error, lasting in HARDSHIPS[:hardships]:
        for number in chosen(disk.calls, hardships):
            print(f"{scene.name}: call {number}, {disk.calls[number - 1]}, {errno.errorcode[error]}", flush=True)
            failed.add(attempt(scene, root / "tried", start, whole, FailAt(number, error, lasting)))
            tried += 1
    print(f"tried {tried}, let fail: {' '.join(sorted(failed - {None}))}")


def chosen(calls, hardships):
    """Return the numbers of the calls to fail: all but most reads of HDF5 and, in the quick run, most of its writes."""
    many = ("lseek", "read", "preadv", *(("write",) if hardships == 1 else ()))
    return [at for at, call in enumerate(calls, 1) if call not in many or at % 12 == 1]


def attempt(scene, root, start, whole, fail):
    shutil.rmtree(root, ignore_errors=True)
    grow(root, start)
    cache = root / "c.h5"
    disk = Disk(root)
    disk.hook = fail
    committed = scene.before
    with disk.watching():
        try:
            scene.run(cache)
            committed, said = scene.after, "Cannot"
        except DiskFault as fault:
            said = str(fault)
    assert said.startswith("Cannot"), said
    assert "\n" not in said, said
    assert not [one for one in tree(root) if ".tmp-" in one], "litter"
    found = rows_of(cache)
    assert all(set(digests) <= set(found[tap]) for tap, digests in all_of(committed).items()), "lost rows"
    scene.run(cache)
    assert tree(root) == whole, "not what an undisturbed run leaves"
    return fail.failed


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
