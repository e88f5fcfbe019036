"""Make the steps of dense heads in Keras, on any of its backends: for accelerators, which train many heads at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from featcache.arrays import Classes, Floats
from featcache.backend import start_keras
from featcache.heads.solvers.dense_steps import (
    BETA_1,
    BETA_2,
    EPSILON,
    Data,
    DenseRecipe,
    HeadTrainingState,
    Knobs,
    NumpyEngine,
    batch_of,
    correction,
    gradients,
    spread,
)

# Compilers of the backends; Keras itself offers none that serves all of them.
COMPILERS = {"jax": ("jax", "jit"), "tensorflow": ("tensorflow", "function")}


def on_accelerator() -> bool:
    """Return whether Keras already runs in this process, and on more than a CPU."""
    keras = sys.modules.get("keras")
    if keras is None:
        return False
    if keras.backend.backend() == "torch":  # Keras 3.15 cannot list its devices
        return bool(import_module("torch").cuda.is_available())
    return any(not name.startswith("cpu") for name in keras.distribution.list_devices())


class KerasHeadEngine(NumpyEngine):
    """Heads in training as Keras tensors. Each step is compiled if the backend has a compiler."""

    shrink_below = 0.5  # removing heads changes the shapes, so that the step is compiled again

    def __init__(self, recipe: DenseRecipe, data: Data, params: Sequence[Floats], knobs: Knobs) -> None:
        start_keras()
        import keras

        self.xp = keras.ops
        super().__init__(recipe, data, params, knobs)

    def put(self, array: Any) -> Any:
        """Return a NumPy array as a tensor."""
        return self.xp.convert_to_tensor(array)

    def get(self, array: Any) -> Any:
        """Return a tensor as a NumPy array."""
        return self.xp.convert_to_numpy(array)

    def step(self, rows: Classes, noise: Floats | None, fraction: float, count: int) -> None:
        """Train on rows (g, B), at this fraction of the learning rates, in step `count`, from 1."""
        # What changes from step to step is passed as a tensor: a Python number would compile the step again.
        factors = self.put(np.array([fraction, correction(count)], dtype=np.float32))
        noise_tensor = None if noise is None else self.put(noise)
        is_adam = self.recipe.optimizer == "adamw"
        step = _compiled_step(is_adam, self.recipe.momentum, self.recipe.nesterov)
        parts = step(self.state, self.data, self.knobs, self.put(rows), noise_tensor, factors)
        self.state = HeadTrainingState(*parts)


@cache
def _compiled_step(adam: bool, momentum: float, nesterov: bool) -> Callable[..., Any]:
    """Return the function from a state and mini-batches to the parts of the next state."""
    from keras import backend, ops

    def step(state: HeadTrainingState, data: Data, knobs: Knobs, rows: Any, noise: Any, factors: Any) -> Any:
        # Not in place, since tensors do not change: each parameter gives (param, first, second) of the next state.
        batch = batch_of(ops, data, rows, noise, knobs.dropout, 1.0)
        by_param = gradients(ops, state.params, batch, knobs)
        rate = knobs.learning_rate * factors[0]
        updated = []
        for at, (gradient, param, first, second) in enumerate(zip(by_param, *state, strict=True)):
            rate_of_param = spread(ops, rate, param)
            is_kernel = at % 2 == 0
            if is_kernel:  # biases do not decay
                param = param - param * spread(ops, knobs.weight_decay * rate, param)
            if adam:
                updated.append(_adam(gradient, param, first, second, rate_of_param * factors[1]))
            else:
                moved, velocity = _sgd(gradient, param, first, rate_of_param, momentum, nesterov)
                updated.append((moved, velocity, second))
        return tuple(zip(*updated, strict=True))

    if backend.backend() not in COMPILERS:
        return step
    module, name = COMPILERS[backend.backend()]
    return getattr(import_module(module), name)(step)  # type: ignore[no-any-return]


def _adam(gradient: Any, param: Any, first: Any, second: Any, rate: Any) -> tuple[Any, Any, Any]:
    first = first + (gradient - first) * (1 - BETA_1)
    second = second + (gradient * gradient - second) * (1 - BETA_2)
    return param - rate * first / (second**0.5 + EPSILON), first, second


def _sgd(gradient: Any, param: Any, first: Any, rate: Any, momentum: float, nesterov: bool) -> tuple[Any, Any]:
    first = first * momentum - gradient * rate
    if nesterov:
        return param + (first * momentum - gradient * rate), first
    return param + first, first
