"""Images of scientists and doctors: what a viewer shows, or refused by name, or told of."""

import io
import struct
import zlib

import numpy as np
import pytest
from images.pictures import png_chunk, saved
from images.tiffs import ramp, tiff
from PIL import Image

from featcache.errors import DataError
from featcache.images.array_source import pnm
from featcache.images.decode import Undecodable, check_image, decode, decode_picture, thumbnail
from featcache.images.kinds import notes
from featcache.images.manifest import scan
from featcache.spec import IDENTITY, Preprocess, with_bits

SIDE = 16
GREY = ramp(SIDE)
COLOURS = np.dstack([GREY, GREY.T, 255 - GREY])
UNSPECIFIED, PREMULTIPLIED, STRAIGHT = 0, 1, 2  # bands behind the colours of a TIFF


def shown(data, bits=16):
    return decode(data, Preprocess(SIDE, decode=with_bits("pillow/1", bits)))


def assert_shows(data, wanted, within=1, bits=16):
    wanted = wanted if wanted.ndim == 3 else np.dstack([wanted] * 3)
    assert np.abs(shown(data, bits).astype(int) - wanted).max() <= within


def kinds_of(data, bits=16):
    return decode_picture(data, Preprocess(SIDE, decode=with_bits("pillow/1", bits)), [IDENTITY], "").kinds


def reason_of(data):
    with pytest.raises(Undecodable) as caught:
        shown(data)
    assert "\n" not in caught.value.reason
    return caught.value.reason


