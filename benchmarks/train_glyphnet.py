"""Train `featcache/backbones/glyphnet.npz` on letters: Latin, Greek and Cyrillic, and never a digit.

    python benchmarks/train_glyphnet.py --out featcache/backbones/glyphnet.npz

Every letter is drawn in every text font that matplotlib ships, and kept as two distance fields, one
from its outline and one from its skeleton. To read a field through a warped grid and threshold it
at a random level gives a letter of another stroke width, slant and hand, for about 0.07 ms an image.
Most are then seen as if scanned at 8 or 16 pixels. Letters of one shape are one class, and every
eighth class is held out: the network is judged by telling those apart from five examples of each.
Needs `pip install featcache`; on two cores it takes about a quarter of an hour. The images are
a function of the seed; the last bits of the weights also depend on the processor and its threads.
"""

from __future__ import annotations

import argparse
import os
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.ndimage import distance_transform_edt, gaussian_filter
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featcache.backbones.glyphnet import SIZE, WEIGHTS, glyphnet, save_weights

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Rng = np.random.Generator

BATCH = 128
STEPS = 125  # batches an epoch: 16,000 letters
CANVAS = 64  # pixels of a stored glyph, which fills BOX of them
BOX = 44
FONTS = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr", "cmss", "cmtt", "cmti", "cmb")
BLOCKS = ((0x41, 0x7B), (0x180, 0x2B0), (0x370, 0x400), (0x400, 0x530))  # Latin twice, Greek, Cyrillic
FROM_DIGITS = set(map(chr, (0x184, 0x185, 0x1A7, 0x1A8, 0x1BC, 0x1BD)))  # tone letters drawn as 6, 2 and 5
HELD_OUT = 8  # every eighth class is never trained on
WAYS, SHOTS, DRAWS = 10, 5, 20  # the measurement: 10 classes, 5 rows of each, 20 times
SAME_SHAPE = 0.93  # correlation above which two letters are one class


@dataclass(frozen=True)
class Glyphs:
    """Rendered letters: fields (G, 2, CANVAS, CANVAS) and the class of each (G,).

    Field 0 is the signed distance to the outline in pixels, positive in the ink; field 1 is
    minus the distance to the skeleton, from which strokes of one width can be drawn.
    """

    fields: Floats
    labels: Ints


def letters() -> list[str]:
    """Return the letters of the three scripts, without those composed of a letter and an accent."""
    every = [chr(code) for start, stop in BLOCKS for code in range(start, stop)]
    return [
        char
        for char in every
        if unicodedata.category(char) in ("Lu", "Ll")
        and not unicodedata.decomposition(char)
        and char not in FROM_DIGITS
    ]


def font_files() -> list[Path]:
    """Return the text fonts that matplotlib ships."""
    folder = Path(get_data_path(), "fonts", "ttf")
    return sorted(p for p in folder.glob("*.ttf") if p.name.startswith(FONTS) and "Display" not in p.name)


def render(char: str, font: ImageFont.FreeTypeFont) -> NDArray[np.bool_]:
    """Return the ink of one letter (CANVAS, CANVAS), its bounding box scaled to fill BOX and centred."""
    left, top, right, bottom = font.getbbox(char)
    image = Image.new("L", (int(right - left) + 1, int(bottom - top) + 1))
    ImageDraw.Draw(image).text((-left, -top), char, fill=255, font=font)
    image = image.crop(image.getbbox())
    ratio = BOX / max(image.size)
    width, height = (max(2, round(side * ratio)) for side in image.size)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(image.resize((width, height)), ((CANVAS - width) // 2, (CANVAS - height) // 2))
    return np.asarray(canvas) > 127


_RING = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))  # from north, clockwise


