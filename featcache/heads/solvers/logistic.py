"""Logistic regression of many strengths at once: what scikit-learn's converges to, in a fraction of its time.

turned     The penalty is the same along any axes, and nothing is learned outside the span of the rows: the solution is
           sought along the principal axes of the features, min(N, D) at most.
descended  Along these axes the Hessian is nearly diagonal, p (1 - p) lambda + 1 / C (after Boehning 1992), so that few
           steps of preconditioned conjugate gradients do. Many strengths step together: large products are quick.
begun      Every hundredfold strength begins where the one below ended, the others between those on either side. So what
           comes of a strength hardly depends on which others are asked for, even where the solution is far away.

Two classes are solved as K = 2 with half the strength, which is the same problem: w = w_1 - w_0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featcache.arrays import Classes, Floats

SINGLE = (
    1e-5  # norm of the gradient from which float32 does: what rounding leaves of the gradient is below a tenth of it
)
STRICTER = 10  # than the tolerance: with weak penalties little is left of the gradient long before the end
LEAST_TOL = 1e-12  # what rounding leaves in float64
LEAST_SQUARE = 1e-12  # of the largest: axes with less are rounding
LADDER = tuple(10.0**power for power in range(-17, 16, 2))  # solved on the way up, whatever strengths are asked for
EASY = 1e-3  # strength that needs no step of the ladder below
APART = (10.0, 10**0.5, 1.0)  # then strengths so many times apart are solved, and those between
LEFT = 1e-4  # of the objective: where classes come apart little is left of the gradient long before the end
REFRESH = 3  # steps that a preconditioner serves
FLATTEST = 0.02  # of its value at zero: p (1 - p) of a class, which vanishes as classes come apart
SLOPE_LEFT = 0.5  # of the slope, at which a line search ends
LINE = 20  # tries of a line search
ROOM = 2**24  # numbers in a batch of strengths, or as many as the features have
ARRAYS = 8  # that a batch has of the size of its logits
BLOCK = 2048  # rows in float64 at once


@dataclass(frozen=True)
class Solution:
    """One strength. Where it has not converged, `iterations` are as many as there may be."""

    coef: Floats  # (K, D), or (1, D) of two classes
    intercept: Floats  # (K,) of mean zero, or (1,)
    iterations: int
    converged: bool


def logistic_path(
    X: Floats,
    index: Classes,
    strengths: Sequence[float],
    sample_weight: Floats | None = None,
    max_iter: int = 1000,
    tol: float = 1e-4,
) -> list[Solution]:
    """Return the solution of every strength C: of sum_i s_i loss_i + |W|^2 / 2C the least. Arrays have the type of X.

    X: (N, D), standardised. index: (N,) from 0 to K - 1, each of which occurs. sample_weight: s, (N,), above 0.
    Converged is where the gradient of the mean loss has a Euclidean norm of at most a tenth of `tol` for each class;
    scikit-learn compares the largest entry of that gradient, which is no more, with `tol`.
    """
    s = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    problem = _problem(X, index, s / s.sum(), max(tol / STRICTER, LEAST_TOL))
    asked = np.asarray(strengths, np.float64)
    ladder = [one for one in LADDER if min(EASY, asked.min() / 100) < one <= asked.max()]
    order = np.unique([*asked, *ladder])
    penalties = (2 if problem.num_classes == 2 else 1) / (order * s.sum())
    B = np.zeros((problem.num_classes, len(order), len(problem.squares)), problem.features.dtype)
    iterations = np.full(len(order), max_iter)
    for known, some in _levels(order, np.isin(order, ladder)):
        begun = _between(np.log(order), B, known, some)
        for part in _parts(np.arange(len(some)), problem):
            at = some[part]
            B[:, at], iterations[at] = _descend(problem, penalties[at], begun[:, part], max_iter)
    coef: Floats = problem.unturned(B[..., :-1])
    intercept: Floats = B[..., -1] - coef @ problem.mean
    if problem.num_classes == 2:
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    coef, intercept = coef.astype(X.dtype), intercept.astype(X.dtype)
    return [
        Solution(coef[:, at], intercept[:, at], int(iterations[at]), bool(iterations[at] < max_iter))
        for at in np.searchsorted(order, asked)
    ]


@dataclass(frozen=True)
class _Problem:
    """The features along R - 1 axes, with a last one of ones for the intercept."""

    features: Floats  # (N, R)
    squares: Floats  # (R,) weighted mean squares of the features
    weights: Floats  # (N,) of sum 1
    index: Classes  # (N,)
    num_classes: int
    mean: Floats  # (D,) of what was turned
    unturned: Callable[[Floats], Floats]  # (K, S, R - 1) to (K, S, D)
    tol: float

    def probabilities(self, logits: Floats) -> Floats:
        """Return (K, S, N)."""
        found = logits - logits.max(axis=0)
        np.exp(found, out=found)
        found /= found.sum(axis=0)
        return np.asarray(found)

    def residual(self, probabilities: Floats) -> Floats:
        """Return what the mean loss changes by with each logit, (K, S, N)."""
        found = probabilities.copy()
        found[self.index, :, np.arange(len(self.index))] -= 1
        found *= self.weights
        return found


def _problem(X: Floats, index: Classes, weights: Floats, tol: float) -> _Problem:
    dtype = np.float32 if tol >= SINGLE else np.float64
    mean = weights.astype(X.dtype) @ X
    turn = _by_rows if len(X) < X.shape[1] else _by_columns
    features, squares, unturned = turn(X, mean, weights, dtype)
    squares = np.append(squares, 1).astype(dtype)
    return _Problem(features, squares, weights.astype(dtype), index, int(index.max()) + 1, mean, unturned, tol)


Turned = tuple[Floats, Floats, Callable[[Floats], Floats]]


def _by_rows(X: Floats, mean: Floats, weights: Floats, dtype: type[np.floating]) -> Turned:
    """Fewer rows than columns: the axes come from the products of rows."""
    root = np.sqrt(weights)[:, None]
    rows = root * (X - mean)
    squares, vectors = _principal(rows @ rows.T)
    features = _with_ones(len(X), len(squares), dtype)
    features[:, :-1] = vectors * np.sqrt(squares) / root
    rows, onto = rows.astype(dtype), (vectors / np.sqrt(squares)).astype(dtype)
    return features, squares, lambda B: _times(_times(B, onto.T), rows)


def _by_columns(X: Floats, mean: Floats, weights: Floats, dtype: type[np.floating]) -> Turned:
    gram = np.zeros((X.shape[1], X.shape[1]))
    for block in _blocks(len(X)):
        rows = np.sqrt(weights[block])[:, None] * (X[block] - mean)
        gram += rows.T @ rows
    squares, vectors = _principal(gram)
    features = _with_ones(len(X), len(squares), dtype)
    for block in _blocks(len(X)):
        features[block, :-1] = (X[block] - mean) @ vectors
    onto = vectors.astype(dtype)
    return features, squares, lambda B: _times(B, onto.T)


def _principal(gram: Floats) -> tuple[Floats, Floats]:
    values, vectors = np.linalg.eigh(gram)  # scipy's would hold the other threads
    kept = values > max(values[-1], 0) * LEAST_SQUARE
    return values[kept], vectors[:, kept]


def _with_ones(num_rows: int, num_axes: int, dtype: type[np.floating]) -> Floats:
    return np.ones((num_rows, num_axes + 1), dtype)


def _blocks(num_rows: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, num_rows, BLOCK))


def _levels(order: Floats, first: npt.NDArray[np.bool_]) -> Iterator[tuple[Classes, Classes]]:
    """Yield which strengths, ascending, are known, and which to solve next."""
    logs, known = np.log(order), np.zeros(len(order), bool)
    # the first one by one, each from the one below: from zero to weak penalties the way is long and ends early
    for at in np.flatnonzero(first).tolist():
        yield np.flatnonzero(known), np.array([at])
        known[at] = True
    for apart in APART:
        new = known.copy()
        for at in range(len(order)):
            new[at] |= not new.any() or np.abs(logs[at] - logs[new]).min() >= np.log(apart) * 0.99
        some = np.flatnonzero(new & ~known)
        if len(some):
            yield np.flatnonzero(known), some
        known[some] = True


def _between(logs: Floats, B: Floats, known: Classes, some: Classes) -> Floats:
    """Return where some strengths begin, (K, S, R): no loss there is above that of both neighbours, as it is convex."""
    if not len(known):
        return B[:, some]
    above = np.clip(np.searchsorted(known, some), 1, len(known) - 1) if len(known) > 1 else np.zeros(len(some), int)
    low, high = known[above - 1], known[above]
    share = np.clip((logs[some] - logs[low]) / np.where(low == high, 1, logs[high] - logs[low]), 0, 1)
    share = share.astype(B.dtype)[:, None]
    return np.asarray((1 - share) * B[:, low] + share * B[:, high])


def _parts(some: Classes, problem: _Problem) -> list[Classes]:
    one = ARRAYS * problem.num_classes * len(problem.features)
    return np.array_split(some, -(-len(some) * one // max(ROOM, problem.features.size, one)))


@dataclass
class _Batch:
    """S strengths on their way. What they have along the axes is (K, S, R), of the images (K, S, N)."""

    numbers: Classes  # (S,) among those that began
    penalty: Floats  # (S, R)
    B: Floats  # (K, S, R)
    logits: Floats  # (K, S, N)
    probabilities: Floats  # (K, S, N)
    gradient: Floats  # (K, S, R)
    scale: Floats  # (K, S, R), the preconditioner
    direction: Floats  # (K, S, R)
    decrease: Floats  # (S,) gradient' scale gradient

    def keep(self, some: Classes) -> None:
        """Let the others leave."""
        self.numbers, self.penalty, self.decrease = self.numbers[some], self.penalty[some], self.decrease[some]
        for name in ("B", "logits", "probabilities", "gradient", "scale", "direction"):
            setattr(self, name, getattr(self, name)[:, some])


def _descend(problem: _Problem, penalties: Floats, B: Floats, max_iter: int) -> tuple[Floats, Classes]:
    """Return where strengths that began at B end, (K, S, R), and after how many steps: max_iter if not converged."""
    batch = _begin(problem, penalties, B)
    found, iterations = B.copy(), np.full(len(penalties), max_iter)
    for step in range(max_iter):
        gradient = _times(problem.residual(batch.probabilities), problem.features) + batch.B * batch.penalty
        going = (_norms(problem, gradient) > problem.tol) | (_left(problem, batch, gradient) > LEFT)
        if not going.all():
            ended = batch.numbers[~going]
            found[:, ended], iterations[ended] = batch.B[:, ~going], step
            batch.keep(np.flatnonzero(going))
            gradient = gradient[:, going]
        if not going.any():
            break
        _turn_to(problem, batch, gradient, step)
        _move(problem, batch)
    found[:, batch.numbers] = batch.B
    return found, iterations


def _begin(problem: _Problem, penalties: Floats, B: Floats) -> _Batch:
    penalty = np.repeat(penalties[:, None], B.shape[2], axis=1).astype(B.dtype)
    penalty[:, -1] = 0
    logits, still = _times(B, problem.features.T), np.zeros_like(B)
    numbers, decrease = np.arange(len(penalties)), np.full(len(penalties), np.inf, B.dtype)
    return _Batch(numbers, penalty, B, logits, problem.probabilities(logits), still, still, still, decrease)


def _norms(problem: _Problem, gradient: Floats) -> Floats:
    """Return the largest norm of a class, (S,): of the gradient by coefficients of features that are not centred."""
    by_class = np.sqrt(np.einsum("ksr,ksr->ks", gradient[..., :-1], gradient[..., :-1]))
    centre, intercept = np.linalg.norm(problem.mean), np.abs(gradient[..., -1])
    return np.asarray(np.maximum(by_class + centre * intercept, intercept).max(axis=0))


def _left(problem: _Problem, batch: _Batch, gradient: Floats) -> Floats:
    """Return how far above its least the objective may be, (S,), as a share of it: half of Newton's decrement."""
    scale = 1 / (_flatness(problem, batch)[..., None] * problem.squares + batch.penalty)
    of_truth = batch.probabilities[problem.index, :, np.arange(len(problem.index))]  # (N, S)
    loss = -problem.weights @ np.log(np.maximum(of_truth, np.finfo(of_truth.dtype).tiny))
    objective = loss + _dot(batch.B * batch.penalty, batch.B) / 2
    return np.asarray(_dot(gradient * scale, gradient) / 2 / np.maximum(objective, np.finfo(loss.dtype).tiny))


