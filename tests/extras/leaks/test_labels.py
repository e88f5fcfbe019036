"""Labels that look wrong stand first, and copies do not vouch for one another."""

import shutil

import numpy as np
import pytest

from featcache.errors import TooFewClasses
from featcache.extraction import extract
from featcache.extras.leaks import doubts, labels, leaks
from featcache.extras.leaks.labels import doubted

from .conftest import PIXELS, copy, write_pictures


@pytest.fixture
def told_apart(monkeypatch):
    """Have features that tell the true classes apart, by the first letter of a file's name."""

    def features(cache, rows, name):
        true = np.array(["dir".index(row.path.split("/")[-1][0]) for row in rows])
        rng = [np.random.default_rng(int(row.digest[:8], 16)) for row in rows]
        return (np.eye(3)[true] * 4 + np.stack([one.normal(0, 1, 3) for one in rng])).astype(np.float32)

    monkeypatch.setattr(labels, "features_of", features)


@pytest.fixture
def named(tmp_path):
    """Return class folders of 20 pictures whose names begin with the letter of their class."""
    root = write_pictures(tmp_path / "photos", 20)
    for path in [*root.glob("*/*.png")]:
        path.rename(path.with_name(f"{path.parent.name[0]}{path.name}"))
    return root


def judged(photos, tmp_path):
    return doubts(leaks(extract(photos, PIXELS, out=tmp_path / "c.h5")))


def test_images_in_the_wrong_folder_stand_first(named, tmp_path, told_apart):
    wrong = ["iris/d003.png", "rose/i004.png", "daisy/r005.png"]
    for path in wrong:
        shutil.move(next(named.glob(f"*/{path.split('/')[1]}")), named / path)
    found = judged(named, tmp_path)
    assert {one.path for one in found.doubts[:3]} == set(wrong)
    assert {one.path: (one.label, one.suggested) for one in found.doubts[:3]} == {
        "iris/d003.png": ("iris", "daisy"),
        "rose/i004.png": ("rose", "iris"),
        "daisy/r005.png": ("daisy", "rose"),
    }
    assert (found.images, found.unjudged) == (60, 0)
    assert all(one.probability < one.of_suggested for one in found.doubts)
    margins = [one.margin for one in found.doubts]
    assert margins == sorted(margins)


def test_what_judges_an_image_has_not_seen_its_copies(named, tmp_path, monkeypatch):
    shutil.move(named / "daisy/d003.png", named / "iris/d003.png")
    for number in range(4):
        copy(named / "iris/d003.png", named / f"iris/dcopy{number}.jpg", quality=70 + number)
    real, seen = labels.left_out_probabilities, []

    def watched(X, y, num_classes, folds, progress):
        seen.append(folds[X[:, 0] == 1000])
        return real(X, y, num_classes, folds, progress)

    def marked(cache, rows, name):
        return np.array([[1000.0 if row.path.startswith("iris/d") else at] for at, row in enumerate(rows)])

    monkeypatch.setattr(labels, "left_out_probabilities", watched)
    monkeypatch.setattr(labels, "features_of", marked)
    judged(named, tmp_path)
    [folds] = seen
    assert (len(folds), len(set(folds))) == (5, 1)


def test_the_rule_is_that_of_confident_learning():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 300)
    p = rng.dirichlet(np.ones(4) * 0.5, 300) + np.eye(4)[y]
    y[:20] = (y[:20] + 1) % 4
    p /= p.sum(axis=1, keepdims=True)
    usual = [p[y == name, name].mean() for name in range(4)]
    wanted = set()
    for at in range(300):
        possible = [name for name in range(4) if p[at, name] >= usual[name]]
        best = max(possible, key=lambda name, at=at: p[at, name], default=y[at])
        if best != y[at]:
            wanted.add((at, best))
    found = doubted(p, y)
    assert set(found) == wanted
    margins = [p[at, y[at]] - p[at, other] for at, other in found]
    assert margins == sorted(margins)
    assert {at for at, _ in found[:15]} <= set(range(20))


def test_of_a_class_with_one_image_that_image_is_not_judged(named, tmp_path, told_apart):
    for path in sorted((named / "rose").iterdir())[1:]:
        path.unlink()
    found = judged(named, tmp_path)
    assert (found.images, found.unjudged) == (40, 1)
    assert "rose" not in {one.suggested for one in found.doubts}


def test_many_classes_of_few_images_give_numbers(tmp_path, monkeypatch):
    root = write_pictures(tmp_path / "x", 40)
    for number, path in enumerate(sorted(root.glob("*/*.png"))):
        to = tmp_path / "many" / f"class{number // 2:03d}" / path.name.replace(".", f"{number}.")
        to.parent.mkdir(parents=True, exist_ok=True)
        path.rename(to)
    found = judged(tmp_path / "many", tmp_path)
    assert found.images + found.unjudged == 120
    assert np.isfinite([[one.probability, one.of_suggested] for one in found.doubts]).all()


def test_images_without_labels_cannot_be_doubted(named, tmp_path):
    with pytest.raises(TooFewClasses, match=r"c\.h5 has 0 classes of labels; to doubt labels takes two"):
        judged(named / "iris", tmp_path)


def test_features_that_never_vary_doubt_nothing_wrongly(named, tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "features_of", lambda cache, rows, name: np.ones((len(rows), 3), np.float32))
    found = judged(named, tmp_path)
    assert np.isfinite([found.accuracy, *[one.margin for one in found.doubts]]).all()
