"""Values of more than 8 bits -> 8 bits, and how many of their bits are in use.

A 16-bit file rarely says which value is white. Viewers take 65535; a 12-bit camera means 4095 (`bits` = 12).
Pillow keeps only the high byte of 16-bit colours. Reading the file again in the other byte order gives the low byte:
value = 256 * high + low.
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
# Values that mean "not measured", often without a tag that says so: in GDAL, int16 rasters, ESRI
NO_DATA_VALUES = (-9999.0, -32767.0, -32768.0, float(np.finfo(np.float32).min))
SPLIT_MODES = ("RGB;16", "RGBX;16", "RGBA;16")  # Pillow's names of 16-bit colours that it reads in both byte orders
J2K_START = b"\xff\x4f\xff\x51"  # begins a JPEG 2000 codestream
J2K_PRECISION = 42  # offset from there of the byte with the bits of the first channel, less one


def is_sixteen_bit(image: ImageFile, data: bytes) -> bool:
    """Return whether a channel has 16 bits and nothing says which value is white. Ask before the image is loaded."""
    if image.format == "JPEG2000":
        offset = data.find(J2K_START) + J2K_PRECISION
        return offset < len(data) and (data[offset] & 0x7F) + 1 == ALL_BITS  # the highest bit says "signed"
    rawmode = _rawmode(image)
    if isinstance(image, PpmImageFile) and rawmode in ("L", "RGB"):
        # Pillow's decoder gets the largest value, which is white, as its second argument.
        args = image.tile[0].args
        return isinstance(args, tuple) and int(args[1]) == 65535
    return ";16" in rawmode and not rawmode.endswith("S") and image.mode != "CMYK"


def is_plain_ppm(image: ImageFile) -> bool:
    """Return whether an image is a colour PPM with two bytes per value. Ask before the image is loaded."""
    return isinstance(image, PpmImageFile) and image.mode == "RGB" and image.tile[0].codec_name == "ppm"


def ppm_values(image: ImageFile, data: bytes) -> Values:
    """Return the (H, W, 3) uint16 values of a PPM of 16 bits. Raises ValueError if the file is cut off."""
    shape = (image.height, image.width, 3)
    num_values = math.prod(shape)
    offset = image.tile[0].offset
    if len(data) < offset + 2 * num_values:
        raise ValueError("the file is truncated")
    values = np.frombuffer(data, ">u2", num_values, offset)
    return values.reshape(shape).astype(np.uint16)


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
    """Return 16-bit colours as 8-bit colours; 2**bits - 1 becomes white. Transparency always uses all 16 bits."""
    white = 2**bits - 1
    has_alpha = values.shape[2] in (2, 4)
    colours = values[..., :-1] if has_alpha else values
    _note_bits(int(colours.max()), bits, kinds)
    # A table of all 65,536 results is much faster than arithmetic on every pixel.
    clipped = np.minimum(np.arange(65536), white)
    scaled_of = np.rint(clipped * (255 / white)).astype(np.uint8)
    scaled = scaled_of[values]
    if has_alpha:
        scaled[..., -1] = values[..., -1] >> 8
    return Image.fromarray(scaled)


def note_colours(image: Image.Image, kinds: set[str]) -> None:
    """Note how many bits the values of a 16-bit colour image use. `image` holds their high bytes."""
    highest = int(np.asarray(image.convert("RGB")).max())
    _note_bits(256 * highest + 255, ALL_BITS, kinds)


def eight_bit(image: Image.Image, is_sixteen: bool, bits: int, kinds: set[str]) -> Pixels:
    """Return grey values of more than 8 bits as (H, W) uint8: round((value - low) / (high - low) * 255).

    16-bit values: low is 0 and high is 65535, or 2**bits - 1. 32-bit and floating-point values: low is 0 and high is
    the smallest of 1, 255 and 65535 (or 2**bits - 1) that is not exceeded; if none fits or a value is negative, low and
    high are the smallest and the largest value. Values that are not finite, or that mean "no data", become black and do
    not count for the range. A value that stands for transparency becomes white.
    """
    values = np.asarray(image)
    is_integer_16 = image.mode.startswith("I;16") or image.format == "PPM"
    numbers = values.astype(np.float64)
    is_no_data = _is_no_data(image, numbers, is_integer_16)
    is_measured = np.isfinite(numbers) & ~is_no_data
    if not is_integer_16:
        kinds.add(NUMBERS)
    if not is_measured.all():
        # For now these places take the least measured value, so that they do not set the range; below they become
        # black.
        kinds.add(NO_DATA)
        numbers[~is_measured] = numbers[is_measured].min() if is_measured.any() else 0.0

    # Which of its bits the image uses, as far as its values are bits of an image at all.
    smallest = numbers.min()
    largest = numbers.max()
    is_measurement = bool(is_no_data.any()) and not is_integer_16
    has_bits = is_sixteen
    if not is_integer_16:
        has_bits = largest > 255 or (image.mode == "I" and bits < ALL_BITS)
    has_bits = has_bits and smallest >= 0
    is_white_known = has_bits and bits < ALL_BITS
    if is_white_known or (has_bits and largest <= 65535 and not is_measurement):
        _note_bits(int(np.ceil(largest)), bits, kinds)

    # Which values become black (low) and white (high).
    low = smallest
    high = largest
    whites = [_declared_white(image)] if is_integer_16 else [1.0, 255.0, 65535.0]
    if is_measurement:
        # Heights or temperatures, for which no value means white: the largest becomes white.
        whites = [1.0, 255.0, max(256.0, float(largest))]
    if is_white_known:
        low = 0.0
        high = 2.0**bits - 1
    elif smallest >= 0 and largest <= whites[-1]:
        low = 0.0
        high = next(white for white in whites if largest <= white)

    value_range = high - low or 1.0  # an image of one value is black
    # In one expression, so that NumPy needs no further array of this size.
    scaled = np.rint((np.minimum(numbers, high) - low) / value_range * 255)
    # Pillow inverts images whose 0 is white only up to 8 bits.
    is_white_zero = isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    if is_white_zero:
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


def _is_no_data(image: Image.Image, numbers: Values, is_integer_16: bool) -> Values:
    """Return (H, W) bool: where values mean "no data", by a tag or because they are one of the usual values."""
    is_no_data = _is_tagged_no_data(image, numbers)
    if not is_integer_16:
        is_measured = np.isfinite(numbers) & ~is_no_data
        smallest = numbers[is_measured].min(initial=0.0)
        if smallest in NO_DATA_VALUES:
            is_no_data |= numbers == smallest
    return is_no_data


def _is_tagged_no_data(image: Image.Image, numbers: Values) -> Values:
    """Return (H, W) bool: where the values are the one that GDAL's tag of a TIFF declares to be no data."""
    text = str(image.tag_v2.get(GDAL_NODATA, "")) if isinstance(image, TiffImageFile) else ""
    try:
        no_data = float(text.strip("\0 "))
    except ValueError:
        return np.zeros(numbers.shape, bool)
    # The tag is text with the digits of a double, but the values may have been rounded to 32 bits.
    rounded = no_data
    if image.mode == "F":
        with np.errstate(over="ignore"):
            rounded = float(np.float32(no_data))
    return np.asarray((numbers == no_data) | (numbers == rounded))


def _declared_white(image: Image.Image) -> float:
    """Return the white of a 16-bit grey image. Pillow reads TIFFs of 12 bits as 16 bits too: there it is 4095."""
    is_twelve_bit = isinstance(image, TiffImageFile) and image.tag_v2.get(BITS_PER_SAMPLE) == (12,)
    return 4095.0 if is_twelve_bit else 65535.0


def _rawmode(image: ImageFile) -> str:
    """Return Pillow's name for the layout of the values in the file; "" if it is not known."""
    if not image.tile:
        return ""
    # Decoders take their arguments in a tuple, or one alone; the layout is the first.
    args = image.tile[0].args
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""