def thin(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the skeletons of images (G, H, W): Zhang and Suen 1984, until nothing changes."""
    ink, before = ink.copy(), -1
    while ink.sum() != before:
        before = ink.sum()
        for corner in (0, 4):  # first from the south-east, then from the north-west
            ring = [np.roll(ink, shift, (1, 2)) for shift in _RING]
            north, east, south, west = (ring[(corner + quarter) % 8] for quarter in (0, 2, 4, 6))
            num = np.sum(ring, 0, dtype=np.int8)
            pairs = zip(ring, ring[1:] + ring[:1], strict=True)
            turns = np.sum([~one & following for one, following in pairs], 0, dtype=np.int8)
            ink &= ~((num >= 2) & (num <= 6) & (turns == 1)) | (east & south & (north | west))
    return ink


def draw_all() -> Glyphs:
    """Render every letter in every font that has it."""
    chars, inks = [], []
    for path in font_files():
        covered = FT2Font(str(path)).get_charmap()
        font = ImageFont.truetype(str(path), 128)
        for char in letters():
            if ord(char) in covered:
                chars.append(char)
                inks.append(render(char, font))
    ink = np.stack(inks)
    skeleton = thin(ink)
    fields = np.stack([[_signed(a), -_distance(~b)] for a, b in zip(ink, skeleton, strict=True)])
    return Glyphs(fields.astype(np.float32), merge_lookalikes(np.array(chars), ink))


def _distance(mask: NDArray[np.bool_]) -> Floats:
    return np.asarray(distance_transform_edt(mask), np.float32)


def _signed(ink: NDArray[np.bool_]) -> Floats:
    return np.asarray(gaussian_filter(_distance(ink) - _distance(~ink), 0.7), np.float32)


def merge_lookalikes(chars: NDArray[np.str_], ink: NDArray[np.bool_]) -> Ints:
    """Return the class of each glyph; letters whose mean shapes correlate above SAME_SHAPE share one.

    So a Latin, a Greek and a Cyrillic A are one class, and so are o and O.
    """
    names, letter = np.unique(chars, return_inverse=True)
    soft = np.stack([gaussian_filter(one.astype(np.float32), 1.5)[::2, ::2].ravel() for one in ink])
    mean = np.stack([soft[letter == number].mean(0) for number in range(len(names))])
    distance = 1 - np.corrcoef(mean)
    tree = linkage(distance[np.triu_indices(len(names), 1)], "complete")
    of_letter = fcluster(tree, 1 - SAME_SHAPE, "distance") - 1
    return np.asarray(of_letter[letter], np.int64)


@dataclass(frozen=True)
class Letters:
    """Draws distorted letters of `classes`, all equally likely; seed and index settle a whole batch."""

    glyphs: Glyphs
    classes: Ints
    seed: int

    def batch(self, index: int, size: int = BATCH) -> tuple[Floats, Ints]:
        """Return images (size, SIZE, SIZE, 3) in [-1, 1] and their classes (size,)."""
        rng = np.random.default_rng((self.seed, index))
        order = np.argsort(self.glyphs.labels, kind="stable")
        counts = np.bincount(self.glyphs.labels)
        labels = rng.choice(self.classes, size)
        within = (rng.random(size) * counts[labels]).astype(np.int64)
        chosen = order[(np.cumsum(counts) - counts)[labels] + within]
        field = self.glyphs.fields[chosen, rng.integers(2, size=size)]
        ink = stroke(warp(field, distort(rng, size)), rng)
        return colour(coarsen(ink, rng), rng), labels


def uniform(rng: Rng, low: float, high: float, size: int) -> Floats:
    """Return numbers (size, 1, 1), to be broadcast over images."""
    return rng.uniform(low, high, (size, 1, 1)).astype(np.float32)


def normal(rng: Rng, spread: float, size: int) -> Floats:
    """Return numbers (size, 1, 1) around zero."""
    return rng.normal(0, spread, (size, 1, 1)).astype(np.float32)


def distort(rng: Rng, size: int) -> tuple[Floats, Floats]:
    """Return where each output pixel looks in a glyph: x and y (size, SIZE, SIZE), in [-1, 1] on the canvas.

    A random affine map (rotation, slant, stretch, scale, shift), and a smooth elastic displacement on top.
    """
    line = np.linspace(-1, 1, SIZE, dtype=np.float32)
    angle = np.radians(normal(rng, 9, size))
    slant = uniform(rng, -0.35, 0.35, size)
    scale = CANVAS / BOX / uniform(rng, 0.85, 1.25, size)  # 1: the glyph fills the frame
    stretch = np.exp(normal(rng, 0.22, size))
    x, y = line + uniform(rng, -0.12, 0.12, size), line[:, None] + uniform(rng, -0.12, 0.12, size)
    x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    x, y = (x + slant * y) * stretch, y / stretch
    strength = uniform(rng, 0, 0.14, size)
    bend_x, bend_y = (strength * enlarge(rng.standard_normal((size, 5, 5))) for _ in "xy")
    return (x + bend_x) / scale, (y + bend_y) / scale


def enlarge(images: NDArray[Any]) -> Floats:
    """Return images (N, S, S) at (N, SIZE, SIZE), bilinear with half-pixel centres, as Pillow does."""
    small = images.shape[1]
    at = np.clip((np.arange(SIZE) + 0.5) * small / SIZE - 0.5, 0, small - 1)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(small))).astype(np.float32)
    return np.asarray(weights @ images.astype(np.float32) @ weights.T)


def warp(fields: Floats, where: tuple[Floats, Floats]) -> Floats:
    """Read fields (N, CANVAS, CANVAS) at x, y (N, SIZE, SIZE), bilinearly; outside, the edge."""
    x, y = (np.clip((w + 1) * (CANVAS / 2) - 0.5, 0, CANVAS - 1.001) for w in where)
    column, row = x.astype(np.int32), y.astype(np.int32)
    x, y = x - column, y - row
    flat = fields.reshape(-1)
    at = (np.arange(len(fields))[:, None, None] * CANVAS + row) * CANVAS + column
    upper = flat[at] * (1 - x) + flat[at + 1] * x
    lower = flat[at + CANVAS] * (1 - x) + flat[at + CANVAS + 1] * x
    return np.asarray(upper * (1 - y) + lower * y, np.float32)


def stroke(field: Floats, rng: Rng) -> Floats:
    """Return ink in [0, 1]: the field above a random level, so thicker or thinner, with a soft edge.

    An outline (its largest distance is half the stroke) keeps its contrast of thick and thin.
    """
    half = np.maximum(field.max((1, 2), keepdims=True), 0)
    level = half - uniform(rng, 1.4, 5, len(field))
    softness = uniform(rng, 0.25, 1, len(field))
    return np.asarray(1 / (1 + np.exp(np.clip((level - field) / softness, -30, 30))), np.float32)


def coarsen(ink: Floats, rng: Rng) -> Floats:
    """Return some of the images as they look after a scan at 8 or 16 pixels, enlarged again."""
    ink, kind = ink.copy(), rng.random(len(ink))
    for small, chosen in ((8, kind < 0.6), (16, (kind >= 0.6) & (kind < 0.8))):
        block = SIZE // small
        means = ink[chosen].reshape(-1, small, block, small, block).mean((2, 4))
        ink[chosen] = enlarge(np.round(means * 16) / 16)
    return ink


def colour(ink: Floats, rng: Rng) -> Floats:
    """Return images (N, SIZE, SIZE, 3) in [-1, 1]: ink and paper of random grey and tint, and noise."""
    size = len(ink)
    dark, light = rng.uniform(-1.5, -0.3, size), rng.uniform(0.3, 1.5, size)  # clipped to [-1, 1] below
    flip = rng.random(size) < 0.5
    tint = rng.uniform(-0.15, 0.15, (2, size, 3)) * (rng.random(size) < 0.5)[:, None]
    paper, pen = ((np.where(flip ^ (side == 1), light, dark)[:, None] + tint[side])[:, None, None] for side in (0, 1))
    noise = rng.standard_normal((size, SIZE, SIZE, 1)) * rng.uniform(0, 0.12, (size, 1, 1, 1))
    return np.asarray(np.clip(paper + (pen - paper) * ink[..., None] + noise, -1, 1), np.float32)


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """`Letters` as Keras reads them: other images in every epoch."""

    def __init__(self, source: Letters) -> None:
        super().__init__()
        self.source, self.epoch = source, 0

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> tuple[Floats, Ints]:
        return self.source.batch(self.epoch * STEPS + index)

    def on_epoch_end(self) -> None:
        """Go on to the next images."""
        self.epoch += 1


def train(source: Letters, epochs: int) -> keras.Model:
    """Return a backbone trained to name the letters of `source` from its pooled last feature map."""
    backbone = glyphnet()
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.output)
    logits = keras.layers.Dense(int(source.glyphs.labels.max()) + 1)(pooled)
    model = keras.Model(backbone.input, logits)
    steps = epochs * STEPS
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps - steps // 20, warmup_target=0.1, warmup_steps=steps // 20)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    model.fit(Batches(source), epochs=epochs, verbose=2)
    return backbone


def features(backbone: keras.Model, images: Floats) -> Floats:
    """Return the mean of the last feature map over its positions (N, WIDTH)."""
    maps = backbone.predict(images, batch_size=128, verbose=0)
    return np.asarray(maps.mean((1, 2)), np.float32)


def digits() -> tuple[Floats, Ints]:
    """Return scikit-learn's 8x8 digits as images (1797, SIZE, SIZE, 3) in [-1, 1], and their classes."""
    bunch = load_digits()
    images = enlarge(bunch.images) / 8 - 1
    return np.repeat(images[..., None], 3, axis=3), bunch.target


def probe() -> Any:
    """Return the linear probe of every figure here."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))


def few_shot(x: Floats, y: Ints) -> str:
    """Return the accuracy on all other rows after SHOTS rows of each of WAYS random classes.

    As "mean +- standard deviation" over DRAWS draws.
    """
    accuracies = []
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        classes = rng.permutation(np.unique(y))[:WAYS]
        groups = [rng.permutation(np.flatnonzero(y == label)) for label in classes]
        shown = np.concatenate([rows[:SHOTS] for rows in groups])
        rest = np.concatenate([rows[SHOTS:] for rows in groups])
        accuracies.append(probe().fit(x[shown], y[shown]).score(x[rest], y[rest]))
    return f"{np.mean(accuracies):.3f} +- {np.std(accuracies):.3f}"


def report(backbone: keras.Model, heldout: Letters) -> None:
    """Print how well letters of unseen classes, and then digits, are told apart from SHOTS of each."""
    letters_x, letters_y = heldout.batch(0, 4000)
    images, y = digits()
    print("held-out letters, frozen      ", few_shot(features(backbone, letters_x), letters_y))
    inputs = {
        "raw pixels": load_digits().data,
        "random weights": features(glyphnet(), images),
        "frozen": features(backbone, images),
    }
    for name, x in inputs.items():
        half = train_test_split(x, y, test_size=0.3, stratify=y, random_state=0)
        all_rows = probe().fit(half[0], half[2]).score(half[1], half[3])
        print(f"digits, {name:<22}", few_shot(x, y), f"  with 70 % of the rows: {all_rows:.3f}")


def main() -> None:
    """Train, write the weights, and print the figures of the weights as they were written."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--epochs", type=int, default=36, help=f"of {STEPS * BATCH} letters (default: 36)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    glyphs = draw_all()
    classes = np.unique(glyphs.labels)
    heldout = classes % HELD_OUT == 0
    print(f"{len(glyphs.labels)} glyphs, {len(classes)} classes, {heldout.sum()} held out", flush=True)
    start = time.perf_counter()
    save_weights(train(Letters(glyphs, classes[~heldout], args.seed), args.epochs), args.out)
    print(f"trained in {time.perf_counter() - start:.0f} s; {args.out.stat().st_size} bytes")
    report(glyphnet(weights=args.out), Letters(glyphs, classes[heldout], args.seed + 1))


if __name__ == "__main__":
    main()
