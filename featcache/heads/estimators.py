"""The heads by name: which settings a sweep tries, and the scikit-learn pipeline of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.arrays import Classes, Floats
from featcache.errors import UnknownHead, UsageError
from featcache.heads.grids import Grid, Params, combined
from featcache.spec import did_you_mean


@dataclass(frozen=True)
class Family:
    """One kind of head. `grid` runs from simple (strongly regularised) to complex: ties go to the earlier."""

    name: str
    grid: tuple[Params, ...]
    make: Callable[[Params, str | None, int], Any]  # params, class_weight, seed -> classifier
    handoff: bool = True  # has an exact form as Dense layers
    probabilities: bool = True  # its logits are fitted as log-probabilities; if not they get a temperature
    in_keras: Callable[[Params], bool] = lambda params: False  # trained by Keras, so not on threads


@dataclass(frozen=True)
class Setting:
    """One head to try."""

    head: str  # as the user names it: "logreg", "mlp:512"
    params: Params
    rank: int  # place in the order from simple to complex


def _ridge(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier(**params, class_weight=class_weight)


def _logreg(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(**{"max_iter": 1000, **params}, class_weight=class_weight)


def _svm(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.svm import LinearSVC

    # not the dual: liblinear draws its random numbers from one global, so fits on threads would disturb each other
    return LinearSVC(**{"dual": False, "max_iter": 5000, **params}, class_weight=class_weight)


def _knn(params: Params, class_weight: str | None, seed: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(**{"metric": "cosine", "algorithm": "brute", **params})


def _softmax(params: Params, class_weight: str | None, seed: int) -> Any:
    from featcache.heads.softmax import DenseSoftmax

    return DenseSoftmax(**params, class_weight=class_weight, seed=seed)


def _in_keras(params: Params) -> bool:
    from featcache.heads.softmax import engine_of

    return engine_of(params.get("engine", "auto")) == "keras"


def _grid(name: str, values: Sequence[Any]) -> tuple[Params, ...]:
    return tuple({name: value} for value in values)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (  # from simple to complex
        Family("ridge", _grid("alpha", [1e4, 1e3, 1e2, 1e1, 1.0]), _ridge, probabilities=False),
        Family("logreg", _grid("C", [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]), _logreg),
        Family("svm", _grid("C", [1e-5, 1e-4, 1e-3, 1e-2]), _svm, probabilities=False),
        Family("softmax", _grid("learning_rate", [1e-3, 1e-2]), _softmax, in_keras=_in_keras),
        Family("knn", _grid("n_neighbors", [15, 5, 1]), _knn, handoff=False),
        Family("mlp", _grid("learning_rate", [1e-3]), _softmax, in_keras=_in_keras),
    )
}
DEFAULT_HEADS = "ridge,logreg,svm,softmax,knn,mlp:256"
MLP_WIDTH = 256


def settings(heads: str | Sequence[str], grid: Grid | None = None) -> list[Setting]:
    """Return the settings to try for heads such as "logreg,mlp:512", simplest first.

    grid: values instead of those of the heads' own grids, {"logreg": {"C": [0.1, 1]}}.
    Raises UnknownHead with near names, UsageError if there is none, or if the grid is not of these heads.
    """
    grid = grid or {}
    names = [name.strip() for name in (heads.split(",") if isinstance(heads, str) else heads) if name.strip()]
    if not names:
        raise UsageError(f"Name at least one head: {', '.join(FAMILIES)}")
    if stray := [name for name in grid if name not in names]:
        near = did_you_mean(stray[0], names)
        raise UsageError(f"--grid has values for '{stray[0]}'{near}, which is not among the heads {', '.join(names)}")
    found = [Setting(name, params, 0) for name in dict.fromkeys(names) for params in _params(name, grid.get(name, {}))]
    order = list(FAMILIES)
    found.sort(key=lambda setting: order.index(setting.head.split(":")[0]))
    return [Setting(setting.head, setting.params, rank) for rank, setting in enumerate(found)]


def family_of(head: str) -> Family:
    """Return the family of a head's name. Raises UnknownHead with near names."""
    name = head.split(":")[0]
    if name not in FAMILIES:
        raise UnknownHead(f"Unknown head '{name}'{did_you_mean(name, FAMILIES)}. Heads: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def make_pipeline(head: str, params: Params, class_weight: str | None = None, seed: int = 0) -> Any:
    """Return the unfitted Pipeline(StandardScaler, classifier) of one setting."""
    from sklearn.preprocessing import StandardScaler

    return joined(StandardScaler(), make_classifier(head, params, class_weight, seed))


def make_classifier(head: str, params: Params, class_weight: str | None = None, seed: int = 0) -> Any:
    """Return the unfitted classifier of one setting, which takes scaled features."""
    family = family_of(head)
    if class_weight and family.name == "knn":
        class_weight = None  # neighbours have no weights to balance
    return family.make(params, class_weight, seed)


def joined(scaler: Any, classifier: Any) -> Any:
    """Return a scikit-learn Pipeline of the two, fitted if they are."""
    from sklearn.pipeline import Pipeline

    return Pipeline([("scale", scaler), ("head", classifier)])


def set_coefficients(classifier: Any, classes: Classes, coef: Floats, intercept: Floats) -> None:
    """Make a linear classifier one that was fitted with this result: coef (K, D), or (1, D) of two classes."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import LabelBinarizer

    classifier.classes_, classifier.coef_, classifier.intercept_ = classes, coef, intercept
    classifier.n_features_in_ = coef.shape[-1]
    if isinstance(classifier, RidgeClassifier):  # predicts through the binarizer of its labels
        classifier._label_binarizer = LabelBinarizer(pos_label=1, neg_label=-1).fit(classes)


def _params(head: str, given: Mapping[str, Sequence[Any]]) -> list[Params]:
    own = _own_params(head)
    if not given:
        return own
    known = make_classifier(head, own[0]).get_params()
    return combined(head, own, given, [name for name in known if name not in ("class_weight", "seed")])


def _own_params(head: str) -> list[Params]:
    family = family_of(head)
    _, colon, text = head.partition(":")
    if family.name != "mlp":
        if colon:
            raise UsageError(f"'{head}': only mlp takes a width, such as mlp:512")
        return list(family.grid)
    layers = text.split("-") if colon else [str(MLP_WIDTH)]
    if not all(width.isdecimal() and int(width) > 0 for width in layers):
        raise UsageError(
            f"'{head}': the width of the hidden layer is a number from 1, such as mlp:512; of several mlp:1024-512"
        )
    return [{"hidden": int(layers[0]) if len(layers) == 1 else text, **params} for params in family.grid]