def png(values, kind):
    """Return a PNG of 16 bits: colours (2), grey with transparency (4), colours with transparency (6)."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def wide(values, bits=16):
    """Return 8-bit values as those of so many bits."""
    return np.rint(values * ((2**bits - 1) / 255)).astype(np.uint16)


def with_alpha(values, alpha):
    return np.dstack([values, np.full(values.shape[:2], alpha, values.dtype)])


@pytest.mark.parametrize("big_endian", [False, True])
def test_separate_planes_of_sixteen_bits_are_refused_by_name(big_endian):
    data = tiff(wide(COLOURS), photometric=2, planar=True, big_endian=big_endian)
    assert "3 bands of 16 bits (unsigned), in separate planes; save it interleaved" in reason_of(data)


def test_separate_planes_of_eight_bits_show_their_colours():
    assert_shows(tiff(COLOURS, photometric=2, planar=True), COLOURS, within=0)


def test_a_single_plane_that_pillow_misreads_is_refused():
    assert "in separate planes" in reason_of(tiff(255 - GREY, photometric=0, planar=True))
    floats = (GREY / 255).astype(np.float32)
    assert "in separate planes" in reason_of(tiff(floats, planar=True, big_endian=True))
    assert_shows(tiff(floats, planar=True), GREY)


@pytest.mark.parametrize("values", [255 - GREY, 65535 - wide(GREY), (1 - GREY / 255).astype(np.float32)])
def test_white_is_zero_is_turned_round_whatever_the_bits(values):
    assert_shows(tiff(values, photometric=0), GREY)


@pytest.mark.parametrize(
    ("page", "what"),
    [
        (np.zeros((4, 4, 13), np.uint16), "13 bands of 16 bits (unsigned)"),
        (np.zeros((4, 4, 3), np.float32), "3 bands of 32 bits (floating-point)"),
        (np.zeros((4, 4), np.float64), "1 band of 64 bits (floating-point)"),
    ],
)
def test_a_tiff_that_pillow_does_not_read_is_refused_by_its_layout(page, what):
    assert what in reason_of(tiff(page))


@pytest.mark.parametrize("empty", [-9999.0, -32768.0, float(np.finfo(np.float32).min), np.nan, np.inf])
@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_places_without_data_are_black_and_do_not_stretch_the_range(empty, scale):
    values = (GREY * scale).astype(np.float32)
    values[:, :4] = empty
    wanted = GREY.copy()
    wanted[:, :4] = 0
    data = tiff(values)
    assert_shows(data, wanted)
    assert {"no data", "numbers"} <= kinds_of(data)


def test_places_without_data_are_black_in_signed_rasters():
    values = GREY.astype(np.int16) * 40
    values[:, :4] = -32767
    wanted = GREY.copy()
    wanted[:, :4] = 0
    assert_shows(tiff(values), wanted)


@pytest.mark.parametrize(("dtype", "text"), [(np.uint16, "65535"), (np.float32, "3.4028234663852886e+38")])
def test_gdals_tag_says_which_value_is_no_data(dtype, text):
    values = (GREY.astype(dtype) * 257).astype(dtype)
    values[:, 12:] = dtype(float(text))
    wanted = GREY.copy()
    wanted[:, 12:] = 0
    rest = int(GREY[:, :12].max())
    assert_shows(tiff(values, nodata=text), wanted if dtype == np.uint16 else wanted * (255 / rest), within=1)


def test_a_value_like_no_data_inside_the_range_is_a_value():
    values = np.array([[-20000, -9999], [0, 20000]], np.int32)
    assert "no data" not in kinds_of(tiff(values))
    assert decode(tiff(values), Preprocess(2))[0, 1, 0] == round((20000 - 9999) / 40000 * 255)


def test_an_image_without_any_data_is_black():
    assert shown(tiff(np.full((SIDE, SIDE), np.nan, np.float32))).max() == 0


def test_near_infrared_marked_as_transparency_is_told():
    data = tiff(with_alpha(COLOURS, 60), photometric=2, extra=[STRAIGHT])
    assert kinds_of(data) == {"alpha of TIFF"}
    assert kinds_of(tiff(with_alpha(COLOURS, 255), photometric=2, extra=[STRAIGHT])) == frozenset()


def test_bands_that_are_not_read_are_told():
    data = tiff(with_alpha(COLOURS, 60), photometric=2, extra=[UNSPECIFIED])
    assert_shows(data, COLOURS, within=0)
    assert kinds_of(data) == {"bands"}


def test_transparent_images_are_told():
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 100))
    assert kinds_of(saved(clear, "PNG")) == {"transparent"}
    assert kinds_of(saved(Image.new("RGBA", (8, 8), (9, 9, 9, 255)), "PNG")) == frozenset()


def test_libtiff_prints_nothing(capfd):
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "TIFF", compression="tiff_lzw")
    with Image.open(file) as image:
        [start], [length] = image.tag_v2[273], image.tag_v2[279]
    damaged = file.getvalue()[:start] + b"\xff" * length + file.getvalue()[start + length :]
    with pytest.raises(Undecodable):
        shown(damaged)
    assert capfd.readouterr() == ("", "")


def test_stacks_are_told_and_pyramids_are_one_picture():
    half = np.ascontiguousarray(GREY[::2, ::2])
    assert kinds_of(tiff(GREY, GREY)) == {"pages"}
    assert kinds_of(tiff(GREY, half, half[::2, ::2])) == frozenset()
    assert kinds_of(tiff(GREY, GREY, subfiles=[0, 1])) == frozenset()
    assert kinds_of(tiff(GREY, half, GREY, subfiles=[0, 1, 0])) == {"pages"}
    assert_shows(tiff(GREY, 255 - GREY), GREY)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations_are_told(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert kinds_of(saved(frames[0], form, save_all=True, append_images=frames[1:])) == {"frames"}
    assert kinds_of(saved(frames[0], form)) == frozenset()


def twelve_bit_files():
    """Return {kind: (a file of 12 bits in 16, what it shows)}."""
    grey, colours = wide(GREY, 12), wide(COLOURS, 12)
    opaque = np.dstack([colours, np.full(GREY.shape, 65535, np.uint16)])
    compressed = io.BytesIO()
    Image.fromarray(grey).save(compressed, "TIFF", compression="tiff_lzw")
    return {
        "grey PNG": (saved(Image.fromarray(grey), "PNG"), GREY),
        "grey TIFF": (tiff(grey), GREY),
        "grey TIFF, compressed": (compressed.getvalue(), GREY),
        "grey TIFF, big endian": (tiff(grey, big_endian=True), GREY),
        "grey TIFF, white is zero": (tiff(4095 - grey, photometric=0), GREY),
        "signed TIFF": (tiff(grey.astype(np.int16)), GREY),
        "float TIFF": (tiff(grey.astype(np.float32)), GREY),
        "colour PNG": (png(colours, 2), COLOURS),
        "colour PNG, opaque": (png(opaque, 6), COLOURS),
        "colour TIFF": (tiff(colours, photometric=2), COLOURS),
        "colour TIFF, big endian": (tiff(colours, photometric=2, big_endian=True), COLOURS),
        "colour TIFF, opaque": (tiff(opaque, photometric=2, extra=[STRAIGHT]), COLOURS),
        "grey array": (pnm(grey), GREY),
        "colour array": (pnm(colours), COLOURS),
    }


TWELVE = twelve_bit_files()


@pytest.mark.parametrize("kind", TWELVE)
def test_twelve_bits_in_sixteen_are_shown_whole_with_bits(kind):
    data, wanted = TWELVE[kind]
    assert len(np.unique(shown(data))) <= 17
    assert_shows(data, wanted, bits=12)
    assert {name for name in kinds_of(data, 12) if name != "numbers"} == {"bits=12"}


@pytest.mark.parametrize("kind", TWELVE)
def test_twelve_bits_in_sixteen_are_noticed(kind):
    kinds = kinds_of(TWELVE[kind][0])
    assert "bits=12" in kinds
    assert kinds == check_image(TWELVE[kind][0])[1]


@pytest.mark.parametrize("values", [wide(GREY), wide(COLOURS)])
def test_whole_sixteen_bits_are_as_they_were(values):
    data = pnm(values)
    wanted = np.dstack([np.rint(values / 65535 * 255)] * (1 if values.ndim == 3 else 3))
    assert np.array_equal(shown(data), wanted)
    assert kinds_of(data) == {"bits=16"}


def test_values_above_the_white_are_white_and_told():
    data = saved(Image.fromarray(wide(GREY, 13)), "PNG")
    assert_shows(data, np.minimum(GREY * 2.0, 255), bits=12, within=2)
    assert "clipped" in kinds_of(data, 12)


def test_bits_leave_eight_bit_images_and_declared_ranges_alone():
    assert_shows(saved(Image.fromarray(COLOURS), "PNG"), COLOURS, within=0, bits=12)
    declared = b"P5\n16 16\n4095\n" + wide(GREY, 12).astype(">u2").tobytes()
    for bits in (12, 16):
        assert_shows(declared, GREY, bits=bits)
    assert kinds_of(declared) == frozenset()


def test_a_tiff_that_says_twelve_bits_is_scaled_by_them():
    values = wide(GREY, 12)
    pairs = values.reshape(SIDE, -1, 2)
    packed = np.stack([pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], -1)
    assert_shows(tiff(packed.reshape(SIDE, -1).astype(np.uint8), bits=12), GREY)


def test_grey_with_transparency_of_twelve_bits_is_coarse_and_told():
    data = png(with_alpha(wide(GREY, 12), 65535), 4)
    assert_shows(data, GREY, within=20, bits=12)
    assert "coarse" in kinds_of(data, 12)


def test_a_cut_off_array_of_colours_is_truncated():
    with pytest.raises(Undecodable, match="truncated"):
        shown(pnm(wide(COLOURS))[:-9], bits=12)


def test_a_thumbnail_takes_the_bits_too():
    data = TWELVE["grey PNG"][0]
    assert (thumbnail(data, 8)[0].max() <= 16, thumbnail(data, 8, 12)[0].max() > 200) == (True, True)


def test_notes_say_what_to_do():
    assert notes({"bits=12": 118, "bits=10": 2}, 120) == [
        "120 of 120 images have 16 bits a channel but use only the lowest 12 (no value above 4,095 of 65,535): they "
        "enter nearly black. Extract with `bits=12`"
    ]
    assert notes({"bits=12": 118, "bits=16": 2}, 120)[0].endswith("beside 2 that use all. Save all with one range")
    assert notes({"bits=12": 3, "bits=16": 100}, 103) == []
    assert notes({"bits=12": 120}, 120, bits=12) == []


def test_a_scan_of_signed_arrays_advises_what_does_not_wrap_round():
    with pytest.raises(DataError, match=r"x\.astype\('uint16'\) if all are 0 to 65535 \(extract with bits=12"):
        scan(np.full((4, 8, 8, 3), 3000, np.int16), labels=[0, 0, 1, 1])
