"""Train the classifier of a user's own model file on: the control that shows what a new head is worth.

All layers behind the tap train, from the weights of the file; what comes before the tap stays frozen. Dropout and batch
normalisation stay in inference, as in every fine-tuning.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from featcache.backbones import own
from featcache.backbones.build import Backbone, entering
from featcache.backbones.graph import bottlenecks
from featcache.backbones.noise import all_layers, freeze_noise
from featcache.backbones.plain import as_logits
from featcache.errors import NoOwnClassifier, UsageError
from featcache.models import Probe
from featcache.spec import Preprocess, Progress, Tap
from featcache.tuning import prefix
from featcache.tuning.data import LabelledSet, image_sets
from featcache.tuning.optimizing import RateGroup
from featcache.tuning.state import TrainingState
from featcache.tuning.train import TrainingTask, train
from featcache.tuning.training_recipe import Recipe
from featcache.tuning.tuned import Tuned


def check_own(probe: Probe) -> None:
    """Raise UsageError unless the head reads one tap of a user's own model, which brings a classifier."""
    if len(probe.taps) != 1 or not probe.taps[0].backbone.is_own:
        raise UsageError(
            "`controls='own'` trains the classifier in a model file of yours, so it takes a head on one tap of such a "
            f"file; this one reads {' and '.join(probe.tap_names)}. Leave it out"
        )


def train_own_classifier(probe: Probe, recipe: Recipe, keep: Path, resume: bool | None, progress: Progress) -> Tuned:
    """Train the file's classifier on the images of an opened trial; epoch 0 is the file as it is.

    Raises NoOwnClassifier, which says why, if its outputs cannot be the classes of these images.
    """
    [tap] = probe.taps
    [part] = probe.parts()
    logits = _logits_of_classes(part.backbone, probe.chosen.run.classes)
    _check_no_way_around(logits, part.backbone, tap)
    _unfreeze_behind(part.backbone, tap)
    if not logits.trainable_weights:
        raise NoOwnClassifier(f"no layer behind tap '{tap.name}' has weights that can train")
    pixel_model = _on_pixels(logits, tap.preprocess)

    sets: tuple[LabelledSet, LabelledSet] = image_sets(probe, recipe)
    cut = _cut(logits, part.backbone, tap) if recipe.computes_frozen_once else None
    began = time.perf_counter()
    if cut is not None:
        sets = prefix.activations(cut, probe, recipe, progress)
    prefix_s = time.perf_counter() - began

    trains = pixel_model if cut is None else cut.model
    weights = tuple(trains.trainable_weights)
    rate = recipe.head_lr or recipe.learning_rate
    task = TrainingTask(trains, [RateGroup("classifier", weights, rate)], *sets, changing=weights, name="train own")
    task.facts = probe.facts | {"own": recipe.to_json()}
    task.keep = lambda reached: reached.save(keep)
    trained = train(task, recipe, progress, TrainingState.find(keep, task.facts, resume))
    return Tuned(
        model=_with_softmax(pixel_model),
        path=None,
        history=trained.history,
        best=trained.best,
        certificate=None,
        num_trainable=sum(math.prod(weight.shape) for weight in weights),
        seconds=prefix_s + sum(epoch.seconds for epoch in trained.history),
        prefix_s=prefix_s,
        prefix="" if cut is None else cut.layers,
        chosen=probe.chosen,
        val_logits=trained.val_logits,
        notes=_notes(part.backbone),
        stopped=trained.stopped,
    )


def _logits_of_classes(backbone: Backbone, classes: tuple[str, ...]) -> Any:
    """Return the file's model up to its logits (N, K). Raises NoOwnClassifier if they are not these classes."""
    file = backbone.spec.weights
    if backbone.network is backbone.full_model:
        raise NoOwnClassifier(f"{file} ends in no classifier that featcache finds")
    logits = as_logits(backbone.full_model)
    if logits is None:
        raise NoOwnClassifier(f"{file} does not end in one softmax over its classes")
    num_outputs = logits.outputs[0].shape[-1]
    if num_outputs != len(classes):
        raise NoOwnClassifier(
            f"the classifier of {file} tells {num_outputs} classes apart, the images have {len(classes)}"
        )
    stated = own.stated_classes(backbone.spec)
    if stated is not None and stated != list(classes):
        raise NoOwnClassifier(f"{file} names the classes {', '.join(stated)}; the images have {', '.join(classes)}")
    return logits


def _check_no_way_around(logits: Any, backbone: Backbone, tap: Tap) -> None:
    """Raise NoOwnClassifier if a path from the image to the logits leads around the tap: it would train, too."""
    layer, _ = own.origin_of(backbone.cut(tap.layer).outputs[0])
    if layer.name not in bottlenecks(logits):
        raise NoOwnClassifier(f"a path in {backbone.spec.weights} leads around tap '{tap.name}' to the classifier")


def _unfreeze_behind(backbone: Backbone, tap: Tap) -> None:
    """Let all layers behind the tap train, but for batch normalisation; freeze all others."""
    frozen = {id(layer) for layer in all_layers(backbone.cut(tap.layer))}
    backbone.full_model.trainable = True
    for layer in all_layers(backbone.full_model):
        layer.trainable = id(layer) not in frozen
    freeze_noise(backbone.full_model)


def _cut(logits: Any, backbone: Backbone, tap: Tap) -> prefix.Cut:
    """Return the part behind the tap."""
    import keras

    [output] = backbone.cut(tap.layer).outputs
    shape = prefix.shape_at(output, backbone.network, tap.preprocess.size)
    features = keras.Input(shape, name="features")
    behind = keras.Model(output, logits.outputs[0], name="classifier")
    # Features without height and width are in the run's cache as they are; others may have been pooled there.
    entering_tap = tap if len(output.shape) == 2 else prefix.unpooled(tap, tap.layer)
    return prefix.Cut((entering_tap,), keras.Model([features], behind(features), name="rest"))


def _on_pixels(logits: Any, preprocess: Preprocess) -> Any:
    """Return the model from (N, size, size, 3) uint8 to logits."""
    import keras

    pixels = keras.Input((preprocess.size, preprocess.size, 3), dtype="uint8", name="image")
    ready = entering(logits, keras.ops.cast(pixels, "float32"), preprocess)
    return keras.Model(pixels, logits(ready), name="logits")


def _with_softmax(logits: Any) -> Any:
    import keras

    return keras.Model(logits.inputs[0], keras.layers.Softmax(name="probabilities")(logits.outputs[0]))


def _notes(backbone: Backbone) -> tuple[str, ...]:
    """Return what featcache has to assume about the outputs, if the file does not state its classes."""
    if own.stated_classes(backbone.spec) is not None:
        return ()
    return (
        f"{backbone.spec.weights} states no class names: its outputs are taken in the order of the class names, as "
        "Keras takes folders. If some of the validation images trained it, its scores are too good.",
    )
