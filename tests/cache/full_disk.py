"""Run a scene where the disk, or the size of files, ends after some kibibytes: cache.full_disk SCENE FOLDER KIND"""

import os
import resource
import shutil
import sys
from pathlib import Path

from cache.disk import grow, tree
from cache.scenes import SCENES, all_of, rows_of

from featcache.errors import DiskFault


class Limit:
    """Files may grow to a number of bytes."""

    def __init__(self, root, size):
        self.size = size

    def __enter__(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Full:
    """The disk has a number of bytes left, in whole blocks."""

    def __init__(self, root, size):
        self.ballast, self.size = root / "ballast", size

    def __enter__(self):
        status = os.statvfs(self.ballast.parent)
        self.ballast.write_bytes(bytes(status.f_bavail * status.f_frsize - self.size))

    def __exit__(self, *_):
        self.ballast.unlink()


def main(name, root, kind):
    scene = next(one for one in SCENES if one.name == name)
    scene.prepare(root / "whole")
    start = tree(root / "whole")
    scene.run(root / "whole" / "c.h5")
    whole, refused = tree(root / "whole"), 0
    for size in range(0, 33, 4):
        shutil.rmtree(root / "tried", ignore_errors=True)
        grow(root / "tried", start)
        cache = root / "tried" / "c.h5"
        with (Limit if kind == "limit" else Full)(root, size * 1024):
            print(f"{size} KiB", flush=True)
            try:
                scene.run(cache)
            except DiskFault as fault:
                refused += 1
                print(fault, flush=True)
                assert rows_of(cache) == all_of(scene.before)
                assert not [one for one in tree(root) if ".tmp-" in one]
        scene.run(cache)
        assert tree(root / "tried") == whole
    assert 0 < refused < 9, refused
    print("went on")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
