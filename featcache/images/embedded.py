"""The embedded images: scikit-learn's handwritten digits as a folder of class folders.

1,797 images of 8 x 8 pixels (UCI Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak
1998, https://doi.org/10.24432/C50P49), written as grey PNG files `<digit>/<number>.png`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_digits(root: Path) -> Path:
    """Write the digits under `root`, where they are not there already, and return `root`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for number, (image, digit) in enumerate(zip(pixels, digits.target, strict=True)):
        path = root / str(digit) / f"{number:04d}.png"
        data = _png(image)
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


def _png(image: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
