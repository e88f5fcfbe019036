import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from featcache.images.embedded import write_digits
from featcache.images.manifest import scan


def test_the_digits_become_class_folders_of_png(tmp_path):
    images = scan(write_digits(tmp_path / "digits"))
    assert (images.layout, len(images.rows), list(images.classes)) == ("classes", 1797, list("0123456789"))
    digits = load_digits()
    for number in (0, 1, 1796):
        pixels = np.asarray(Image.open(tmp_path / "digits" / str(digits.target[number]) / f"{number:04d}.png"))
        assert np.array_equal(np.rint(pixels / (255 / 16)), digits.images[number])


def test_writing_them_again_changes_only_what_is_not_right(tmp_path):
    root = write_digits(tmp_path / "digits")
    whole, broken = root / "0" / "0000.png", root / "1" / "0001.png"
    right, untouched = broken.read_bytes(), whole.stat().st_mtime_ns
    broken.write_bytes(right[:20])
    write_digits(root)
    assert broken.read_bytes() == right
    assert whole.stat().st_mtime_ns == untouched
