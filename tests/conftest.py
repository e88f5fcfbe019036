"""Tiny images of three colours, and the embedded backbone with random weights: nothing is downloaded, no GPU is needed."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
from featcache.cache.reader import Cache
from featcache.extraction import extract
from featcache.sweeps import Run, sweep
from PIL import Image

TOY = "glyphnet:weights=none"  # builds in under a second
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 40, 50)}
SHARED = Path(__file__).parents[2] / "shared"


def write_images(root: Path, per_class: int = 12, *, seed: int = 0, first: int = 0) -> Path:
    """Write class folders of noisy images of one colour each: 20 x 16 pixels, no two alike."""
    for number, (label, colour) in enumerate(COLOURS.items()):
        (root / label).mkdir(parents=True, exist_ok=True)
        for at in range(first, first + per_class):
            rng = np.random.default_rng([seed, number, at])
            pixels = np.clip(np.array(colour) + rng.normal(0, 90, (16, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{at:03d}.png")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of 3 classes x 12 images."""
    return write_images(tmp_path / "photos")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Return a cache of 3 classes x 30 images with the taps of the toy backbone and of raw pixels. Do not change it."""
    folder = tmp_path_factory.mktemp("toy")
    photos = write_images(folder / "photos", per_class=30)
    return extract(photos, [TOY, "pixels:size=8"], out=folder / "toy.h5")


@pytest.fixture(scope="session")
def toy_run(toy: Cache) -> Run:
    """Return a run with every kind of head on the toy cache. Do not change it."""
    return sweep(toy, "ridge,logreg,svm,softmax,knn,mlp:8", taps=["glyphnet:weights=none/top"])


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real photographs and weights, or skip."""
    if not SHARED.is_dir():
        pytest.skip("the real photographs and weights (../shared) are not on this machine")
    return SHARED
