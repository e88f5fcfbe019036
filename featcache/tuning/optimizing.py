"""The optimizer of a model, with a learning rate for the head and one for each block of the backbone.

The head trains at `head_lr`, the last block at `learning_rate`, every block before it at `lr_decay` times the rate of
the block after it (Howard and Ruder 2018, https://arxiv.org/abs/1801.06146, who also unfreeze gradually). At step t of
T, the rate is

    rate * min((t + 1) / W, 1) * (1 + cos(pi * max(t - W, 0) / (T - W))) / 2

with W steps of warm-up. A block that begins later counts t and T from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.backbones.blocks import block_names
from featcache.models.assemble import backbones_of
from featcache.tuning.stages import is_gradual
from featcache.tuning.training_recipe import Recipe

HEAD = "head"
MOMENTUM = 0.9
BEGUN = 0.5  # share of all steps after which the first block trains, too, if blocks unfreeze gradually


@dataclass(frozen=True)
class RateGroup:
    """Weights that train at one rate."""

    name: str  # of the block, or "head"
    weights: tuple[Any, ...]
    rate: float
    begins: float = 0.0  # share of all steps before which it does not train


def groups(model: Any, recipe: Recipe) -> list[RateGroup]:
    """Return the trainable weights of a whole model, the head first, then blocks from the last to the first."""
    networks = backbones_of(model)
    # Several backbones side by side: their blocks at the same distance from the head train at the same rate.
    weights_by_block: dict[tuple[int, str], list[Any]] = {}  # by (distance from the head, name of the block)
    for network in networks:
        block_of_layer = block_names([layer.name for layer in network.layers])
        last_to_first = list(dict.fromkeys(block_of_layer))[::-1]
        for layer, block in zip(network.layers, block_of_layer, strict=True):
            if layer.trainable_weights:
                weights_by_block.setdefault((last_to_first.index(block), block), []).extend(layer.trainable_weights)

    in_backbones = {id(weight) for network in networks for weight in network.trainable_weights}
    head = tuple(weight for weight in model.trainable_weights if id(weight) not in in_backbones)
    rate_groups = [RateGroup(HEAD, head, recipe.head_lr or recipe.learning_rate)]
    furthest = max((distance for distance, _ in weights_by_block), default=0) or 1
    for distance, block in sorted(weights_by_block, key=_distance):
        begins = BEGUN * distance / furthest if is_gradual(recipe.unfreeze) else 0.0
        rate = recipe.learning_rate * recipe.lr_decay**distance
        rate_groups.append(RateGroup(block, tuple(weights_by_block[distance, block]), rate, begins))
    return rate_groups


def _distance(block: tuple[int, str]) -> int:
    return block[0]


def make_optimizer(rate_groups: Sequence[RateGroup], recipe: Recipe, steps: int) -> Any:
    """Return the Keras optimizer of these weights; several rates are several optimizers in one. steps: in all."""
    import keras

    by_rate: dict[tuple[float, float], Any] = {}
    by_weight: dict[int, Any] = {}
    for group in rate_groups:
        rate = group.rate, group.begins
        if rate not in by_rate:
            by_rate[rate] = _optimizer(recipe, _schedule(recipe, group, steps))
        for weight in group.weights:
            by_weight[id(weight)] = by_rate[rate]
    if len(by_rate) == 1:
        optimizer = next(iter(by_rate.values()))
    else:
        optimizer = keras.optimizers.MultiOptimizer(lambda weight: by_weight[id(weight)])
    # Gradients in float16 underflow unless the loss is scaled up; bfloat16 has the range of float32.
    return keras.optimizers.LossScaleOptimizer(optimizer) if recipe.precision == "float16" else optimizer


def rate_at(group: RateGroup, recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a group at a step from 0, as `make_optimizer` sets it."""
    return float(_rate(np, recipe, group, float(step), steps))


def _rate(xp: Any, recipe: Recipe, group: RateGroup, step: Any, steps: int) -> Any:
    """Return the rate at a step. xp: numpy, or keras.ops inside the compiled training step."""
    begins = group.begins * steps
    warmup = max(1.0, recipe.warmup * steps)
    progress = xp.clip((step - begins - warmup) / max(1.0, steps - begins - warmup), 0.0, 1.0)
    decay = (1 + xp.cos(np.pi * progress)) / 2 if recipe.schedule == "cosine" else 1.0
    # A block that begins later needs this factor without warm-up, too: it is 0 before the block begins.
    rise = xp.clip((step - begins + 1) / warmup, 0.0, 1.0) if recipe.warmup or begins else 1.0
    return group.rate * rise * decay


def _schedule(recipe: Recipe, group: RateGroup, steps: int) -> Any:
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

    optimizers = keras.optimizers
    if recipe.optimizer == "adagrad":
        # Its squared gradients are summed from 0: from Keras' 0.1, steps would be 300 times as small.
        return optimizers.Adagrad(rate, initial_accumulator_value=0.0, global_clipnorm=recipe.clip)
    if recipe.optimizer == "adam":
        return optimizers.Adam(rate, global_clipnorm=recipe.clip)
    if recipe.optimizer == "rmsprop":
        return optimizers.RMSprop(rate, global_clipnorm=recipe.clip)
    if recipe.optimizer == "sgd":
        momentum = MOMENTUM if recipe.momentum is None else recipe.momentum
        optimizer = optimizers.SGD(
            rate,
            momentum,
            nesterov=momentum > 0,
            weight_decay=recipe.weight_decay or None,
            global_clipnorm=recipe.clip,
        )
    else:
        optimizer = optimizers.AdamW(rate, weight_decay=recipe.weight_decay, global_clipnorm=recipe.clip)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
