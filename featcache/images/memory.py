"""Images that NumPy or Pillow hold as a source: each is handed on as the bytes of a file, so that all else is as there.

They may differ in shape. An image's path is its number: `000001`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from featcache.images.array_source import AnyArray, memory_arrays
from featcache.images.decode import Undecodable
from featcache.images.folder import Stamp

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
InMemory = AnyArray | Image.Image
IN_MEMORY = (np.ndarray, Image.Image)  # the same for isinstance


class MemorySource:
    """Images in memory. Raises DataError, saying what to do, if an array cannot be used as it is."""

    location = None

    def __init__(self, images: Sequence[InMemory]) -> None:
        self._images = images
        # Refuse an array now, and not in the middle of the work.
        for image in images:
            if isinstance(image, np.ndarray):
                memory_arrays(image[None], None, None, None)
        self.paths = [f"{number:06d}" for number in range(len(images))]

    def read(self, path: str) -> bytes:
        """Return one image as the bytes of a PGM, PPM or PNG file. Raises Undecodable."""
        image = self._images[int(path)]
        if isinstance(image, np.ndarray):
            return memory_arrays(image[None], None, None, None).read("000000")
        buffer = io.BytesIO()
        try:
            upright = ImageOps.exif_transpose(image)
            if upright.mode not in PNG_MODES:
                upright = upright.convert("RGB")
            # Compressing a photograph takes longer than computing its features. PPM has no transparent colour.
            is_plain = upright.mode in ("RGB", "L") and "transparency" not in upright.info
            upright.save(buffer, "PPM" if is_plain else "PNG", compress_level=1)
        except (OSError, ValueError) as error:  # Pillow reads a file's pixels only now
            raise Undecodable("unreadable", f"Pillow cannot read it: {error}") from error
        return buffer.getvalue()

    def stamp(self, path: str) -> Stamp:
        """Raise Undecodable: what lies in memory may change without a trace."""
        raise Undecodable("unreadable", "an image in memory has no stamp")