def _turn_to(problem: _Problem, batch: _Batch, gradient: Floats, step: int) -> None:
    """Set the direction: conjugate to the one before, or down the scaled gradient where that is not downwards."""
    if step % REFRESH == 0:
        batch.scale = 1 / (_flatness(problem, batch)[..., None] * problem.squares + batch.penalty)
    down = batch.scale * gradient
    down -= down.mean(axis=0)  # what all classes share changes nothing
    decrease = _dot(gradient, down)
    share = np.maximum(0, (decrease - _dot(batch.gradient, down)) / batch.decrease)[:, None]
    direction = share * batch.direction - down
    upwards = _dot(gradient, direction) >= 0
    direction[:, upwards] = -down[:, upwards]
    batch.gradient, batch.direction, batch.decrease = gradient, direction, decrease


def _flatness(problem: _Problem, batch: _Batch) -> Floats:
    """Return the mean p (1 - p) of every class, (K, S)."""
    share = np.bincount(problem.index, problem.weights, problem.num_classes)
    found = (batch.probabilities * (1 - batch.probabilities)) @ problem.weights
    return np.asarray(np.maximum(found, FLATTEST * (share * (1 - share))[:, None].astype(found.dtype)))


def _move(problem: _Problem, batch: _Batch) -> None:
    """Go along the direction to where the slope is a fraction of what it was. Both rise with the way, as for Newton."""
    along = _times(batch.direction, problem.features.T)
    start, bend = (_dot(one * batch.penalty, batch.direction) for one in (batch.B, batch.direction))
    first = _dot(batch.gradient, batch.direction)
    low, high = np.zeros_like(first), np.full_like(first, np.inf)
    way = -first / _curvature(problem, batch.probabilities, along, bend)
    for _ in range(LINE):
        probabilities = problem.probabilities(batch.logits + way[:, None] * along)
        slope = _dot(problem.residual(probabilities), along) + start + way * bend
        steep = np.abs(slope) > SLOPE_LEFT * np.abs(first)
        if not steep.any():
            break
        high, low = np.where(steep & (slope > 0), way, high), np.where(steep & (slope <= 0), way, low)
        newton = way - slope / _curvature(problem, probabilities, along, bend)
        middle = np.where(np.isfinite(high), (low + np.where(np.isfinite(high), high, 0)) / 2, 2 * way)
        newton = np.where((newton > low) & (newton < high), newton, middle)
        way = np.where(steep, newton, way)
    batch.B = batch.B + way[:, None] * batch.direction
    batch.logits = batch.logits + way[:, None] * along
    batch.probabilities = probabilities


def _curvature(problem: _Problem, probabilities: Floats, along: Floats, bend: Floats) -> Floats:
    moved = probabilities * along
    mean = moved.sum(axis=0)
    found = np.einsum("ksn,ksn,n->s", moved, along, problem.weights, optimize=["einsum_path", (0, 1), (0, 1)])
    return np.asarray(np.maximum(found - mean**2 @ problem.weights + bend, np.finfo(bend.dtype).tiny))


def _times(A: Floats, M: Floats) -> Floats:
    """Return A (K, S, n) @ M (n, m) as one product."""
    return (A.reshape(A.shape[0] * A.shape[1], A.shape[2]) @ M).reshape(*A.shape[:2], M.shape[1])


def _dot(A: Floats, B: Floats) -> Floats:
    return np.asarray(np.einsum("ksn,ksn->s", A, B))
