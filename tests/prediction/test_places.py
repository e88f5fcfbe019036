"""Whatever a user points at, every file is a row."""

import io
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from tiny import COLOURS, write_images

from featcache.errors import DataError, NoImages
from featcache.images.array_source import pnm
from featcache.images.decode import decode
from featcache.prediction import paths_in, predict
from featcache.prediction.places import LONGEST_PATH, gather
from featcache.spec import Preprocess, Tick


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return the current folder, with the folder photos in it."""
    write_images(tmp_path / "photos", per_class=2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(images):
    return [row.path for row in gather(images).rows]


def test_several_places_give_paths_as_a_shell_would(here):
    shutil.make_archive("more", "zip", "photos")
    Image.new("RGB", (9, 9)).save("a.png")
    found = gather(["a.png", "photos/red", "more.zip", "photos/blue/"])
    rows = list(found.rows)
    assert [row.path for row in rows] == [
        "a.png",
        "photos/red/000.png",
        "photos/red/001.png",
        *(f"more.zip/{name}/{at:03d}.png" for name in COLOURS for at in range(2)),
        "photos/blue/000.png",
        "photos/blue/001.png",
    ]
    assert found.total == len(rows) == 11
    assert {row.label for row in rows if row.path.startswith("more.zip")} == {*COLOURS}
    assert all(Image.open(io.BytesIO(found.source.read(row.path))).size in ((20, 16), (9, 9)) for row in rows)


def test_a_pattern_gives_what_the_shell_would_have_given(here):
    assert paths("photos/*/000.png") == [f"photos/{name}/000.png" for name in sorted(COLOURS)]
    assert paths("**/001.png") == [f"photos/{name}/001.png" for name in sorted(COLOURS)]
    assert paths("photos/r*") == ["photos/red/000.png", "photos/red/001.png"]


def test_a_file_whose_name_looks_like_a_pattern_is_itself(here):
    for name in ("a[1].png", "a1.png"):
        Image.new("RGB", (9, 9)).save(name)
    assert paths("a[1].png") == ["a[1].png"]
    assert paths(["a[1].png"]) == ["a[1].png"]


def test_what_is_not_there_is_a_row_among_others_and_an_error_alone(here, model):
    (here / "empty").mkdir()
    (here / "bad.zip").write_bytes(b"no archive")
    places = ["gone.png", "none/*.png", "photos/red/000.png", "empty", "bad.zip"]
    found = {row.path: (row.status, row.reason) for row in predict(model, places)}
    assert [*found] == places
    assert found["photos/red/000.png"] == ("ok", "")
    assert {status for status, _ in found.values()} == {"ok", "unreadable"}
    for place, reason in {"gone.png": "No such file", "none/*.png": "No file matches", "empty": "No images in"}.items():
        assert reason in found[place][1]
    assert "is damaged, or not what its name says" in found["bad.zip"][1]
    with pytest.raises(NoImages, match=r"No file matches none/\*\.png"):
        gather("none/*.png")
    with pytest.raises(NoImages, match=r"gone\.png does not exist"):
        gather("gone.png")


def test_a_list_of_files_is_a_row_for_each_line(here, model):
    lines = "photos/red/000.png\n\nphotos\ngone.png\nphotos/red/000.png\n"
    found = list(predict(model, paths_in(io.BytesIO(lines.encode()))))
    assert [one.path for one in found] == [line for line in lines.split("\n") if line]
    assert [one.status for one in found] == ["ok", "unreadable", "unreadable", "ok"]
    assert found[0].top == found[3].top


def test_a_list_may_stand_among_other_places(here, model):
    ticks = []
    found = list(predict(model, ["photos/blue", iter(["photos/red/001.png"])], progress=ticks.append))
    assert [one.path for one in found] == ["photos/blue/000.png", "photos/blue/001.png", "photos/red/001.png"]
    assert ticks == [Tick("predict", 0, -1), Tick("predict", 3, -1)]


def test_a_list_of_nothing_is_named(model):
    with pytest.raises(NoImages, match="The list names no files"):
        next(predict(model, paths_in(io.BytesIO(b"\n"))))


NAMES = st.lists(st.binary(min_size=1, max_size=9).filter(lambda name: not {0, 10} & {*name}), max_size=9)


class Slow(io.BytesIO):
    """A pipe that gives a byte at a time."""

    def read(self, size=-1):
        return super().read(min(size, 1))


@given(names=NAMES, kind=st.sampled_from([io.BytesIO, Slow]), ending=st.booleans(), separator=st.sampled_from([0, 10]))
def test_any_bytes_of_names_survive_both_kinds_of_lists(names, kind, ending, separator):
    mark = bytes([separator])
    if separator == 0:
        names = [b"line\nbreak", *names]
    else:  # what Windows puts around lines is not part of a name, unless a file has it
        names = [name for name in names if not name.endswith(b"\r")]
        assume(not names or not names[0].startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")))
    listed = mark.join(names) + (mark if ending or separator == 0 else b"")
    assert [os.fsencode(name) for name in paths_in(kind(listed))] == names


@pytest.mark.parametrize("kind", [io.BytesIO, Slow])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_written_on_windows_names_the_same_files(kind, encoding, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.png\r").touch()
    listed = "photos/caf\u00e9.png\r\n\r\nodd.png\r\nlast.png".encode(encoding)
    assert [*paths_in(kind(listed))] == ["photos/caf\u00e9.png", "odd.png\r", "last.png"]
    assert [*paths_in(kind(b"a.png\r\0b.png"))] == ["a.png\r", "b.png"]


def test_a_long_list_is_read_as_it_is_used():
    class Endless:
        """Lines without end."""

        given = 0

        def read(self, size):
            Endless.given += size
            return b"x" * 63 + b"\n" if size < 64 else (b"x" * 63 + b"\n") * (size // 64)

    names = paths_in(Endless())
    tracemalloc.start()
    for _ in range(200_000):  # 13 MB of names
        next(names)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert Endless.given > 200_000 * 60
    assert most < 2_000_000


def test_nul_bytes_are_looked_for_as_far_as_a_path_reaches():
    first = b"a\n" * (LONGEST_PATH // 4)
    assert [os.fsencode(name) for name in paths_in(Slow(first + b"\0b"))] == [first, b"b"]


def test_arrays_and_images_of_pillow_are_read_as_their_files_are():
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in [(9, 8, 3), (5, 6, 3)]]
    pictures = [Image.fromarray(each) for each in pixels]
    turned = pictures[0].copy()
    turned.getexif()[0x0112] = 6  # to be turned by a quarter to the right
    preprocess = Preprocess(4)
    for images in (pixels, pictures, [pixels[0], pictures[1]]):
        found = gather(images)
        decoded = [decode(found.source.read(row.path), preprocess) for row in found.rows]
        assert [row.path for row in found.rows] == ["000000", "000001"]
        assert all((each == decode(pnm(pixel), preprocess)).all() for each, pixel in zip(decoded, pixels, strict=True))
    assert (gather(np.stack([pixels[0]] * 3)).total, gather(pixels[0]).total, gather(turned).total) == (3, 1, 1)
    [row] = gather(turned).rows
    upright = decode(pnm(np.rot90(pixels[0], -1)), preprocess)
    assert (decode(gather(turned).source.read(row.path), preprocess) == upright).all()
    with pytest.raises(DataError, match=r"holds float64, images are uint8 or uint16"):
        gather([pixels[0] / 255])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("has_clear_colour", [False, True])
def test_an_image_of_pillow_gives_the_pixels_of_its_png(mode, has_clear_colour):
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(values).convert(mode)
    if has_clear_colour and mode in ("L", "P", "RGB"):
        image.info["transparency"] = image.getpixel((0, 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    read = gather(image).source.read("000000")
    assert np.array_equal(decode(read, Preprocess(8)), decode(buffer.getvalue(), Preprocess(8)))


def test_photographs_in_memory_are_not_compressed():
    data = gather(Image.new("RGB", (64, 48))).source.read("000000")
    assert len(data) > 3 * 64 * 48
