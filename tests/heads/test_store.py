import io
import pickle

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from skops.io import dumps

from featcache.errors import NotARun, ShapeMismatch
from featcache.heads import store
from featcache.heads.absorb import decision_logits
from featcache.heads.estimators import make_pipeline

from .conftest import DENSE, EVERY, blobs, params_of


def rewritten(path, change):
    """Load the arrays of a stored head, change them, and write them back."""
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)


def load(path, name="logreg", num_features=6):
    return store.load(path, name, params_of(name), num_features)


@pytest.fixture
def stored(tmp_path, fitted):
    path = tmp_path / "1.npz"
    store.save(path, fitted("logreg", 3))
    return path


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", DENSE)
def test_a_stored_head_is_the_same_to_the_last_bit(name, num_classes, tmp_path, fitted):
    estimator = fitted(name, num_classes)
    store.save(tmp_path / "1.npz", estimator)
    again = load(tmp_path / "1.npz", name)
    X, _ = blobs(num_classes, seed=1)
    assert (decision_logits(again, X) == decision_logits(estimator, X)).all()
    assert (again.predict(X) == estimator.predict(X)).all()
    if hasattr(estimator, "predict_proba"):
        assert (again.predict_proba(X) == estimator.predict_proba(X)).all()


def test_a_head_for_another_tap_is_refused(stored):
    with pytest.raises(ShapeMismatch, match=r"1\.npz takes 6 features, its tap has 1280\. Sweep again"):
        load(stored, num_features=1280)


@pytest.mark.parametrize("name", ["mean", "scale"])
def test_a_scaler_of_another_shape_is_refused(name, stored):
    rewritten(stored, lambda arrays: arrays.update({name: arrays[name][:-1]}))
    with pytest.raises(ShapeMismatch, match="Sweep again"):
        load(stored)


@pytest.mark.parametrize("name", ["coef", "intercept", "classes"])
def test_a_classifier_that_lost_a_row_is_refused(name, stored):
    rewritten(stored, lambda arrays: arrays.update({name: arrays[name][:-1]}))
    with pytest.raises((NotARun, ShapeMismatch), match="Sweep again"):
        load(stored)


@pytest.mark.parametrize("name", ["kernel1", "bias0", "bias1"])
def test_layers_that_do_not_fit_each_other_are_refused(name, tmp_path, fitted):
    store.save(tmp_path / "1.npz", fitted("mlp", 3))
    rewritten(tmp_path / "1.npz", lambda arrays: arrays.update({name: arrays[name][:-1]}))
    with pytest.raises((NotARun, ShapeMismatch), match="Sweep again"):
        load(tmp_path / "1.npz", "mlp")


@pytest.mark.parametrize("gone", ["mean", "classes", "coef", "intercept", "num_samples"])
def test_a_file_that_lacks_an_array_is_refused(gone, stored):
    rewritten(stored, lambda arrays: arrays.pop(gone))
    with pytest.raises(NotARun, match=r"Cannot read the head .*1\.npz.*Sweep again"):
        load(stored)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotARun, match=r"Cannot read the head .*7\.npz.*Sweep again"):
        load(tmp_path / "7.npz")


@pytest.mark.parametrize("kept", [0, 3, 100, 600, -1])
def test_a_truncated_file_is_refused(kept, stored):
    stored.write_bytes(stored.read_bytes()[:kept])
    with pytest.raises(NotARun, match=r"Cannot read the head .*1\.npz"):
        load(stored)


def test_a_flipped_byte_is_noticed(stored):
    data = bytearray(stored.read_bytes())
    data[data.index(b"NUMPY") + 140] ^= 0xFF  # in the values of the first array, after 128 bytes of header
    stored.write_bytes(data)
    with pytest.raises(NotARun, match=r"Cannot read the head .*1\.npz"):
        load(stored)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code from the file was run",))


def test_an_array_of_objects_is_refused_unread(stored):
    rewritten(stored, lambda arrays: arrays.update(coef=np.array([Trap()], dtype=object)))
    with pytest.raises(NotARun, match=r"Cannot read the head.*[Oo]bject array"):
        load(stored)


def test_a_pickle_under_the_name_of_a_head_is_refused_unread(stored):
    stored.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(NotARun, match="Cannot read the head"):
        load(stored)


def test_a_single_array_instead_of_an_archive_is_refused(stored):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    stored.write_bytes(buffer.getvalue())
    with pytest.raises(NotARun, match="Cannot read the head"):
        load(stored)


