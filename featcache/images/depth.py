"""Values of more than 8 bits -> 8 bits, and how many of their bits are in use.

A 16-bit file rarely says which value is white. A viewer takes 65535; a 12-bit camera means 4095 (`bits` = 12).
Pillow keeps only the high byte of 16-bit colours. The low byte comes from reading the file again in the other byte
order: value = 256 * high + low.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from featcache.arrays import Pixels
from featcache.images.kinds import CLIPPED, NO_DATA, NUMBERS, of_bits
from featcache.spec import ALL_BITS

Values = np.ndarray[Any, Any]

PHOTOMETRIC, BITS_PER_SAMPLE, GDAL_NODATA = 262, 258, 42113  # tags of TIFF
WHITE_IS_ZERO = 0
# Written where there is no measurement, often without a tag that says so: GDAL, int16 rasters, ESRI
NO_DATA_VALUES = (-9999.0, -32767.0, -32768.0, float(np.finfo(np.float32).min))
SPLIT_MODES = ("RGB;16", "RGBX;16", "RGBA;16")  # Pillow's names of 16-bit colours that it reads in both byte orders
J2K_START, J2K_PRECISION = b"\xff\x4f\xff\x51", 42  # where a JPEG 2000 codestream begins; of a channel, behind it


def is_sixteen_bit(image: ImageFile, data: bytes) -> bool:
    """Return whether a channel has 16 bits and nothing says which value is white. Ask before the image is loaded."""
    if image.format == "JPEG2000":
        at = data.find(J2K_START) + J2K_PRECISION
        return at < len(data) and (data[at] & 0x7F) + 1 == ALL_BITS
    rawmode = _rawmode(image)
    if isinstance(image, PpmImageFile) and rawmode in ("L", "RGB"):
        return _maximum(image) == 65535
    return ";16" in rawmode and not rawmode.endswith("S") and image.mode != "CMYK"


def is_plain_ppm(image: ImageFile) -> bool:
    """Return whether the values of a PPM lie in the file as numbers of two bytes. Ask before the image is loaded."""
    return isinstance(image, PpmImageFile) and image.mode == "RGB" and image.tile[0].codec_name == "ppm"


def ppm_values(image: ImageFile, data: bytes) -> Values:
    """Return the (H, W, 3) uint16 values of a PPM of 16 bits. Raises ValueError if the file is cut off."""
    shape = (image.height, image.width, 3)
    size, offset = math.prod(shape), image.tile[0].offset
    if len(data) < offset + 2 * size:
        raise ValueError("the file is truncated")
    return np.frombuffer(data, ">u2", size, offset).reshape(shape).astype(np.uint16)


def read_low_bytes(image: ImageFile) -> bool:
    """Have Pillow read the low bytes of 16-bit colours; return whether it can. Call it before the image is loaded."""
    rawmode = _rawmode(image)
    if rawmode[:-1] not in SPLIT_MODES:
        return False
    order = rawmode[-1].replace("N", "L" if sys.byteorder == "little" else "B")
    other = rawmode[:-1] + ("B" if order == "L" else "L")
    tiles = []
    for tile in image.tile:
        args = other if isinstance(tile.args, str) else (other, *(tile.args or ())[1:])
        tiles.append(tile._replace(args=args))
    image.tile = tiles
    return True


def scaled_colours(values: Values, bits: int, kinds: set[str]) -> Image.Image:
    """Return 16-bit colours as 8-bit ones, white being 2**bits - 1; transparency always has 16 bits."""
    top = 2**bits - 1
    has_alpha = values.shape[2] in (2, 4)
    colours = values[..., :-1] if has_alpha else values
    _note_bits(int(colours.max()), bits, kinds)
    table = np.rint(np.minimum(np.arange(65536), top) * (255 / top)).astype(np.uint8)
    scaled = table[values]
    if has_alpha:
        scaled[..., -1] = values[..., -1] >> 8
    return Image.fromarray(scaled)


def note_colours(image: Image.Image, kinds: set[str]) -> None:
    """Note how many bits the values of a 16-bit colour image use. Of each the high byte is known."""
    highest = int(np.asarray(image.convert("RGB")).max())
    _note_bits(256 * highest + 255, ALL_BITS, kinds)


def eight_bit(image: Image.Image, is_sixteen: bool, bits: int, kinds: set[str]) -> Pixels:
    """Return grey values of more than 8 bits as (H, W) uint8.

    16 bit by its range, or by 2**bits - 1. 32 bit and floats by the least of 1, 255 and 65535 (or 2**bits - 1) that
    holds them, else from their least to their largest. What is not finite, or stands for no data, becomes black and
    does not count for the range; the one value that stands for transparency becomes white.
    """
    values = np.asarray(image)
    is_wide = image.mode.startswith("I;16") or image.format == "PPM"
    wide = values.astype(np.float64)
    is_filled = _is_tagged_empty(image, wide)
    is_measured = np.isfinite(wide) & ~is_filled
    if not is_wide:
        kinds.add(NUMBERS)
        least = wide[is_measured].min(initial=0.0)
        if least in NO_DATA_VALUES:
            is_filled |= wide == least
            is_measured &= ~is_filled
    if not is_measured.all():
        kinds.add(NO_DATA)
        wide[~is_measured] = wide[is_measured].min() if is_measured.any() else 0.0
    low, high = wide.min(), wide.max()

    top = 2.0**bits - 1
    tops = [_declared_top(image)] if is_wide else [1.0, 255.0, 65535.0]
    has_own_range = bool(is_filled.any()) and not is_wide
    if has_own_range:
        # Heights or temperatures, which have no white of their own: the largest becomes white
        tops = [1.0, 255.0, max(256.0, float(high))]
    takes_bits = low >= 0 and (is_sixteen if is_wide else high > 255 or (image.mode == "I" and bits < ALL_BITS))
    if takes_bits and (bits < ALL_BITS or (high <= 65535 and not has_own_range)):
        _note_bits(int(np.ceil(high)), bits, kinds)
    if takes_bits and bits < ALL_BITS:
        low, high = 0.0, top
    elif low >= 0 and high <= tops[-1]:
        low, high = 0.0, next(top for top in tops if high <= top)

    scaled = np.rint((np.minimum(wide, high) - low) / (high - low or 1.0) * 255)
    if _is_white_zero(image):
        scaled = 255 - scaled
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[values == transparent] = 255
    scaled[~is_measured] = 0
    return np.asarray(scaled, dtype=np.uint8)


def _note_bits(highest: int, bits: int, kinds: set[str]) -> None:
    if highest > 2**bits - 1:
        kinds.add(CLIPPED)
    kinds.add(of_bits(highest.bit_length()))


def _is_tagged_empty(image: Image.Image, wide: Values) -> Values:
    """Return where a TIFF says by GDAL's tag that there is no data."""
    text = str(image.tag_v2.get(GDAL_NODATA, "")) if isinstance(image, TiffImageFile) else ""
    try:
        number = float(text.strip("\0 "))
    except ValueError:
        return np.zeros(wide.shape, bool)
    # Text has the digits of a double, while the values were rounded to floats
    with np.errstate(over="ignore"):
        rounded = float(np.float32(number)) if image.mode == "F" else number
    return np.asarray((wide == number) | (wide == rounded))


def _declared_top(image: Image.Image) -> float:
    """Return the white of a 16-bit grey image: of a TIFF of 12 bits, which Pillow reads as 16, it is 4095."""
    bits = image.tag_v2.get(BITS_PER_SAMPLE, ()) if isinstance(image, TiffImageFile) else ()
    return 4095.0 if bits == (12,) else 65535.0


def _is_white_zero(image: Image.Image) -> bool:
    """Return whether a TIFF says that 0 is white. Pillow turns such images round only up to 8 bits."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO


def _rawmode(image: ImageFile) -> str:
    """Return Pillow's name of how the values lie in the file; "" if it is not known."""
    args = image.tile[0].args if image.tile else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _maximum(image: PpmImageFile) -> int:
    """Return the white of a PGM or PPM."""
    args = image.tile[0].args
    return int(args[1]) if isinstance(args, tuple) else 255
