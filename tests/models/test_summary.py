"""`featcache show MODEL.keras` tells what keras.Model.summary would, of models within models too."""

import keras
import pytest
from tiny import write_images

from featcache.backbones.noise import all_layers
from featcache.errors import FeatcacheError
from featcache.extraction import extract
from featcache.models import handoff
from featcache.models.summary import summarize
from featcache.sweeps import sweep
from featcache.tuning import finetune


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    folder = tmp_path_factory.mktemp("summary")
    cache = extract(write_images(folder / "photos"), "glyphnet:weights=none", out=folder / "c.h5")
    return sweep(cache, "ridge", out=folder / "run").best


def test_every_layer_is_there_with_what_it_gives_and_how_many_parameters_it_has(head, tmp_path):
    model = handoff(head, tmp_path / "m.keras")
    summary = summarize(str(tmp_path / "m.keras"))
    assert summary.classes == head.run.classes
    assert summary.parameters == model.count_params()
    assert {layer.name for layer in summary.layers if layer.kind != "Functional"} == {
        layer.name for layer in all_layers(model)
    }
    logits = next(layer for layer in summary.layers if layer.name == "logits")
    width = head.trial.width
    assert (logits.kind, logits.shape, logits.parameters, logits.depth) == ("Dense", (3,), 3 * width + 3, 0)
    backbone = next(layer for layer in summary.layers if layer.kind == "Functional")
    inside = [layer for layer in summary.layers if layer.depth == 1]
    assert sum(layer.parameters for layer in inside) == backbone.parameters > 0


@pytest.mark.slow
def test_what_trains_is_what_was_unfrozen(head, tmp_path):
    tuned = finetune(head, tmp_path / "m.keras", unfreeze="last", epochs=1)
    summary = summarize(str(tmp_path / "m.keras"))
    of_head = 3 * head.trial.width + 3
    assert 0 < tuned.num_trainable < summary.parameters - of_head
    assert summary.trainable == tuned.num_trainable + of_head
    norms = [layer for layer in summary.layers if layer.kind == "BatchNormalization"]
    assert norms
    assert not any(layer.trainable for layer in norms)


def test_any_keras_model_is_shown(tmp_path):
    keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]).save(tmp_path / "m.keras")
    summary = summarize(str(tmp_path / "m.keras"))
    assert (summary.classes, summary.trainable) == ((), 8 * 8 * 3 * 2 + 2)
    assert [layer.kind for layer in summary.layers] == ["Flatten", "Dense"]


@pytest.mark.parametrize("content", [None, b"PK no"])
def test_what_is_no_model_is_named(content, tmp_path):
    path = tmp_path / "m.keras"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FeatcacheError, match=r"m\.keras"):
        summarize(str(path))
