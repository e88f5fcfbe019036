"""Every kind of image file times every kind of defect, made here: exactly one status each."""

import json
import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from images.pictures import CORNERS, corners_of, four_corners, is_near, png_chunk, saved
from PIL import Image, ImageFile, features

from featcache.images import decode as decoding
from featcache.images.decode import decode, upright_rgb
from featcache.images.manifest import scan
from featcache.spec import Preprocess

LOSSLESS = ["PNG", "TIFF", "BMP", "DIB", "PPM", "GIF", "JPEG2000"]
LOSSY = ["JPEG", "WEBP", *(["AVIF"] if features.check("avif") else [])]
MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "LAB", "YCbCr"],
    "BMP": ["1", "L", "P", "RGB"],
    "PPM": ["1", "L", "RGB", "I"],
    "GIF": ["1", "L", "P", "RGB"],
    "JPEG2000": ["L", "LA", "RGB", "RGBA"],
    "JPEG": ["L", "RGB", "CMYK"],
    "WEBP": ["L", "RGB", "RGBA"],
}
GREYS = ("1", "L", "LA", "I;16", "I", "F")
SUFFIX = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp", "PPM": "ppm"}


def in_mode(mode):
    """Return the four colours, or four greys, in this mode."""
    image = four_corners(64, 48)
    if mode in ("I;16", "I", "F"):
        grey = np.asarray(image.convert("L"))
        values = {"I;16": grey.astype(np.uint16) * 257, "I": grey.astype(np.int32) * 257, "F": grey.astype(np.float32)}
        return Image.fromarray(values[mode])
    if mode == "LAB":
        from PIL import ImageCms

        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    return image.quantize(4) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes])
def test_every_mode_of_every_format_shows_its_colours(form, mode):
    options = {"quality": 95} if form in LOSSY else {}
    shown = corners_of(upright_rgb(saved(in_mode(mode), form, **options)))
    wanted = corners_of(
        four_corners(64, 48).convert("1" if mode == "1" else "L" if mode in GREYS else "RGB").convert("RGB")
    )
    if mode == "1":  # dithered: corners may be either
        assert {value for corner in shown for value in corner} <= {0, 255}
    else:
        assert is_near(shown, wanted, within=40 if form in LOSSY or mode == "LAB" else 3)


def test_a_palette_with_transparency_is_laid_on_white():
    image = four_corners(64, 48).quantize(4)
    clear = image.getpixel((2, 2))
    shown = corners_of(upright_rgb(saved(image, "PNG", transparency=clear)))
    assert shown == [(255, 255, 255), *CORNERS[1:]]


def test_sixteen_bit_colour_is_scaled():
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixel = b"\0" + struct.pack(">HHH", 200 * 257, 100 * 257, 50 * 257)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(pixel))
        + png_chunk(b"IEND", b"")
    )
    assert [int(value) for value in decode(data, Preprocess(1))[0, 0]] == [200, 100, 50]


@pytest.mark.parametrize("maximum", [1023, 65535])
def test_a_dark_pgm_of_sixteen_bits_stays_dark(maximum):
    data = f"P5\n2 2\n{maximum}\n".encode() + struct.pack(">4H", *[200] * 4)
    assert int(decode(data, Preprocess(2))[0, 0, 0]) == round(200 / maximum * 255)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pictures_the_first_is_shown(form):
    frames = [four_corners(64, 48), *(Image.new("RGB", (64, 48), "white") for _ in range(3))]
    shown = corners_of(upright_rgb(saved(frames[0], form, save_all=True, append_images=frames[1:])))
    assert is_near(shown, CORNERS, within=40)


def test_heic_shows_its_colours():
    pytest.importorskip("pillow_heif")
    shown = upright_rgb(saved(four_corners(64, 48), "HEIF", quality=95))
    assert shown.size == (64, 48)
    assert is_near(corners_of(shown), CORNERS, within=60)


