"""Train the same architecture from random weights: the control that shows what transfer is worth."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache.backbones.build import build, reproducibly
from featcache.backbones.noise import all_layers
from featcache.errors import UsageError
from featcache.images.manifest import Images
from featcache.models import Probe
from featcache.models.assemble import ModelPart, assemble, logits_of
from featcache.spec import Progress, silent
from featcache.sweeps import Chosen
from featcache.tuning.data import image_sets
from featcache.tuning.optimizing import RateGroup
from featcache.tuning.state import TrainingState
from featcache.tuning.train import TrainingTask, train
from featcache.tuning.training_recipe import Recipe, recipe_of
from featcache.tuning.tuned import Tuned


def from_scratch(
    chosen: Chosen,
    *,
    max_seconds: float = math.inf,
    learning_rate: float = 1e-3,
    epochs: int = 1000,
    patience: int = 1000,
    images: Images | str | Path | None = None,
    keep: Path | None = None,
    resume: bool | None = False,
    progress: Progress = silent,
    **how: Any,
) -> Tuned:
    """Train the same architecture from random weights for `max_seconds`: the control that shows what transfer is worth.

    All layers train on the same images, and the best weights on validation are kept. `max_seconds` does not count the
    first step, which compiles. keep: the file that holds how far training has come, written after every epoch.
    resume: continue from that file; None: if it belongs to this training.
    """
    fixed = {"learning_rate": learning_rate, "epochs": epochs, "patience": patience, "max_seconds": max_seconds}
    recipe = recipe_of(chosen, **{"schedule": "constant", "warmup": 0.0, **how, **fixed, "unfreeze": "all"})
    probe = Probe.open(chosen, images)
    check_constructor(probe)
    return train_from_scratch(probe, recipe, keep, resume, progress)


def check_constructor(probe: Probe) -> None:
    """Raise UsageError unless the network can be built with random weights."""
    spec = probe.taps[0].backbone
    if spec.origin != "registry":
        raise UsageError(
            "Training from scratch (`controls='scratch'`) takes a network of Keras by its name, such as mobilenet_v2; "
            f"'{spec.name}' comes with its weights. Leave it out"
        )


def train_from_scratch(
    probe: Probe, recipe: Recipe, keep: Path | None, resume: bool | None, progress: Progress
) -> Tuned:
    """Train as `from_scratch` does, on the images of an opened trial."""
    train_set, val_set = image_sets(probe, recipe)
    chosen, tap = probe.chosen, probe.taps[0]
    backbone = build(replace(tap.backbone, weights="none", seed=recipe.seed), tap.preprocess.size, tap.pooling)
    with reproducibly(recipe.seed):
        model = assemble([ModelPart(backbone, (tap,))], None, len(chosen.run.classes))
    backbone.network.trainable = True  # not through `model`: it is trainable already, and Keras would not look inside
    # Keras' momentum of up to 0.999 needs thousands of steps. A short training would be scored with the statistics that
    # it started from.
    for layer in all_layers(backbone.network):
        if hasattr(layer, "momentum"):
            layer.momentum = min(layer.momentum, 0.9)
    logits = logits_of(model)
    all_weights = RateGroup("all", tuple(logits.trainable_weights), recipe.learning_rate)
    task = TrainingTask(logits, [all_weights], train_set, val_set, logits.weights, name="train scratch")
    state = None
    if keep is not None:
        task.facts = probe.facts | {"scratch": recipe.to_json()}
        task.keep = lambda reached: reached.save(keep)
        state = TrainingState.find(keep, task.facts, resume)
    trained = train(task, recipe, progress, state)
    return Tuned(
        model=model,
        path=None,
        history=trained.history,
        best=trained.best,
        certificate=None,
        num_trainable=backbone.network.count_params(),
        seconds=sum(epoch.seconds for epoch in trained.history),
        stopped=trained.stopped,
        chosen=chosen,
        val_logits=trained.val_logits,
    )
