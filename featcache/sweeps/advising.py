"""Which of the four cases of transfer learning this is, and what to do: small or large, similar or different.

The four cases come from Stanford's CS231n notes on transfer learning (https://cs231n.github.io/transfer-learning/).
Two numbers decide: images per class; and for every tap the accuracy of ridge when each training image is left out
once, in closed form (one image of each group, and one of all copies: the others would give its class away). If a layer
before the last separates the classes better, then what the network learned last is not what these images need: they
differ from those it was trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np

from featcache.arrays import Classes, Features
from featcache.backbones.inventory import stored_backbones
from featcache.cache.reader import Cache
from featcache.errors import TooFewClasses, UsageError
from featcache.spec import ImageRow, Progress, Tick, silent
from featcache.sweeps.choosing import images_of, one_of_each_unit
from featcache.sweeps.inputs import by_depth, few_of
from featcache.sweeps.left_out import left_out
from featcache.sweeps.metrics import wilson
from featcache.sweeps.run import Settings
from featcache.sweeps.run_paths import free_folder
from featcache.sweeps.selection import LOO
from featcache.sweeps.tap_data import make_tap_data
from featcache.sweeps.unseen import why_not_left_out

LARGE = 200  # training images per class, in the median, from which fine-tuning the whole network pays
SIMILAR = 0.7  # of the way from chance to perfect: what decides if there is a single tap
MOST_IMAGES = 5_000  # that are used, an equal number of each class
MIN_ALONE = 2  # images of a class that can be left out
LARGE_GAP = 0.1  # between accuracy on fitted and on left-out images
Z = 1.959964

DO: dict[tuple[bool, bool], tuple[str, ...]] = {  # (large, similar)
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
        "Compare with training from scratch, which may do as well with this many images.",
    ),
}


@dataclass(frozen=True)
class TapAccuracy:
    """How well one tap separates the classes."""

    tap: str
    width: int
    left_out: float  # accuracy of ridge on training images that it was not fitted on
    interval: tuple[float, float]
    fitted: float  # accuracy on those it was fitted on
    alpha: float

    @property
    def gap(self) -> float:
        """Return how much better it is on the images it was fitted on."""
        return self.fitted - self.left_out


@dataclass(frozen=True)
class Advice:
    """The case, the numbers that decide it, and what to do."""

    cache: Path
    classes: int
    images: int  # of train
    least: int  # training images of the smallest class
    median: float  # training images of the class in the middle
    chance: float  # accuracy of always predicting the largest class
    curve: tuple[TapAccuracy, ...]
    best: str  # the tap that separates best; of several that cannot be told apart the last
    large: bool
    similar: bool
    why: tuple[str, ...]
    do: tuple[str, ...]
    commands: tuple[str, ...]
    joined: TapAccuracy | None = None  # taps of two backbones beside one another; None if there is nothing to join

    @property
    def case(self) -> str:
        """Return the case.

        >>> Advice(Path(), 2, 9, 4, 4.5, 0.5, (), "", False, True, (), (), ()).case
        'small and similar'
        """
        size = "large" if self.large else "small"
        return f"{size} and {'similar' if self.similar else 'different'}"


def advise(cache: Cache | str | Path, *, progress: Progress = silent) -> Advice:
    """Return which case of transfer learning the training images of a cache are.

    Taps whose backbone these images trained are left out. Raises TooFewClasses, UsageError if no tap is left.
    """
    cache = cache if isinstance(cache, Cache) else Cache.open(cache)
    if not cache.vectors:
        content = "no vectors, only spatial maps or unfinished taps"
        raise UsageError(f"{cache.path} has {content}. Extract with `pool='avg'`")
    for note in cache.incomplete:
        progress(Tick("advise", 0, 0, note))
    taps, exclusions = _sound_taps(cache)
    settings = Settings(str(cache.path), ("ridge",), taps, cv=LOO)
    train, _ = images_of(cache, settings)
    counts = Counter(row.label for row in train)
    alone, note = _left_out_alone(cache, train)
    if note:
        exclusions.append(note)

    def accuracy_of(tap: str) -> tuple[TapAccuracy, Classes]:
        data = make_tap_data(cache, tap, alone, [], settings)
        rows = few_of(data.y, max(2, MOST_IMAGES // len(counts)), 0)
        return _tap_accuracy(tap, data.X[rows], data.y[rows])

    progress(Tick("advise", 0, len(taps)))
    curve = []
    hits: dict[str, Classes] = {}  # {tap: 1 for each image that ridge gets right when it is left out}
    for number, tap in enumerate(by_depth(cache, taps), 1):
        accuracy, hits[tap] = accuracy_of(tap)
        curve.append(accuracy)
        progress(Tick("advise", number, len(taps)))

    chance = max(Counter(row.label for row in alone).values()) / len(alone)
    best, similar, why_similar = _similarity(cache, curve, hits, chance)
    median = float(np.median(list(counts.values())))
    large = median >= LARGE
    why_large = f"{median:g} training images per class in the median: "
    why_large += f"at least {LARGE}, so large" if large else f"fewer than {LARGE}, so small"
    joined = None
    other = _tap_to_join(cache, curve, best)
    # With many images a second backbone helps less, and ridge on this many features would take long.
    if other and not large:
        joined, _ = accuracy_of(f"{best.tap}+{other}")
    if other:
        exclusions.insert(0, _on_joining(best, other, joined))
    return Advice(
        cache=cache.path,
        classes=len(counts),
        images=len(train),
        least=min(counts.values()),
        median=median,
        chance=chance,
        curve=tuple(curve),
        best=best.tap,
        large=large,
        similar=similar,
        why=(why_large, why_similar, _on_the_gap(best), *exclusions),
        do=(*DO[large, similar], *_second_backbone(cache, best, large)),
        commands=_commands(cache, best, joined, large, similar),
        joined=joined,
    )


def _sound_taps(cache: Cache) -> tuple[tuple[str, ...], list[str]]:
    """Return the taps on which leaving images out means something, and why it does not on the others.

    Raises UsageError if there is none.
    """
    labelled = [row for row in cache.usable("train") if row.label]
    taps, reasons = [], []
    for tap in cache.vectors:
        reason = why_not_left_out(cache, labelled, tap)
        if reason:
            reasons.append(reason)
        else:
            taps.append(tap)
    if not taps:
        raise UsageError(
            f"{reasons[0]}. Ask about features of a backbone that these images did not train: "
            "featcache extract IMAGES -b BACKBONE"
        )
    return tuple(taps), reasons


def _left_out_alone(cache: Cache, train: Sequence[ImageRow]) -> tuple[list[ImageRow], str]:
    """Return one image of each group whose class has another one, and a note on classes that have none.

    Raises TooFewClasses if fewer than two classes are left.
    """
    alone = one_of_each_unit(train)
    counts = Counter(row.label for row in alone)
    classes = dict.fromkeys(row.label for row in train)
    # No head could name a class of a single image once that is left out.
    rare = [name for name in classes if counts[name] < MIN_ALONE]
    if len(classes) - len(rare) < 2:
        raise TooFewClasses(
            f"Advice needs two classes with {MIN_ALONE} training images each that are in different groups and no "
            f"copies; '{min(rare)}' of {cache.path} has {counts[min(rare)]}. Add images"
        )
    note = ""
    if rare:
        note = (
            f"{len(rare)} of {len(classes)} classes have too few training images to leave one out, such as "
            f"'{min(rare)}', so these numbers are about the others"
        )
    return [row for row in alone if row.label not in rare], note


def _tap_accuracy(tap: str, X: Features, y: Classes) -> tuple[TapAccuracy, Classes]:
    """Return how well a tap separates, and 1 for each image that ridge gets right when it is left out."""
    ridge = left_out(X, y)
    value, low, high = wilson(int(ridge.is_right.sum()), len(y))
    fitted_accuracy = float((ridge.predict(X) == y).mean())
    accuracy = TapAccuracy(tap, X.shape[1], value, (low, high), fitted_accuracy, ridge.params["alpha"])
    return accuracy, ridge.is_right.astype(np.int64)


def _similarity(
    cache: Cache, taps: Sequence[TapAccuracy], hits: dict[str, Classes], chance: float
) -> tuple[TapAccuracy, bool, str]:
    """Return the tap to use, whether the images are like those the network was trained on, and the numbers."""
    top = max(taps, key=lambda tap: tap.left_out)
    backbone = cache.taps[top.tap].backbone
    curve = [tap for tap in taps if cache.taps[tap.tap].backbone == backbone]
    last = curve[-1]
    if len(curve) == 1:
        share = (last.left_out - chance) / (1 - chance) if chance < 1 else 0.0
        similar = share >= SIMILAR
        conclusion = f"at least {SIMILAR:.0%}, so similar" if similar else f"less than {SIMILAR:.0%}, so different"
        why = (
            f"the cache has only one layer of {last.tap.rpartition('/')[0]}, which gets {last.left_out:.3f}, "
            f"{share:.0%} of the way from chance ({chance:.3f}): "
            f"{conclusion}; extract with `tap='auto'` shows at which depth the classes separate best"
        )
        return last, similar, why

    # Paired: both taps saw the same images. 1 if only the top one is right, -1 if only the last one.
    differences = hits[top.tap] - hits[last.tap]
    margin = Z * float(differences.std(ddof=1) / np.sqrt(len(differences)))
    if differences.mean() <= margin:
        why = (
            f"the last layer gets {last.left_out:.3f}, and none before it is better beyond chance "
            f"(best: {top.tap}, {top.left_out:.3f}), so similar"
        )
        return last, True, why
    why = (
        f"{top.tap} gets {top.left_out:.3f}, better than the last layer with {last.left_out:.3f} "
        f"(difference {differences.mean():.3f} +- {margin:.3f}), so different"
    )
    return top, False, why


def _on_the_gap(best: TapAccuracy) -> str:
    text = (
        f"ridge on {best.tap} gets {best.fitted:.3f} of what it was fitted on and {best.left_out:.3f} of what was left "
        f"out: a gap of {best.gap:.3f}"
    )
    if best.gap > LARGE_GAP:
        text += ", so more images, or more regularisation, would help"
    return text


def _tap_to_join(cache: Cache, taps: Sequence[TapAccuracy], best: TapAccuracy) -> str:
    """Return the best tap of another backbone that takes the same images, so that one model can have both; else ""."""

    def inputs(tap: TapAccuracy) -> object:
        return cache.taps[tap.tap].preprocess.shown

    others: list[TapAccuracy] = []
    for tap in taps:
        if cache.taps[tap.tap].backbone != cache.taps[best.tap].backbone and inputs(tap) == inputs(best):
            others.append(tap)
    if not others:
        return ""
    return max(others, key=lambda tap: tap.left_out).tap


def _on_joining(best: TapAccuracy, other: str, joined: TapAccuracy | None) -> str:
    text = f"taps of two backbones can be joined: `tap='{best.tap}+{other}'`"
    if joined is not None:
        text += f" gets {joined.left_out:.3f}, and {best.tap} alone {best.left_out:.3f}"
    return text


def _second_backbone(cache: Cache, best: TapAccuracy, large: bool) -> tuple[str, ...]:
    """Return the advice to add a backbone if images are few and there is one backbone. It names one stored here."""
    if large or len({tap.backbone for tap in cache.taps.values()}) > 1:
        return ()
    tap = cache.taps[best.tap]
    others = [name for name in stored_backbones() if name != tap.backbone.name]
    such_as = f", such as {others[0]}, whose weights are on this machine" if others else ""
    size = f"`size={tap.preprocess.size}`"  # one model takes images of one size
    return (f"With few images a second backbone often helps{such_as}: extract it with {size} into the same cache.",)


def _commands(
    cache: Cache, best: TapAccuracy, joined: TapAccuracy | None, large: bool, similar: bool
) -> tuple[str, ...]:
    run = free_folder(cache.path.with_suffix(".run"))
    taps = best.tap
    if joined is not None and joined.left_out > best.left_out:
        taps += f",{joined.tap}"  # the sweep shows whether joining is worth a second backbone
    sweep = f"featcache sweep {quote(str(cache.path))} --tap {quote(taps)} -o {quote(str(run))}"
    if not large:
        return (f"{sweep} --heads ridge,lda,logreg,svm --cv 5",)
    finetune = f"featcache finetune {quote(f'{run}@best')} -o model.keras --unfreeze"
    return (sweep, f"{finetune} {'last' if similar else 'all'}")
