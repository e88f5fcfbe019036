"""Heads by name: the settings that a sweep tries, and the scikit-learn pipeline of each.

`FAMILIES` has one entry for each kind of head. To add one, add its entry and the function that makes it;
docs/head.md has the other steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.arrays import Classes, Floats
from featcache.errors import UnknownHead, UsageError
from featcache.heads.grids import Grid, Params, combined
from featcache.heads.imported import imported_class
from featcache.heads.steps import STANDARDISE, make_steps
from featcache.spec import did_you_mean
from featcache.trust import allow


@dataclass(frozen=True)
class Family:
    """One kind of head. `grid` runs from simple (strongly regularised) to complex; among equals the earlier wins."""

    name: str
    grid: tuple[Params, ...]
    make: Callable[[Params, str | None, int], Any]  # params, class_weight, seed -> classifier
    in_keras: Callable[[Params], bool] = lambda params: False  # whether Keras trains it, which excludes threads


@dataclass(frozen=True)
class Setting:
    """One head to try."""

    head: str  # as the user names it: "logreg", "mlp:512"
    params: Params
    rank: int  # position in the order from simple to complex


def _centroid(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.neighbors import NearestCentroid

    return NearestCentroid(**params)


def _gnb(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.naive_bayes import GaussianNB

    return GaussianNB(**params)


def _ridge(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier(**params, class_weight=class_weight)


def _lda(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return LinearDiscriminantAnalysis(**{"solver": "lsqr", **params})


def _logreg(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(**{"max_iter": 1000, **params}, class_weight=class_weight)


def _svm(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.svm import LinearSVC

    # Not the dual: for it liblinear draws random numbers from one global, so that threads would disturb each other.
    return LinearSVC(**{"dual": False, "max_iter": 5000, **params}, class_weight=class_weight)


def _knn(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(**{"metric": "cosine", "algorithm": "brute", **params})


def _rbf(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.svm import SVC

    return SVC(**params, class_weight=class_weight)


def _forest(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(**params, class_weight=class_weight, random_state=seed)


def _boosting(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(**params, class_weight=class_weight, random_state=seed)


def _softmax(params: Params, class_weight: str | None, seed: int) -> Any:
    from featcache.heads.softmax import DenseSoftmax

    return DenseSoftmax(**params, class_weight=class_weight, seed=seed)


def _in_keras(params: Params) -> bool:
    from featcache.heads.softmax import engine_of

    return engine_of(params.get("engine", "auto")) == "keras"


def _perceptron(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(**{"hidden_layer_sizes": (MLP_WIDTH,), **params}, random_state=seed)


def _grid(name: str, values: Sequence[Any]) -> tuple[Params, ...]:
    return tuple({name: value} for value in values)


MLP_WIDTH = 256
EARLY_STOPPING = {"patience": "none", "early_stopping": "false"}  # {parameter: its value in --grid that means off}
# Parameters that --grid refuses: the sweep sets them, or they change no prediction.
NOT_SWEPT = ("class_weight", "seed", "random_state", "decision_function_shape")
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (  # from simple to complex
        Family("centroid", ({},), _centroid),
        Family("gnb", _grid("var_smoothing", [1.0, 1e-2, 1e-9]), _gnb),
        Family("ridge", _grid("alpha", [1e4, 1e3, 1e2, 1e1, 1.0]), _ridge),
        Family("lda", _grid("shrinkage", [0.9, 0.5, 0.1, 0.01]), _lda),
        Family("logreg", _grid("C", [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]), _logreg),
        Family("svm", _grid("C", [1e-5, 1e-4, 1e-3, 1e-2]), _svm),
        Family("softmax", _grid("learning_rate", [1e-3, 1e-2]), _softmax, in_keras=_in_keras),
        Family("knn", _grid("n_neighbors", [15, 5, 1]), _knn),
        Family("rbf", _grid("C", [0.1, 1.0, 10.0, 100.0]), _rbf),
        Family("forest", _grid("n_estimators", [300]), _forest),
        Family("mlp", _grid("learning_rate", [1e-3]), _softmax, in_keras=_in_keras),
        Family("mlpclassifier", _grid("alpha", [1e-2]), _perceptron),
        Family("boosting", _grid("learning_rate", [0.1]), _boosting),
    )
}
DEFAULT_HEADS = "ridge,logreg,svm,softmax,knn,mlp:256"


def settings(heads: str | Sequence[str], grid: Grid | None = None) -> list[Setting]:
    """Return the settings to try for heads such as "logreg,mlp:512", simplest first.

    grid: values that replace the heads' default grids, {"logreg": {"C": [0.1, 1]}}.
    Raises UnknownHead with near names; UsageError if no head is named, or if the grid names a head that is not.
    """
    grid = grid or {}
    listed = heads.split(",") if isinstance(heads, str) else heads
    stripped = [name.strip() for name in listed]
    names = list(dict.fromkeys(name for name in stripped if name))
    if not names:
        raise UsageError(f"Name at least one head: {', '.join(FAMILIES)}")
    if stray := [name for name in grid if name not in names]:
        near = did_you_mean(stray[0], names)
        raise UsageError(f"`grid` has values for '{stray[0]}'{near}, which is not among the heads {', '.join(names)}")

    # `sorted` is stable: heads of one family stay in the order in which the user named them.
    chosen: list[Setting] = []
    for name in sorted(names, key=complexity):
        all_params = _default_params(name)
        if requested := grid.get(name):
            known = make_classifier(name, all_params[0]).get_params()
            sweepable = [param for param in known if param not in NOT_SWEPT]
            all_params = combined(name, all_params, requested, sweepable)
        for params in all_params:
            chosen.append(Setting(name, params, rank=len(chosen)))
    return chosen


def early_stopping_off(setting: Setting) -> str:
    """Return the parameter that turns a head's early stopping off, "patience=none"; "" if it does not stop early.

    A head that stops early holds out some of the rows that it is fitted on. "auto", the default of `boosting`, does so
    with more than 10,000 rows. Users' own classes may have any parameter for it, so nothing is known about them.
    """
    if is_own_class(setting.head):
        return ""
    params = make_classifier(setting.head, setting.params).get_params()
    for name, off in EARLY_STOPPING.items():
        if params.get(name) not in (None, False):
            return f"{name}={off}"
    return ""


def family_of(head: str) -> Family:
    """Return the family of a head's name. Raises UnknownHead with near names."""
    name, _, rest = head.partition(":")
    if name in FAMILIES:
        return FAMILIES[name]
    if "." in name or (rest and not rest[0].isdigit()):
        return _imported(head)
    raise UnknownHead(
        f"Unknown head '{name}'{did_you_mean(name, FAMILIES)}. Heads: {', '.join(FAMILIES)}, or module:Classifier"
    )


