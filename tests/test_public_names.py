"""The public names, and that reaching them waits for nothing that they do not need."""

import importlib
import subprocess
import sys

import pytest

import featcache as fc

NAMES = [
    "Cache",
    "FeatcacheError",
    "FeatureExtractor",
    "Run",
    "__version__",
    "advise",
    "allow",
    "compare",
    "estimate",
    "export",
    "extract",
    "finetune",
    "handoff",
    "leaks",
    "load_model",
    "predict",
    "quickstart",
    "rank",
    "scan",
    "show_progress",
    "similar",
    "sweep",
]
HEAVY = ["tensorflow", "keras", "sklearn", "scipy", "h5py", "PIL", "numpy"]


def test_the_list_of_public_names_changes_on_purpose_only():
    assert fc.__all__ == NAMES
    assert dir(fc) == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("_")])
def test_every_public_name_is_something_to_call(name):
    assert callable(getattr(fc, name))


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="module 'featcache' has no attribute 'exract'"):
        fc.exract  # noqa: B018


def test_importing_featcache_imports_nothing_heavy():
    code = f"import sys, featcache; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "room",
    [
        "extraction",
        "extras.export",
        "extras.leaks",
        "extras.ranking",
        "extras.report",
        "extras.similar",
        "extras.transformer",
        "images",
        "models",
        "prediction",
        "sweeps",
        "tuning",
    ],
)
def test_names_stay_callable_after_their_room_was_imported(room):
    importlib.import_module(f"featcache.{room}")
    assert callable(fc.extract)
    assert all(callable(getattr(fc, name)) for name in NAMES if not name.startswith("_"))
