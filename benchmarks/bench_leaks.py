"""What `featcache leaks` finds of what was planted: precision and recall by kind, and where wrong labels stand.

    python benchmarks/bench_leaks.py IMAGES                    # a folder of class folders, such as flowers17
    python benchmarks/bench_leaks.py IMAGES --montage natural.png
    python benchmarks/bench_leaks.py --scale 20000             # seconds and memory of as many images that are made up

The data set is copied to a temporary folder of train, val and test, as featcache splits it. Of test images, 20 go into
train as JPEGs of quality 60, 20 resized to 70 %, and 5 mirrored; 5 images of train get into the folder of another
class. Recall is of these. Precision is of the pairs that a planted copy is in: true with its source, or with what was
found to show the same as its source. All other pairs were in the data set already; the montage shows them, for a person
to judge.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

import featcache as fc
from featcache.extras.leaks import KINDS, Leaks, Pair, doubts
from featcache.extras.leaks.search import search
from featcache.extras.leaks.thumbnails import Thumbnails

Change = Callable[[Image.Image], Image.Image]
PLANTED: dict[str, tuple[int, Change, int]] = {  # kind: how many, what is done, quality of the JPEG
    "re-encoded": (20, lambda image: image, 60),
    "resized": (20, lambda image: image.resize((round(image.width * 0.7), round(image.height * 0.7))), 90),
    "rotated/flipped": (5, ImageOps.mirror, 90),
}
WRONG, TOP = 5, 20
SIDE, COLUMNS, MOST = 150, 4, 120
Planted = dict[str, tuple[str, str]]  # {path of the copy: (its kind, path of its source)}


def main() -> None:
    """Plant, search and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("-b", "--backbone", default="mobilenet_v2")
    parser.add_argument("--montage", type=Path, help="a PNG of the pairs that were not planted")
    parser.add_argument("--scale", type=int, help="so many images of 1,280 features instead")
    asked = parser.parse_args()
    if asked.scale:
        return scale(asked.scale)
    if asked.images is None:
        parser.error("give IMAGES or --scale")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "planted"
        planted, wrong = plant(asked.images, root)
        cache = fc.extract(root, asked.backbone, out=Path(folder) / "planted.h5")
        began = time.perf_counter()
        found = fc.leaks(cache)
        print(f"{found.images} images, {time.perf_counter() - began:.1f} s: {dict(found.seconds)}")
        print(found.thresholds)
        natural = judge(found, planted)
        judge_labels(found, wrong)
        if asked.montage:
            montage(root, natural, asked.montage)
    return None


def plant(images: Path, root: Path) -> tuple[Planted, list[str]]:
    """Copy the images into folders of splits, with copies of test images in train, and images in wrong folders."""
    rng = random.Random(0)
    rows = list(fc.scan(images).rows)
    rng.shuffle(rows)
    place = {row.path: f"{row.split}/{row.label}/{row.path.replace('/', '_')}" for row in rows}
    labels = sorted({row.label for row in rows})
    wrong = [row for row in rows if row.split == "train"][:WRONG]
    for row in wrong:
        place[row.path] = (
            f"train/{rng.choice([one for one in labels if one != row.label])}/wrong_{len(place)}_{row.label}"
        )
        place[row.path] += f"_{Path(row.path).name}"
    for path, to in place.items():
        (root / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / path, root / to)
    sources = iter([row for row in rows if row.split == "test"])
    planted: Planted = {}
    for kind, (count, change, quality) in PLANTED.items():
        for number in range(count):
            row = next(sources)
            copy = f"train/{row.label}/copy_{kind.replace('/', '_')}_{number}.jpg"
            with Image.open(images / row.path) as image:
                change(image.convert("RGB")).save(root / copy, quality=quality)
            planted[copy] = (kind, place[row.path])
    return planted, [place[row.path] for row in wrong]


