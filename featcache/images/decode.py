"""Bytes of an image file -> pixels as an image viewer would show them, at the size the backbone takes.

Pillow decodes and resizes: antialiased, and bilinear unless a preset of keras-hub says otherwise. EXIF
orientation is applied, 16 bit is scaled rather than clipped, transparency is laid on white, of an
animation the first frame is taken. Whatever cannot be decoded, or Pillow would decode to another
picture, raises Undecodable with a status and a reason; no file makes anything else happen. What is
shown otherwise than it may be meant is noted by kind (`kinds`).
"""

from __future__ import annotations

import ctypes
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from math import ceil
from threading import Lock
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, _imaging
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import PREFIXES, ImageFileDirectory_v2, TiffImageFile

from featcache.arrays import Pixels
from featcache.images.augment import augmented
from featcache.images.depth import (
    Values,
    eight_bit,
    is_plain_ppm,
    is_sixteen_bit,
    note_colours,
    ppm_values,
    read_low_bytes,
    scaled_colours,
)
from featcache.images.kinds import ALPHA_TIFF, BANDS, COARSE, FRAMES, PAGES, TRANSPARENT
from featcache.images.views import WHOLE_IMAGE, Box, frame_of, parse_views
from featcache.spec import ALL_BITS, DRAFT_VERSION, IDENTITY, Interpolation, Preprocess

__all__ = [
    "MAX_PIXELS",
    "Picture",
    "Undecodable",
    "check_image",
    "decode",
    "decode_picture",
    "decode_views",
    "parse_views",
    "thumbnail",
    "upright_rgb",
]

MAX_PIXELS = 178_956_970  # Pillow's own limit for an error: 537 MB as RGB
LARGE_PIXELS = 2**25  # 100 MB as RGB
# At 224 pixels only 1 of the gaps 1, 1.5 and 2 makes a difference for photographs of 500: 2.0 times as many a second
# on one thread (flowers17, MobileNetV2: cosine of the features .998, accuracy .936 for .935).
DRAFT_GAP = 1.0
_ONE_LARGE = Lock()
# Tags of TIFF
SUBFILE, BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES, PLANES, NUMBER_FORMAT = 254, 258, 262, 277, 284, 339
NUMBER_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
SAVE_PLANES = "save it interleaved (GDAL: INTERLEAVE=PIXEL) or compressed"
REDUCED_OR_MASK = 1 | 4  # of SUBFILE: such a page belongs to the picture of another
MOST_PAGES = 64  # that are looked at
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
RESAMPLING: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "lanczos3": Image.Resampling.LANCZOS,
}

# Pillow would also open EPS, and hand it to Ghostscript, which runs it as a program
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "HEIF")

with suppress(ImportError):  # featcache[heif]
    from pillow_heif import register_heif_opener

    register_heif_opener()

# Between half the limit and the limit Pillow warns; the limit is checked here from the header. Of damaged files it
# warns as well, without saying which.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")
# What Pillow logs of files that it does not read would go to stderr
logging.getLogger("PIL").addHandler(logging.NullHandler())
# libtiff prints there by itself, a line for each tag that it does not know. What matters comes as an exception, too.
with suppress(AttributeError, OSError):  # it is built into Pillow, or Pillow has none
    libtiff = ctypes.CDLL(_imaging.__file__)
    libtiff.TIFFSetWarningHandler(None)
    libtiff.TIFFSetErrorHandler(None)


