"""One contract suite over every family of heads, and how heads are named."""

import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import StandardScaler

from featcache.errors import UnknownHead, UsageError
from featcache.heads.absorb import decision_logits
from featcache.heads.estimators import DEFAULT_HEADS, FAMILIES, family_of, make_pipeline, settings
from featcache.heads.imported import imported_class
from featcache.heads.softmax import widths
from featcache.trust import allow

from .conftest import EVERY, blobs, fit_family, params_of

every_family = pytest.mark.parametrize("name", EVERY)


@every_family
@pytest.mark.parametrize("num_classes", [2, 3])
def test_it_predicts_the_classes_it_saw(name, num_classes, fitted):
    X, _ = blobs(num_classes, seed=1)
    assert set(fitted(name, num_classes).predict(X)) <= set(range(num_classes))


@every_family
def test_it_learns_more_than_chance(name):
    X, y = blobs(3)
    params = params_of(name) | ({"epochs": 60, "learning_rate": 0.03} if name in ("softmax", "mlp") else {})
    assert make_pipeline(name, params).fit(X, y).score(X, y) > 0.8


@every_family
def test_one_seed_makes_two_fits_equal(name, fitted):
    X, _ = blobs(3, seed=1)
    again = fit_family.__wrapped__(name, 3)
    assert (again.predict(X) == fitted(name, 3).predict(X)).all()
    assert (decision_logits(again, X) == decision_logits(fitted(name, 3), X)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("forest", "boosting")])  # take long
def test_fits_that_run_at_once_do_not_disturb_each_other(name):
    """Fewer images than features: there liblinear's dual solver draws from one generator for all threads."""
    X, y = blobs(9, per_class=9, num_features=200, spread=9.0)

    def fit(params):
        estimator = make_pipeline(name, params).fit(X, y)
        return decision_logits(estimator, X)

    grid = [*FAMILIES[name].grid] * 3
    with ThreadPoolExecutor(4) as threads:
        for together, params in zip(threads.map(fit, grid), grid, strict=True):
            assert (together == fit(params)).all(), params


@every_family
def test_its_features_are_standardised_first(name):
    pipeline = make_pipeline(name, params_of(name))
    assert len(pipeline) == 2
    assert isinstance(pipeline[0], StandardScaler)


@every_family
def test_class_weights_are_taken_or_have_no_meaning(name):
    classifier = make_pipeline(name, params_of(name), "balanced")[-1]
    without = ("knn", "centroid", "gnb", "lda", "mlpclassifier")
    assert classifier.get_params().get("class_weight", "none") == ("none" if name in without else "balanced")


@every_family
def test_every_setting_of_its_grid_can_be_built(name):
    for setting in settings(name):
        make_pipeline(setting.head, setting.params)


def test_settings_run_from_simple_to_complex_whatever_the_order_asked():
    found = settings("knn, mlp:8,ridge,logreg")
    assert [setting.rank for setting in found] == list(range(len(found)))
    assert list(dict.fromkeys(setting.head for setting in found)) == ["ridge", "logreg", "knn", "mlp:8"]
    strength = [setting.params["alpha"] for setting in found if setting.head == "ridge"]
    assert strength == sorted(strength, reverse=True)
    assert [setting.params["n_neighbors"] for setting in found if setting.head == "knn"] == [15, 5, 1]


def test_a_head_named_twice_is_tried_once():
    assert settings("ridge,ridge") == settings(["ridge"])


def test_the_default_heads_exist():
    assert {family_of(setting.head).name for setting in settings(DEFAULT_HEADS)} < set(FAMILIES)


def test_mlp_takes_its_width():
    assert settings("mlp:512")[0].params["hidden"] == 512
    assert settings("mlp")[0].params["hidden"] == 256
    assert settings("mlp:1024-512")[0].params["hidden"] == "1024-512"
    assert widths(make_pipeline("mlp:1024-512", settings("mlp:1024-512")[0].params)[-1].hidden) == (1024, 512)


def test_an_unknown_head_is_refused_with_near_names():
    with pytest.raises(UnknownHead, match=r"Unknown head 'logregg' \(did you mean logreg\?\)\. Heads: centroid, gnb"):
        settings("logregg")


@pytest.mark.parametrize("head", ["mlp:0", "mlp:-3", "mlp:wide", "mlp:", "mlp:8-", "mlp:8-0"])
def test_a_width_that_is_none_is_refused(head):
    with pytest.raises(UsageError, match=rf"'{head}': the width of the hidden layer is a number from 1"):
        settings(head)


