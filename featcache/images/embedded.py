"""The embedded images: scikit-learn's handwritten digits as a folder of class folders.

1,797 images of 8 x 8 pixels (UCI Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak
1998, https://doi.org/10.24432/C50P49), written as grey PNG files `<digit>/<number>.png`.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from featcache.files import disk_faults
from featcache.outputs import Kind, check_output

HEADER_BYTES = 33  # of a PNG file: size, depth and kind of the picture


def write_digits(root: Path, *, force: bool = False) -> Path:
    """Write the digits under `root`, where they are not there already, and return `root`.

    force: replace files in their places that are none of them. Raises UsageError, DiskFault.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for number, (image, digit) in enumerate(zip(pixels, digits.target, strict=True)):
        path = root / str(digit) / f"{number:04d}.png"
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        data = buffer.getvalue()
        if path.exists():
            # A second run changes no file, so caches of the digits stay up to date.
            if path.read_bytes() == data:
                continue
            check_output(path, _digit_kind(data), force=force)
        with disk_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


def _digit_kind(data: bytes) -> Kind:
    """Return the kind that tells a digit, whole or cut off while it was written, from a picture of the user."""

    def is_ours(path: Path) -> bool:
        content = path.read_bytes()
        return data.startswith(content) or content.startswith(data[:HEADER_BYTES])

    return Kind("digit of featcache", is_ours)