class Undecodable(Exception):
    """An image that gives no pixels. `status` is one word, `reason` a sentence."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


class Picture(NamedTuple):
    """The pixels of each view of an image, and the kinds (`kinds`) that it is of."""

    views: list[Pixels]  # (size, size, 3) uint8
    kinds: frozenset[str]


def decode(data: bytes, preprocess: Preprocess) -> Pixels:
    """Return the whole image as (size, size, 3) uint8. Raises Undecodable."""
    return decode_views(data, preprocess, [IDENTITY], "")[0]


def decode_views(data: bytes, preprocess: Preprocess, views: Sequence[str], digest: str) -> list[Pixels]:
    """Return one (size, size, 3) uint8 array per view. Raises Undecodable.

    The image is decoded once; a draft is decoded once for each crop.
    digest: SHA-256 of `data`, which decides what the crops show.
    """
    return decode_picture(data, preprocess, views, digest).views


def decode_picture(data: bytes, preprocess: Preprocess, views: Sequence[str], digest: str) -> Picture:
    """Return what `decode_views` returns, with the kinds of the image. Raises Undecodable."""
    frames = [frame_of(view, digest) for view in views]
    boxes = list(dict.fromkeys(frame.box for frame in frames))
    kinds: set[str] = set()
    pixels_of_box: dict[Box, Pixels] = {}
    if preprocess.is_draft:
        # The scale that is enough depends on the box, so a draft is decoded again for each.
        for box in boxes:
            pixels_of_box |= _decoded(data, preprocess, [box], kinds)
    else:
        pixels_of_box = _decoded(data, preprocess, boxes, kinds)

    shown: list[Pixels] = []
    for view, frame in zip(views, frames, strict=True):
        pixels = pixels_of_box[frame.box]
        if frame.mirrored:
            pixels = pixels[:, ::-1]
        shown.append(augmented(np.ascontiguousarray(pixels), view, digest))
    return Picture(shown, frozenset(kinds))


def _decoded(data: bytes, preprocess: Preprocess, boxes: Sequence[Box], kinds: set[str]) -> dict[Box, Pixels]:
    """Return {part of the image: its pixels}, from decoding once. A draft is decoded at the scale of the first box."""
    image = _opened(data)
    if preprocess.is_draft:
        _draft(image, preprocess, boxes[0])
    with _room_for(image), _undecodable():
        upright = _loaded(image, data, preprocess.bits, kinds)
        pixels_of_box: dict[Box, Pixels] = {}
        for box in boxes:
            # Cut before resizing, so that a crop keeps the detail that the file has.
            resized = _resized(_cut(upright, box), preprocess)
            pixels_of_box[box] = np.asarray(resized.convert("RGB"))
        return pixels_of_box


def upright_rgb(data: bytes) -> Image.Image:
    """Return the whole image, upright and in RGB. Raises Undecodable."""
    image = _opened(data)
    with _undecodable():
        return _loaded(image, data, ALL_BITS, set()).convert("RGB")


def thumbnail(data: bytes, side: int, bits: int = ALL_BITS) -> tuple[Pixels, tuple[int, int]]:
    """Return the whole image stretched to (side, side) uint8 greys, and its (width, height) as shown.

    JPEGs are decoded at reduced scale, but never at less than twice `side`. bits: as in `Preprocess`.
    Raises Undecodable.
    """
    image = _opened(data)
    size = image.size
    _draft(image, Preprocess(2 * side, decode=DRAFT_VERSION), WHOLE_IMAGE)
    stored = image.size
    with _room_for(image), _undecodable():
        upright = _loaded(image, data, bits, set())
        if upright.size != stored:
            size = size[::-1]  # EXIF turned it by 90 degrees
        twice = upright.convert("L").resize((2 * side, 2 * side), Image.Resampling.BILINEAR)
        return np.asarray(twice.reduce(2)), size


def check_image(data: bytes) -> tuple[tuple[int, int], frozenset[str]]:
    """Return (width, height) of an image that decodes, as it is stored, and its kinds. Raises Undecodable."""
    image = _opened(data)
    size = image.size
    kinds: set[str] = set()
    with _room_for(image), _undecodable():
        _loaded(image, data, ALL_BITS, kinds)
    return size, frozenset(kinds)


def _opened(data: bytes) -> ImageFile:
    if not data:
        raise Undecodable("empty", "the file has no bytes")
    try:
        Image.init()
        formats = [name for name in FORMATS if name in Image.OPEN]  # without those that this Pillow was built without
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise Undecodable("unknown_format", _unknown(data)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Undecodable("too_big", _one_line(error)) from error
    except Exception as error:
        raise Undecodable("unreadable", _one_line(error)) from error
    # From the header: decoding would take the memory first.
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Undecodable("too_big", f"{width} x {height} pixels, more than {MAX_PIXELS}")
    if isinstance(image, TiffImageFile) and _is_misread(image):
        raise Undecodable("unreadable", f"Pillow misreads {_layout(image.tag_v2)}, in separate planes; {SAVE_PLANES}")
    return image


def _unknown(data: bytes) -> str:
    """Return why Pillow cannot open a file. For a TIFF, describe what the file holds."""
    if data[:4] in PREFIXES:
        is_big_tiff = 43 in data[2:4]  # BigTIFF has a header of 16 bytes, other TIFFs have 8
        with suppress(Exception):  # the directory may be damaged in any way
            directory = ImageFileDirectory_v2(data[: 16 if is_big_tiff else 8])
            file = io.BytesIO(data)
            file.seek(directory.next)
            directory.load(file)
            return f"Pillow does not read {_layout(directory)}; save it as grey or RGB of 8 or 16 bits"
    return "not an image in a format that Pillow reads"


def _layout(directory: ImageFileDirectory_v2) -> str:
    """Return what a page of a TIFF holds: 'a TIFF with 13 bands of 16 bits (unsigned)'."""
    bits = directory.get(BITS_PER_SAMPLE, (1,))
    num_bands = directory.get(SAMPLES, len(bits))
    bands = "1 band" if num_bands == 1 else f"{num_bands} bands"
    kind = NUMBER_FORMATS.get(directory.get(NUMBER_FORMAT, (1,))[0], "unknown numbers")
    if directory.get(PHOTOMETRIC) == 0:
        kind += ", white is zero"
    return f"a TIFF with {bands} of {max(bits)} bits ({kind})"


def _is_misread(image: TiffImageFile) -> bool:
    """Return whether Pillow would read separate, uncompressed planes as if their values had 8 bits.

    For each plane Pillow takes one letter of its raw mode ("RGB;16L"), which loses how many bits a value has.
    """
    tags = image.tag_v2
    is_interleaved = tags.get(PLANES, 1) == 1
    if is_interleaved or not image.tile or image.tile[0].codec_name != "raw":
        return False
    if tags.get(PHOTOMETRIC) == 0:
        return True  # white is zero, which the letter does not say either
    bits = set(tags.get(BITS_PER_SAMPLE, (1,)))
    is_native_float = image.mode == "F" and tags.prefix == b"II"
    is_bytes = bits == {8} or image.mode == "1"
    return not is_bytes and not is_native_float


@contextmanager
def _undecodable() -> Iterator[None]:
    """Raise Undecodable whatever happens: Pillow's plugins raise almost anything on damaged files."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise Undecodable("too_big", _one_line(error)) from error
    except MemoryError as error:
        raise Undecodable("no_memory", "there was not enough memory to decode it; try again") from error
    except Exception as error:
        status = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise Undecodable(status, _one_line(error)) from error


