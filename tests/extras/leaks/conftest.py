"""Pictures with something to see in them, as photographs have, no two alike; and copies of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from featcache.cache.reader import Cache
from featcache.extraction import extract

PIXELS = "pixels:size=8"
CLASSES = ("daisy", "iris", "rose")
SIZE = (96, 72)

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": lambda image: image,
    "resized": lambda image: image.resize((67, 50)),
    "mirrored": ImageOps.mirror,
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "cropped": lambda image: image.crop((6, 4, 90, 68)),
}


def picture(seed: int) -> Image.Image:
    """Return coarse and fine patches of colour, 96 x 72 pixels."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (high, wide, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        )
        for high, wide in ((3, 4), (9, 12), (18, 24))
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


def write_pictures(root: Path, per_class: int = 8, *, first: int = 0) -> Path:
    """Write class folders of pictures as PNG."""
    for number, label in enumerate(CLASSES):
        (root / label).mkdir(parents=True, exist_ok=True)
        for at in range(first, first + per_class):
            picture(1000 * number + at).save(root / label / f"{at:03d}.png")
    return root


def copy(source: Path, to: Path, change: str = "re-encoded", quality: int = 60) -> None:
    """Write a JPEG of an image, changed."""
    to.parent.mkdir(parents=True, exist_ok=True)
    CHANGES[change](Image.open(source)).save(to, quality=quality)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Return folders of train (48), val (12) and test (12 pictures)."""
    for name, per_class, first in (("train", 16, 0), ("val", 4, 20), ("test", 4, 30)):
        write_pictures(tmp_path / "photos" / name, per_class, first=first)
    return tmp_path / "photos"


@pytest.fixture
def cached(tmp_path: Path) -> Callable[[Path], Cache]:
    """Return a function that extracts a folder of images into c.h5."""
    return lambda images: extract(images, PIXELS, out=tmp_path / "c.h5")
