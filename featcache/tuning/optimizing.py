"""The optimizer of a model: each block of the backbone and the head with a learning rate of its own.

The head trains at `head_lr`, the last block at `learning_rate`, every block before it at `lr_decay` times that of the
block after it (Howard and Ruder 2018, https://arxiv.org/abs/1801.06146, who also unfreeze gradually). Rates rise over
the first steps and fall along a cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.backbones.blocks import block_names
from featcache.models.assemble import backbones_of
from featcache.tuning.recipe import Recipe
from featcache.tuning.stages import is_gradual

HEAD = "head"
MOMENTUM = 0.9
BEGUN = 0.5  # of all steps, after which all blocks train that are unfrozen gradually


@dataclass(frozen=True)
class Group:
    """Weights that train at one rate."""

    name: str  # of the block, or "head"
    weights: tuple[Any, ...]
    rate: float
    begins: float = 0.0  # share of all steps before which it does not train


def groups(model: Any, recipe: Recipe) -> list[Group]:
    """Return the trainable weights of a whole model, the head first, then blocks from the last to the first."""
    networks = backbones_of(model)
    inside = {id(weight) for network in networks for weight in network.trainable_weights}
    head = tuple(weight for weight in model.trainable_weights if id(weight) not in inside)
    by_distance: dict[tuple[int, str], list[Any]] = {}
    for network in networks:
        names = block_names([layer.name for layer in network.layers])
        order = list(dict.fromkeys(names))[::-1]
        for layer, block in zip(network.layers, names, strict=True):
            if layer.trainable_weights:
                by_distance.setdefault((order.index(block), block), []).extend(layer.trainable_weights)
    found = [Group(HEAD, head, recipe.head_lr or recipe.learning_rate)]
    most = max((distance for distance, _ in by_distance), default=0) or 1
    for (distance, block), weights in sorted(by_distance.items(), key=lambda one: one[0]):
        begins = BEGUN * distance / most if is_gradual(recipe.unfreeze) else 0.0
        found.append(Group(block, tuple(weights), recipe.learning_rate * recipe.lr_decay**distance, begins))
    return found


def make_optimizer(found: Sequence[Group], recipe: Recipe, steps: int) -> Any:
    """Return Keras' optimizer of these weights; several rates are several optimizers in one. steps: of the training."""
    import keras

    of_rate: dict[tuple[float, float], Any] = {}
    of_weight: dict[int, Any] = {}
    for group in found:
        key = group.rate, group.begins
        if key not in of_rate:
            of_rate[key] = _optimizer(recipe, _schedule(recipe, group, steps))
        of_weight |= {id(weight): of_rate[key] for weight in group.weights}
    if len(of_rate) == 1:
        optimizer = next(iter(of_rate.values()))
    else:
        optimizer = keras.optimizers.MultiOptimizer(lambda weight: of_weight[id(weight)])
    return keras.optimizers.LossScaleOptimizer(optimizer) if recipe.precision == "float16" else optimizer


def rate_at(group: Group, recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a group at a step from 0, as `make_optimizer` sets it."""
    return float(_rate(np, recipe, group, float(step), steps))


def _rate(xp: Any, recipe: Recipe, group: Group, step: Any, steps: int) -> Any:
    begins = group.begins * steps
    rising = max(1.0, recipe.warmup * steps)
    along = xp.clip((step - begins - rising) / max(1.0, steps - begins - rising), 0.0, 1.0)
    falling = (1 + xp.cos(np.pi * along)) / 2 if recipe.schedule == "cosine" else 1.0
    risen = xp.clip((step - begins + 1) / rising, 0.0, 1.0) if recipe.warmup or begins else 1.0
    return group.rate * risen * falling


def _schedule(recipe: Recipe, group: Group, steps: int) -> Any:
    import keras

    if recipe.schedule == "constant" and not recipe.warmup and not group.begins:
        return group.rate

    class Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        """Rises, then falls along a cosine, or stays."""

        def __call__(self, step: Any) -> Any:
            return _rate(keras.ops, recipe, group, keras.ops.cast(step, "float32"), steps)

        def get_config(self) -> dict[str, Any]:
            return {}

    return Schedule()


def _optimizer(recipe: Recipe, rate: Any) -> Any:
    import keras

    kinds = keras.optimizers
    more: dict[str, Any] = {"global_clipnorm": recipe.clip}
    if recipe.optimizer == "sgd":
        decay = recipe.weight_decay or None
        momentum = MOMENTUM if recipe.momentum is None else recipe.momentum
        made = kinds.SGD(rate, momentum, nesterov=momentum > 0, weight_decay=decay, **more)
    elif recipe.optimizer == "adamw":
        made = kinds.AdamW(rate, weight_decay=recipe.weight_decay, **more)
    elif recipe.optimizer == "adagrad":  # its sums began at 0 once: begun at 0.1, steps are 300 times as small
        return kinds.Adagrad(rate, initial_accumulator_value=0.0, **more)
    else:
        return {"adam": kinds.Adam, "rmsprop": kinds.RMSprop}[recipe.optimizer](rate, **more)
    made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return made
