"""Write the golden file of today's format version: python tests/cache/make_golden.py

Done once per format version. The file of an earlier version is never written again: it is what people have.
"""

import os
import sys
from pathlib import Path

import numpy as np

from featcache.cache import layout, parts
from featcache.cache.changes import Changes, Review
from featcache.cache.reader import Cache
from featcache.spec import BackboneSpec, Failure, ImageRow, Preprocess, Tap, canonical_json

DIGESTS = [letter * 64 for letter in "abcd"]
ROWS = (
    ImageRow("Ärzte/1.png", "Ärzte", "", "train", DIGESTS[1]),
    ImageRow("odd/caf\udce9 \n.png", "odd", "burst 7", "val", DIGESTS[0]),
    ImageRow("odd/copy.png", "odd", "", "val", DIGESTS[0]),
    ImageRow("odd/html.jpg", "odd", "", "train", DIGESTS[2]),
    ImageRow("unlabelled.png", "", "", "", DIGESTS[3]),
)
FAILURE = Failure("odd/html.jpg", DIGESTS[2], "unknown_format", "not an image in a format that Pillow reads")
TOP = Tap("toy/top", BackboneSpec("toy", (("alpha", 0.5),), "none", 1), "e" * 64, "top", "avg", Preprocess(32))
DEEP = Tap("toy/block/deep:max", BackboneSpec("toy"), "f" * 64, "block/deep", "max", Preprocess(32, "crop", "caffe"))
MAPS = Tap(
    "toy/maps", BackboneSpec("toy"), "f" * 64, "deep", "none", Preprocess(32), precision="float16", dtype="float16"
)
FEATURES = {  # in the order of the images: b, a, d
    TOP.name: np.array([[0.5, -1.25, 3e38], [1e-38, 0.0, 2.0], [7.0, 8.0, 9.0]], np.float32),
    DEEP.name: np.arange(6, dtype=np.float32).reshape(3, 2) / 4,
    MAPS.name: np.arange(24, dtype=np.float16).reshape(3, 2, 2, 2) - 65504,
}
PROVENANCE = canonical_json({"engine": "golden 1", "weights_source": "random seed 1"})
LATER = canonical_json({"engine": "golden 2", "weights_source": "random seed 1"})  # computed the maps of image a
FACTS = {
    "root": os.fsencode("/photos/caf\udce9"),
    "layout": "classes",
    "split_spec": canonical_json({"train": 60, "val": 20, "test": 20, "seed": 5}),
    "decode": "pillow/1",
    layout.LISTING: canonical_json({"table": "list.csv"}),
}
REVIEW = Review(DIGESTS[1], "Ärzte", "Ärzte", "Ärzte/1.png", "train", "2026-11-30T00:00:00Z")  # the label was kept


def write(path: Path) -> Cache:
    """Write the golden cache; its rows go in by digest and must come out in the order of the images."""
    digests, by_digest = [DIGESTS[0], DIGESTS[1], DIGESTS[3]], [1, 0, 2]
    for tap in (TOP, DEEP):
        parts.commit(path, [tap], digests, [FEATURES[tap.name][by_digest]], PROVENANCE)
    parts.commit(path, [MAPS], digests[1:], [FEATURES[MAPS.name][[0, 2]]], PROVENANCE)
    parts.commit(path, [MAPS], digests[:1], [FEATURES[MAPS.name][[1]]], LATER)
    return parts.merge(path, ROWS, {FAILURE.path: FAILURE}, FACTS, changes=Changes(reviews=(REVIEW,)))


if __name__ == "__main__":
    file = Path(__file__).with_name(f"golden_v{layout.FORMAT_VERSION}.h5")
    if file.exists():
        sys.exit(f"{file} is there already; raise FORMAT_VERSION in featcache/cache/layout.py first")
    write(file)
