"""A model that was made of 12-bit images reads 12-bit images."""

import numpy as np
import pytest
from PIL import Image
from tiny import TOY, write_images

from featcache.errors import UsageError
from featcache.extraction import extract
from featcache.models import handoff
from featcache.prediction import predict, predict_to
from featcache.sweeps import sweep


@pytest.fixture
def twelve(tmp_path):
    """Return a folder of images of 12 bits in 16."""
    folder = write_images(tmp_path / "twelve", 8)
    for path in folder.glob("*/*.png"):
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray(np.rint(grey * (4095 / 255)).astype(np.uint16)).save(path)
    return folder


@pytest.mark.slow
def test_a_model_of_twelve_bit_images_sees_them_as_the_same_images_of_eight_bits(twelve, tmp_path):
    cache = extract(twelve, TOY, bits=12, out=tmp_path / "c.h5")
    model = tmp_path / "head.keras"
    assert handoff(sweep(cache, "ridge", out=tmp_path / "run").best, model).certificate.passed
    deep = [one.top for one in predict(model, twelve, top=3)]
    for path in twelve.glob("*/*.png"):
        Image.fromarray(np.rint(np.asarray(Image.open(path)) * (255 / 4095)).astype(np.uint8)).save(path)
    shallow = [one.top for one in predict(model, twelve, top=3)]
    assert [label for of_image in deep for label, _ in of_image] == [label for tops in shallow for label, _ in tops]
    shares = [[share for tops in of_all for _, share in tops] for of_all in (deep, shallow)]
    assert shares[0] == pytest.approx(shares[1], abs=1e-4)


@pytest.mark.slow
def test_predict_tells_of_values_above_the_white_of_the_model(twelve, tmp_path):
    cache = extract(twelve, TOY, bits=12, out=tmp_path / "c.h5")
    handoff(sweep(cache, "ridge", out=tmp_path / "run").best, tmp_path / "head.keras")
    for path in twelve.glob("*/*.png"):
        Image.fromarray(np.full((8, 8), 60000, np.uint16)).save(path)
    notes = predict_to([], tmp_path / "head.keras", twelve).notes
    assert notes == ("24 of 24 images have values above 4,095, which become white (`bits=12`)",)


def test_taps_of_other_bits_do_not_become_one_model(twelve, tmp_path):
    extract(twelve, TOY, bits=12, out=tmp_path / "c.h5")
    cache = extract(twelve, TOY, out=tmp_path / "c.h5")
    joined = "+".join(cache.taps)
    run = sweep(cache, "ridge", taps=[joined], out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"takes 12 bits.*the same `bits`"):
        handoff(run.best, tmp_path / "head.keras")