def _room_for(image: Image.Image) -> AbstractContextManager[object]:
    """Wait until no other thread decodes a large image if this one is large: memory must not grow with the threads."""
    return _ONE_LARGE if image.width * image.height > LARGE_PIXELS else nullcontext()


def _draft(image: Image.Image, preprocess: Preprocess, box: Box) -> None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 if the box is then still `DRAFT_GAP` times as large as the result."""
    if not isinstance(image, JpegImageFile):
        return
    side = preprocess.size * DRAFT_GAP / min(box.right - box.left, box.bottom - box.top)
    width, height = image.size
    # Padding fits the longer side into the square, the other ways of resizing fill it with the shorter side.
    fitted = max(width, height) if preprocess.resize == "pad" else min(width, height)
    share = side / fitted
    image.draft(None, (ceil(share * width), ceil(share * height)))


def _loaded(image: ImageFile, data: bytes, bits: int, kinds: set[str]) -> Image.Image:
    """Return an opened image upright, in RGB or grey (L), and add its kinds to `kinds`. bits: as in `Preprocess`."""
    # Ask before loading: afterwards Pillow no longer says how the values lie in the file.
    is_sixteen = is_sixteen_bit(image, data)
    is_colour = is_sixteen and not image.mode.startswith("I")
    if is_colour and (bits < ALL_BITS or is_plain_ppm(image)):
        # Pillow by itself keeps only the high byte of each value.
        values = _colour_values(image, data, kinds)
        scaled = scaled_colours(values, bits, kinds)
        shown = _rgb_or_grey(scaled, False, bits, kinds)
    else:
        image.load()
        upright = _upright(image)
        if is_colour:
            note_colours(upright, kinds)
        shown = _rgb_or_grey(upright, is_sixteen, bits, kinds)
    # After the pixels were taken: this leaves the image at another page.
    _note_structure(image, kinds)
    return shown


def _colour_values(image: ImageFile, data: bytes, kinds: set[str]) -> Values:
    """Return the (H, W, C) uint16 values of a 16-bit colour image, upright. Note if only the high bytes can be read."""
    if is_plain_ppm(image):
        return ppm_values(image, data)
    # Pillow keeps the first byte of each value that it reads. In the other byte order, that is the low byte.
    swapped = _opened(data)
    can_read_low = read_low_bytes(swapped)
    high: Values = np.asarray(_upright(image)).astype(np.uint16)
    if not can_read_low:
        kinds.add(COARSE)
        return high * np.uint16(257)  # 255 becomes 65535
    low: Values = np.asarray(_upright(swapped)).astype(np.uint16)
    values: Values = high << 8 | low
    return values


def _note_structure(image: ImageFile, kinds: set[str]) -> None:
    """Note bands, pages and frames of the file that are not shown. Leaves the image at another page."""
    if isinstance(image, TiffImageFile):
        if image.tag_v2.get(SAMPLES, 1) > len(image.getbands()):
            kinds.add(BANDS)
        if _has_pages(image):
            kinds.add(PAGES)
    elif image.format in ANIMATED and getattr(image, "is_animated", False):
        kinds.add(FRAMES)


def _has_pages(image: TiffImageFile) -> bool:
    """Return whether the file has another picture than its first page, such as the next slice of a stack.

    Masks are no pictures, nor are smaller forms of the first page, as in pyramids.
    """
    num_pixels = image.width * image.height
    with suppress(Exception):  # EOFError behind the last page, and anything on damaged ones
        for number in range(1, MOST_PAGES):
            image.seek(number)
            is_picture = not int(image.tag_v2.get(SUBFILE, 0)) & REDUCED_OR_MASK
            # Some programs do not mark the smaller forms, which have a quarter of the pixels at most.
            if is_picture and 3 * image.width * image.height > num_pixels:
                return True
    return False


def _cut(image: Image.Image, box: Box) -> Image.Image:
    """Return a part of the image, rounded to whole pixels and at least one pixel wide and high."""
    if box == WHOLE_IMAGE:
        return image
    left = int(box.left * image.width)
    top = int(box.top * image.height)
    width = max(1, round((box.right - box.left) * image.width))
    height = max(1, round((box.bottom - box.top) * image.height))
    right = min(left + width, image.width)
    bottom = min(top + height, image.height)
    return image.crop((left, top, right, bottom))


def _upright(image: Image.Image) -> Image.Image:
    """Return the image, turned in place as its EXIF block says."""
    with suppress(Exception):  # a broken EXIF block says nothing about which way is up
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb_or_grey(image: Image.Image, is_sixteen: bool, bits: int, kinds: set[str]) -> Image.Image:
    """Return the image in RGB, or in L if it is grey. Resizing one channel instead of three gives the same values."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(eight_bit(image, is_sixteen, bits, kinds))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # Viewers show transparent images on their background, which is mostly white.
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() == (255, 255):
            return layer.convert("RGB")  # nothing of the page would be seen
        kinds.add(ALPHA_TIFF if isinstance(image, TiffImageFile) else TRANSPARENT)
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.mode not in ("RGB", "L"):
        return image.convert("RGB")
    # Looking for further pages of a TIFF changes `image`, so those pixels are copied.
    return image.copy() if isinstance(image, TiffImageFile) else image


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab = ImageCms.createProfile("LAB")
    rgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    if converted is None:
        raise ValueError("the LAB colours could not be converted")
    return converted


def _resized(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    size = (preprocess.size, preprocess.size)
    resampling = RESAMPLING[preprocess.interpolation]
    if preprocess.resize == "stretch":
        return image.resize(size, resampling)
    if preprocess.resize == "crop":
        return ImageOps.fit(image, size, resampling)
    return ImageOps.pad(image, size, resampling)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