def is_own_class(head: str) -> bool:
    """Return whether a head is a user's class, neither a family nor from scikit-learn."""
    return family_of(head).name not in FAMILIES and not head.startswith("sklearn.")


def check_heads_of_file(heads: Sequence[str]) -> None:
    """Raise UnknownHead if a head that only a file names needs a class that the user has not allowed."""
    for head in heads:
        if family_of(head).name not in FAMILIES:
            imported_class(head)


def complexity(head: str) -> int:
    """Return the position of a head's family in the order from simple to complex; imported classes come last."""
    name = head.partition(":")[0]
    return list(FAMILIES).index(name) if name in FAMILIES else len(FAMILIES)


def _imported(head: str) -> Family:
    """Return the family of `module:Classifier`, whose only default setting is the class without arguments."""

    def make(params: Params, class_weight: str | None, seed: int) -> Any:
        classifier = imported_class(head)(**params)
        defaults = classifier.get_params()
        # The sweep's settings apply to a parameter that the class has and leaves at None.
        for name, value in (("class_weight", class_weight), ("random_state", seed)):
            if defaults.get(name, 0) is None:
                classifier.set_params(**{name: value})
        return classifier

    return Family(head, ({},), make)


def make_pipeline(
    head: str, params: Params, class_weight: str | None = None, seed: int = 0, prepare: str = STANDARDISE
) -> Any:
    """Return the unfitted Pipeline of the steps that prepare features and the classifier of one setting."""
    return joined(make_steps(prepare), make_classifier(head, params, class_weight, seed))


def make_classifier(head: str, params: Params, class_weight: str | None = None, seed: int = 0) -> Any:
    """Return the unfitted classifier of one setting, for prepared features.

    knn, centroid, gnb, lda and mlpclassifier have no class weights, and ignore them.
    """
    return family_of(head).make(params, class_weight, seed)


def joined(steps: Sequence[tuple[str, Any]], classifier: Any) -> Any:
    """Return a scikit-learn Pipeline of the steps and the classifier, fitted if they are."""
    from sklearn.pipeline import Pipeline

    return Pipeline([*steps, ("head", classifier)])


def set_coefficients(classifier: Any, classes: Classes, coef: Floats, intercept: Floats) -> None:
    """Make a linear classifier a fitted one: coef (K, D) and intercept (K,), or (1, D) and (1,) for two classes."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import LabelBinarizer

    classifier.classes_ = classes
    classifier.coef_ = coef
    classifier.intercept_ = intercept
    classifier.n_features_in_ = coef.shape[-1]
    if isinstance(classifier, RidgeClassifier):  # predicts through the binarizer of its labels
        classifier._label_binarizer = LabelBinarizer(pos_label=1, neg_label=-1).fit(classes)


def _default_params(head: str) -> list[Params]:
    family = family_of(head)
    if head == "mlp":
        return [{"hidden": MLP_WIDTH, **params} for params in family.grid]
    if family.name == head:
        if head not in FAMILIES:
            # The user has named this class, so it may be imported from here on.
            allow(head)
            _check_classifier(head)
        return list(family.grid)
    if family.name != "mlp":
        raise UsageError(f"'{head}': only mlp takes a width, such as mlp:512")

    width = head.partition(":")[2]
    layers = width.split("-")
    if not all(layer.isdecimal() and int(layer) > 0 for layer in layers):
        raise UsageError(
            f"'{head}': the width of the hidden layer is a number from 1, such as mlp:512; of several mlp:1024-512"
        )
    hidden = int(width) if len(layers) == 1 else width
    return [{"hidden": hidden, **params} for params in family.grid]


def _check_classifier(head: str) -> None:
    """Raise UsageError unless a class makes scikit-learn classifiers without arguments."""
    try:
        make_classifier(head, {})
    except Exception as error:  # a user's class may raise anything
        if isinstance(error, UnknownHead):
            raise
        raise UsageError(f"'{head}' is no classifier as scikit-learn's are, made without arguments: {error}") from error