def judge(found: Leaks, planted: Planted) -> list[Pair]:
    """Print precision and recall of each kind; return the pairs that were there already."""
    ends = [(pair, frozenset((pair.a, pair.b))) for pair in found.pairs]
    known = {both for _, both in ends}
    print("\nkind             planted  found  of this kind  recall  claimed  right  precision")
    for kind in PLANTED:
        truth = {frozenset((copy, source)) for copy, (of, source) in planted.items() if of == kind}
        hits = [pair for pair, both in ends if both in truth]
        claimed = [both for pair, both in ends if pair.kind == kind and both & planted.keys()]
        right = [both for both in claimed if is_true(both, planted, known)]
        print(
            f"{kind:16} {len(truth):7}  {len(hits):5}  {sum(pair.kind == kind for pair in hits):12}  "
            f"{len(hits) / len(truth):6.2f}  {len(claimed):7}  {len(right):5}  {len(right) / max(1, len(claimed)):9.2f}"
        )
    natural = [pair for pair, both in ends if not both & planted.keys()]
    print(f"not planted: {len(natural)} pairs,", {kind: sum(pair.kind == kind for pair in natural) for kind in KINDS})
    return natural


def is_true(both: frozenset[str], planted: Planted, known: set[frozenset[str]]) -> bool:
    """Tell whether a planted copy and the other image show the same, as far as the sources tell."""
    sources = frozenset(planted[path][1] if path in planted else path for path in both)
    return len(sources) == 1 or sources in known


def judge_labels(found: Leaks, wrong: Sequence[str]) -> None:
    """Print where the images in wrong folders stand among the labels that look wrong."""
    doubted = doubts(found)
    ranks = {one.path: rank for rank, one in enumerate(doubted.doubts, 1)}
    places = [ranks.get(path) for path in wrong]
    first = sum(place is not None and place <= TOP for place in places)
    print(
        f"\n{len(doubted.doubts)} labels look wrong ({doubted.seconds:.1f} s); the {WRONG} planted stand at {places}:"
    )
    print(f"{first} of {WRONG} among the first {TOP}")


def montage(root: Path, pairs: Sequence[Pair], out: Path) -> None:
    """Write a picture of pairs side by side, the least sure first."""
    some = sorted(pairs, key=lambda pair: pair.agreement or 0.0)[:MOST]
    lines = -(-len(some) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (2 * SIDE + 10), lines * (SIDE + 14)), "white")
    draw = ImageDraw.Draw(page)
    for number, pair in enumerate(some):
        x, y = number % COLUMNS * (2 * SIDE + 10), number // COLUMNS * (SIDE + 14)
        draw.text((x, y), f"{number} {pair.kind} {pair.similarity:.3f} {pair.agreement or 0:.2f}", fill="black")
        for shift, path in enumerate((pair.a, pair.b)):
            with Image.open(root / path) as image:
                page.paste(ImageOps.contain(image.convert("RGB"), (SIDE, SIDE)), (x + shift * SIDE, y + 14))
    page.save(out)


def scale(count: int) -> None:
    """Print seconds and memory of a search among images that are made up, a hundredth of them twice."""
    features = made_features(count)
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (count, 8, 8), np.uint8)
    greys = coarse.repeat(8, axis=1).repeat(8, axis=2)
    twice = count // 100
    greys[-twice:] = greys[:twice]
    seen = Thumbnails(greys, np.full((count, 2), 300), np.ones(count, np.bool_))
    before, began, said = peak(), time.perf_counter(), []
    found = search(features, seen, [""] * count, None, lambda step: said.append((step, time.perf_counter() - began)))
    print(f"{count} images, {len(found.matches)} pairs of {twice}, {time.perf_counter() - began:.1f} s")
    print("done after:", ", ".join(f"{step} {seconds:.1f} s" for step, seconds in said))
    square = count**2 * 4e-6
    print(f"memory: {before:.0f} MB of images and features, {peak():.0f} MB at most; N x N would take {square:.0f} MB")
    features = made_features(count)  # the search has overwritten them
    began = time.perf_counter()
    print(f"features alone, all pairs: {len(blind(features))} pairs, {time.perf_counter() - began:.2f} s")


def made_features(count: int) -> np.ndarray:
    """Return the same (count, 1280) features each time, the first hundredth of them twice."""
    rng = np.random.default_rng(0)
    features = np.maximum(rng.normal(0, 1, (count, 64)) @ rng.normal(0, 1, (64, 1280)), 0).astype(np.float32)
    twice = count // 100
    features[-twice:] = features[:twice]
    return features


def blind(features: np.ndarray) -> list[int]:
    """Return the pairs that are nearly the same, by one blockwise product."""
    from featcache.extras.leaks.vector_pairs import Vectors, pairs_over, unit

    one = unit(features - features.mean(axis=0))
    return pairs_over(Vectors(one, (one,)), 0.99, len(features)).a.tolist()


def peak() -> float:
    """Return the most memory so far in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
