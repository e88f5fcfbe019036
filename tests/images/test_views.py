import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images.pictures import CORNERS, TURNED, corners_of, four_corners, is_near, saved
from PIL import Image
from PIL.ImageFile import ImageFile

from featcache.errors import UsageError
from featcache.images import decode as decoding
from featcache.images.decode import Undecodable, decode, decode_views
from featcache.images.views import CROPS, VIEWS, Box, Frame, frame_of, parse_views
from featcache.spec import DRAFT_VERSION, Preprocess

digests = st.binary(max_size=8).map(lambda data: hashlib.sha256(data).hexdigest())
resizes = st.sampled_from(["stretch", "crop", "pad"])
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def noise(width, height):
    return Image.fromarray(np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("text", "views"),
    [
        ("1", ("identity",)),
        ("flip", ("identity", "hflip")),
        ("2", ("identity", "hflip")),
        ("4", ("identity", "hflip", "crop-1", "crop-2")),
        ("32", ("identity", "hflip", *(f"crop-{k}" for k in range(1, 31)))),
        ("hflip", ("hflip",)),
        ("identity, crop-7", ("identity", "crop-7")),
    ],
)
def test_views_are_a_number_or_names(text, views):
    assert parse_views(text) == views


@pytest.mark.parametrize("text", ["", "0", "33", "-1", "flip,flip", "vflip", "crop-0", "crop-31", "identity,", "1,2"])
def test_other_views_are_refused_with_the_choices(text):
    with pytest.raises(
        UsageError, match=rf"`views` takes 1, flip, .*identity, hflip, crop-1 to crop-30, or light-1, .*; got '{text}'"
    ):
        parse_views(text)


@given(k=st.sampled_from(CROPS), digest=digests)
def test_a_crop_lies_inside_and_has_the_area_and_shape_it_should(k, digest):
    left, top, right, bottom = frame_of(k, digest).box
    assert 0 <= left < right <= 1 + 1e-12
    assert 0 <= top < bottom <= 1 + 1e-12
    assert (right - left) * (bottom - top) * (1 + 1e-12) >= 0.5
    assert 0.75 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9


def test_crops_use_all_the_room_they_have():
    frames = [frame_of(k, hashlib.sha256(bytes([n])).hexdigest()) for k in CROPS for n in range(20)]
    boxes = [frame.box for frame in frames]
    areas = [(box.right - box.left) * (box.bottom - box.top) for box in boxes]
    shapes = [(box.right - box.left) / (box.bottom - box.top) for box in boxes]
    assert (min(areas) < 0.52, max(areas) > 0.98) == (True, True)
    assert (min(shapes) < 0.8, max(shapes) > 1.25) == (True, True)
    assert (max(box.left for box in boxes) > 0.2, max(box.top for box in boxes) > 0.2) == (True, True)
    assert 0.4 < np.mean([frame.mirrored for frame in frames]) < 0.6
    assert len({*frames}) == len(frames)


def test_what_a_crop_shows_is_pinned():
    """Cached rows would be of other parts of the images if these numbers changed."""
    assert frame_of("crop-1", "0" * 64) == Frame(
        Box(0.0037144804743863167, 0.177525515120898, 0.9661821870578715, 0.9499406766364995), True
    )
    assert frame_of("crop-30", "f" * 64) == Frame(
        Box(0.11816750985418141, 0.016180113355354936, 0.9544481522942694, 0.9755744202771407), False
    )


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 24), resize=resizes)
def test_the_first_view_is_what_decode_gives_and_hflip_its_exact_mirror(width, height, size, resize):
    data = saved(noise(width, height), "PNG")
    identity, hflip, crop = decode_views(data, Preprocess(size, resize), ["identity", "hflip", "crop-1"], "ab")
    assert np.array_equal(identity, decode(data, Preprocess(size, resize)))
    assert np.array_equal(hflip, identity[:, ::-1])
    for pixels in (identity, hflip, crop):
        assert (pixels.shape, pixels.dtype, pixels.flags.c_contiguous) == ((size, size, 3), np.uint8, True)


@given(k=st.sampled_from(CROPS), digest=digests, others=st.lists(st.sampled_from(VIEWS), max_size=3))
def test_a_view_does_not_depend_on_its_company(k, digest, others):
    data = saved(Image.fromarray(NOISE), "PNG")
    alone = decode_views(data, Preprocess(16), [k], digest)[0]
    assert np.array_equal(decode_views(data, Preprocess(16), [*others, k], digest)[-1], alone)


@given(k=st.sampled_from(CROPS), digest=digests, resize=resizes)
def test_a_crop_is_cut_from_the_full_image_before_it_is_resized(k, digest, resize):
    box, mirrored = frame_of(k, digest)
    left, top = int(box.left * 64), int(box.top * 48)
    width, height = round((box.right - box.left) * 64), round((box.bottom - box.top) * 48)
    part = Image.fromarray(NOISE[top : top + height, left : left + width])
    wanted = decode(saved(part, "PNG"), Preprocess(16, resize))
    found = decode_views(saved(Image.fromarray(NOISE), "PNG"), Preprocess(16, resize), [k], digest)[0]
    assert np.array_equal(found, wanted[:, ::-1] if mirrored else wanted)


