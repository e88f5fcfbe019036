"""Minimise the losses of linear heads for many regularisation strengths at once.

For each problem (a strength, and for support vector machines a class too) the minimum over B of the convex

    F(B) = sum_i w_i loss_i(B) + penalty / 2 |B|^2

where the sample weights w have sum 1. `Loss` says which: `logistic.SoftmaxLoss` or `hinge.SquaredHingeLoss`. The method
takes a fraction of scikit-learn's time for three reasons:

- Rotation. B is sought along the principal axes of the features (see `axes`).
- Preconditioned conjugate gradients. Along principal axes the Hessian is nearly diagonal, c lambda + penalty with the
  mean curvature c of the loss (after Boehning 1992, "Multinomial logistic regression algorithm"), so few steps are
  enough. Problems step together, because one large matrix product is faster than many small ones.
- Warm starts. Strengths that are 100 times apart are solved in ascending order, each from the solution below. The
  others start between their two solved neighbours. So the result for a strength hardly depends on which others are
  requested, even where the minimum is far from zero.

Cost of one step for S problems: two products of (K S, R) with (R, N), and one pass over (K, S, N) for each try of the
line search. Shapes: N images, K scores of an image that share a loss, S problems, R axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from featcache.arrays import Classes, Floats
from featcache.heads.solvers.axes import Rotated, scores, times

# When to stop
MAX_GAP = 1e-4  # of F: where classes are separable, the gradient alone stops half-way to the minimum

# In which order strengths are solved
LADDER = tuple(10.0**power for power in range(-17, 16, 2))  # always solved first, whichever strengths are requested
EASY_STRENGTH = 1e-3  # below this a strength needs no warm start from the ladder
SPACINGS = (10.0, 10**0.5, 1.0)  # after the ladder: strengths this factor apart, then those between them

# How one step is made
PRECONDITIONER_STEPS = 3  # steps between two computations of the preconditioner
MIN_CURVATURE = 0.02  # of the mean curvature at B = 0; it may vanish where classes are separable
SLOPE_SHARE = 0.5  # the line search ends at this share of the first slope
MAX_LINE_TRIES = 20

# How much memory it takes
BATCH_NUMBERS = 2**24  # numbers in one batch of problems, or as many as the features have
ARRAYS_PER_BATCH = 8  # arrays of the size of the logits in one batch


@dataclass(frozen=True)
class Solution:
    """The solution for one strength. If it has not converged, `iterations` is `max_iter`."""

    coef: Floats  # (K, D); (1, D) for two classes
    intercept: Floats  # (K,); (1,) for two classes
    iterations: int
    converged: bool


class Loss(Protocol):
    """The mean loss of S problems over the images. Logits, states and residuals are (K, S, N)."""

    @property
    def shift_invariant(self) -> bool:
        """Return whether adding one number to all K scores of an image leaves its loss as it was."""

    def state(self, logits: Floats) -> Floats:
        """Return what the other methods need of the logits, in a new array."""

    def residual(self, state: Floats) -> Floats:
        """Return the derivative of the mean loss by each logit."""

    def value(self, state: Floats) -> Floats:
        """Return the mean loss, (S,)."""

    def mean_curvature(self, state: Floats) -> Floats:
        """Return the mean over the images of the second derivative by their logit, (K, S)."""

    def curvature_at_zero(self) -> Floats:
        """Return `mean_curvature` where all logits are 0, (K, 1) or (K, S)."""

    def curvature_along(self, state: Floats, along: Floats) -> Floats:
        """Return the second derivative of the mean loss by t, (S,), where the logits change by t along."""

    def is_steep(self, gradient: Floats) -> npt.NDArray[np.bool_]:
        """Return which problems are not at their minimum yet, (S,), by the norm of their gradients (K, S, R)."""

    def keep(self, numbers: Classes) -> Loss:
        """Return the loss of these problems alone."""


# From strengths (s,), and the points where they start (K, s, R), to their minima and the number of steps (s,)
Descend = Callable[[Floats, Floats], tuple[Floats, Classes]]


def solve_path(
    strengths: Floats, num_scores: int, rotated: Rotated, descend: Descend, *, grows: bool
) -> tuple[Floats, Classes]:
    """Return the minimum for every strength, (K, S, R) with K = num_scores, and the number of steps, (S,).

    grows: whether the minimum moves as far again each time that the strength grows by the same factor. Then strengths
    above the solved ones start where the last two point to.
    """
    # Solve the steps of the ladder too: they are the warm starts of the strengths between them.
    lowest_step = min(EASY_STRENGTH, strengths.min() / 100)
    ladder = [step for step in LADDER if lowest_step < step <= strengths.max()]
    order = np.unique([*strengths, *ladder])

    B = np.zeros((num_scores, len(order), len(rotated.variances)), rotated.features.dtype)
    iterations = np.zeros(len(order), int)
    for solved, next_up in _levels(order, np.isin(order, ladder)):
        starts = _starting_points(np.log(order), B, solved, next_up, reach=2 if grows else 1)
        for part in _memory_batches(len(next_up), num_scores, rotated):
            at = next_up[part]
            B[:, at], iterations[at] = descend(order[at], starts[:, part])
    requested = np.searchsorted(order, strengths)
    return B[:, requested], iterations[requested]


def _levels(order: Floats, on_ladder: npt.NDArray[np.bool_]) -> Iterator[tuple[Classes, Classes]]:
    """Yield which of the ascending strengths are solved so far, and which to solve next."""
    logs = np.log(order)
    solved = np.zeros(len(order), bool)
    # The ladder goes up one by one: a weak penalty's minimum is far from zero, but near that of the step below.
    for at in np.flatnonzero(on_ladder).tolist():
        yield np.flatnonzero(solved), np.array([at])
        solved[at] = True
    for factor in SPACINGS:
        least_distance = np.log(factor) * 0.99  # a little less, so that rounding does not skip a strength
        spread_out = solved.copy()
        for at in range(len(order)):
            is_first = not spread_out.any()
            if is_first or np.abs(logs[at] - logs[spread_out]).min() >= least_distance:
                spread_out[at] = True
        next_up = np.flatnonzero(spread_out & ~solved)
        if len(next_up):
            yield np.flatnonzero(solved), next_up
        solved[next_up] = True


def _starting_points(logs: Floats, B: Floats, solved: Classes, next_up: Classes, reach: float) -> Floats:
    """Return where the next strengths start, (K, len(next_up), R): between their solved neighbours, by log strength.

    The loss is convex, so at a point between two solutions it is at most the larger of theirs. reach: how far to go
    from the lower of two neighbours, where 1 is the upper one.
    """
    if not len(solved):
        return B[:, next_up]
    above = np.zeros(len(next_up), int)
    if len(solved) > 1:
        above = np.clip(np.searchsorted(solved, next_up), 1, len(solved) - 1)
    # Beyond the solved strengths both neighbours are the pair at that end.
    low = solved[above - 1]
    high = solved[above]
    distance = np.where(low == high, 1, logs[high] - logs[low])
    share = np.clip((logs[next_up] - logs[low]) / distance, 0, reach)
    share = share.astype(B.dtype)[:, None]
    return np.asarray((1 - share) * B[:, low] + share * B[:, high])


def _memory_batches(num_strengths: int, num_scores: int, rotated: Rotated) -> list[Classes]:
    """Return the positions 0..S-1 in parts whose arrays fit in BATCH_NUMBERS, or in as many numbers as the features."""
    per_strength = ARRAYS_PER_BATCH * num_scores * len(rotated.features)
    most = max(BATCH_NUMBERS, rotated.features.size, per_strength)
    num_parts = -(-num_strengths * per_strength // most)
    return np.array_split(np.arange(num_strengths), num_parts)


@dataclass
class _Batch:
    """S problems that descend together. The arrays along axes are (K, S, R), those along images (K, S, N)."""

    numbers: Classes  # (S,), positions among the problems that `descend` received
    loss: Loss
    penalty: Floats  # (S, R)
    B: Floats  # (K, S, R)
    logits: Floats  # (K, S, N)
    state: Floats  # (K, S, N), what the loss needs of the logits
    gradient: Floats  # (K, S, R)
    scale: Floats  # (K, S, R), the preconditioner: the inverse of the approximate Hessian's diagonal
    direction: Floats  # (K, S, R)
    decrease: Floats  # (S,), gradient' scale gradient

    def keep(self, numbers: Classes) -> None:
        """Drop the problems whose positions are not in `numbers`."""
        self.loss = self.loss.keep(numbers)
        for name in ("numbers", "penalty", "decrease"):
            setattr(self, name, getattr(self, name)[numbers])
        for name in ("B", "logits", "state", "gradient", "scale", "direction"):
            setattr(self, name, getattr(self, name)[:, numbers])


def descend(rotated: Rotated, loss: Loss, penalty: Floats, B: Floats, max_iter: int) -> tuple[Floats, Classes]:
    """Return the minimum reached from B for each problem, (K, S, R), and its steps: max_iter if not converged.

    penalty: (S, R), for each coefficient.
    """
    batch = _first_batch(rotated, loss, penalty, B)
    solutions = B.copy()
    iterations = np.full(len(penalty), max_iter)
    for step in range(max_iter):
        # Of the mean loss: residual' features, (K, S, N) by (N, R). Of the penalty: penalty B.
        loss_gradient = times(batch.loss.residual(batch.state), rotated.features)
        gradient = loss_gradient + batch.B * batch.penalty
        going = batch.loss.is_steep(gradient) | (_relative_gap(rotated, batch, gradient) > MAX_GAP)
        # A problem that has converged leaves, so that the rest of the batch pays nothing for it.
        if not going.all():
            ended = batch.numbers[~going]
            solutions[:, ended] = batch.B[:, ~going]
            iterations[ended] = step
            batch.keep(np.flatnonzero(going))
            gradient = gradient[:, going]
        if not going.any():
            break
        _choose_direction(rotated, batch, gradient, step)
        _line_search(rotated, batch)
    solutions[:, batch.numbers] = batch.B
    return solutions, iterations


def _first_batch(rotated: Rotated, loss: Loss, penalty: Floats, B: Floats) -> _Batch:
    logits = scores(B, rotated.features)
    zeros = np.zeros_like(B)
    return _Batch(
        numbers=np.arange(len(penalty)),
        loss=loss,
        penalty=penalty.astype(B.dtype),
        B=B,
        logits=logits,
        state=loss.state(logits),
        gradient=zeros,
        scale=zeros,
        direction=zeros,
        # Infinite, so that the first direction has no share of a direction before it.
        decrease=np.full(len(penalty), np.inf, B.dtype),
    )


def _relative_gap(rotated: Rotated, batch: _Batch, gradient: Floats) -> Floats:
    """Return how far F may be above its minimum, as a share of F, (S,).

    Newton's decrement estimates the gap: F(B) - F(minimum) ~ g' H^-1 g / 2, here with the approximate Hessian.
    """
    objective = batch.loss.value(batch.state) + dot(batch.B * batch.penalty, batch.B) / 2
    gap = dot(gradient * _inverse_hessian(rotated, batch), gradient) / 2
    return np.asarray(gap / np.maximum(objective, np.finfo(objective.dtype).tiny))


def _choose_direction(rotated: Rotated, batch: _Batch, gradient: Floats, step: int) -> None:
    """Set the direction by preconditioned conjugate gradients (Polak and Ribiere 1969, restarted at negative shares).

    With preconditioner M: d = -M g + share d_before, share = max(0, g' M (g - g_before) / (g_before' M g_before)).
    """
    # Directions stay conjugate only while their preconditioner stays the same, so it changes now and then.
    if step % PRECONDITIONER_STEPS == 0:
        batch.scale = _inverse_hessian(rotated, batch)
    scaled = batch.scale * gradient  # M g
    if batch.loss.shift_invariant:
        scaled -= scaled.mean(axis=0)
    decrease = dot(gradient, scaled)  # g' M g
    share = np.maximum(0, (decrease - dot(batch.gradient, scaled)) / batch.decrease)
    direction = share[:, None] * batch.direction - scaled
    # Where that does not go down, start again with the scaled gradient, which always does.
    upwards = dot(gradient, direction) >= 0
    direction[:, upwards] = -scaled[:, upwards]

    batch.gradient = gradient
    batch.direction = direction
    batch.decrease = decrease


def _inverse_hessian(rotated: Rotated, batch: _Batch) -> Floats:
    """Return the inverse of the approximate Hessian's diagonal, 1 / (c lambda + penalty), (K, S, R).

    c is the mean curvature over the images, at least MIN_CURVATURE of what it is at B = 0.
    """
    curvature = batch.loss.mean_curvature(batch.state)
    curvature = np.maximum(curvature, MIN_CURVATURE * batch.loss.curvature_at_zero())
    return np.asarray(1 / (curvature[..., None] * rotated.variances + batch.penalty))


def _line_search(rotated: Rotated, batch: _Batch) -> None:
    """Move along the direction to where the slope is at most SLOPE_SHARE of the first one.

    With f(t) = F(B + t d) and a = d features', the logits change by t a, and
        f'(t)  = <residual(t), a> + penalty <B, d> + t penalty <d, d>
        f''(t) = curvature of the mean loss along a + penalty <d, d>
    f is convex, so f' rises: Newton's method on f', kept inside the interval where f' changes its sign.
    """
    along = scores(batch.direction, rotated.features)  # a, (K, S, N)
    # The terms of the penalty do not depend on t, so they are computed once.
    penalty_slope = dot(batch.B * batch.penalty, batch.direction)
    penalty_bend = dot(batch.direction * batch.penalty, batch.direction)
    first_slope = dot(batch.gradient, batch.direction)

    low = np.zeros_like(first_slope)
    high = np.full_like(first_slope, np.inf)
    t = -first_slope / _bend(batch.loss, batch.state, along, penalty_bend)
    for _ in range(MAX_LINE_TRIES):
        state = batch.loss.state(batch.logits + t[:, None] * along)
        slope = dot(batch.loss.residual(state), along) + penalty_slope + t * penalty_bend
        steep = np.abs(slope) > SLOPE_SHARE * np.abs(first_slope)
        if not steep.any():
            break
        high = np.where(steep & (slope > 0), t, high)
        low = np.where(steep & (slope <= 0), t, low)
        newton = t - slope / _bend(batch.loss, state, along, penalty_bend)
        # Outside the interval Newton's step is worth nothing: halve the interval, or double t while it has no end.
        bounded = np.isfinite(high)
        middle = np.where(bounded, (low + np.where(bounded, high, 0)) / 2, 2 * t)
        inside = (newton > low) & (newton < high)
        next_t = np.where(inside, newton, middle)
        t = np.where(steep, next_t, t)
    else:
        # The last try has moved t once more.
        state = batch.loss.state(batch.logits + t[:, None] * along)
    batch.B = batch.B + t[:, None] * batch.direction
    batch.logits = batch.logits + t[:, None] * along
    batch.state = state


def _bend(loss: Loss, state: Floats, along: Floats, penalty_bend: Floats) -> Floats:
    """Return f''(t), (S,), above zero."""
    bend = loss.curvature_along(state, along) + penalty_bend
    return np.asarray(np.maximum(bend, np.finfo(bend.dtype).tiny))


def dot(A: Floats, B: Floats) -> Floats:
    """Return the inner product for each problem, (S,)."""
    return np.asarray(np.einsum("ksn,ksn->s", A, B))
