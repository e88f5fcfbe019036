"""The values that a sweep tries, as a user asks for them."""

import math
from itertools import pairwise

import pytest

from featcache.errors import UsageError
from featcache.heads.estimators import settings
from featcache.heads.grids import parse_grid


def test_a_range_is_evenly_spaced_on_a_logarithmic_scale_and_has_both_ends():
    [alphas] = parse_grid(["ridge.alpha=1e-6..1e5:45"])["ridge"].values()
    assert (len(alphas), alphas[0], alphas[-1]) == (45, 1e-6, 1e5)
    steps = [math.log(after / before) for before, after in pairwise(alphas)]
    assert max(steps) - min(steps) < 1e-9


def test_values_are_what_they_look_like_and_several_flags_add_up():
    asked = ["knn.n_neighbors=5,1", "knn.metric=cosine, euclidean", "svm.C=0.5", "logreg.fit_intercept=true,FALSE,none"]
    assert parse_grid(asked) == {
        "knn": {"n_neighbors": [5, 1], "metric": ["cosine", "euclidean"]},
        "svm": {"C": [0.5]},
        "logreg": {"fit_intercept": [True, False, None]},
    }


@pytest.mark.parametrize("text", ["ridge", "ridge=1", "alpha=3", "ridge.alpha", ".alpha=1", ""])
def test_what_is_no_grid_is_refused(text):
    with pytest.raises(
        UsageError, match=r"`grid` takes HEAD.PARAMETER=VALUES, such as ridge.alpha=1e-6\.\.1e5:45; got"
    ):
        parse_grid([text])


@pytest.mark.parametrize("values", ["0..1:3", "-1..1:3", "1..2:1", "1..inf:3", "a..b:3", "nan..1:3"])
def test_a_range_that_cannot_be_is_refused(values):
    with pytest.raises(UsageError, match=r"takes two numbers above 0 and a count from 2; got 'ridge.alpha="):
        parse_grid([f"ridge.alpha={values}"])


def test_a_range_without_a_count_is_refused():
    with pytest.raises(UsageError, match=r"a range is FIRST\.\.LAST:COUNT, such as .*; got 'ridge.alpha=5\.\.8'"):
        parse_grid(["ridge.alpha=5..8"])


def test_given_values_stand_instead_of_the_heads_own_from_simple_to_complex():
    found = settings("logreg,ridge", {"ridge": {"alpha": [1, 100.0, 10]}, "logreg": {"C": [2, 1, 2]}})
    assert [(one.head, dict(one.params)) for one in found] == [
        ("ridge", {"alpha": 100.0}),
        ("ridge", {"alpha": 10}),
        ("ridge", {"alpha": 1}),
        ("logreg", {"C": 1}),
        ("logreg", {"C": 2}),
    ]


def test_other_parameters_make_all_combinations_with_the_heads_own():
    found = settings("knn,mlp:8", {"knn": {"metric": ["cosine", "euclidean"]}, "mlp:8": {"weight_decay": [0.1, 0]}})
    assert [one.params for one in found if one.head == "knn"] == [
        {"n_neighbors": k, "metric": metric} for k in (15, 5, 1) for metric in ("cosine", "euclidean")
    ]
    assert [one.params["weight_decay"] for one in found if one.head == "mlp:8"] == [0.1, 0]
    assert {one.params["hidden"] for one in found if one.head == "mlp:8"} == {8}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"rigde": {"alpha": [1]}}, r"`grid` has values for 'rigde' \(did you mean ridge\?\), which is not among"),
        ({"ridge": {"alhpa": [1]}}, r"ridge has no parameter 'alhpa' \(did you mean alpha"),
        ({"ridge": {"class_weight": ["balanced"]}}, "ridge has no parameter 'class_weight'"),
        ({"ridge": {"alpha": []}}, r"ridge.alpha takes a list of values with one at least; got \[\]"),
        ({"ridge": {"alpha": "123"}}, "ridge.alpha takes a list of values"),
        ({"ridge": {"alpha": 3}}, "ridge.alpha takes a list of values"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(grid, message):
    with pytest.raises(UsageError, match=message):
        settings("ridge,knn", grid)
