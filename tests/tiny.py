"""Tiny images of three colours, all different; nothing is downloaded."""

from pathlib import Path

import numpy as np
from PIL import Image

TOY = "glyphnet:weights=none"  # builds in under a second
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 40, 50)}


def write_images(root: Path, per_class: int = 12, *, seed: int = 0, first: int = 0) -> Path:
    """Write class folders of noisy images of one colour each: 20 x 16 pixels, no two alike."""
    for number, (label, colour) in enumerate(COLOURS.items()):
        (root / label).mkdir(parents=True, exist_ok=True)
        for at in range(first, first + per_class):
            rng = np.random.default_rng([seed, number, at])
            pixels = np.clip(np.array(colour) + rng.normal(0, 90, (16, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{at:03d}.png")
    return root
