"""What of an image is not shown as it may have been meant, by kind, and one sentence for each kind.

Decoding notes the kinds of each image; `scan` and `extract` count them over all images.
"""

from __future__ import annotations

from collections.abc import Mapping

from featcache.spec import ALL_BITS

TRANSPARENT = "transparent"
ALPHA_TIFF = "alpha of TIFF"
BANDS = "bands"
PAGES = "pages"
FRAMES = "frames"
NUMBERS = "numbers"
NO_DATA = "no data"
CLIPPED = "clipped"
COARSE = "coarse"
BITS = "bits="

SENTENCES = {
    TRANSPARENT: "are transparent: they are laid on white",
    ALPHA_TIFF: "are TIFFs with a fourth band of transparency, and are laid on white. If that band is near infrared "
    "(GDAL marks it so), they fade to white: save red, green and blue only",
    BANDS: "have more bands than are read: only the grey, or red, green and blue, is",
    PAGES: "have several pages: only the first is read",
    FRAMES: "are animations: only the first frame is read",
    COARSE: "have 16 bits a channel of which only the upper 8 can be read: under `bits` their levels are coarse. Save "
    "them as grey or RGB without transparency",
    NUMBERS: "hold signed, 32-bit or floating-point numbers: white is the least of 1, 255 and 65,535 that holds an "
    "image, else each is stretched from its least to its largest value",
    NO_DATA: "have places without data (not finite, GDAL's nodata, or -9999 and the like): these are black",
}


def of_bits(used: int) -> str:
    """Return the kind of 16-bit images whose largest value takes `used` bits."""
    return f"{BITS}{max(8, used)}"


def notes(kinds: Mapping[str, int], num_images: int, bits: int = ALL_BITS) -> list[str]:
    """Return a sentence for each kind that there is. bits: of 16-bit images, as they were decoded.

    >>> notes({"pages": 3}, 8)
    ['3 of 8 images have several pages: only the first is read']
    """
    sentences = _of_bits(kinds, num_images, bits)
    if CLIPPED in kinds:
        sentences.append(
            f"{kinds[CLIPPED]} of {num_images} images have values above {2**bits - 1:,}, which become white "
            f"(`bits={bits}`)"
        )
    for kind, sentence in SENTENCES.items():
        if kind in kinds:
            sentences.append(f"{kinds[kind]} of {num_images} images {sentence}")
    return sentences


def _of_bits(kinds: Mapping[str, int], num_images: int, bits: int) -> list[str]:
    """Return what to say of 16-bit images that do not use all their bits, if most of them do not."""
    counts: dict[int, int] = {}  # {bits in use: images}
    for kind, count in kinds.items():
        if kind.startswith(BITS):
            counts[int(kind.removeprefix(BITS))] = count
    dark = {used: count for used, count in counts.items() if used < bits}
    num_dark = sum(dark.values())
    others = sum(counts.values()) - num_dark
    if not dark or num_dark < others:
        return []

    used = max(dark)
    look = "nearly black" if bits - used > 2 else "dark"
    sentence = (
        f"{num_dark} of {num_images} images have 16 bits a channel but use only the lowest {used} (no value "
        f"above {2**used - 1:,} of {2**bits - 1:,}): they enter {look}"
    )
    if others:
        return [f"{sentence}, beside {others} that use all. Save all with one range"]
    return [f"{sentence}. Extract with `bits={used}`"]
