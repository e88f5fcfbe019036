"""Whatever featcache is asked for, Keras is imported by `start_keras`: with true float32, and quietly."""

import json
import os
import subprocess
import sys

import keras
import pytest
from tiny import write_images

from featcache.backend import TRUE_FLOAT32
from featcache.extraction import extract
from featcache.models import handoff
from featcache.sweeps import sweep

# Stands in the way of Keras: tells for each entry whether Keras would start as it should, and goes on with the next.
WATCH = """
import importlib.abc, json, os, sys

class Starts(BaseException):
    pass

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "keras":
            raise Starts(os.environ.get("NVIDIA_TF32_OVERRIDE"))

sys.meta_path.insert(0, Watch())
import featcache as fc
from pathlib import Path

seen = {}
for name, code in json.loads(sys.argv[1]).items():
    os.environ.pop("NVIDIA_TF32_OVERRIDE", None)
    try:
        exec(code)
        seen[name] = "Keras was not needed"
    except Starts as started:
        seen[name] = str(started)
    except Exception as error:
        seen[name] = repr(error)
print(json.dumps(seen))
"""
ENTRIES = {
    "a backbone by name": "fc.extract('photos', 'glyphnet', out='new.h5')",
    "a model": "fc.extract('photos', 'own.keras:mode=unit', out='new.h5')",
    "a model of HDF5": "fc.extract('photos', 'own.h5:mode=unit', out='new.h5')",
    "a function": "fc.extract('photos', 'networks:small:size=16', out='new.h5')",
    "an estimate": "from featcache.extraction import estimate; estimate('photos', 'own.keras:mode=unit', out='new.h5')",
    "an import": "from featcache.backbones.importing import import_model; import_model('own.keras', out='new.keras')",
    "layers": "from featcache.backbones.parse import requests; from featcache.backbones.describe import layers_of; "
    "layers_of(requests('own.keras:mode=unit')[0])",
    "devices": "from featcache.backbones.devices import devices; devices('auto')",
    "a handoff": "fc.Run.open('run').best.to_keras()",
    "a fine-tuning": "fc.finetune(fc.Run.open('run').best, out='new.keras', epochs=1)",
    "predictions": "list(fc.predict('head.keras', 'photos'))",
    "an export": "from featcache.extras.export import export; export('head.keras', to='keras', out='new.keras')",
    "a doctor": "from featcache.extras.doctor.library_facts import SECTIONS; SECTIONS['keras']()",
    "a tutorial": "from featcache.backbones.tutorials import write_small_model; write_small_model(Path('new.h5'))",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with photos, models of the user's, a run on one of them, and what was handed off."""
    folder = tmp_path_factory.mktemp("start")
    write_images(folder / "photos", 12)
    layers = [keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Dense(3, name="last")]
    model = keras.Sequential(layers)
    model.save(folder / "own.keras")
    model.save(folder / "own.h5")
    (folder / "networks.py").write_text("import keras\n")
    cache = extract(folder / "photos", f"{folder / 'own.keras'}:mode=unit", out=folder / "c.h5")
    handoff(sweep(cache, "ridge", out=folder / "run").best, folder / "head.keras")
    return folder


def test_keras_computes_in_true_float32_whatever_starts_it(folder):
    command = [sys.executable, "-c", WATCH, json.dumps(ENTRIES)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == dict.fromkeys(ENTRIES, "0")


def test_keras_that_the_user_has_imported_is_told_too(monkeypatch):
    from featcache.backend import start_keras

    for name in TRUE_FLOAT32:
        monkeypatch.delenv(name, raising=False)
    start_keras()
    assert {name: os.environ[name] for name in TRUE_FLOAT32} == TRUE_FLOAT32
