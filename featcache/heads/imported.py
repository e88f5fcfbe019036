"""Classifiers by the path of their class, as `sklearn.svm:NuSVC` or `my.module:Classifier`."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from featcache.errors import UnknownHead
from featcache.files import current_folder_first
from featcache.spec import did_you_mean


def imported_class(path: str) -> Any:
    """Return the class at `module:Class`; modules of the current folder are found. Raises UnknownHead."""
    module, _, name = path.partition(":")
    try:
        with current_folder_first():
            found = importlib.import_module(module)
    except Exception as error:  # whatever a user's module raises
        raise UnknownHead(f"Unknown head '{path}': {type(error).__name__}: {error}") from error
    if not isinstance(getattr(found, name, None), type):
        classes = [one for one, value in vars(found).items() if isinstance(value, type)]
        raise UnknownHead(f"Unknown head '{path}': {module} has no class '{name}'{did_you_mean(name, classes)}")
    return getattr(found, name)


def is_loaded(path: str) -> bool:
    """Return whether the module of a class is imported already, or scikit-learn's: opening a run imports no other."""
    module = path.partition(":")[0]
    return module in sys.modules or module.partition(".")[0] == "sklearn"
