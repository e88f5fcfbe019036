"""Make the API reference from the docstrings of all public names: python docs/build.py [FOLDER]."""

import sys
from pathlib import Path

import pdoc

import featcache

INNER = "!featcache\\."  # modules within, which are no public names


def build(folder: Path) -> None:
    """Write the pages into a folder."""
    for name in featcache.__all__:  # which are imported when they are used
        setattr(featcache, name, getattr(featcache, name))
    pdoc.render.configure(docformat="markdown")
    pdoc.pdoc("featcache", INNER, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/site"))
