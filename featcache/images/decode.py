"""Bytes of an image file -> pixels as an image viewer would show them, at the size the backbone takes.

Pillow decodes and resizes (bilinear, antialiased). EXIF orientation is applied, 16 bit is scaled rather
than clipped, transparency is laid on white, of an animation the first frame is taken. Whatever cannot be
decoded, or Pillow would decode to another picture, raises Undecodable with a status and a reason; no file makes
anything else happen. What is shown otherwise than it may be meant is noted by kind (`kinds`).
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
from featcache.images.views import Frame, frame_of, parse_views
from featcache.spec import ALL_BITS, DRAFT_VERSION, IDENTITY, Preprocess

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

    The image is decoded once; a draft once for each crop, since the scale that is enough for it is its own.
    digest: SHA-256 of `data`, which decides what the crops show.
    """
    return decode_picture(data, preprocess, views, digest).views


def decode_picture(data: bytes, preprocess: Preprocess, views: Sequence[str], digest: str) -> Picture:
    """Return what `decode_views` returns, with the kinds of the image. Raises Undecodable."""
    frames = [frame_of(view, digest) for view in views]
    parts = list({frame[:4]: frame for frame in frames}.values())
    together = [[part] for part in parts] if preprocess.is_draft else [parts]
    kinds: set[str] = set()
    shown = {part[:4]: pixels for some in together for part, pixels in _shown(data, preprocess, some, kinds)}
    cut = [np.ascontiguousarray(shown[frame[:4]][:, :: -1 if frame.mirrored else 1]) for frame in frames]
    return Picture([augmented(pixels, view, digest) for pixels, view in zip(cut, views, strict=True)], frozenset(kinds))


def _shown(data: bytes, preprocess: Preprocess, frames: Sequence[Frame], kinds: set[str]) -> list[tuple[Frame, Pixels]]:
    image = _opened(data)
    if preprocess.is_draft:
        _draft(image, preprocess, frames[0])
    with _room_for(image), _undecodable():
        upright = _loaded(image, data, preprocess.bits, kinds)
        return [(frame, np.asarray(_resized(_cut(upright, frame), preprocess))) for frame in frames]


def upright_rgb(data: bytes) -> Image.Image:
    """Return the whole image, upright and in RGB. Raises Undecodable."""
    image = _opened(data)
    with _undecodable():
        return _loaded(image, data, ALL_BITS, set())


def thumbnail(data: bytes, side: int, bits: int = ALL_BITS) -> tuple[Pixels, tuple[int, int]]:
    """Return the whole image stretched to (side, side) uint8 greys, and its (width, height) as shown.

    JPEGs are decoded at reduced scale, still twice as large as is asked for. bits: as of `Preprocess`. Raises
    Undecodable.
    """
    image = _opened(data)
    size = image.size
    _draft(image, Preprocess(2 * side, decode=DRAFT_VERSION), Frame())
    stored = image.size
    with _room_for(image), _undecodable():
        upright = _loaded(image, data, bits, set())
        size = size[::-1] if upright.size != stored else size  # EXIF turned it by 90 degrees
        twice = upright.convert("L").resize((2 * side, 2 * side), Image.Resampling.BILINEAR)
        return np.asarray(twice.reduce(2)), size


def check_image(data: bytes) -> tuple[tuple[int, int], frozenset[str]]:
    """Return (width, height) of an image that decodes, as it is stored, and its kinds. Raises Undecodable."""
    image = _opened(data)
    size, kinds = image.size, set[str]()
    with _room_for(image), _undecodable():
        _loaded(image, data, ALL_BITS, kinds)
    return size, frozenset(kinds)