def test_a_width_of_a_linear_head_is_refused():
    with pytest.raises(UsageError, match=r"'ridge:5': only mlp takes a width"):
        settings("ridge:5")


@pytest.mark.parametrize("heads", ["", " , ", []])
def test_no_head_at_all_is_refused(heads):
    with pytest.raises(UsageError, match="Name at least one head: centroid, gnb"):
        settings(heads)


def test_balanced_classes_are_found_by_a_balanced_head():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [190, 10])
    X = rng.normal(0, 1, (200, 2)) + y[:, None]
    plain, balanced = (
        make_pipeline("logreg", {"C": 1.0}, weight).fit(X, y).predict(X) for weight in (None, "balanced")
    )
    assert plain.sum() < 10 < balanced.sum()


MODULE = """
from sklearn.linear_model import LogisticRegression
class Mine(LogisticRegression): pass
class NoEstimator:
    def __init__(self, needed): pass
class OnlyParams:
    def get_params(self): return {}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Be in a folder with a module of classifiers, and forget it afterwards."""
    (tmp_path / "own_heads_of_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "own_heads_of_a_test"
    sys.modules.pop("own_heads_of_a_test", None)


def test_any_classifier_can_be_named_and_takes_weights_and_seed(here):
    X, y = blobs(3)
    head = "sklearn.linear_model:SGDClassifier"
    classifier = make_pipeline(head, {"alpha": 0.1}, "balanced", 7)[-1]
    assert (classifier.alpha, classifier.class_weight, classifier.random_state) == (0.1, "balanced", 7)
    allow(f"{here}:Mine")
    assert make_pipeline(f"{here}:Mine", {}).fit(X, y).score(X, y) > 0.8
    assert [one.params for one in settings([head], {head: {"alpha": [0.1, 1.0]}})] == [{"alpha": 0.1}, {"alpha": 1.0}]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("sklearn.svm:NuSVCC", r"sklearn.svm has no class 'NuSVCC' \(did you mean NuSVC"),
        ("sklearn.nothing:A", "Unknown head 'sklearn.nothing:A': ModuleNotFoundError: No module named"),
        ("own_heads_of_a_test:NoEstimator", "is no classifier, since it lacks fit or predict"),
        ("own_heads_of_a_test:OnlyParams", "is no classifier, since it lacks fit or predict"),
    ],
)
def test_a_class_that_is_no_classifier_is_refused(head, message, here):
    with pytest.raises(UsageError, match=message):
        settings([head])


def test_a_parameter_that_an_imported_classifier_lacks_is_refused():
    head = "sklearn.svm:NuSVC"
    with pytest.raises(UsageError, match=r"`grid`: sklearn.svm:NuSVC has no parameter 'gama' \(did you mean gamma"):
        settings([head], {head: {"gama": [1.0]}})


@pytest.mark.parametrize(
    "head",
    [
        "subprocess:Popen",
        "os:system",
        "sklearn:clone",
        "sklearn.base:clone",
        "sklearn.pipeline:Pipeline",
        "sklearn.preprocessing:FunctionTransformer",
        "sklearn.svm.tests.test_svm:SVC",
        "keras:Sequential",
        "own_heads_of_a_test:NamedByNobody",
    ],
)
def test_a_file_can_name_classifiers_only_and_imports_nothing(head, here):
    """Of what the user did not name: scikit-learn's public classifiers, and those that this process has imported."""
    before = set(sys.modules)
    with pytest.raises(UnknownHead, match=rf"The class {head} is named by a file, .* --allow {head} "):
        imported_class(head)
    assert here not in sys.modules
    assert all(name.startswith("sklearn.") for name in set(sys.modules) - before)


def test_a_file_can_name_classifiers_of_scikit_learn_and_imported_ones(here, monkeypatch):
    assert imported_class("sklearn.svm:NuSVC").__name__ == "NuSVC"
    module = ModuleType("imported_heads_of_a_test")
    module.Mine = type("Mine", (ClassifierMixin, BaseEstimator), {})
    module.Other = type("Other", (BaseEstimator,), {})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert imported_class("imported_heads_of_a_test:Mine") is module.Mine
    with pytest.raises(UnknownHead, match="is named by a file"):
        imported_class("imported_heads_of_a_test:Other")


@pytest.mark.parametrize("name", ["my_heads", "my heads:A", "heads:", ":A", "a..b:C"])
def test_code_is_allowed_as_module_and_name(name):
    with pytest.raises(UsageError, match=rf"Name code as module:Class or module:function, .*; got '{name}'"):
        allow(name)
