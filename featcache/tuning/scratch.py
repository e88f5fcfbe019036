"""The same architecture from random weights: the control for what transfer is worth."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from featcache.backbones.build import build, reproducibly
from featcache.backbones.noise import all_layers
from featcache.images.manifest import Images
from featcache.models import Probe
from featcache.models.assemble import Part, assemble, logits_of
from featcache.spec import Progress, silent
from featcache.sweeps import Chosen
from featcache.tuning.data import image_sets
from featcache.tuning.optimizing import Group
from featcache.tuning.recipe import Recipe, recipe_of
from featcache.tuning.state import State
from featcache.tuning.train import Task, train
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
    """Train the same architecture from random weights for `max_seconds`: the control for what transfer is worth.

    keep: where to write how far it has come, after every epoch. resume: go on from there; None: if it is of this
    training. All layers train on the same images; the best weights on validation are kept. `max_seconds` does not count
    the first step, which compiles. Moving statistics of batch normalisation follow within tens of steps (momentum at
    most 0.9): with Keras' defaults of up to 0.999 a short training would be judged with those it started from.
    """
    fixed = {"learning_rate": learning_rate, "epochs": epochs, "patience": patience, "max_seconds": max_seconds}
    recipe = recipe_of(chosen, **{"schedule": "constant", "warmup": 0.0, **how, **fixed, "unfreeze": "all"})
    return train_from_scratch(Probe.open(chosen, images), recipe, keep, resume, progress)


def train_from_scratch(
    probe: Probe, recipe: Recipe, keep: Path | None, resume: bool | None, progress: Progress
) -> Tuned:
    """Train as `from_scratch` does, on the images of an opened trial."""
    train_set, val_set = image_sets(probe, recipe)
    chosen, tap = probe.chosen, probe.taps[0]
    backbone = build(replace(tap.backbone, weights="none", seed=recipe.seed), tap.preprocess.size, tap.pooling)
    with reproducibly(recipe.seed):
        model = assemble([Part(backbone, (tap,))], None, len(chosen.run.classes))
    backbone.network.trainable = True  # not through `model`: already trainable itself, Keras would not look inside
    for layer in all_layers(backbone.network):
        if hasattr(layer, "momentum"):
            layer.momentum = min(layer.momentum, 0.9)
    logits = logits_of(model)
    everything = Group("all", tuple(logits.trainable_weights), recipe.learning_rate)
    task = Task(logits, [everything], train_set, val_set, logits.weights, name="train scratch")
    state = None
    if keep is not None:
        task.facts = probe.facts | {"scratch": recipe.to_json()}
        task.keep = lambda reached: reached.save(keep)
        state = State.find(keep, task.facts, resume)
    trained = train(task, recipe, progress, state)
    return Tuned(
        model=model,
        path=None,
        history=trained.history,
        best=trained.best,
        certificate=None,
        num_trainable=backbone.network.count_params(),
        seconds=sum(one.seconds for one in trained.history),
        stopped=trained.stopped,
        chosen=chosen,
        val_logits=trained.val_logits,
    )