def defects(whole, form):
    """Return {kind: bytes} of what can be wrong with a file."""
    return {
        "whole": whole,
        "empty": b"",
        "html": b"<!DOCTYPE html><html>404</html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "zeros": bytes(len(whole)),
        "half": whole[: len(whole) // 2],
        "header": whole[:6],
    }


def zoo(root):
    """Write a folder of image files and return {path: the statuses that it may have}."""
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))
    broken = {"empty": {"empty"}, "whole": {"ok"}}
    cut = {"half": {"truncated", "unreadable"}, "header": {"unknown_format", "unreadable", "truncated"}}
    wanted = {}
    for form, suffix in SUFFIX.items():
        (root / form).mkdir(parents=True)
        for kind, data in defects(saved(noisy, form), form).items():
            (root / form / f"{kind}.{suffix}").write_bytes(data)
            wanted[f"{form}/{kind}.{suffix}"] = broken.get(kind) or cut.get(kind) or {"unknown_format"}
    jpeg, png = saved(noisy, "JPEG", quality=95), saved(noisy, "PNG")
    odd = {
        "end_cut.jpg": (jpeg[:-2], {"ok", "truncated"}),
        "hole.jpg": (jpeg[:9000] + bytes(200) + jpeg[9200:], {"ok", "unreadable", "truncated"}),
        "garbage_behind.jpg": (jpeg + b"garbage" * 99, {"ok"}),
        "png_named.jpg": (png, {"ok"}),
        "bad_crc.png": (png[:60] + bytes([png[60] ^ 1]) + png[61:], {"unreadable"}),
        "bomb.png": (bomb(), {"too_big"}),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", {"unknown_format"}),
    }
    (root / "odd").mkdir()
    for name, (data, statuses) in odd.items():
        (root / "odd" / name).write_bytes(data)
        wanted[f"odd/{name}"] = statuses
    return wanted


@cache
def bomb(side=20000):
    """Return 1.2 MB that would be 1.2 GB."""
    rows, packer = [], zlib.compressobj(9)
    for _ in range(side // 100):
        rows.append(packer.compress(bytes(100 * (1 + 3 * side))))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"".join(rows) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def test_every_file_of_the_zoo_has_the_status_it_should(tmp_path):
    wanted = zoo(tmp_path / "zoo")
    images = scan(tmp_path / "zoo", check=True)
    found = {row.path: "ok" for row in images.rows} | {one.path: one.status for one in images.unreadable}
    assert {path: status for path, status in found.items() if status not in wanted[path]} == {}
    assert found.keys() == wanted.keys()
    assert all(one.reason and "\n" not in one.reason for one in images.unreadable)
    assert sum(images.sizes.values()) == list(found.values()).count("ok")


# Kilobytes of this process; `ru_maxrss` begins with those of the process that started it
LARGEST_SIZE = """
def largest_size():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells no VmHWM")
def test_a_bomb_is_refused_without_being_unpacked(tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb())
    assert 1_000_000 < (tmp_path / "bomb.png").stat().st_size < 1_300_000
    code = (
        f"{LARGEST_SIZE}import sys, featcache as fc\n"
        "fc.scan(sys.argv[2], check=True)\n"
        "before = largest_size()\n"
        "(bad,) = fc.scan(sys.argv[1], check=True).unreadable\n"
        "print(bad.status, largest_size() - before)\n"
    )
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "a.png").write_bytes(saved(four_corners(), "PNG"))
    (tmp_path / "big").mkdir()
    os.rename(tmp_path / "bomb.png", tmp_path / "big" / "bomb.png")
    command = [sys.executable, "-c", code, str(tmp_path / "big"), str(tmp_path / "small")]
    status, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert (status, int(grown) < 100_000) == ("too_big", True)


def test_large_images_are_decoded_one_at_a_time(monkeypatch):

    inside, most = [], []
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 100)
    load = ImageFile.ImageFile.load

    def noting(image):
        inside.append(1)
        most.append(len(inside))
        loaded = load(image)
        inside.pop()
        return loaded

    monkeypatch.setattr(ImageFile.ImageFile, "load", noting)

    data = saved(four_corners(400, 400), "PNG")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: decode(data, Preprocess(8)), range(16)))
    assert max(most) == 1


def test_half_images_are_not_taken_for_whole_ones():
    assert not ImageFile.LOAD_TRUNCATED_IMAGES  # nobody here asks Pillow to fill up with grey


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells no VmHWM")
def test_six_hundred_odd_files_are_all_accounted_for_in_bounded_memory(shared):
    code = (
        f"{LARGEST_SIZE}import collections, json, sys, featcache as fc\n"
        "images = fc.scan(sys.argv[1], check=True)\n"
        "bad = collections.Counter(one.status for one in images.unreadable)\n"
        "good = sum(images.sizes.values())\n"
        "print(json.dumps([len(images.rows), good, bad, largest_size()]))\n"
    )
    command = [sys.executable, "-c", code, str(shared / "data" / "nasty")]

    rows, good, bad, kilobytes = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert rows == good + sum(bad.values()) > 400
    assert bad.keys() <= {"unknown_format", "truncated", "unreadable", "too_big", "empty"}
    assert kilobytes < 1_500_000


@pytest.mark.slow
@pytest.mark.shared
def test_a_placeholder_among_photographs_is_an_image_like_any_other(shared):
    images = scan(shared / "data" / "hymenoptera", check=True)
    row = next(row for row in images.rows if row.path.endswith("imageNotFound.gif"))
    assert (len(images.rows), len(images.unreadable), row.label) == (398, 0, "ants")
    assert images.source.read(row.path)[:3] == b"GIF"
