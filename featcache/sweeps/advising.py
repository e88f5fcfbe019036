"""Which of the four cases of transfer learning this is, and what to do: small or large, similar or different.

The four cases are those of Stanford's CS231n notes on transfer learning (https://cs231n.github.io/transfer-learning/).
They are decided by numbers: images per class; and for every tap the accuracy of ridge when each training image is left
out once, in closed form (of each group, and of copies, one image: others would give its class away). If a layer before
the last separates the classes better, what the network learned last is not what these images need, so they are
different from those it was trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np

from featcache.arrays import Classes, Features
from featcache.cache.reader import Cache
from featcache.errors import TooFewClasses, UsageError
from featcache.heads.folds import Fold
from featcache.heads.solvers.paths import try_all, try_leave_one_out
from featcache.spec import Progress, Tick, silent
from featcache.sweeps.metrics import wilson
from featcache.sweeps.run import Settings, by_depth, few_of, free_folder
from featcache.sweeps.tasks import images_of, make_task, one_of_each_unit
from featcache.sweeps.unseen import why_not_left_out

LARGE = 200  # training images per class, in the median, from which fine-tuning the whole network pays
SIMILAR = 0.7  # of the way from chance to perfect: with one tap only, all there is to go by
ALPHAS = tuple({"alpha": float(10**power)} for power in (5, 4, 3, 2, 1, 0))
MOST_IMAGES = 5_000  # that are used, as many of each class
MIN_ALONE = 2  # images of a class that can be left out
Z = 1.959964


@dataclass(frozen=True)
class Depth:
    """How well one tap separates the classes."""

    tap: str
    width: int
    left_out: float  # accuracy of ridge on training images that it was not fitted on
    interval: tuple[float, float]
    fitted: float  # accuracy on those it was fitted on
    alpha: float

    @property
    def gap(self) -> float:
        """Return how much better it is on what it was fitted on."""
        return self.fitted - self.left_out


@dataclass(frozen=True)
class Advice:
    """The case, the numbers that say so, and what to do."""

    cache: Path
    classes: int
    images: int  # of train
    least: int  # training images of the smallest class
    median: float  # and of the class in the middle
    chance: float  # accuracy of always saying the largest class
    curve: tuple[Depth, ...]
    best: str  # the tap that separates best, the last one of those that cannot be told apart
    large: bool
    similar: bool
    why: tuple[str, ...]
    do: tuple[str, ...]
    commands: tuple[str, ...]

    @property
    def case(self) -> str:
        """Return the case.

        >>> Advice(Path(), 2, 9, 4, 4.5, 0.5, (), "", False, True, (), (), ()).case
        'small and similar'
        """
        return f"{'large' if self.large else 'small'} and {'similar' if self.similar else 'different'}"


def advise(cache: Cache | str | Path, *, progress: Progress = silent) -> Advice:
    """Return which case of transfer learning the training images of a cache are.

    A tap whose backbone these images trained is not looked at. Raises TooFewClasses, UsageError if no tap is left.
    """
    cache = cache if isinstance(cache, Cache) else Cache.open(cache)
    if not cache.vectors:
        raise UsageError(f"{cache.path} has no vectors, only spatial maps or unfinished taps. Extract with --pool avg")
    for note in cache.incomplete:
        progress(Tick("advise", 0, 0, note))
    labelled = [row for row in cache.usable("train") if row.label]
    reasons = {tap: why_not_left_out(cache, labelled, tap) for tap in cache.vectors}
    left_out = [reason for reason in reasons.values() if reason]  # what the numbers are not about, and why
    taps = tuple(tap for tap, reason in reasons.items() if not reason)
    if not taps:
        raise UsageError(
            f"{left_out[0]}. Ask about features of a backbone that these images did not train: featcache extract"
        )
    asked = Settings(str(cache.path), ("ridge",), taps, cv="loo")
    train, _ = images_of(cache, asked)
    counts = Counter(row.label for row in train)
    alone = one_of_each_unit(train)
    alone_counts = Counter(row.label for row in alone)
    rare = [name for name in counts if alone_counts[name] < MIN_ALONE]
    if len(counts) - len(rare) < 2:
        raise TooFewClasses(
            f"Advice needs two classes with {MIN_ALONE} training images each that are in different groups and no "
            f"copies; '{min(rare)}' of {cache.path} has {alone_counts[min(rare)]}. Add images"
        )
    # No head could name such a class once its image is left out.
    alone = [row for row in alone if row.label not in rare]
    if rare:
        left_out.append(
            f"{len(rare)} of {len(counts)} classes have too few training images to leave one out, such as "
            f"'{min(rare)}', so these numbers are about the others"
        )
    depths, right = [], dict[str, Classes]()
    progress(Tick("advise", 0, len(taps)))
    for number, tap in enumerate(by_depth(cache, taps), 1):
        task = make_task(cache, tap, alone, [], asked)
        rows = few_of(task.y, max(2, MOST_IMAGES // len(counts)), 0)
        depth, right[tap] = _depth(tap, task.X[rows], task.y[rows])
        depths.append(depth)
        progress(Tick("advise", number, len(taps)))
    chance = max(Counter(row.label for row in alone).values()) / len(alone)
    best, similar, why = _similarity(cache, depths, right, chance)
    median = float(np.median(list(counts.values())))
    large = median >= LARGE
    size = f"{median:g} training images per class in the median: {'at least' if large else 'fewer than'} {LARGE}, "
    return Advice(
        cache=cache.path,
        classes=len(counts),
        images=len(train),
        least=min(counts.values()),
        median=median,
        chance=chance,
        curve=tuple(depths),
        best=best.tap,
        large=large,
        similar=similar,
        why=(f"{size}so {'large' if large else 'small'}", why, _on_the_gap(best), *left_out),
        do=_DO[large, similar],
        commands=_commands(cache, best, large, similar),
    )


def _depth(tap: str, X: Features, y: Classes) -> tuple[Depth, Classes]:
    """Return how well a tap separates, and of which images ridge is right when they are left out."""
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(X)
    tried = try_leave_one_out("ridge", ALPHAS, scaled, y)
    right = [(one.predicted == y).mean() for one in tried]
    at = int(np.argmax(right))  # of equal ones the first, the most regularised
    [fitted] = try_all("ridge", ALPHAS[at : at + 1], Fold(scaled, y, scaled, keep=False))
    hits = np.asarray(tried[at].predicted == y)
    value, low, high = wilson(int(hits.sum()), len(hits))
    seen = float((fitted.predicted == y).mean())
    return Depth(tap, X.shape[1], value, (low, high), seen, ALPHAS[at]["alpha"]), hits.astype(np.int64)


def _similarity(
    cache: Cache, depths: Sequence[Depth], right: dict[str, Classes], chance: float
) -> tuple[Depth, bool, str]:
    """Return the tap to use, whether the images are like those the network was trained on, and the numbers."""
    top = max(depths, key=lambda one: one.left_out)
    backbone = cache.taps[top.tap].backbone
    curve = [one for one in depths if cache.taps[one.tap].backbone == backbone]
    last = curve[-1]
    if len(curve) == 1:
        share = (last.left_out - chance) / (1 - chance) if chance < 1 else 0.0
        similar = share >= SIMILAR
        return (
            last,
            similar,
            (
                f"one tap only, which gets {last.left_out:.3f}, {share:.0%} of the way from chance ({chance:.3f}): "
                f"{'at least' if similar else 'less than'} {SIMILAR:.0%}, so {'similar' if similar else 'different'}; "
                "extract --tap auto shows at which depth the classes separate best"
            ),
        )
    apart = right[top.tap] - right[last.tap]
    error = float(apart.std(ddof=1) / np.sqrt(len(apart)))
    if apart.mean() <= Z * error:
        return (
            last,
            True,
            (
                f"the last layer gets {last.left_out:.3f}, and none before it is better beyond chance "
                f"(best: {top.tap}, {top.left_out:.3f}), so similar"
            ),
        )
    return (
        top,
        False,
        (
            f"{top.tap} gets {top.left_out:.3f}, better than the last layer with {last.left_out:.3f} "
            f"(difference {apart.mean():.3f} +- {Z * error:.3f}), so different"
        ),
    )


def _on_the_gap(best: Depth) -> str:
    return (
        f"ridge on {best.tap} gets {best.fitted:.3f} of what it was fitted on and {best.left_out:.3f} of what was left "
        f"out: a gap of {best.gap:.3f}"
        + (", so more images, or more regularisation, would help" if best.gap > 0.1 else "")
    )


_DO: dict[tuple[bool, bool], tuple[str, ...]] = {
    (False, True): (
        "Train a linear head on the last layer; that is most of what can be had.",
        "Fine-tuning can overfit: at most the last block, at a small learning rate, and only if validation agrees.",
    ),
    (True, True): (
        "Train a head on the last layer, then fine-tune the network from it; there are images enough for that.",
    ),
    (False, False): (
        "Train a linear head on the layer that separates best; later ones are about other images.",
        "Do not fine-tune much: there are few images for it.",
    ),
    (True, False): (
        "Fine-tune the whole network from the best head: it is a better start than random weights.",
        "Compare with training from scratch, which may do as well with so many images.",
    ),
}


def _commands(cache: Cache, best: Depth, large: bool, similar: bool) -> tuple[str, ...]:
    run = free_folder(cache.path.with_suffix(".run"))
    sweep = f"featcache sweep {quote(str(cache.path))} --tap {quote(best.tap)} -o {quote(str(run))}"
    if not large:
        return (f"{sweep} --heads ridge,lda,logreg,svm --cv 5",)
    finetune = f"featcache finetune {quote(f'{run}@best')} -o model.keras --unfreeze"
    return (sweep, f"{finetune} {'last' if similar else 'all'}")
