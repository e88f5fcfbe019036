"""Import classifiers by the path of their class, such as `sklearn.svm:NuSVC` or `my.module:Classifier`.

featcache imports a class that the user named. If only a file names it, it must be one of scikit-learn's classifiers or
already imported in this process; otherwise the error asks the user to name it (`featcache.trust`).
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from featcache.errors import UnknownHead
from featcache.spec import did_you_mean
from featcache.trust import current_folder_last, how_to_allow, is_allowed


def imported_class(path: str) -> Any:
    """Return the classifier class at `module:Class`, without calling it. Raises UnknownHead."""
    if not is_allowed(path):
        return _known_classifier(path)
    module, _, name = path.partition(":")
    try:
        with current_folder_last():
            imported = importlib.import_module(module)
    except Exception as error:  # a user's module may raise anything
        raise UnknownHead(f"Unknown head '{path}': {type(error).__name__}: {error}") from error
    class_ = getattr(imported, name, None)
    if not isinstance(class_, type):
        classes = [key for key, value in vars(imported).items() if isinstance(value, type)]
        place = getattr(imported, "__file__", None) or "built into Python"
        near = did_you_mean(name, classes)
        raise UnknownHead(f"Unknown head '{path}': {module} has no class '{name}'{near}; the module is {place}")
    if not (callable(getattr(class_, "fit", None)) and callable(getattr(class_, "predict", None))):
        raise UnknownHead(f"Unknown head '{path}': the class is no classifier, since it lacks fit or predict")
    return class_


def _known_classifier(path: str) -> Any:
    """Return a class that only a file names, without importing anything but scikit-learn.

    Many modules are already imported that no user named, such as subprocess. So the class must be a classifier by
    scikit-learn's contract, and nothing else in a module is read.
    """
    from sklearn.base import BaseEstimator, ClassifierMixin

    module, _, name = path.partition(":")
    imported = _of_scikit_learn(module) if module.startswith("sklearn.") else sys.modules.get(module)
    # vars() and not getattr(), which may run the module's own __getattr__
    class_ = vars(imported).get(name) if isinstance(imported, ModuleType) else None
    if isinstance(class_, type) and issubclass(class_, BaseEstimator) and issubclass(class_, ClassifierMixin):
        return class_
    raise UnknownHead(
        f"The class {path} is named by a file, and featcache imports no class for that. {how_to_allow(path)}"
    )


def _of_scikit_learn(module: str) -> ModuleType | None:
    """Return a public module of the installed scikit-learn; None if it has no such module."""
    import sklearn

    if module.removeprefix("sklearn.") not in sklearn.__all__:
        return None
    try:
        return importlib.import_module(module)
    except ImportError:  # a function, such as sklearn.clone
        return None
