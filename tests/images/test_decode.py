"""The zoo: every kind of image file, made here, and what an image viewer would show of it."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images.pictures import CORNERS, TURNED, corners_of, four_corners, is_near, png_chunk, saved
from PIL import Image, ImageOps, features

from featcache.images.decode import Undecodable, check_image, decode, decode_picture, upright_rgb
from featcache.spec import IDENTITY, Preprocess

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")


def status_of(data):
    with pytest.raises(Undecodable) as caught:
        decode(data, Preprocess(8))
    assert "\n" not in caught.value.reason
    return caught.value.status


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, form):
    upright = four_corners()
    stored = upright.transpose(TURNED[orientation]) if orientation in TURNED else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = upright_rgb(saved(stored, form, exif=exif, **({"quality": 95} if form in ("JPEG", "WEBP") else {})))
    assert shown.size == upright.size
    assert is_near(corners_of(shown), CORNERS, within=40)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "PPM", "JPEG2000", "GIF"])
def test_lossless_formats_show_the_very_pixels(form):
    image = four_corners()
    options = {"irreversible": False} if form == "JPEG2000" else {}
    assert np.array_equal(np.asarray(upright_rgb(saved(image, form, **options))), np.asarray(image))


@pytest.mark.parametrize("form", ["JPEG", "WEBP", pytest.param("AVIF", marks=needs_avif)])
def test_lossy_formats_show_the_colours(form):
    assert is_near(corners_of(upright_rgb(saved(four_corners(), form, quality=95))), CORNERS, within=40)


def test_cmyk_jpeg_shows_its_colours():
    data = saved(four_corners().convert("CMYK"), "JPEG", quality=95)
    assert is_near(corners_of(upright_rgb(data)), CORNERS, within=20)


def noise(width, height, mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (33, 17), (64, 48)])
@pytest.mark.parametrize(
    "options", [{"subsampling": "4:4:4"}, {"subsampling": "4:2:0", "progressive": True}, {"subsampling": "4:1:1"}]
)
def test_a_jpeg_gives_the_pixels_that_plain_pillow_gives(mode, size, options):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(noise(*size, mode), "JPEG", exif=exif, **options) + b"trailing bytes"
    plain = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    bilinear = Image.Resampling.BILINEAR
    expected = {
        "stretch": plain.resize((16, 16), bilinear),
        "crop": ImageOps.fit(plain, (16, 16), bilinear),
        "pad": ImageOps.pad(plain, (16, 16), bilinear),
    }
    for resize, image in expected.items():
        assert np.array_equal(decode(data, Preprocess(16, resize)), np.asarray(image))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_an_opaque_alpha_channel_changes_nothing(form):
    options = {"lossless": True} if form == "WEBP" else {}
    image = noise(16, 16)
    picture = decode_picture(saved(image.convert("RGBA"), form, **options), Preprocess(16), [IDENTITY], "")
    assert np.array_equal(picture.views[0], np.asarray(image))
    assert picture.kinds == frozenset()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_photograph_is_resized_as_it_is_without_a_copy(monkeypatch, mode):
    converted_sizes, resized_modes = [], []
    convert, resize = Image.Image.convert, Image.Image.resize

    def noting_convert(image, *args, **options):
        converted_sizes.append(image.size)
        return convert(image, *args, **options)

    def noting_resize(image, *args, **options):
        resized_modes.append(image.mode)
        return resize(image, *args, **options)

    data = saved(noise(64, 48, mode), "JPEG")
    monkeypatch.setattr(Image.Image, "convert", noting_convert)
    monkeypatch.setattr(Image.Image, "resize", noting_resize)
    decode(data, Preprocess(8))
    assert (set(converted_sizes), resized_modes) == ({(8, 8)}, [mode])


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("grey", [0, 40, 220, 255])
def test_sixteen_bit_grey_is_scaled_not_clipped(grey, form):
    data = saved(Image.fromarray(np.full((8, 8), grey * 257, np.uint16)), form)
    assert corners_of(decode(data, Preprocess(8))) == [(grey,) * 3] * 4


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_dark_sixteen_bit_image_stays_dark(form):
    data = saved(Image.fromarray(np.full((8, 8), 200, np.uint16)), form)
    assert corners_of(decode(data, Preprocess(8))) == [(1,) * 3] * 4


def test_sixteen_bit_grey_with_a_transparent_value_is_scaled_and_laid_on_white():
    values = np.full((8, 8), 100 * 257, np.uint16)
    values[:, 4:] = 7
    pixels = decode(saved(Image.fromarray(values), "PNG", transparency=7), Preprocess(8))
    assert corners_of(pixels) == [(100,) * 3, (255,) * 3] * 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [(np.int32(200), 200), (np.int32(200 * 257), 200), (np.float32(200), 200), (np.float32(0.8), 204)],
)
def test_thirty_two_bit_grey_is_scaled_by_the_range_that_holds_it(value, shown):
    values = np.zeros((8, 8), value.dtype)
    values[4:] = value
    assert corners_of(decode(saved(Image.fromarray(values), "TIFF"), Preprocess(8)))[2:] == [(shown,) * 3] * 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -5.0, 1e9])
def test_odd_floats_give_pixels_all_the_same(value):
    values = np.full((8, 8), value, np.float32)
    assert decode(saved(Image.fromarray(values), "TIFF"), Preprocess(8)).shape == (8, 8, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_laid_on_white(mode):
    layer = Image.new("RGBA", (8, 8), (90, 90, 90, 255))
    layer.paste((90, 90, 90, 0), (4, 0, 8, 8))
    if mode == "P":
        index = Image.new("P", (8, 8), 0)
        index.putpalette([90, 90, 90, 10, 20, 30])
        index.paste(1, (4, 0, 8, 8))
        data = saved(index, "PNG", transparency=1)
    else:
        data = saved(layer.convert(mode) if mode != "PA" else layer.quantize(), "PNG")
    assert corners_of(decode(data, Preprocess(8))) == [(90,) * 3, (255,) * 3] * 2


def test_half_transparency_is_mixed_with_white():
    data = saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG")
    assert corners_of(decode(data, Preprocess(8))) == [(127,) * 3] * 4


def test_a_palette_gives_its_colours():
    assert corners_of(upright_rgb(saved(four_corners().quantize(4), "PNG"))) == CORNERS


def test_one_bit_images_are_black_and_white():
    image = Image.new("1", (8, 8), 0)
    image.paste(1, (4, 0, 8, 8))
    assert corners_of(decode(saved(image, "PNG"), Preprocess(8))) == [(0,) * 3, (255,) * 3] * 2


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_shows_its_first_frame(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in CORNERS]
    data = saved(frames[0], form, save_all=True, append_images=frames[1:])
    assert is_near(corners_of(decode(data, Preprocess(8))), [CORNERS[0]] * 4)


def test_lab_is_converted():
    data = saved(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF")
    assert is_near(corners_of(decode(data, Preprocess(8))), [(255,) * 3] * 4)


def test_a_format_is_known_by_its_bytes_not_by_its_name():
    assert check_image(saved(four_corners(), "PNG")) == ((48, 32), frozenset())


def test_a_truncated_jpeg_is_called_truncated():
    data = saved(four_corners(200, 200), "JPEG")
    assert status_of(data[: len(data) * 6 // 10]) == "truncated"


def test_text_is_of_unknown_format():
    assert status_of(b"<html>404 not found</html>") == "unknown_format"


def test_a_program_in_postscript_is_not_run():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert status_of(eps) == "unknown_format"


def test_no_bytes_are_empty():
    assert status_of(b"") == "empty"


def test_a_decompression_bomb_is_refused_from_its_header():
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(2**20)))
    assert len(bomb) < 2000
    assert status_of(bomb) == "too_big"


def test_the_limit_of_pixels_is_ours_whatever_others_tell_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert status_of(b"P5\n20000 20000\n255\n") == "too_big"


def test_a_png_with_a_wrong_checksum_is_unreadable():
    data = bytearray(saved(four_corners(), "PNG"))
    data[data.index(b"IDAT") + 12] ^= 0xFF
    assert status_of(bytes(data)) in ("unreadable", "truncated")


def test_no_memory_is_no_fault_of_the_image(monkeypatch):
    def exhausted(*args, **options):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", exhausted)
    assert status_of(saved(four_corners(), "PNG")) == "no_memory"


def gives_pixels_or_undecodable(data):
    found = "pixels"
    try:
        assert decode(data, Preprocess(8)).shape == (8, 8, 3)
    except Undecodable as error:
        found = error.status
    assert found in ("pixels", "empty", "unknown_format", "truncated", "too_big", "unreadable", "no_memory")


STARTS = [
    b"",
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"BM",
    b"II*\x00",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"P6 9 9 255 ",
]


@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=300))
def test_random_bytes_only_ever_raise_undecodable(start, rest):
    gives_pixels_or_undecodable(start + rest)


WHOLE = {form: saved(four_corners(16, 16), form) for form in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP")}


@given(
    form=st.sampled_from(sorted(WHOLE)),
    flips=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 255)), max_size=4),
)
def test_flipped_bits_only_ever_raise_undecodable(form, flips):
    data = bytearray(WHOLE[form])
    for at, bits in flips:
        data[at % len(data)] ^= bits
    gives_pixels_or_undecodable(bytes(data))


@given(form=st.sampled_from(sorted(WHOLE)), share=st.floats(0, 1))
def test_a_cut_off_file_only_ever_raises_undecodable(form, share):
    gives_pixels_or_undecodable(WHOLE[form][: int(share * len(WHOLE[form]))])


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(1, 40))
def test_every_shape_becomes_a_square_of_bytes(resize, width, height, size):
    pixels = decode(saved(Image.new("RGB", (width, height), (9, 99, 199)), "BMP"), Preprocess(size, resize))
    assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)


def test_stretch_shows_the_whole_image():
    assert is_near(corners_of(decode(saved(four_corners(80, 16), "PNG"), Preprocess(16))), CORNERS)


def test_crop_keeps_the_middle():
    image = Image.new("RGB", (48, 16), (255, 0, 0))
    image.paste((0, 0, 255), (16, 0, 32, 16))
    assert corners_of(decode(saved(image, "PNG"), Preprocess(16, "crop"))) == [(0, 0, 255)] * 4


def test_pad_keeps_the_shape_between_black_bars():
    pixels = decode(saved(Image.new("RGB", (32, 16), "white"), "PNG"), Preprocess(32, "pad"))
    assert [int(pixels[row, 16, 0]) for row in (0, 16, 31)] == [0, 255, 0]


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "nearest", "lanczos3"])
def test_images_are_resized_by_the_interpolation_of_the_preset(name):
    resampling = {"lanczos3": Image.Resampling.LANCZOS}.get(name) or Image.Resampling[name.upper()]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    decoded = decode(file.getvalue(), Preprocess(8, interpolation=name))
    assert np.array_equal(decoded, np.asarray(image.resize((8, 8), resampling)))


def test_bilinear_interpolation_is_not_written_down_so_that_earlier_taps_stay():
    assert "interpolation" not in Preprocess(8).to_dict()
    assert Preprocess(8, interpolation="bicubic").to_dict()["interpolation"] == "bicubic"