def test_views_are_of_the_upright_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(Image.fromarray(NOISE).transpose(TURNED[6]), "PNG", exif=exif)
    for k in VIEWS[:6]:
        (found,) = decode_views(turned, Preprocess(16), [k], "ab")
        assert np.array_equal(found, decode_views(saved(Image.fromarray(NOISE), "PNG"), Preprocess(16), [k], "ab")[0])


def test_an_image_is_decoded_once_for_all_views(monkeypatch):
    opened, loads = Image.open, []
    monkeypatch.setattr(Image, "open", lambda *args, **options: loads.append(1) or opened(*args, **options))
    assert len(decode_views(saved(four_corners(), "PNG"), Preprocess(8), VIEWS, "ab")) == 32
    assert len(loads) == 1


def test_what_is_broken_is_broken_in_every_view():
    with pytest.raises(Undecodable, match="truncated"):
        decode_views(saved(noise(200, 200), "JPEG")[:9000], Preprocess(8), ["hflip", "crop-1"], "ab")


def drafted(size=16, resize="stretch"):
    return Preprocess(size, resize, decode=DRAFT_VERSION)


class Drafts:
    """Notes the sizes at which JPEGs are decoded."""

    def __init__(self, monkeypatch):
        self.sizes, load = [], ImageFile.load

        def noting(image):
            if image.tile:  # else it has been decoded already
                self.sizes.append(image.size)
            return load(image)

        monkeypatch.setattr(ImageFile, "load", noting)


def rough(width, height, form="JPEG", **options):
    """Return an image that is the same at half the size: large coloured squares."""
    return saved(four_corners(width, height), form, **options)


@pytest.mark.parametrize(
    ("width", "height", "resize", "decoded"),
    [
        (640, 640, "stretch", (80, 80)),
        (256, 256, "stretch", (64, 64)),
        (256, 252, "stretch", (128, 126)),
        (100, 70, "stretch", (100, 70)),
        (640, 128, "stretch", (320, 64)),
        (640, 128, "crop", (320, 64)),
        (640, 128, "pad", (80, 16)),
        (63, 640, "stretch", (63, 640)),
        (513, 1025, "stretch", (65, 129)),
    ],
)
def test_a_draft_is_as_small_as_the_target_allows(width, height, resize, decoded, monkeypatch):
    monkeypatch.setattr(decoding, "DRAFT_GAP", 1.0)
    drafts = Drafts(monkeypatch)
    decode(rough(width, height), drafted(64, resize))
    decode(rough(width, height), Preprocess(64, resize))
    assert drafts.sizes == [decoded, (width, height)]


@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    size=st.integers(1, 80),
    resize=resizes,
    views=st.lists(st.sampled_from(VIEWS), min_size=1, max_size=3),
    digest=digests,
)
def test_a_draft_never_has_to_be_enlarged(width, height, size, resize, views, digest):
    with pytest.MonkeyPatch.context() as patch:
        drafts = Drafts(patch)
        decode_views(rough(width, height), drafted(size, resize), views, digest)
    boxes = dict.fromkeys(frame_of(view, digest).box for view in views)  # each is decoded once
    for box, (draft_width, draft_height) in zip(boxes, drafts.sizes, strict=True):
        part = (box.right - box.left) * draft_width, (box.bottom - box.top) * draft_height
        reached = max if resize == "pad" else min
        assert (draft_width, draft_height) == (width, height) or reached(part) >= size - 1


@given(
    views=st.lists(st.sampled_from(VIEWS), min_size=1, max_size=4, unique=True),
    size=st.integers(8, 200),
    digest=digests,
)
def test_a_view_is_the_same_whatever_other_views_are_asked_for(views, size, digest):
    data = rough(640, 480)
    together = decode_views(data, drafted(size, "stretch"), views, digest)
    for view, pixels in zip(views, together, strict=True):
        assert np.array_equal(decode_views(data, drafted(size, "stretch"), [view], digest)[0], pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_a_draft_is_upright_and_near_the_exact_image(orientation, resize):
    upright = four_corners(640, 480)
    stored = upright.transpose(TURNED[orientation]) if orientation in TURNED else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored, "JPEG", exif=exif, quality=95)
    exact, draft = (
        decode_views(data, preprocess, VIEWS[:5], "ab") for preprocess in (Preprocess(32, resize), drafted(32, resize))
    )
    for one, other in zip(exact, draft, strict=True):
        assert np.abs(one.astype(int) - other).mean() < 8  # between colours half a pixel is much
    if resize == "stretch":
        assert is_near(corners_of(draft[0]), CORNERS, within=40)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_drafts_of_other_jpegs_show_their_colours(mode):
    image = four_corners(640, 480).convert(mode)
    exact, draft = (decode(saved(image, "JPEG", quality=95), one) for one in (Preprocess(32), drafted(32)))
    assert np.abs(exact.astype(int) - draft).mean() < 6


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "GIF"])
def test_a_draft_of_anything_but_a_jpeg_is_the_image_itself(form):
    data = rough(640, 480, form)
    assert np.array_equal(decode(data, drafted(32)), decode(data, Preprocess(32)))


def test_a_draft_of_a_truncated_jpeg_is_truncated():
    data = saved(noise(400, 400), "JPEG")
    with pytest.raises(Undecodable, match="truncated"):
        decode(data[: len(data) // 2], drafted(16))
