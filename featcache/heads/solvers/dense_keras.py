"""The steps of dense heads in Keras, on any of its backends: for accelerators, which compute a great many at once."""

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
    Knobs,
    NumpyEngine,
    Recipe,
    State,
    batch_of,
    correction,
    gradients,
    spread,
)


def on_accelerator() -> bool:
    """Tell whether Keras runs in this process already, and on more than a CPU."""
    keras = sys.modules.get("keras")
    if keras is None:
        return False
    if keras.backend.backend() == "torch":  # Keras 3.15 cannot list its devices
        return bool(import_module("torch").cuda.is_available())
    return any(not name.startswith("cpu") for name in keras.distribution.list_devices())


class KerasEngine(NumpyEngine):
    """Heads in training as tensors of Keras; a step is compiled where the backend can."""

    worth = 0.5  # with fewer heads it is compiled again

    def __init__(self, recipe: Recipe, data: Data, params: Sequence[Floats], knobs: Knobs) -> None:
        start_keras()
        import keras

        self.xp = keras.ops
        super().__init__(recipe, data, params, knobs)

    def put(self, array: Any) -> Any:
        """Return an array of NumPy as a tensor."""
        return self.xp.convert_to_tensor(array)

    def get(self, array: Any) -> Any:
        """Return a tensor as an array of NumPy."""
        return self.xp.convert_to_numpy(array)

    def step(self, rows: Classes, noise: Floats | None, fraction: float, count: int) -> None:
        """Train on rows (g, B), at this fraction of the learning rates, in step `count`, from 1."""
        factors = self.put(np.array([fraction, correction(count)], dtype=np.float32))
        drawn = None if noise is None else self.put(noise)
        step = _compiled(self.recipe.optimizer == "adamw", self.recipe.momentum, self.recipe.nesterov)
        self.state = State(*step(self.state, self.data, self.knobs, self.put(rows), drawn, factors))


@cache
def _compiled(adam: bool, momentum: float, nesterov: bool) -> Callable[..., Any]:
    """Return the function from a state and mini-batches to the next state, as three tuples."""
    from keras import backend, ops

    def step(state: State, data: Data, knobs: Knobs, rows: Any, noise: Any, factors: Any) -> Any:
        found = gradients(ops, state.params, batch_of(ops, data, rows, noise, knobs.dropout, 1.0), knobs)
        rate = knobs.learning_rate * factors[0]
        updated = []
        for at, (gradient, param, first, second) in enumerate(zip(found, *state, strict=True)):
            by = spread(ops, rate, param)
            if at % 2 == 0:
                param = param - param * spread(ops, knobs.weight_decay * rate, param)  # biases do not decay
            if adam:
                updated.append(_adam(gradient, param, first, second, by * factors[1]))
            else:
                updated.append((*_sgd(gradient, param, first, by, momentum, nesterov), second))
        return tuple(zip(*updated, strict=True))

    compilers = {"jax": ("jax", "jit"), "tensorflow": ("tensorflow", "function")}  # Keras has none for all backends
    if backend.backend() not in compilers:
        return step
    module, name = compilers[backend.backend()]
    return getattr(import_module(module), name)(step)  # type: ignore[no-any-return]


def _adam(gradient: Any, param: Any, first: Any, second: Any, rate: Any) -> tuple[Any, Any, Any]:
    first = first + (gradient - first) * (1 - BETA_1)
    second = second + (gradient * gradient - second) * (1 - BETA_2)
    return param - rate * first / (second**0.5 + EPSILON), first, second


def _sgd(gradient: Any, param: Any, first: Any, rate: Any, momentum: float, nesterov: bool) -> tuple[Any, Any]:
    first = first * momentum - gradient * rate
    return param + (first * momentum - gradient * rate if nesterov else first), first
