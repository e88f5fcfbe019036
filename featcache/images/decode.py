"""Bytes of an image file -> pixels as an image viewer would show them, at the size the backbone takes.

Pillow decodes and resizes (bilinear, antialiased). EXIF orientation is applied, 16 bit is scaled rather
than clipped, transparency is laid on white, of an animation the first frame is taken. Whatever cannot be
decoded raises Undecodable with a status and a reason; no file makes anything else happen.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from math import ceil
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from featcache.arrays import Pixels
from featcache.images.augment import augmented
from featcache.images.views import Frame, frame_of, parse_views
from featcache.spec import DRAFT_VERSION, IDENTITY, Preprocess

__all__ = [
    "MAX_PIXELS",
    "Undecodable",
    "checked_size",
    "decode",
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

# Pillow would also open EPS, and hand it to Ghostscript, which runs it as a program
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "HEIF")

with suppress(ImportError):  # featcache[heif]
    from pillow_heif import register_heif_opener

    register_heif_opener()

# Between half the limit and the limit Pillow warns; the limit is checked here from the header. Of damaged files it
# warns as well, without saying which.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")


class Undecodable(Exception):
    """An image that gives no pixels. `status` is one word, `reason` a sentence."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


def decode(data: bytes, preprocess: Preprocess) -> Pixels:
    """Return the whole image as (size, size, 3) uint8. Raises Undecodable."""
    return decode_views(data, preprocess, [IDENTITY], "")[0]


def decode_views(data: bytes, preprocess: Preprocess, views: Sequence[str], digest: str) -> list[Pixels]:
    """Return one (size, size, 3) uint8 array per view. Raises Undecodable.

    The image is decoded once; a draft once for each crop, since the scale that is enough for it is its own.
    digest: SHA-256 of `data`, which decides what the crops show.
    """
    frames = [frame_of(view, digest) for view in views]
    parts = list({frame[:4]: frame for frame in frames}.values())
    together = [[part] for part in parts] if preprocess.decode == DRAFT_VERSION else [parts]
    shown = {part[:4]: pixels for some in together for part, pixels in _shown(data, preprocess, some)}
    cut = [np.ascontiguousarray(shown[frame[:4]][:, :: -1 if frame.mirrored else 1]) for frame in frames]
    return [augmented(pixels, view, digest) for pixels, view in zip(cut, views, strict=True)]


def _shown(data: bytes, preprocess: Preprocess, frames: Sequence[Frame]) -> list[tuple[Frame, Pixels]]:
    image = _opened(data)
    if preprocess.decode == DRAFT_VERSION:
        _draft(image, preprocess, frames[0])
    with _room_for(image), _undecodable():
        upright = _loaded(image)
        return [(frame, np.asarray(_resized(_cut(upright, frame), preprocess))) for frame in frames]


def upright_rgb(data: bytes) -> Image.Image:
    """Return the whole image, upright and in RGB. Raises Undecodable."""
    image = _opened(data)
    with _undecodable():
        return _loaded(image)


def thumbnail(data: bytes, side: int) -> tuple[Pixels, tuple[int, int]]:
    """Return the whole image stretched to (side, side) uint8 greys, and its (width, height) as shown.

    JPEGs are decoded at reduced scale, still twice as large as is asked for. Raises Undecodable.
    """
    image = _opened(data)
    size = image.size
    _draft(image, Preprocess(2 * side, decode=DRAFT_VERSION), Frame())
    stored = image.size
    with _room_for(image), _undecodable():
        upright = _loaded(image)
        size = size[::-1] if upright.size != stored else size  # EXIF turned it by 90 degrees
        twice = upright.convert("L").resize((2 * side, 2 * side), Image.Resampling.BILINEAR)
        return np.asarray(twice.reduce(2)), size


def checked_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of an image that decodes, as it is stored. Raises Undecodable."""
    image = _opened(data)
    size = image.size
    with _room_for(image), _undecodable():
        _loaded(image)
    return size


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise Undecodable("empty", "the file has no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError as error:
        raise Undecodable("unknown_format", "not an image in a format that Pillow reads") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Undecodable("too_big", _one_line(error)) from error
    except Exception as error:
        raise Undecodable("unreadable", _one_line(error)) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Undecodable("too_big", f"{width} x {height} pixels, more than {MAX_PIXELS}")
    return image


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


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return _rgb(_upright(image))


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


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        is_wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
        return Image.fromarray(_eight_bit(np.asarray(image), is_wide, image.info.get("transparency"))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    return image.convert("RGB")


def _eight_bit(values: np.ndarray[Any, Any], is_wide: bool, transparent: object) -> Pixels:
    """Scale grey values of more than 8 bits, and make the one value that stands for transparency white.

    16 bit (`is_wide`) by its range; 32 bit and floats by the least of 1, 255 and 65535 that holds them, else from their
    least to their largest. What is not finite becomes black.
    """
    wide = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    tops = (65535.0,) if is_wide else (1.0, 255.0, 65535.0)
    low, high = wide.min(), wide.max()
    if low >= 0 and high <= 65535:
        low, high = 0.0, next(top for top in tops if high <= top)
    scaled = np.rint((wide - low) / (high - low or 1.0) * 255)
    if isinstance(transparent, int):
        scaled[values == transparent] = 255
    return np.asarray(scaled, dtype=np.uint8)


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