OTHERS = ("centroid", "gnb", "rbf", "forest", "boosting", "mlpclassifier")


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", OTHERS)
def test_other_estimators_are_the_same_to_the_last_bit(name, num_classes, tmp_path, fitted):
    estimator = fitted(name, num_classes)
    assert store.save(tmp_path / "1.npz", estimator) == (tmp_path / "1.skops").stat().st_size
    again = store.load(tmp_path / "1.npz", name, {}, 6, num_classes=num_classes)
    X, _ = blobs(num_classes, seed=1)
    assert (decision_logits(again, X) == decision_logits(estimator, X)).all()


@pytest.mark.parametrize("chain", ["l2", "pca:3:whiten", "none"])
def test_heads_after_other_steps_are_stored_with_them(chain, tmp_path):
    X, y = blobs(3)
    estimator = make_pipeline("logreg", {}, prepare=chain).fit(X, y)
    assert store.save(tmp_path / "1.npz", estimator)
    again = store.load(tmp_path / "1.npz", "logreg", {}, 6, chain, 3)
    assert (again.predict_proba(X) == estimator.predict_proba(X)).all()


@pytest.mark.parametrize("name", [name for name in EVERY if name != "knn"])
def test_every_other_head_than_neighbours_is_stored(name, tmp_path, fitted):
    assert store.save(tmp_path / "1.npz", fitted(name, 3)) > 0


def test_neighbours_are_not_stored(tmp_path, fitted):
    assert store.save(tmp_path / "1.npz", fitted("knn", 3)) == 0
    assert not any(tmp_path.iterdir())


class Own(LogisticRegression):
    """A classifier that no file may name."""


def test_an_estimator_of_an_unknown_class_is_not_stored(tmp_path):
    X, y = blobs(3)
    assert store.save(tmp_path / "1.npz", Pipeline([("head", Own().fit(X, y))])) == 0


def test_a_file_that_names_an_unknown_class_is_not_loaded(tmp_path):
    X, y = blobs(3)
    (tmp_path / "1.skops").write_bytes(dumps(Pipeline([("head", Own().fit(X, y))])))
    with pytest.raises(NotARun, match=r"Cannot read the head .*1\.skops: Untrusted types found.*Sweep again"):
        load(tmp_path / "1.npz")


def test_a_stored_head_is_of_the_classes_that_its_trial_stands_for(tmp_path):
    """skops makes any estimator of scikit-learn; what is used is what the trial makes, and nothing else."""
    X, y = blobs(3)
    steps = [("standardise", StandardScaler()), ("transform", FunctionTransformer(np.exp)), ("head", SVC())]
    for hostile in (Pipeline(steps), Pipeline([steps[1], steps[2]]), Pipeline([steps[0], ("head", GaussianNB())])):
        (tmp_path / "1.skops").write_bytes(dumps(hostile.fit(X, y)))
        with pytest.raises(NotARun, match=r"1\.skops: it holds .* which is not what the trial's head and preparation"):
            load(tmp_path / "1.npz", "rbf")


def test_a_stored_pipeline_keeps_its_steps_and_nothing_else(tmp_path):
    """A pipeline with a memory reads pickles from the folder of that name when it is fitted."""
    X, y = blobs(3)
    hostile = Pipeline([("standardise", StandardScaler()), ("head", SVC())], memory=str(tmp_path / "pickles"))
    (tmp_path / "1.skops").write_bytes(dumps(hostile.fit(X, y)))
    assert load(tmp_path / "1.npz", "rbf").memory is None


def test_arrays_are_no_head_of_a_kind_that_is_not_stored_so(stored):
    with pytest.raises(NotARun, match=r"1\.npz: a head forest after standardise is not stored as arrays"):
        store.load(stored, "forest", {}, 6)


def test_a_stored_estimator_for_another_tap_or_other_classes_is_refused(tmp_path, fitted):
    store.save(tmp_path / "1.npz", fitted("rbf", 3))
    with pytest.raises(ShapeMismatch, match=r"1\.skops takes 6 features, its tap has 1280\. Sweep again"):
        store.load(tmp_path / "1.npz", "rbf", {}, 1280)
    with pytest.raises(ShapeMismatch, match=r"1\.skops gives 3 scores for 4 classes\. Sweep again"):
        store.load(tmp_path / "1.npz", "rbf", {}, 6, num_classes=4)


@pytest.mark.parametrize("content", [b"", b"no zip", dumps({"a": 1})])
def test_a_damaged_skops_file_is_refused(content, tmp_path):
    (tmp_path / "1.skops").write_bytes(content)
    with pytest.raises(NotARun, match=r"Cannot read the head .*1\.skops.*Sweep again"):
        load(tmp_path / "1.npz")
