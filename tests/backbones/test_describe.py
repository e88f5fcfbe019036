"""A user who chooses taps is shown every layer that can be one, of any backbone, and nothing is downloaded for it."""

import json
import re
import signal
import subprocess
import sys

import keras
import pytest

from featcache.backbones.build import build
from featcache.backbones.describe import layers_of
from featcache.backbones.parse import requests
from featcache_cli.app import main


@pytest.fixture
def show(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["featcache", "backbones", "show", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as leaving:
            main()
        signal.signal(signal.SIGTERM, handler)
        return leaving.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def mine(tmp_path):
    steps = [
        keras.layers.Conv2D(4, 3, strides=2, name="early"),
        keras.layers.Conv2D(6, 3, name="late"),
        keras.layers.GlobalAveragePooling2D(name="pool"),
        keras.layers.Dense(3, activation="softmax"),
    ]
    keras.Sequential([keras.Input((16, 16, 3)), *steps], name="mine").save(tmp_path / "mine.keras")
    return tmp_path / "mine.keras"


def test_the_weights_that_are_counted_are_those_with_its_options(show):
    code, out, _ = show("mobilenet:alpha=0.25", "--json")
    assert (code, json.loads(out)["params"], json.loads(out)["width"]) == (0, 218_544, 256)


def test_every_layer_that_is_listed_can_be_a_tap_and_those_of_auto_are_marked():
    [request] = requests("glyphnet")
    backbone, found = build(request.spec, 32, "avg"), layers_of(request)
    assert all(backbone.cut(one.name).output.shape[1:] == one.shape for one in found)
    assert [one.name for one in found if one.auto] == backbone.auto_layers()
    assert (found[0].block, found[-1].name, found[-1].block) == ("stem", "top", "block_4")


def test_nothing_is_downloaded_to_list_layers(home):
    [request] = requests("mobilenet_v2:alpha=0.35:size=96")
    assert len(layers_of(request)) == 155 + 1  # the pooling, which is "top", among them
    assert list(home.rglob("*.h5")) == []


def test_a_model_of_ones_own_is_shown(show, mine):
    code, out, err = show(f"{mine}:mode=tf", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "name": "mine", "mode": "tf", "params": 4 * 28 + 6 * 37, "width": 6, "layers": 3, "blocks": 0, "size": 16,
        "weights": str(mine), "present": True,
    }  # fmt: skip
    assert show(mine)[0] == 2  # how do pixels enter?


def test_a_function_of_ones_own_is_shown(show, tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(
        "import keras\n"
        "def small():\n"
        "    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name='block_1_conv'),\n"
        "                             keras.layers.Conv2D(4, 3, name='block_2_conv')])\n"
    )
    monkeypatch.chdir(tmp_path)
    facts = json.loads(show("nets:small:mode=tf", "--json", "--layers")[1])
    assert (facts["name"], facts["blocks"], facts["weights"], facts["size"]) == ("small", 2, None, 8)
    assert [one["name"] for one in facts["taps"] if one["auto"]] == ["block_1_conv", "top"]


def test_layers_are_listed_as_text_and_as_json(show, mine):
    taps = json.loads(show(f"{mine}:mode=tf", "--layers", "--json")[1])["taps"]
    assert taps[1:] == [
        {"name": "early", "shape": [7, 7, 4], "block": "stem", "auto": True, "index": 1},
        {"name": "late", "shape": [5, 5, 6], "block": "stem", "auto": True, "index": 2},
        {"name": "pool", "shape": [6], "block": "stem", "auto": False, "index": 3},
        {"name": taps[4]["name"], "shape": [3], "block": "stem", "auto": False, "index": 4},  # "top" goes without
        {"name": "top", "shape": [6], "block": "stem", "auto": True, "index": None},
    ]
    code, out, err = show(f"{mine}:mode=tf", "--layers")
    assert (code, err) == (0, "")
    assert re.search(r"^late +2 +5 x 5 x 6 +stem +auto$", out, re.MULTILINE)


def test_a_registered_backbone_is_shown_without_keras():
    code = (
        "import sys; from featcache_cli import app; sys.argv = ['featcache', 'backbones', 'show', 'resnet50']\n"
        "try: app.main()\n"
        "except SystemExit as leaving: sys.exit(leaving.code or 'keras' in sys.modules)"
    )
    assert "resnet50" in subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
