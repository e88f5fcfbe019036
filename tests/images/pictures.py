"""A picture with four coloured corners, in any format, and what is seen of it."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

CORNERS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]  # top left, top right, bottom left, bottom right
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def four_corners(width=48, height=32):
    image = Image.new("RGB", (width, height))
    for number, colour in enumerate(CORNERS):
        image.paste(colour, (number % 2 * width // 2, number // 2 * height // 2, width, height))
    return image


def saved(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def corners_of(pixels):
    pixels = np.asarray(pixels)
    return [tuple(int(value) for value in pixels[y, x]) for y in (2, -3) for x in (2, -3)]


def is_near(found, wanted, within=12):
    return np.abs(np.array(found, int) - np.array(wanted, int)).max() <= within


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