def _opened(data: bytes) -> ImageFile:
    if not data:
        raise Undecodable("empty", "the file has no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError as error:
        raise Undecodable("unknown_format", _unknown(data)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Undecodable("too_big", _one_line(error)) from error
    except Exception as error:
        raise Undecodable("unreadable", _one_line(error)) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Undecodable("too_big", f"{width} x {height} pixels, more than {MAX_PIXELS}")
    if isinstance(image, TiffImageFile) and _is_misread(image):
        raise Undecodable("unreadable", f"Pillow misreads {_layout(image.tag_v2)}, in separate planes; {SAVE_PLANES}")
    return image


def _unknown(data: bytes) -> str:
    """Return why Pillow knows no such format, with what a TIFF says of itself."""
    reason = "not an image in a format that Pillow reads"
    if data[:4] in PREFIXES:
        with suppress(Exception):  # the directory may be damaged in any way
            directory = ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
            file = io.BytesIO(data)
            file.seek(directory.next)
            directory.load(file)
            return f"Pillow does not read {_layout(directory)}; save it as grey or RGB of 8 or 16 bits"
    return reason


def _layout(directory: ImageFileDirectory_v2) -> str:
    """Return what a page of a TIFF holds: 'a TIFF with 13 bands of 16 bits (unsigned)'."""
    bits = directory.get(BITS_PER_SAMPLE, (1,))
    bands = directory.get(SAMPLES, len(bits))
    number = NUMBER_FORMATS.get(directory.get(NUMBER_FORMAT, (1,))[0], "unknown numbers")
    kind = number + (", white is zero" if directory.get(PHOTOMETRIC) == 0 else "")
    return f"a TIFF with {bands} band{'' if bands == 1 else 's'} of {max(bits)} bits ({kind})"


def _is_misread(image: TiffImageFile) -> bool:
    """Return whether Pillow would read separate, uncompressed planes as if their values had 8 bits.

    Of the name of how the values lie ("RGB;16L") it takes one letter for each plane.
    """
    if image.tag_v2.get(PLANES, 1) == 1 or not image.tile or image.tile[0].codec_name != "raw":
        return False
    bits = set(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
    is_native_float = image.mode == "F" and image.tag_v2.prefix == b"II" and image.tag_v2.get(PHOTOMETRIC) != 0
    is_bytes = (bits == {8} or image.mode == "1") and image.tag_v2.get(PHOTOMETRIC) != 0
    return not is_bytes and not is_native_float


@contextmanager
def _undecodable() -> Iterator[None]:
    """Raise Undecodable whatever happens: Pillow's plugins raise almost anything on damaged files."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise Undecodable("too_big", _one_line(error)) from error
    except MemoryError as error:
        raise Undecodable("no_memory", "there was not memory enough to decode it; try again") from error
    except Exception as error:
        status = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise Undecodable(status, _one_line(error)) from error


def _room_for(image: Image.Image) -> AbstractContextManager[object]:
    """Large images are decoded one at a time, so that memory does not depend on the number of threads."""
    return _ONE_LARGE if image.width * image.height > LARGE_PIXELS else nullcontext()


def _draft(image: Image.Image, preprocess: Preprocess, frame: Frame) -> None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8, where the part that is shown still is `DRAFT_GAP` times its size then."""
    if not isinstance(image, JpegImageFile):
        return
    side = preprocess.size * DRAFT_GAP / min(frame.right - frame.left, frame.bottom - frame.top)
    width, height = image.size
    share = side / max(width, height) if preprocess.resize == "pad" else side / min(width, height)
    image.draft(None, (ceil(share * width), ceil(share * height)))


def _loaded(image: ImageFile, data: bytes, bits: int, kinds: set[str]) -> Image.Image:
    is_sixteen = is_sixteen_bit(image, data)
    is_colour = is_sixteen and not image.mode.startswith("I")
    if is_colour and (bits < ALL_BITS or is_plain_ppm(image)):
        shown = _rgb(scaled_colours(_colour_values(image, data, kinds), bits, kinds), False, bits, kinds)
    else:
        image.load()
        upright = _upright(image)
        if is_colour:
            note_colours(upright, kinds)
        shown = _rgb(upright, is_sixteen, bits, kinds)
    _note_structure(image, kinds)
    return shown


def _colour_values(image: ImageFile, data: bytes, kinds: set[str]) -> Values:
    """Return the (H, W, C) uint16 values of a 16-bit colour image, upright; note where only their high bytes are."""
    if is_plain_ppm(image):
        return ppm_values(image, data)
    again = _opened(data)
    has_low = read_low_bytes(again)
    high: Values = np.asarray(_upright(image)).astype(np.uint16)
    if has_low:
        low: Values = np.asarray(_upright(again)).astype(np.uint16)
        high = high << 8 | low
        return high
    kinds.add(COARSE)
    return high * np.uint16(257)


def _note_structure(image: ImageFile, kinds: set[str]) -> None:
    """Note what the file holds beside the bands and the page that are shown. Leaves the image at another page."""
    if isinstance(image, TiffImageFile):
        if image.tag_v2.get(SAMPLES, 1) > len(image.getbands()):
            kinds.add(BANDS)
        if _has_pages(image):
            kinds.add(PAGES)
    elif image.format in ANIMATED and getattr(image, "is_animated", False):
        kinds.add(FRAMES)


def _has_pages(image: TiffImageFile) -> bool:
    """Return whether another page is no mask and no smaller form of the first, as in pyramids."""
    first = image.width * image.height
    with suppress(Exception):  # EOFError behind the last page, and anything on damaged ones
        for number in range(1, MOST_PAGES):
            image.seek(number)
            is_apart = not int(image.tag_v2.get(SUBFILE, 0)) & REDUCED_OR_MASK
            if is_apart and 3 * image.width * image.height > first:
                return True
    return False


def _cut(image: Image.Image, frame: Frame) -> Image.Image:
    """Return the part of the image, to the nearest pixel, and at least one."""
    if frame[:4] == Frame()[:4]:
        return image
    left, top = int(frame.left * image.width), int(frame.top * image.height)
    width = max(1, round((frame.right - frame.left) * image.width))
    height = max(1, round((frame.bottom - frame.top) * image.height))
    return image.crop((left, top, min(left + width, image.width), min(top + height, image.height)))


def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # a broken EXIF block says nothing about which way is up
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _rgb(image: Image.Image, is_sixteen: bool, bits: int, kinds: set[str]) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(eight_bit(image, is_sixteen, bits, kinds)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            kinds.add(ALPHA_TIFF if isinstance(image, TiffImageFile) else TRANSPARENT)
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    return image.convert("RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
    if converted is None:
        raise ValueError("the LAB colours could not be converted")
    return converted


def _resized(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    size, resize = preprocess.size, preprocess.resize
    if resize == "stretch":
        return image.resize((size, size), Image.Resampling.BILINEAR)
    if resize == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
