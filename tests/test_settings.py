"""featcache.settings declares an option once: what repeats its name, default or choices agrees with it."""

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Literal, get_args, get_origin

import pytest

import featcache as fc
from featcache import settings, spec
from featcache.backbones.parse import Request
from featcache.extraction import Options
from featcache.extraction.extract_options import DECODERS, ENGINES
from featcache.extraction.layouts import LAYOUTS
from featcache.extras.export.formats import FORMATS
from featcache.extras.recipes import run_recipe
from featcache.extras.recipes.overrides import OPTIONS
from featcache.images.augment import AUGMENTATIONS
from featcache.prediction import predict_to
from featcache.sweeps import Settings
from featcache.sweeps.metrics import METRICS
from featcache.sweeps.presets import PRESETS
from featcache.tuning.training_recipe import CONTROLS, OPTIMIZERS, SCHEDULES

ROOT = Path(fc.__file__).parents[1]
NOTHING = (None, "", ())
CLASSES = [kind for kind in vars(settings).values() if inspect.isclass(kind) and kind.__name__.endswith("Options")]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (fc.extract, settings.ExtractOptions),
        (Options, settings.ExtractOptions),
        (fc.rank, settings.RankOptions),
        (fc.scan, settings.ScanOptions),
        (fc.leaks, settings.LeaksOptions),
        (fc.sweep, settings.SweepOptions),
        (fc.finetune, settings.FinetuneOptions),
        (fc.predict, settings.PredictOptions),
        (predict_to, settings.PredictOptions),
        (fc.export, settings.ExportOptions),
        (fc.quickstart, settings.QuickstartOptions),
        (run_recipe, settings.RecipeOptions),
    ],
    ids=lambda one: one.__name__,
)
def test_a_function_takes_the_options_of_its_command_with_the_same_defaults(function, kind):
    parameters = inspect.signature(function).parameters
    for field in fields(kind):
        assert field.name in parameters, field.name
        default = parameters[field.name].default
        is_the_same = default == field.default or (default in NOTHING and field.default in NOTHING)
        assert is_the_same or (function, field.name) == (fc.export, "to"), (field.name, default)  # `to` is required


def test_a_transformer_takes_the_options_that_decide_its_features():
    """All but `views`: a transformer gives one row for each image."""
    parameters = inspect.signature(fc.FeatureExtractor).parameters
    names = {field.name for field in fields(settings.FeatureOptions)} - {"views"}
    assert names | {"engine", "device", "batch", "trust", "cache", "on_error"} == set(parameters)
    for name in set(parameters) - {"cache", "on_error"}:
        assert parameters[name].default == getattr(settings.ExtractOptions, name), name


def test_a_run_keeps_the_options_of_its_sweep():
    missing = {field.name for field in fields(settings.SweepOptions)} - {field.name for field in fields(Settings)}
    assert missing == {"jobs"}  # decides no number
    declared = {field.name: field.default for field in fields(settings.SweepOptions)}
    for field in fields(Settings):
        if field.name in ("metric", "seed", "cv", "shots", "class_weight", "preset", "budget", "memory", "grid"):
            assert field.default == declared[field.name], field.name


def test_what_names_a_tap_leaves_out_the_defaults_of_an_extraction():
    for kind in (Request, spec.Tap):
        declared = {field.name: field.default for field in fields(kind)}
        assert declared["precision"] == settings.ExtractOptions.precision
        assert declared["dtype"] == settings.ExtractOptions.dtype


def test_a_recipe_sets_only_options_that_commands_have():
    for step, kind in settings.COMMANDS.items():
        names = {field.name for field in fields(kind)}
        assert set(OPTIONS.get(step, ())) <= names, step


@pytest.mark.parametrize(
    ("declared", "taken"),
    [
        (settings.Augmentation, ("none", *AUGMENTATIONS)),
        (settings.CacheLayout, LAYOUTS),
        (settings.Control, CONTROLS),
        (settings.Decode, DECODERS),
        (settings.EngineName, ENGINES),
        (settings.FormatName, FORMATS),
        (settings.Metric, METRICS),
        (settings.Optimizer, OPTIMIZERS),
        (settings.PresetName, PRESETS),
        (settings.Schedule, SCHEDULES),
    ],
    ids=lambda one: "",
)
def test_the_declared_choices_are_those_that_the_library_takes(declared, taken):
    assert get_args(declared) == tuple(taken)


def choices(kind: object) -> tuple[str, ...]:
    """Return the names to choose from of a type; none of another type."""
    if isinstance(kind, UnionType):
        return tuple(name for part in get_args(kind) for name in choices(part))
    return get_args(kind) if get_origin(kind) is Literal else ()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_help_and_completion_name_every_choice_of_an_option(kind):
    for field in fields(kind):
        assert field.metadata["help"], field.name
        if names := choices(field.type):
            assert [name for name in names if name not in field.metadata["help"]] == [], field.name
            assert field.default is None or field.default in names, field.name


def test_settings_import_only_the_standard_library():
    code = (
        "import sys, featcache.settings; "
        "print({name.partition('.')[0] for name in sys.modules} - {*sys.stdlib_module_names, '__main__'})"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "{'featcache'}"
